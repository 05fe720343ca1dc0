"""Measures against cases worked by hand, and through the library `evaluate`."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax

from classifier import measure, metrics

ROOT = Path(__file__).resolve().parent.parent
# Three classes: 2 of 3, 3 of 4 and 1 of 3 images right.
REFERENCES = [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
PREDICTIONS = [0, 0, 1, 1, 1, 1, 2, 2, 1, 0]


def test_metrics_by_hand():
    found = metrics.load("classification").compute(references=REFERENCES, predictions=PREDICTIONS)
    assert found["accuracy"] == 0.6
    assert found["confusion_matrix"] == [[2, 1, 0], [0, 3, 1], [1, 1, 1]]
    precision, recall = [2 / 3, 3 / 5, 1 / 2], [2 / 3, 3 / 4, 1 / 3]
    f1 = [2 * p * r / (p + r) for p, r in zip(precision, recall, strict=True)]
    for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
        assert found[name] == pytest.approx(np.mean(values))
        assert found["per_class"][name] == pytest.approx(values)


def test_a_class_without_images_counts_as_zero():
    found = metrics.load("classification").compute(references=[0, 0, 1], predictions=[0, 0, 1], labels=[0, 1, 2])
    assert found["per_class"]["recall"] == [1, 1, 0] and found["recall"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("start", ["root", "elsewhere"])
def test_our_script_does_not_shadow_the_library(start, tmp_path):
    """Started at the root, `import evaluate` finds evaluate.py first; metrics still get the library."""
    code = "from classifier import metrics; print(metrics.library().__version__, metrics.load('classification').name)"
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"],
        cwd=ROOT if start == "root" else tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.stdout.split() == ["0.4.6", "classification"], result.stderr


def test_nll_by_hand():
    logits = np.log([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
    assert measure.nll(logits, np.array([0, 1])) == pytest.approx(-(np.log(0.5) + np.log(0.8)) / 2)


def test_temperature_undoes_overconfidence():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 5))
    labels = np.array([rng.choice(5, p=np.exp(row)) for row in log_softmax(logits, axis=1)])
    assert measure.fit_temperature(logits, labels) == pytest.approx(1, abs=0.03)  # labels were drawn from these
    assert measure.fit_temperature(3 * logits, labels) == pytest.approx(3, abs=0.1)


def test_known_threshold_keeps_what_it_should():
    logits = np.random.default_rng(0).normal(0, 2, (1000, 10))
    threshold = measure.known_threshold(logits, keep=0.9)
    top = np.exp(log_softmax(logits, axis=1)).max(axis=1)
    assert (top >= threshold).mean() == pytest.approx(0.9, abs=0.002)


def test_bootstrap_interval_is_the_binomial_one():
    """For 10,000 images at 90% the standard error is 0.3 points; the interval is 1.96 of these to each side."""
    right = (np.arange(10_000) % 10 != 0).astype(float)
    low, high = measure.bootstrap_interval(right)
    assert (low, high) == pytest.approx((0.9 - 1.96 * 0.003, 0.9 + 1.96 * 0.003), abs=6e-4)
    assert measure.bootstrap_interval(right) == (low, high)  # the same on every run
