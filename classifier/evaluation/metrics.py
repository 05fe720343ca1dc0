"""Metrics computed from logits and labels, as NumPy arrays: nothing here runs a model."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_array
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import binomtest
from sklearn.metrics import brier_score_loss, top_k_accuracy_score

DRAWS = 1000  # resamples of a bootstrap; all are drawn with seed 0


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood, in nats, of (N, C) logits and (N,) class indices.

    scikit-learn's `log_loss` takes probabilities and clips them, which would bound the loss of overconfident logits.
    """
    return float(nll_per_image(logits, labels).mean())


def nll_per_image(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Negative log-likelihood (N,) of each image, in nats. Arguments as `nll`."""
    return -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]


def brier(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared distance of the probabilities from the one-hot labels, summed over classes, in [0, 2] (Brier, 1950).

    Arguments as `nll`.
    """
    probabilities = softmax(logits.astype(np.float64), axis=1)
    return float(brier_score_loss(labels, probabilities, labels=range(logits.shape[1]), scale_by_half=False))


class Reliability(NamedTuple):
    """The bins of a reliability diagram. Each array has shape (bins,) and is 0 where a bin has no image."""

    count: np.ndarray  # type: ignore[assignment]  # int, images in the bin; hides the method of tuple
    confidence: np.ndarray  # their mean top probability
    accuracy: np.ndarray  # the fraction of them that is predicted correctly


def reliability(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> Reliability:
    """Sorts images by their top probability p into M bins of equal width; bin m has (m - 1) / M < p ≤ m / M.

    scikit-learn's `calibration_curve` leaves out empty bins and returns no counts, which the ECE needs. Arguments as
    `nll`; `bins` is M.
    """
    top = softmax(logits.astype(np.float64), axis=1).max(axis=1)
    bin_index = np.searchsorted(np.arange(1, bins) / bins, top)  # (N,), 0 ... M - 1
    correct = logits.argmax(axis=1) == labels
    count, confidence, accuracy = (np.bincount(bin_index, weights, minlength=bins) for weights in (None, top, correct))
    filled = np.maximum(count, 1)
    return Reliability(count, confidence / filled, accuracy / filled)


def ece(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error in [0, 1]: mean gap between confidence and accuracy over bins, weighted by their
    number of images (Guo et al., arXiv:1706.04599). Arguments as `reliability`.

    It has no bootstrap interval: sampling noise widens every gap and resampling widens it again, so the interval of a
    well calibrated model would be biased upwards.
    """
    count, confidence, accuracy = reliability(logits, labels, bins)
    return float((count * np.abs(confidence - accuracy)).sum() / count.sum())


def top_k_accuracy(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Fraction of images whose label is among the `k` highest of (N, C) logits, for C ≥ 3 and k < C.

    Ties go to the lower class index, as with argmax.
    """
    c = logits.shape[1]
    # scikit-learn prefers the highest index among equal logits, so the classes are reversed.
    return float(top_k_accuracy_score(c - 1 - labels, logits[:, ::-1], k=k, labels=range(c)))


def ensemble_logits(logits: Sequence[np.ndarray]) -> np.ndarray:
    """Logits (N, C) of an ensemble: the logarithm of the mean of its members' probabilities (arXiv:1612.01474).

    The members' logits are (N, C) too, calibrated or not, with the classes in the same order.
    """
    members = np.stack([log_softmax(member.astype(np.float64), axis=1) for member in logits])
    return logsumexp(members, axis=0) - np.log(len(members))


def fit_temperature(
    logits: np.ndarray, labels: np.ndarray, merge: Callable[[np.ndarray], np.ndarray] = lambda logits: logits
) -> float:
    """The T > 0 for which logits / T has the lowest NLL (Guo et al., arXiv:1706.04599); fit it on validation data.

    If every prediction is correct, as can happen with few images, the NLL has its minimum at T = 0. In that case the
    targets are smoothed: 1 / (N + 2) of each is spread evenly over the classes, as Platt does (Probabilistic outputs
    for support vector machines, 1999).

    Args:
        logits: (N, C), or the argument of `merge`.
        labels: class indices, (N,).
        merge: maps scaled logits to logits (N, C), for a model that averages several views of an image.

    Returns:
        T in [0.05, 20]; above 1 the logits were overconfident.
    """
    all_correct = (merge(logits).argmax(axis=1) == labels).all()
    smoothing = 1 / (len(labels) + 2) if all_correct else 0.0

    def loss(log_t: float) -> float:
        scaled = merge(logits / np.exp(log_t))
        uniform_loss = -log_softmax(scaled.astype(np.float64), axis=1).mean() if smoothing else 0.0
        return (1 - smoothing) * nll(scaled, labels) + smoothing * uniform_loss

    result = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(result.x))


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean of `values` (N,), over images.

    For accuracy, a value is 1 where the prediction is correct and 0 elsewhere. One resample is in memory at a time.
    """
    n = len(values)
    rng = np.random.default_rng(0)
    return percentiles([values[rng.integers(n, size=n)].mean() for _ in range(DRAWS)])


def percentiles(samples: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The central interval that contains 95% of the samples."""
    low, high = np.quantile(samples, [(1 - 0.95) / 2, (1 + 0.95) / 2])
    return float(low), float(high)


def bootstrap(
    labels: np.ndarray, predicted: np.ndarray, draws: int = DRAWS, num_labels: int | None = None
) -> dict[str, tuple[float, float]]:
    """95% percentile bootstrap intervals over images of "accuracy" and the macro means "precision", "recall" and "f1".

    Drawing images is the same as drawing the number of images with each pair of label and prediction, which is all
    that these metrics need; their order doesn't matter. A division by zero counts as 0, as in scikit-learn with
    `zero_division=0`.

    Args:
        labels: class indices, (N,).
        predicted: class indices, (N,).
        draws: number of resamples.
        num_labels: number of classes in the macro means; by default the classes that occur.
    """
    names, pairs = np.unique(np.stack([labels, predicted], axis=1), return_inverse=True)
    cells, counts = np.unique(pairs.reshape(-1, 2), axis=0, return_counts=True)  # (E, 2), (E,)
    drawn = resample_counts(counts, draws)  # (draws, E)
    ones = np.ones(len(cells))
    in_class = [
        csr_array((ones, (np.arange(len(cells)), column)), shape=(len(cells), len(names))) for column in cells.T
    ]
    actual, assigned = (drawn @ matrix for matrix in in_class)  # (draws, C)
    correct = (drawn * (cells[:, 0] == cells[:, 1])) @ in_class[0]
    num_labels = num_labels or len(names)

    def macro(numerator: np.ndarray, denominator: np.ndarray) -> tuple[float, float]:
        ratios = numerator / np.maximum(denominator, 1)  # (draws, C); a numerator is 0 where its denominator is 0
        return percentiles(ratios.sum(axis=1) / num_labels)

    return {
        "accuracy": percentiles(correct.sum(axis=1) / len(labels)),
        "precision": macro(correct, assigned),
        "recall": macro(correct, actual),
        "f1": macro(2 * correct, actual + assigned),
    }


def compare(logits_a: np.ndarray, logits_b: np.ndarray, labels: np.ndarray) -> dict:
    """Compares models a and b by their logits (N, C) of the same images, whose class indices are (N,).

    Returns:
        difference: accuracy of a minus accuracy of b, and `difference_ci95`, its paired percentile bootstrap interval.
        only_a_right, only_b_right: numbers of images that only one model predicts correctly.
        p_value: of McNemar's exact two-sided test, whose null hypothesis is that both models are equally accurate.
        agreement: fraction of images for which both predict the same class.
    """
    a, b = logits_a.argmax(axis=1), logits_b.argmax(axis=1)
    only_a, only_b = int(((a == labels) & (b != labels)).sum()), int(((a != labels) & (b == labels)).sum())
    n, discordant = len(labels), only_a + only_b
    drawn = resample_counts(np.array([only_a, only_b, n - discordant]), DRAWS)
    return {
        "difference": (only_a - only_b) / n,
        "difference_ci95": percentiles((drawn[:, 0] - drawn[:, 1]) / n),
        "only_a_right": only_a,
        "only_b_right": only_b,
        "p_value": float(binomtest(only_a, discordant).pvalue) if discordant else 1.0,
        "agreement": float((a == b).mean()),
    }


def resample_counts(counts: np.ndarray, draws: int) -> np.ndarray:
    """Numbers of images of each kind, (draws, E), in resamples with replacement of `counts` (E,) images of each."""
    return np.random.default_rng(0).multinomial(counts.sum(), counts / counts.sum(), size=draws)


def most_confused(confusion_matrix: np.ndarray, n: int) -> list[tuple[int, int, int]]:
    """The `n` most frequent mistakes as (true class, predicted class, number of images), most frequent first.

    The confusion matrix (C, C) has a row for each true class. Ties are in order of the class indices. Mistakes that
    never occurred are left out.
    """
    mistakes = np.array(confusion_matrix)
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:n]
    rows, columns = np.unravel_index(order, mistakes.shape)
    counts = mistakes[rows, columns].tolist()
    return [mistake for mistake in zip(rows.tolist(), columns.tolist(), counts, strict=True) if mistake[2]]


def most_confident_mistakes(logits: np.ndarray, labels: np.ndarray, n: int) -> np.ndarray:
    """Indices of at most `n` wrongly predicted images, those with the highest top probability first.

    Ties are in order of the index. Arguments as `nll`.
    """
    wrong = np.flatnonzero(logits.argmax(axis=1) != labels)
    top = log_softmax(logits[wrong].astype(np.float64), axis=1).max(axis=1)
    return wrong[np.argsort(-top, kind="stable")[:n]]
