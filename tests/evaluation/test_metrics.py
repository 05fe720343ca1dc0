"""Metrics compared with cases worked by hand, with scikit-learn and SciPy, and with the library `evaluate`."""

import os
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_fscore_support

from classifier.evaluation import metrics
from classifier.evaluation.evaluate_metrics.classification import Classification
from tests.helpers.paths import ROOT

# Three classes: 2 of 3, 3 of 4 and 1 of 3 images right.
REFERENCES = [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
PREDICTIONS = [0, 0, 1, 1, 1, 1, 2, 2, 1, 0]


@pytest.fixture(scope="module")
def guesses():
    """Logits (2000, 10) that are right for about 8 of 10 images, and the labels."""
    rng = np.random.default_rng(1)
    labels = rng.integers(10, size=2000)
    return (rng.normal(0, 1, (2000, 10)) + 2.5 * np.eye(10)[labels]).astype(np.float32), labels


def test_metrics_by_hand():
    found = Classification().compute(references=REFERENCES, predictions=PREDICTIONS)
    assert found["accuracy"] == 0.6
    assert found["confusion_matrix"] == [[2, 1, 0], [0, 3, 1], [1, 1, 1]]
    precision, recall = [2 / 3, 3 / 5, 1 / 2], [2 / 3, 3 / 4, 1 / 3]
    f1 = [2 * p * r / (p + r) for p, r in zip(precision, recall, strict=True)]
    for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
        assert found[name] == pytest.approx(np.mean(values))
        assert found["per_class"][name] == pytest.approx(values)


def test_a_class_without_images_is_not_measured():
    """One of two images of class 0 is taken for class 2, which has no images."""
    found = Classification().compute(references=[0, 0, 1], predictions=[0, 2, 1], labels=[0, 1, 2])
    assert found["per_class"] == {"precision": [1, 1, None], "recall": [0.5, 1, None], "f1": [2 / 3, 1, None]}
    assert (found["precision"], found["recall"], found["f1"]) == (1, 0.75, pytest.approx(5 / 6))
    assert found["confusion_matrix"] == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("start", ["root", "elsewhere"])
@pytest.mark.parametrize(
    "metric",
    ["Classification()", "evaluate.load(sys.modules[Classification.__module__].__file__)"],
    ids=["class", "path"],
)
def test_the_script_does_not_shadow_the_library(metric, start, tmp_path):
    """With the repository first on sys.path, `import evaluate` would be the script evaluate.py."""
    code = (
        "import sys; from classifier.evaluation.evaluate_metrics.classification import Classification; "
        f"import evaluate; print(evaluate.__version__, {metric}.name)"
    )
    cwd, environment = (ROOT, {}) if start == "root" else (tmp_path, {"PYTHONPATH": str(ROOT)})
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )
    assert result.stdout.split() == [version("evaluate"), "classification"], result.stderr


def test_nll_by_hand():
    logits = np.log([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
    assert metrics.nll(logits, np.array([0, 1])) == pytest.approx(-(np.log(0.5) + np.log(0.8)) / 2)


def test_temperature_undoes_overconfidence():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 5))
    labels = np.array([rng.choice(5, p=np.exp(row)) for row in log_softmax(logits, axis=1)])
    assert metrics.fit_temperature(logits, labels) == pytest.approx(1, abs=0.03)  # labels were drawn from these
    assert metrics.fit_temperature(3 * logits, labels) == pytest.approx(3, abs=0.1)


def test_temperature_of_a_few_images_without_mistakes():
    """The NLL without smoothing is lowest at T = 0. By hand, Platt's target of 1 - 1 / 22 / 2 is the sigmoid of
    3.7612.
    """
    labels = np.arange(20) % 2
    logits = np.where(np.eye(2)[labels] > 0, 2.0, 0.0)
    assert metrics.fit_temperature(logits, labels) == pytest.approx(2 / np.log(43), rel=1e-3)


def test_temperature_is_fitted_after_merging_views():
    """Dividing the mean of probabilities differs from dividing the logits of each view."""
    rng = np.random.default_rng(0)
    views = rng.normal(0, 2, (2, 20_000, 5))
    labels = np.array([rng.choice(5, p=row) for row in softmax(views, axis=2).mean(axis=0)])
    assert metrics.fit_temperature(
        3 * views, labels, lambda each: np.log(softmax(each, axis=2).mean(axis=0))
    ) == pytest.approx(3, abs=0.1)


def test_bootstrap_interval_is_the_binomial_one():
    """For 10,000 images at 90% the standard error is 0.3 points; the interval is 1.96 of these to each side."""
    right = (np.arange(10_000) % 10 != 0).astype(float)
    low, high = metrics.bootstrap_interval(right)
    assert (low, high) == pytest.approx((0.9 - 1.96 * 0.003, 0.9 + 1.96 * 0.003), abs=6e-4)
    assert metrics.bootstrap_interval(right) == (low, high)  # the same on every run


def test_brier_by_hand(guesses):
    logits = np.log([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
    assert metrics.brier(logits, np.array([0, 2])) == pytest.approx((0.25 + 2 * 0.0625 + 0.01 + 0.64 + 0.81) / 2)
    logits, labels = guesses
    distances = softmax(logits.astype(np.float64), axis=1) - np.eye(10)[labels]
    assert metrics.brier(logits, labels) == pytest.approx((distances**2).sum(axis=1).mean(), abs=1e-12)
    sure = np.array([[0.0, 1000.0]])
    assert metrics.brier(sure, np.array([1])) == 0 and metrics.brier(sure, np.array([0])) == 2  # the bounds


def test_reliability_and_ece_by_hand():
    """Two images at 0.6, one right; two at 0.9, both right; one at 0.7, wrong."""
    top = np.array([0.6, 0.6, 0.9, 0.9, 0.7])
    logits = np.log(np.stack([top, 1 - top], axis=1))
    labels = np.array([0, 1, 0, 0, 1])
    count, confidence, accuracy = metrics.reliability(logits, labels, bins=4)
    assert count.tolist() == [0, 0, 3, 2]
    assert confidence == pytest.approx([0, 0, 1.9 / 3, 0.9]) and accuracy == pytest.approx([0, 0, 1 / 3, 1])
    assert metrics.ece(logits, labels, bins=4) == pytest.approx((1.9 - 1 + 2 * 0.1) / 5)
    assert metrics.reliability(np.zeros((1, 2)), labels[:1], bins=2).count.tolist() == [
        1,
        0,
    ]  # 0.5: a bin has its upper edge


def test_reliability_loses_no_image(guesses):
    logits, labels = guesses
    for scale in (0, 1, 1000):  # all at 1 / C, as they are, all at 1
        count, confidence, accuracy = metrics.reliability(scale * logits, labels, bins=10)
        assert count.sum() == len(labels)
        assert count @ accuracy == pytest.approx(((scale * logits).argmax(axis=1) == labels).sum())
        edges = np.arange(11) / 10
        inside = (edges[:-1] - 1e-12 <= confidence) & (confidence <= edges[1:] + 1e-12)
        assert inside[count > 0].all() and (confidence[count == 0] == 0).all()


def test_calibration_is_what_temperature_improves(guesses):
    logits, labels = guesses
    logits = 4 * logits
    calibrated = logits / metrics.fit_temperature(logits, labels)
    assert metrics.ece(logits, labels) > 2 * metrics.ece(calibrated, labels)
    assert metrics.brier(calibrated, labels) < metrics.brier(logits, labels)


def test_top_k_is_the_share_of_labels_in_the_first_k(guesses):
    logits, labels = guesses
    order = np.argsort(-logits, axis=1)
    for k in (1, 2, 5, 9):
        expected = (order[:, :k] == labels[:, None]).any(axis=1).mean()
        assert metrics.top_k_accuracy(logits, labels, k) == pytest.approx(expected, abs=1e-12)
    assert metrics.top_k_accuracy(logits, labels, 1) == (logits.argmax(axis=1) == labels).mean()


def test_top_k_breaks_ties_by_lowest_index():
    logits = np.array([[1, 2, 2, 2]] * 4)  # in order: 1, 2, 3, 0
    found = [[metrics.top_k_accuracy(logits[:1], np.array([label]), k) for k in (1, 2, 3)] for label in range(4)]
    assert found == [[0, 0, 0], [1, 1, 1], [0, 1, 1], [0, 0, 1]]


def test_measures_ignore_the_order_of_images(guesses):
    logits, labels = guesses
    order = np.random.default_rng(2).permutation(len(labels))
    other = logits[:, ::-1].copy()
    for name in ("nll", "brier", "ece"):
        found = getattr(metrics, name)
        assert found(logits[order], labels[order]) == pytest.approx(found(logits, labels), rel=1e-12)
    predicted = logits.argmax(axis=1)
    assert metrics.bootstrap(labels[order], predicted[order]) == metrics.bootstrap(labels, predicted)
    assert metrics.compare(logits[order], other[order], labels[order]) == metrics.compare(logits, other, labels)


def test_interval_of_the_mean_of_a_measure(guesses):
    logits, labels = guesses
    values = metrics.nll_per_image(logits, labels)
    mean, error = metrics.nll(logits, labels), values.std() / len(values) ** 0.5
    assert metrics.bootstrap_interval(values) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), rel=0.02)


def test_bootstrap_by_cells_is_that_by_images(guesses):
    """Against resampled images, through scikit-learn; both are random, so to a fraction of the intervals' width of 3
    points.
    """
    logits, labels = guesses
    predicted = logits.argmax(axis=1)
    rng = np.random.default_rng(3)
    drawn = []
    for _ in range(200):
        index = rng.integers(len(labels), size=len(labels))
        drawn.append(precision_recall_fscore_support(labels[index], predicted[index], average="macro")[:3])
    found = metrics.bootstrap(labels, predicted, draws=20_000)
    assert found["accuracy"] == pytest.approx(metrics.bootstrap_interval((predicted == labels).astype(float)), abs=2e-3)
    for name, samples in zip(("precision", "recall", "f1"), zip(*drawn, strict=True), strict=True):
        assert found[name] == pytest.approx(metrics.percentiles(samples), abs=5e-3)
        assert np.diff(found[name])[0] == pytest.approx(3.92 * np.std(samples), rel=0.15)


def test_bootstrap_by_hand():
    """Of the resamples of two images 1 in 4 has both right, 1 in 2 one, 1 in 4 none."""
    found = metrics.bootstrap(np.array([4, 4]), np.array([4, 2]), draws=500)
    assert found == {
        name: (0.0, 1.0 if name == "accuracy" else 0.5) for name in ("accuracy", "precision", "recall", "f1")
    }
    found = metrics.bootstrap(np.array([4, 4]), np.array([4, 2]), draws=500, num_labels=5)
    assert found["recall"] == (0.0, 0.2) and found["accuracy"] == (0.0, 1.0)
    found = metrics.bootstrap(np.tile([0, 0, 0, 1], 1000), np.zeros(4000, int))  # always the same class
    assert found["recall"] == (0.5, 0.5) and found["precision"] == pytest.approx((0.375, 0.375), abs=0.01)
    assert found["f1"] == pytest.approx((3 / 7, 3 / 7), abs=0.01)
    assert set(metrics.bootstrap(np.array([1, 0]), np.array([1, 0]), num_labels=2)["accuracy"]) == {1.0}


def test_bootstrap_is_around_the_metrics():
    references, predictions = np.tile(REFERENCES, 1000), np.tile(PREDICTIONS, 1000)
    found = Classification().compute(references=references, predictions=predictions)
    for name, (low, high) in metrics.bootstrap(references, predictions).items():
        assert low < found[name] < high and high - low < 0.025


def test_compare_by_hand():
    """Eight images: both right on three, only a on three, only b on one, neither on one, with different guesses."""
    labels = np.zeros(8, int)
    a = np.eye(3)[[0, 0, 0, 0, 0, 0, 1, 1]]
    b = np.eye(3)[[0, 0, 0, 1, 1, 1, 0, 2]]
    found = metrics.compare(a, b, labels)
    assert found["difference"] == 2 / 8 and (found["only_a_right"], found["only_b_right"]) == (3, 1)
    assert found["p_value"] == pytest.approx(2 * (1 + 4) / 16)  # 3 or 4 heads of 4, or 3 or 4 tails
    assert found["agreement"] == 3 / 8
    swapped = metrics.compare(b, a, labels)
    assert swapped["difference"] == -2 / 8 and swapped["p_value"] == found["p_value"]


def test_compare_of_a_model_with_itself(guesses):
    logits, labels = guesses
    assert metrics.compare(logits, logits, labels) == {
        "difference": 0.0,
        "difference_ci95": (0.0, 0.0),
        "only_a_right": 0,
        "only_b_right": 0,
        "p_value": 1.0,
        "agreement": 1.0,
    }


def test_interval_of_a_difference_is_the_paired_one():
    """600 images of 10,000 that only a has right, and 400 that only b has: standard error (0.1 - 0.02²)^½ / 100."""
    labels = np.zeros(10_000, int)
    a = np.eye(2)[[0] * 600 + [1] * 400 + [0] * 9000]
    b = np.eye(2)[[1] * 600 + [0] * 400 + [0] * 9000]
    found = metrics.compare(a, b, labels)
    error = (0.1 - 0.02**2) ** 0.5 / 100
    assert found["difference_ci95"] == pytest.approx((0.02 - 1.96 * error, 0.02 + 1.96 * error), abs=6e-4)
    assert found["p_value"] == binomtest(600, 1000).pvalue < 1e-9


def test_ensemble_averages_probabilities(guesses):
    logits, labels = guesses
    both = metrics.ensemble_logits([np.log([[0.5, 0.5]]), np.log([[0.9, 0.1]]) + 7])
    assert np.exp(both) == pytest.approx(np.array([[0.7, 0.3]]))
    assert metrics.ensemble_logits([logits]) == pytest.approx(log_softmax(logits.astype(np.float64), axis=1))
    noisy = [logits + np.random.default_rng(i).normal(0, 2, logits.shape) for i in range(5)]
    ensemble = metrics.ensemble_logits(noisy)
    assert np.exp(ensemble).sum(axis=1) == pytest.approx(1)
    assert metrics.nll(ensemble, labels) < np.mean([metrics.nll(each, labels) for each in noisy])  # Jensen
    assert np.isfinite(metrics.ensemble_logits([np.array([[0.0, 2000.0]]), np.array([[2000.0, 0.0]])])).all()


def test_most_confused():
    matrix = [[9, 2, 0], [5, 7, 2], [0, 1, 9]]
    assert metrics.most_confused(matrix, 3) == [(1, 0, 5), (0, 1, 2), (1, 2, 2)]  # of equal ones the lower class
    assert metrics.most_confused(matrix, 99) == [(1, 0, 5), (0, 1, 2), (1, 2, 2), (2, 1, 1)]
    assert matrix[0][0] == 9 and metrics.most_confused(np.eye(3, dtype=int), 5) == []


def test_most_confident_mistakes():
    logits = np.log([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8]])
    labels = np.array([0, 0, 1, 1, 0])
    assert metrics.most_confident_mistakes(logits, labels, 2).tolist() == [1, 4]
    assert metrics.most_confident_mistakes(logits, labels, 9).tolist() == [1, 4, 2]
    assert metrics.most_confident_mistakes(logits, logits.argmax(axis=1), 3).size == 0
