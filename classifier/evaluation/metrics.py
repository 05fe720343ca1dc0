"""Measures computed from logits and labels, as NumPy arrays: nothing here runs a model."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_array
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import binomtest


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood, in nats, of (N, C) logits and (N,) class indices."""
    return float(nll_each(logits, labels).mean())


def nll_each(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Negative log-likelihood (N,) of each image, in nats, for `bootstrap_interval`. Arguments as `nll`."""
    return -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]


def brier(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared distance of the probabilities from the truth, in [0, 2]: Brier's own, summed over classes (1950).

    Args:
        logits: (N, C).
        labels: class indices, (N,).
    """
    return float(brier_each(logits, labels).mean())


def brier_each(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Squared distance (N,) of each image, for `bootstrap_interval`. Arguments as `brier`."""
    errors = softmax(logits.astype(np.float64), axis=1)
    errors[np.arange(len(labels)), labels] -= 1
    return (errors**2).sum(axis=1)


class Reliability(NamedTuple):
    """What a reliability diagram shows: bins of the top probability, (bins,) each, 0 where a bin has no image."""

    count: np.ndarray  # images, int
    confidence: np.ndarray  # their mean top probability
    accuracy: np.ndarray  # their fraction right


def reliability(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> Reliability:
    """Images by their top probability p, in bins of equal width: of M the m-th is (m - 1) / M < p ≤ m / M.

    Args:
        logits: (N, C).
        labels: class indices, (N,).
        bins: M.
    """
    top = softmax(logits.astype(np.float64), axis=1).max(axis=1)
    which = np.searchsorted(np.arange(1, bins) / bins, top)  # (N,), 0 ... M - 1
    right = logits.argmax(axis=1) == labels
    count, confidence, accuracy = (np.bincount(which, weights, minlength=bins) for weights in (None, top, right))
    filled = np.maximum(count, 1)
    return Reliability(count, confidence / filled, accuracy / filled)


def ece(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error, in [0, 1]: mean gap of confidence and accuracy in a bin (Guo et al.,
    arXiv:1706.04599).

    No bootstrap interval is given for it: noise widens every gap, and resampling widens it once more, so that the
    interval of a well calibrated model would lie too high. Arguments as `reliability`.
    """
    count, confidence, accuracy = reliability(logits, labels, bins)
    return float((count * np.abs(confidence - accuracy)).sum() / count.sum())


def top_k_accuracy(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Fraction of images whose label is among the `k` highest of (N, C) logits; of equal ones the lowest index comes
    first.
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    rank = ((logits > own) | ((logits == own) & earlier)).sum(axis=1)
    return float((rank < k).mean())


def average(logits: Sequence[np.ndarray]) -> np.ndarray:
    """Logits (N, C) of an ensemble: the logarithm of the mean of its members' probabilities (arXiv:1612.01474).

    Args:
        logits: (N, C) of each member, calibrated or not, in one order of classes.
    """
    members = np.stack([log_softmax(each.astype(np.float64), axis=1) for each in logits])
    return logsumexp(members, axis=0) - np.log(len(members))


def fit_temperature(
    logits: np.ndarray, labels: np.ndarray, merge: Callable[[np.ndarray], np.ndarray] = lambda logits: logits
) -> float:
    """The T > 0 for which logits / T has the lowest NLL (Guo et al., arXiv:1706.04599); fit it on validation data.

    Where all are right, as of a few images, the lowest would be at T = 0, and everything certain: then a share of 1 /
    (N + 2) of each target is spread over the classes, as Platt does (Probabilistic outputs for support vector machines,
    1999).

    Args:
        logits: (N, C), or what `merge` takes.
        labels: class indices, (N,).
        merge: gives logits (N, C) of the divided ones, where a model averages several views of an image.

    Returns:
        T in [0.05, 20]; above 1 the logits were overconfident.
    """
    all_right = (merge(logits).argmax(axis=1) == labels).all()
    spread = 1 / (len(labels) + 2) if all_right else 0.0

    def loss(log_t: float) -> float:
        divided = merge(logits / np.exp(log_t))
        missed = -log_softmax(divided.astype(np.float64), axis=1).mean() if spread else 0.0
        return (1 - spread) * nll(divided, labels) + spread * missed

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(found.x))


def bootstrap_interval(
    values: np.ndarray, draws: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` (N,), over images.

    Args:
        values: one number an image, for accuracy 1 where the prediction is right and 0 elsewhere.
        draws: resamples; memory is N numbers at a time.
        seed: of the resampling.
        level: of the interval, in (0, 1).
    """
    n = len(values)
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(n, size=n)].mean() for _ in range(draws)]
    return percentiles(means, level)


def percentiles(samples: Sequence[float] | np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The interval that a fraction `level` of the samples lies in, with as many below as above."""
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap(
    labels: np.ndarray, predicted: np.ndarray, draws: int = 1000, seed: int = 0, num_labels: int | None = None
) -> dict[str, tuple[float, float]]:
    """95% percentile bootstrap intervals over images of {"accuracy", "precision", "recall", "f1"}, the latter macro
    means.

    To draw images is to draw how many have each pair of label and prediction, which is all that these measures need.
    What can't be divided is 0, as in `metrics`.

    Args:
        labels: class indices, (N,).
        predicted: class indices, (N,).
        draws: resamples.
        seed: of the resampling; the order of the images doesn't matter.
        num_labels: classes that the means are over; by default those that occur.
    """
    names, pairs = np.unique(np.stack([labels, predicted], axis=1), return_inverse=True)
    cells, counts = np.unique(pairs.reshape(-1, 2), axis=0, return_counts=True)  # (E, 2), (E,)
    drawn = resampled(counts, draws, seed)  # (draws, E)
    ones = np.ones(len(cells))
    in_class = [
        csr_array((ones, (np.arange(len(cells)), column)), shape=(len(cells), len(names))) for column in cells.T
    ]
    actual, assigned = (drawn @ matrix for matrix in in_class)  # (draws, C)
    right = (drawn * (cells[:, 0] == cells[:, 1])) @ in_class[0]
    num_labels = num_labels or len(names)

    def macro(numerator: np.ndarray, denominator: np.ndarray) -> tuple[float, float]:
        shares = numerator / np.maximum(denominator, 1)  # (draws, C); where a denominator is 0, so is its numerator
        return percentiles(shares.sum(axis=1) / num_labels)

    return {
        "accuracy": percentiles(right.sum(axis=1) / len(labels)),
        "precision": macro(right, assigned),
        "recall": macro(right, actual),
        "f1": macro(2 * right, actual + assigned),
    }


def compare(logits_a: np.ndarray, logits_b: np.ndarray, labels: np.ndarray, draws: int = 1000, seed: int = 0) -> dict:
    """Model a against model b on the same images.

    Args:
        logits_a, logits_b: (N, C) each.
        labels: class indices, (N,).
        draws: resamples.
        seed: of the resampling; the order of the images doesn't matter.

    Returns:
        difference: accuracy of a less that of b, and `difference_ci95`, its paired percentile bootstrap interval.
        only_a_right, only_b_right: images.
        p_value: McNemar's exact test, two-sided, that both are as often right: of the images that only one has right.
        agreement: fraction of images for which both predict the same class.
    """
    a, b = logits_a.argmax(axis=1), logits_b.argmax(axis=1)
    only_a, only_b = int(((a == labels) & (b != labels)).sum()), int(((a != labels) & (b == labels)).sum())
    n, discordant = len(labels), only_a + only_b
    drawn = resampled(np.array([only_a, only_b, n - discordant]), draws, seed)
    return {
        "difference": (only_a - only_b) / n,
        "difference_ci95": percentiles((drawn[:, 0] - drawn[:, 1]) / n),
        "only_a_right": only_a,
        "only_b_right": only_b,
        "p_value": float(binomtest(only_a, discordant).pvalue) if discordant else 1.0,
        "agreement": float((a == b).mean()),
    }


def resampled(counts: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """How many images of each kind (draws, E) are in resamples, with replacement, of images with `counts` (E,) of
    each.
    """
    return np.random.default_rng(seed).multinomial(counts.sum(), counts / counts.sum(), size=draws)


def most_confused(confusion_matrix: np.ndarray, n: int) -> list[tuple[int, int, int]]:
    """The `n` most frequent mistakes, (true class, predicted class, images) each, of counts (C, C), a row a true class.

    Of equal ones the lower classes come first; what never occurred is left out.
    """
    mistakes = np.array(confusion_matrix)
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:n]
    rows, columns = np.unravel_index(order, mistakes.shape)
    found = zip(rows.tolist(), columns.tolist(), mistakes[rows, columns].tolist(), strict=True)
    return [each for each in found if each[2]]


def most_confident_mistakes(logits: np.ndarray, labels: np.ndarray, n: int) -> np.ndarray:
    """Indices of the `n` images, or of all, that are wrong with the highest top probability, highest first.

    Args:
        logits: (N, C).
        labels: class indices, (N,).
        n: of images; of equal ones the first come first.
    """
    wrong = np.flatnonzero(logits.argmax(axis=1) != labels)
    top = log_softmax(logits[wrong].astype(np.float64), axis=1).max(axis=1)
    return wrong[np.argsort(-top, kind="stable")[:n]]
