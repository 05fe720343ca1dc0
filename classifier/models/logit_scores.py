"""Scores of out-of-distribution (OOD) detection that are computed from logits alone.

    logit_scores.SCORES["energy"](logits)  # (N,)

The score of an image is higher the more it resembles the known classes. A model uses one of these scores, because
every engine and every exported file gives logits; scores that need the features as well are in
`classifier.evaluation.ood_scores`.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import logsumexp, softmax


def energy(logits: np.ndarray) -> np.ndarray:
    """Scores (N,): minus the energy, log Σ exp of (N, C) logits, at temperature 1 (Liu et al., arXiv:2010.03759)."""
    return logsumexp(logits.astype(np.float64), axis=1)


def generalized_entropy(logits: np.ndarray, gamma: float = 0.1, most: int = 100) -> np.ndarray:
    """Scores (N,) at most 0: minus Σ (p (1 - p))^gamma over the `most` likely classes (GEN; Liu et al., CVPR 2023)."""
    likely = np.sort(softmax(logits.astype(np.float64), axis=1), axis=1)[:, -most:]
    return -((likely * (1 - likely)) ** gamma).sum(axis=1)


def max_probability(logits: np.ndarray) -> np.ndarray:
    """Scores (N,) in [1/C, 1]: the highest probability of (N, C) logits (Hendrycks and Gimpel, arXiv:1610.02136)."""
    return softmax(logits.astype(np.float64), axis=1).max(axis=1)


SCORES: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # by the names in config.json
    "energy": energy,
    "gen": generalized_entropy,
    "max_probability": max_probability,
}
