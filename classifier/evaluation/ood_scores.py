"""Scores of out-of-distribution (OOD) detection, of a model's logits and features. Nothing here runs a model.

    scores = ood_scores.fit(Training(features, logits, labels, weight, bias))  # {name: a function}
    scores["mahalanobis"](features, logits)                                    # (N,)

The score of an image is higher the more it resembles the known classes, that is, images in distribution. Features are
the input of the model's last linear layer, averaged if the model sees several views of an image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.covariance import LedoitWolf
from sklearn.preprocessing import normalize

from classifier.errors import DataError
from classifier.models import logit_scores
from classifier.models.logit_scores import energy

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]  # features (N, D), logits (N, C) -> scores (N,)


@dataclass(frozen=True)
class Training:
    """What the scores are fitted on: M training images, and the last linear layer."""

    features: np.ndarray  # (M, D)
    logits: np.ndarray  # (M, C)
    labels: np.ndarray  # (M,)
    weight: np.ndarray  # (C, D)
    bias: np.ndarray  # (C,)


def fit(training: Training | None) -> dict[str, Score]:
    """The scores by name, the simplest first; without training images, those of the logits alone.

    Raises:
        DataError: fewer than 5 training images.
    """
    scores: dict[str, Score] = {name: _of_logits(score) for name, score in logit_scores.SCORES.items()}
    if training is not None:
        neighbours = fit_neighbours(training.features)
        gaussians = fit_gaussians(training.features, training.labels)
        scores |= {
            "fdbd": fit_decision_boundaries(training),
            "neighbours": lambda features, logits: neighbours.scores(features),
            "nnguide": fit_guidance(training),
            "vim": fit_virtual_logit(training),
            "mahalanobis": lambda features, logits: gaussians.scores(features),
            "relative_mahalanobis": lambda features, logits: gaussians.relative_scores(features),
        }
    return scores


@dataclass(frozen=True)
class Neighbours:
    """Cosine to the k-th nearest of some training features (Sun et al., arXiv:2204.06507)."""

    features: np.ndarray  # float16 (M, D), each of norm 1
    k: int  # 1 ... M

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Scores (N,) in [-1, 1] of features (N, D): the k-th highest cosine, which ranks images as the distance does.

        Images in distribution must not be among the training images, which would be their own neighbours.
        """
        cosines = normalize(features.astype(np.float32)) @ self.features.astype(np.float32).T  # (N, M)
        return np.partition(cosines, -self.k, axis=1)[:, -self.k]


def fit_neighbours(features: np.ndarray, most: int = 1000, k: int = 5) -> Neighbours:
    """Draws a sample of the training features. No labels are needed.

    On models/cnn neither number matters much: with 200 to 5,000 features, and k up to half the number of features per
    class, the mean AUROC over `synthetic_sets` is 90.7% to 91.5%.

    Args:
        features: (N, D), of training images; may be memory-mapped.
        most: size of the sample.
        k: which neighbour is used; less than the number of features per class.

    Raises:
        DataError: fewer than k images.
    """
    if len(features) < k:
        raise DataError(
            f"{len(features)} training images have no {k} nearest neighbours: pass more images, or a smaller k"
        )
    kept = _sample(features, most)
    return Neighbours(normalize(features[kept].astype(np.float32)).astype(np.float16), k)


def fit_decision_boundaries(training: Training) -> Score:
    """The mean distance to the other classes, over that to the mean feature (fDBD; Liu and Qin, arXiv:2312.11536)."""
    mean = training.features.mean(axis=0, dtype=np.float64)
    between = np.linalg.norm(training.weight[:, None] - training.weight[None], axis=2)  # (C, C)
    between[np.diag_indices_from(between)] = np.inf

    def scores(features: np.ndarray, logits: np.ndarray) -> np.ndarray:
        distances = (logits.max(axis=1, keepdims=True) - logits) / between[logits.argmax(axis=1)]  # (N, C)
        classes = max(1, logits.shape[1] - 1)
        return distances.sum(axis=1) / classes / np.linalg.norm(features - mean, axis=1).clip(min=1e-12)

    return scores


def fit_guidance(training: Training, most: int = 1000, k: int = 10) -> Score:
    """The energy times the similarity to training images that are known well (NNGuide, arXiv:2309.14888).

    The similarity is the mean, over the k training images for which it is highest, of the cosine times their energy.
    """
    kept = _sample(training.features, most)
    bank = normalize(training.features[kept].astype(np.float32)) * energy(training.logits[kept])[:, None]
    k = min(k, len(bank))

    def scores(features: np.ndarray, logits: np.ndarray) -> np.ndarray:
        similar = normalize(features.astype(np.float32)) @ bank.T  # (N, most)
        return energy(logits) * np.partition(similar, -k, axis=1)[:, -k:].mean(axis=1)

    return scores


def fit_virtual_logit(training: Training) -> Score:
    """The energy minus what of a feature lies outside of the space of training features (ViM, arXiv:2203.10807).

    That space has half of the dimensions, and its origin where all logits are 0. (The paper's code keeps half of fewer
    than 768, 512 of fewer than 2,048, and 1,000 of more.) What lies outside is scaled so that its mean on training
    images is that of the highest logits.
    """
    origin = -np.linalg.pinv(training.weight.astype(np.float64)) @ training.bias
    centred = training.features - origin
    _, axes = np.linalg.eigh(centred.T @ centred)  # (D, D), by growing variance
    outside = axes[:, : max(1, len(origin) // 2)]
    scale = training.logits.max(axis=1).mean() / np.linalg.norm(centred @ outside, axis=1).mean().clip(min=1e-12)
    return lambda features, logits: energy(logits) - scale * np.linalg.norm((features - origin) @ outside, axis=1)


@dataclass(frozen=True)
class Gaussians:
    """A normal distribution of the features for each class, all of one covariance, and one for all images."""

    means: np.ndarray  # (C, D), of the classes that have images
    precision: np.ndarray  # (D, D), the inverse of their covariance
    mean: np.ndarray  # (D,), of all images
    overall_precision: np.ndarray  # (D, D), about that mean

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Minus the squared Mahalanobis distance to the nearest class, (N,) (Lee et al., arXiv:1807.03888)."""
        distances = [_squared_distance(features - mean, self.precision) for mean in self.means]
        return -np.min(distances, axis=0)

    def relative_scores(self, features: np.ndarray) -> np.ndarray:
        """The same, less the distance to the mean of all images, (N,) (Ren et al., arXiv:2106.09022)."""
        return self.scores(features) + _squared_distance(features - self.mean, self.overall_precision)


def fit_gaussians(features: np.ndarray, labels: np.ndarray) -> Gaussians:
    """Estimates the means, and the covariance of a class by Ledoit and Wolf's shrinkage, so that few images are enough.

    The covariance of all images is that of a class and that of the means together.
    """
    features = np.asarray(features, np.float64)
    classes, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.stack([features[labels == label].mean(axis=0) for label in classes])
    mean = features.mean(axis=0)
    within = LedoitWolf(assume_centered=True).fit(features - means[index])
    between = (means - mean).T * (counts / len(features)) @ (means - mean)
    return Gaussians(means, within.precision_, mean, np.linalg.inv(within.covariance_ + between))


def _of_logits(score: Callable[[np.ndarray], np.ndarray]) -> Score:
    return lambda features, logits: score(logits)


def _squared_distance(differences: np.ndarray, precision: np.ndarray) -> np.ndarray:
    return np.einsum("nd,de,ne->n", differences, precision, differences, optimize=True)


def _sample(rows: np.ndarray, most: int) -> np.ndarray:
    """Indices of at most `most` rows, in order, so that a memory map is read in order."""
    return np.sort(np.random.default_rng(0).permutation(len(rows))[:most])
