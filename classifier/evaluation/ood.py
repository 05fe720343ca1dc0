"""Out-of-distribution (OOD) detection: metrics of scores, and synthetic test sets. Nothing here loads a model.

    for name, images in ood.synthetic_sets(validation_images).items():
        scores = ...  # of images, by a function of ood_scores.py
        ood.auroc(validation_scores, scores)

The score of an image is higher the more it resembles the known classes.
"""

from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits, load_sample_images
from sklearn.metrics import roc_auc_score

from classifier.data.survey import channel_mean_std
from classifier.models.logit_scores import SCORES

ENOUGH = 100  # images of a set, to choose a score
SAME_AUROC = 0.005  # smaller differences of a mean AUROC are no reason to choose another score


def threshold(id_scores: np.ndarray, keep: float = 0.95) -> float:
    """The highest score that a fraction `keep` of in-distribution images reach. Images with a lower one are OOD."""
    return float(-np.quantile(-id_scores, keep, method="inverted_cdf"))


def auroc(id_scores: np.ndarray, ood_scores: np.ndarray) -> float:
    """Probability that an image in distribution has a higher score than an OOD image, where ties count half."""
    scores = np.concatenate([id_scores, ood_scores])
    return float(roc_auc_score(np.arange(len(scores)) < len(id_scores), scores))


def fpr_at(id_scores: np.ndarray, ood_scores: np.ndarray, keep: float = 0.95) -> float:
    """Fraction of OOD images above the threshold that a fraction `keep` of the others reach (FPR95 for 0.95)."""
    return float((ood_scores >= threshold(id_scores, keep)).mean())


def best_score(known: np.ndarray, others: Sequence[np.ndarray]) -> str:
    """The name of the score of logits that best tells images in distribution from others.

    Args:
        known: logits (N, C) of images in distribution.
        others: logits (M, C) of each set of OOD images.

    Returns:
        The key of `logit_scores.SCORES` with the highest mean AUROC over the sets. It is the energy unless another one
        is better by more than `SAME_AUROC`.
    """
    aurocs = {name: fmean(auroc(score(known), score(other)) for other in others) for name, score in SCORES.items()}
    best = max(aurocs, key=lambda name: aurocs[name])
    return best if aurocs[best] > aurocs["energy"] + SAME_AUROC else "energy"


def best_score_on_synthetic(
    known: np.ndarray, images: np.ndarray, logits_of: Callable[[np.ndarray], np.ndarray]
) -> str:
    """`best_score` for a model without OOD images: they are made of the images.

    Args:
        known: logits (N, C) of images in distribution.
        images: uint8 (M, 3, H, W), in distribution too, of which at most `ENOUGH` are used.
        logits_of: the model, from images like these to logits (M, C).

    Returns:
        As `best_score`; the energy for fewer than two images.
    """
    if len(images) < 2:
        return "energy"
    return best_score(known, [logits_of(made) for made in synthetic_sets(images[:ENOUGH]).values()])


def synthetic_sets(images: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Eight sets of OOD images, {name: uint8 (N, 3, H, W)}, made without a download and reproducible by the seed.

    Far OOD: `gaussian_noise` (with the mean and standard deviation of the images), `uniform_noise`, `blobs`, `digits`
    (scikit-learn's 1,797 of 8×8 pixels, enlarged), `sample_photographs` (squares of scikit-learn's two, a temple and a
    flower). Near OOD, made of the images: `phase_scrambled` keeps the colours and the spectrum of an image,
    `patches_shuffled` its patches, `blended` is the mean of two images. Blobs, shuffled and blended images follow
    Hendrycks et al. (arXiv:1812.04606).

    Args:
        images: in distribution, uint8 (N, 3, H, W), N at least 2.
        seed: of every draw. The sets are drawn independently.
    """
    far = gaussian_noise, uniform_noise, blobs, digits, sample_photographs
    makers = *far, phase_scrambled, patches_shuffled, blended
    return {make.__name__: make(images, np.random.default_rng([seed, i])) for i, make in enumerate(makers)}


def gaussian_noise(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Normally distributed pixels with the mean and standard deviation of each channel of `images`."""
    statistics = channel_mean_std(torch.tensor(images))
    mean, std = (255 * np.array(values, np.float32)[:, None, None] for values in statistics)  # (3, 1, 1)
    return to_8_bits(mean + std * rng.standard_normal(images.shape, np.float32))


def uniform_noise(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Uniformly distributed pixels from 0 to 255."""
    return rng.integers(256, size=images.shape, dtype=np.uint8)


def blobs(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light shapes on black: 32×32 pixels, 1 with probability 0.7, are blurred, set to 0 below 0.75 and enlarged."""
    noise = (rng.random((len(images), 32, 32, 3), np.float32) < 0.7).astype(np.float32)
    blurred = gaussian_filter(noise, sigma=1.5, axes=(1, 2, 3))  # blurs the channels too, so colours are pale
    return enlarge(to_8_bits(255 * np.where(blurred < 0.75, 0, blurred)), images.shape[2:])


def digits(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Handwritten digits, white on black."""
    n, grey = len(images), to_8_bits(load_digits().images * (255 / 16))  # (1797, 8, 8), from 0 ... 16
    drawn = grey[rng.choice(len(grey), n, replace=n > len(grey))]
    return enlarge(drawn[..., None].repeat(3, axis=3), images.shape[2:])


def sample_photographs(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Square crops of two photographs, resized; none is smaller than the shorter side of the images."""
    n, (height, width) = len(images), images.shape[2:]
    sources = [Image.fromarray(source) for source in load_sample_images().images]  # 640×427
    made = []
    for index in rng.integers(len(sources), size=n):
        source = sources[index]
        most = min(source.size)
        side = rng.integers(min(height, width, most), most, endpoint=True)
        left, top = rng.integers(source.width - side + 1), rng.integers(source.height - side + 1)
        box = (left, top, left + side, top + side)
        made.append(np.asarray(source.resize((width, height), Image.Resampling.BICUBIC, box=box)))
    return np.stack(made).transpose(0, 3, 1, 2)


def phase_scrambled(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The images with random phases added to their spectrum, the same for all channels, which preserves colours."""
    made = np.empty_like(images)
    for i, image in enumerate(images):
        noise = np.fft.rfft2(rng.random(image.shape[1:]))
        phases = np.angle(noise)  # the phases of a positive image make the result real and preserve the mean
        made[i] = to_8_bits(np.fft.irfft2(np.fft.rfft2(image) * np.exp(1j * phases), s=image.shape[1:]))
    return made


def patches_shuffled(images: np.ndarray, rng: np.random.Generator, grid: int = 4) -> np.ndarray:
    """The images with their `grid`² patches in random order. Pixels beyond a multiple of `grid` stay in place."""
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
    """Means of two different images each; every image is used twice."""
    order = rng.permutation(len(images))
    return to_8_bits((images[order] / 2 + images[np.roll(order, 1)] / 2).astype(np.float32))


def enlarge(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (N, h, w, 3) -> (N, 3, *size), bicubic."""
    resized = (Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC) for image in images)
    return np.stack([np.asarray(image) for image in resized]).transpose(0, 3, 1, 2)


def as_pictures(images: np.ndarray) -> list[Image.Image]:
    """uint8 (N, 3, H, W) -> N RGB images."""
    return [Image.fromarray(image) for image in images.transpose(0, 2, 3, 1)]


def to_8_bits(images: np.ndarray) -> np.ndarray:
    """Clipped to [0, 255] and rounded to uint8."""
    return np.clip(np.rint(images), 0, 255).astype(np.uint8)
