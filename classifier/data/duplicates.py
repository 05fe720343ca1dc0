"""Finds copies among images: exact ones by a digest of their pixels, near ones by correlation of small thumbnails.

    first_copy = first_copies(digests)
    pairs = near_duplicates(thumbnails, split, first_copy)
    leaked = has_earlier_copy(split, first_copy, pairs)

The coarse correlation of squashed thumbnails selects candidates among all images. `similarity` then compares each pair
at every position and at several sizes, so it also finds crops.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms.v2.functional import resize
from tqdm import tqdm

SIDE, COARSE_SIDE = 32, 8  # pixels a side of a thumbnail, and of its coarse version that selects candidates
NEIGHBOURS = 6  # candidates per image in each split
# Lowest correlations: of a candidate, of a pair for which sizes are tried, of a near duplicate. Of the 487 test images
# of CIFAR-10 that have a copy in train at 0.8, about 20 are merely alike, judged by eye; of 115 more at 0.75, about 50.
COARSE_NEAR, POSITION_NEAR, NEAR = 0.7, 0.4, 0.8
SIZES = range(26, SIDE)  # pixels a side of one image within the other
PADDED = 40  # pixels a side of the Fourier transforms, enough for every position with sufficient overlap
OVERLAP = 0.8  # least overlap, as a fraction of the smaller image's area
NEIGHBOURHOOD = 11  # pixels a side over which local mean and contrast are computed
NOISE = 5.0  # in units of 255; local contrast well below this is treated as noise

Spectra = tuple[torch.Tensor, torch.Tensor]  # Fourier transforms of pixels (P, 3, …) and of their energy (P, …)


@dataclass
class Pairs:
    """P pairs of images, given by their indices in the N images."""

    first: np.ndarray  # int64 (P,)
    second: np.ndarray  # int64 (P,), each greater than `first`
    mirrored: np.ndarray  # bool (P,)
    scores: np.ndarray  # float32 (P,), correlation


def thumbnail(image: Image.Image) -> np.ndarray:
    """An RGB image squashed to uint8 (3, SIDE, SIDE)."""
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0)).transpose(2, 0, 1)


def first_copies(digests: Sequence[bytes]) -> np.ndarray:
    """Index of the first image with the same digest, for each image: int64 (N,)."""
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(digest, i) for i, digest in enumerate(digests)], np.int64)


def near_duplicates(thumbnails: torch.Tensor, split: np.ndarray, first_copy: np.ndarray) -> Pairs:
    """Pairs of images that show the same picture with different pixels, in order of descending score.

    Of exact copies only the first is compared. Barz and Denzler (arXiv:1902.00423) selected candidates by the features
    of a CNN and judged them by eye; benchmarks/duplicates.json says how many of their duplicates this finds.

    Args:
        thumbnails: uint8 (N, 3, SIDE, SIDE).
        split: number of each image's split, int64 (N,), ascending.
        first_copy: int64 (N,), from `first_copies`.
    """
    distinct = np.flatnonzero(first_copy == np.arange(len(first_copy)))
    thumbnails = thumbnails[distinct]
    bounds = np.searchsorted(split[distinct], range(split.max() + 2)).tolist()
    first, second, mirrored = candidates(thumbnails, bounds)
    scores = np.empty(len(first), np.float32)
    with tqdm(total=len(first), unit=" pairs", desc="comparing") as bar:
        for i in range(0, len(first), 512):
            part = slice(i, i + 512)
            a, b = thumbnails[first[part]], thumbnails[second[part]]
            is_mirrored = torch.from_numpy(mirrored[part])
            b[is_mirrored] = b[is_mirrored].flip(3)
            scores[part] = similarity(a, b).numpy()
            bar.update(len(a))
    near = np.flatnonzero(scores >= NEAR)
    near = near[np.argsort(-scores[near], kind="stable")]
    return Pairs(distinct[first[near]], distinct[second[near]], mirrored[near], scores[near])


def has_earlier_copy(split: np.ndarray, first_copy: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Whether each image has an exact or near copy in an earlier split: bool (N,). Arguments as `near_duplicates`."""
    earliest = np.full(len(split), split.max() + 1)  # split of the exact copies, at the index of the first
    np.minimum.at(earliest, first_copy, split)
    earliest_near = earliest.copy()
    np.minimum.at(earliest_near, pairs.first, earliest[pairs.second])
    np.minimum.at(earliest_near, pairs.second, earliest[pairs.first])
    return earliest_near[first_copy] < split


def candidates(thumbnails: torch.Tensor, bounds: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nearest neighbours of each image and of its mirror image in each split: (first, second, mirrored).

    `thumbnails` are uint8 (N, 3, SIDE, SIDE); `bounds` are the indices at which splits begin, and N.
    """
    plain, flipped = coarse_features(thumbnails), coarse_features(thumbnails.flip(3))  # (N, D)
    n = len(plain)
    block = max(1, (1 << 25) // n)  # so that no product has more than 2^25 numbers
    neighbours = []
    with tqdm(total=n, unit=" images", desc="neighbours") as bar:
        for start in range(0, n, block):
            queries = torch.arange(start, min(start + block, n))
            for low, high in pairwise(bounds):
                correlations = plain[queries] @ plain[low:high].T  # (block, M)
                torch.maximum(correlations, plain[queries] @ flipped[low:high].T, out=correlations)
                inside = (queries >= low) & (queries < high)
                correlations[inside, queries[inside] - low] = -1.0  # an image is not its own copy
                values, others = correlations.topk(min(NEIGHBOURS, high - low), dim=1)
                rows, columns = (values >= COARSE_NEAR).nonzero(as_tuple=True)
                neighbours.append(torch.stack([queries[rows], others[rows, columns] + low]))
            bar.update(len(queries))
    first, second = torch.cat(neighbours, dim=1).sort(dim=0).values.unique(dim=1)  # (2, P), without repetitions
    is_mirrored = torch.cat(
        [
            (plain[a] * flipped[b]).sum(dim=1) > (plain[a] * plain[b]).sum(dim=1)
            for a, b in zip(first.split(8192), second.split(8192), strict=True)
        ]
    )
    return first.numpy(), second.numpy(), is_mirrored.numpy()


def coarse_features(thumbnails: torch.Tensor) -> torch.Tensor:
    """uint8 (N, 3, SIDE, SIDE) -> (N, 3 · COARSE_SIDE²) whose dot products are correlations; 0 for uniform images."""
    parts = [F.avg_pool2d(part.float(), SIDE // COARSE_SIDE).flatten(1) for part in thumbnails.split(8192)]
    pooled = torch.cat(parts)
    pooled -= pooled.mean(dim=1, keepdim=True)
    return pooled / pooled.norm(dim=1, keepdim=True).clamp_min(1.0)


def similarity(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Highest correlation (P,) of image pairs, uint8 (P, 3, SIDE, SIDE), over positions and sizes of one in the other.

    Local mean and contrast are normalised first, because edges and textures identify a picture and areas such as sky
    and grass do not. Sizes are tried for pairs that correlate at some position.
    """
    a, b = (normalize_contrast(x.float()) for x in (a, b))
    a_spectra, b_spectra = spectra(a), spectra(b)
    scores = best_correlation(a_spectra, b_spectra, SIDE)
    [promising] = (scores >= POSITION_NEAR).nonzero(as_tuple=True)
    if not len(promising):  # the Fourier transform of an empty batch is an error
        return scores
    (a_pixels, a_energy), (b_pixels, b_energy) = a_spectra, b_spectra
    a_spectra, b_spectra = (a_pixels[promising], a_energy[promising]), (b_pixels[promising], b_energy[promising])
    for size in SIZES:
        for whole, part in ((a_spectra, b), (b_spectra, a)):
            shrunk = resize(part[promising], [size, size], antialias=True)
            scores[promising] = torch.maximum(scores[promising], best_correlation(whole, spectra(shrunk), size))
    return scores


def normalize_contrast(x: torch.Tensor) -> torch.Tensor:
    """(P, 3, SIDE, SIDE) in 0 ... 255, minus the mean of each neighbourhood, divided by its standard deviation."""
    position = torch.arange(SIDE)
    near = ((position[:, None] - position).abs() <= NEIGHBOURHOOD // 2).float()
    mean = near / near.sum(dim=1, keepdim=True)  # (SIDE, SIDE), averages the neighbourhood in a row or column
    difference = x - mean @ x @ mean.T
    energy = (difference**2).mean(dim=1, keepdim=True)
    return difference / ((mean @ energy @ mean.T).sqrt() + NOISE)


def fourier(x: torch.Tensor) -> torch.Tensor:
    """Fourier transform of (…, h, w), padded with zeros."""
    return torch.fft.rfft2(x, s=(PADDED, PADDED))


def spectra(x: torch.Tensor) -> Spectra:
    """(P, 3, h, w) -> Fourier transforms of the pixels, (P, 3, …), and of their energy, (P, …)."""
    return fourier(x), fourier((x**2).sum(dim=1))


def best_correlation(a: Spectra, b: Spectra, size: int) -> torch.Tensor:
    """Highest correlation (P,) over all positions of images of `size` pixels in images of SIDE pixels.

    This is the masked normalised cross-correlation of Padfield (doi:10.1109/TIP.2011.2181402) for images whose mean is
    already 0. The arguments are `spectra`: `a` of images of SIDE pixels a side, `b` of images of `size`.
    """

    def correlate(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfft2(x * y.conj(), s=(PADDED, PADDED))  # at each position of y in x

    whole, part = fourier(torch.ones(SIDE, SIDE)), fourier(torch.ones(size, size))
    products = torch.fft.irfft2((a[0] * b[0].conj()).sum(dim=1), s=(PADDED, PADDED))
    energies = correlate(a[1], part) * correlate(whole, b[1])
    correlations = products / energies.clamp_min(1.0).sqrt()
    return correlations.masked_fill(correlate(whole, part) < OVERLAP * size**2, -1.0).amax(dim=(1, 2)).clamp(-1.0, 1.0)
