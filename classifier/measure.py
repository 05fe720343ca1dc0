"""Measures computed from logits and labels, as NumPy arrays: nothing here runs a model."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood, in nats, of (N, C) logits and (N,) class indices."""
    return float(-log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean())


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T > 0 for which logits / T has the lowest NLL (Guo et al., arXiv:1706.04599); fit it on validation data.

    Args:
        logits: (N, C).
        labels: class indices, (N,).

    Returns:
        T in [0.05, 20]; above 1 the logits were overconfident.
    """
    found = minimize_scalar(
        lambda log_t: nll(logits / np.exp(log_t), labels), bounds=(np.log(0.05), np.log(20)), method="bounded"
    )
    return float(np.exp(found.x))


def known_threshold(logits: np.ndarray, keep: float = 0.95) -> float:
    """The top probability that a fraction `keep` of these (N, C) logits reach: below it an input looks like no class.

    Maximum softmax probability (Hendrycks and Gimpel, arXiv:1610.02136), with the threshold set on validation data.
    """
    return float(np.quantile(softmax(logits, axis=1).max(axis=1), 1 - keep))


def bootstrap_interval(values: np.ndarray, draws: int = 1000, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` (N,), over images.

    Args:
        values: one number an image, for accuracy 1 where the prediction is right and 0 elsewhere.
        draws: resamples; each is drawn as counts, so memory is N numbers at a time.
        seed: of the resampling.
        level: of the interval, in (0, 1).
    """
    n = len(values)
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(n, size=n)].mean() for _ in range(draws)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
