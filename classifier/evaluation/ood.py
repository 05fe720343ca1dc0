"""How well a model tells images of none of its classes: scores of its outputs, what these reach, and images to try them
on.

    neighbours = ood.fit_neighbours(train_features)
    for name, images in ood.sets(validation_images).items():
        features = ...  # of images
        ood.auroc(neighbours.scores(validation_features), neighbours.scores(features))

A score is higher the more an image is like the known classes. Features are what the model's last linear layer gets, the
mean where it sees several views of an image. Nothing here runs a model.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.special import logsumexp, softmax
from sklearn.datasets import load_digits, load_sample_images
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import normalize

from classifier.data.survey import channel_mean_std
from classifier.errors import DataError


def max_probability(logits: np.ndarray) -> np.ndarray:
    """Scores (N,) in [1/C, 1]: the top probability of (N, C) logits (Hendrycks and Gimpel, arXiv:1610.02136)."""
    return softmax(logits.astype(np.float64), axis=1).max(axis=1)


def energy(logits: np.ndarray) -> np.ndarray:
    """Scores (N,): minus the energy, log Σ exp of (N, C) logits, at temperature 1 (Liu et al., arXiv:2010.03759)."""
    return logsumexp(logits.astype(np.float64), axis=1)


@dataclass(frozen=True)
class Neighbours:
    """How near the k-th nearest of some training features is, by angle (Sun et al., arXiv:2204.06507).

    Chosen over ViM (arXiv:2203.10807), which is smaller to save. OpenOOD v1.5 (arXiv:2306.09301) has AUROCs on near and
    far strangers of 90.6% and 93.0% to ViM's 88.7% and 93.5% on CIFAR-10 (ResNet-18), but of 74.1% and 90.8% to 77.0%
    and 92.8% on ImageNet (ViT-B/16). On models/cnn the mean over `sets` is 91% to ViM's 86%; the energy, which needs no
    features, has 92%.
    """

    features: np.ndarray  # float16 (M, D), of length 1
    k: int  # 1 ... M

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Scores (N,) in [-1, 1] of features (N, D): the k-th highest cosine, which ranks images as the distance does.

        A training image that is kept is its own neighbour, so known images have to be others.
        """
        cosines = normalize(features.astype(np.float32)) @ self.features.astype(np.float32).T  # (N, M)
        return np.partition(cosines, -self.k, axis=1)[:, -self.k]


def fit_neighbours(features: np.ndarray, most: int = 1000, k: int = 5, seed: int = 0) -> Neighbours:
    """Draws the training features that `Neighbours` keeps. No labels are needed.

    On models/cnn neither number matters much: with 200 to 5,000 features, and k up to half a class's share of them, the
    mean AUROC over `sets` is 90.7% to 91.5%.

    Args:
        features: (N, D), of training images; may be memory-mapped.
        most: features to keep.
        k: which neighbour counts; fewer than a class has among those kept.
        seed: of the draw.

    Raises:
        DataError: fewer than k images.
    """
    if len(features) < k:
        raise DataError(
            f"{len(features)} training images have no {k} nearest neighbours: pass more images, or a smaller k"
        )
    kept = np.sort(np.random.default_rng(seed).permutation(len(features))[:most])  # a memory map is read forwards
    return Neighbours(normalize(features[kept].astype(np.float32)).astype(np.float16), k)


def threshold(known_scores: np.ndarray, keep: float = 0.95) -> float:
    """The highest score that a fraction `keep` of known images reach, from validation data; an image below is a
    stranger.
    """
    return float(-np.quantile(-known_scores, keep, method="inverted_cdf"))


def auroc(known_scores: np.ndarray, strange_scores: np.ndarray) -> float:
    """Probability that a known image scores higher than a strange one, ties counted half; 0.5 is chance."""
    scores = np.concatenate([known_scores, strange_scores])
    return float(roc_auc_score(np.arange(len(scores)) < len(known_scores), scores))


def fpr_at(known_scores: np.ndarray, strange_scores: np.ndarray, keep: float = 0.95) -> float:
    """Fraction of strangers that pass for known where a fraction `keep` of the known images do (FPR95 at 0.95)."""
    return float((strange_scores >= threshold(known_scores, keep)).mean())


def sets(images: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Images of no class, nothing downloaded: {name: uint8 (N, 3, H, W)}, the same for the same images and seed.

    Far from the known images: `gaussian_noise` (of the images' own mean and standard deviation), `uniform_noise`,
    `blobs`, `digits` (scikit-learn's 1,797 of 8×8 pixels, enlarged), `photographs` (squares of scikit-learn's two, a
    temple and a flower). Near, for they are made of them: `phase_scrambled` keeps an image's colours and spectrum,
    `patches_shuffled` its patches, `blended` is the mean of two. Blobs, shuffled and blended images are after Hendrycks
    et al. (arXiv:1812.04606).

    Args:
        images: known ones, uint8 (N, 3, H, W), N at least 2.
        seed: of every draw. The sets are drawn independently.
    """
    makers = (gaussian_noise, uniform_noise, blobs, digits, photographs, phase_scrambled, patches_shuffled, blended)
    return {make.__name__: make(images, np.random.default_rng([seed, i])) for i, make in enumerate(makers)}


def gaussian_noise(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Normal pixels, of each channel's mean and standard deviation in `images`."""
    mean, std = (
        255 * np.array(each, np.float32)[:, None, None] for each in channel_mean_std(torch.tensor(images))
    )  # (3, 1, 1)
    return to_8_bits(mean + std * rng.standard_normal(images.shape, np.float32))


def uniform_noise(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every value from 0 to 255 alike."""
    return rng.integers(256, size=images.shape, dtype=np.uint8)


def blobs(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light shapes on black: 32×32 pixels that are 1 with probability 0.7, blurred, and 0 where below 0.75,
    enlarged.
    """
    noise = (rng.random((len(images), 32, 32, 3), np.float32) < 0.7).astype(np.float32)
    blurred = gaussian_filter(noise, sigma=1.5, axes=(1, 2, 3))  # over the channels too, so colours are pale
    return enlarge(to_8_bits(255 * np.where(blurred < 0.75, 0, blurred)), images.shape[2:])


def digits(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Handwritten digits, white on black."""
    n, grey = len(images), to_8_bits(load_digits().images * (255 / 16))  # (1797, 8, 8), from 0 ... 16
    drawn = grey[rng.choice(len(grey), n, replace=n > len(grey))]
    return enlarge(drawn[..., None].repeat(3, axis=3), images.shape[2:])


def photographs(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Squares of two photographs, at least the images' shorter side and at most their own, resized."""
    n, _, height, width = images.shape
    sources = [Image.fromarray(source) for source in load_sample_images().images]  # 640×427
    made = []
    for which in rng.integers(len(sources), size=n):
        source = sources[which]
        most = min(source.size)
        side = rng.integers(min(height, width, most), most, endpoint=True)
        left, top = rng.integers(source.width - side + 1), rng.integers(source.height - side + 1)
        box = (left, top, left + side, top + side)
        made.append(np.asarray(source.resize((width, height), Image.Resampling.BICUBIC, box=box)))
    return np.stack(made).transpose(0, 3, 1, 2)


def phase_scrambled(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The images with random phases added to their spectrum, the same for all three channels, so that colours stay
    together.
    """
    made = np.empty_like(images)
    for i, image in enumerate(images):
        noise = np.fft.rfft2(rng.random(image.shape[1:]))
        phases = np.angle(noise)  # those of a positive image, so that the result is real and has the same mean
        made[i] = to_8_bits(np.fft.irfft2(np.fft.rfft2(image) * np.exp(1j * phases), s=image.shape[1:]))
    return made


def patches_shuffled(images: np.ndarray, rng: np.random.Generator, grid: int = 4) -> np.ndarray:
    """The images cut into `grid`² patches, each in an order of its own; what a side has beyond a multiple stays in
    place.
    """
    n, _, height, width = images.shape
    h, w = height // grid, width // grid
    inner = images[:, :, : grid * h, : grid * w]
    patches = inner.reshape(n, 3, grid, h, grid, w).transpose(0, 2, 4, 1, 3, 5).reshape(n, grid**2, 3, h, w)
    order = rng.permuted(np.tile(np.arange(grid**2), (n, 1)), axis=1)  # (N, grid²)
    patches = patches[np.arange(n)[:, None], order].reshape(n, grid, grid, 3, h, w)
    made = images.copy()
    made[:, :, : grid * h, : grid * w] = patches.transpose(0, 3, 1, 4, 2, 5).reshape(inner.shape)
    return made


def blended(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mean of two of the images, no image with itself; each is in two of the results."""
    order = rng.permutation(len(images))
    return to_8_bits((images[order] / 2 + images[np.roll(order, 1)] / 2).astype(np.float32))


def enlarge(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (N, h, w, 3) -> (N, 3, *size), bicubic."""
    resized = [Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC) for image in images]
    return np.stack(resized).transpose(0, 3, 1, 2)


def to_8_bits(images: np.ndarray) -> np.ndarray:
    """Rounded to uint8; what is outside of [0, 255] is clipped."""
    return np.clip(np.rint(images), 0, 255).astype(np.uint8)
