"""The fifteen corruptions of CIFAR-10-C at its five strengths, to measure how accuracy decreases with each.

    corrupted = corrupt(images, "gaussian_noise", strength=3)  # uint8 (N, 3, H, W), as from `loaders.as_tensor`

Kinds, definitions and constants are those of CIFAR-10-C (Hendrycks and Dietterich, arXiv:1903.12261; the constants of
ImageNet-C are harsher), so accuracies can be set beside those that others report. The images are made here and are not
the published files: the random numbers differ, and the frost is drawn (see `_frost`), where the original cuts it out of
six photographs. Values are truncated to integers, as there.

The constants are for 32 pixels a side. In larger images, what has a size in pixels (blurs, moved pixels, snowflakes,
waves) grows with the shorter side, and the blocks of pixelation with each side; noise, brightness, contrast and JPEG
act on pixels or blocks of 8 × 8 and do not change.

Random numbers depend on `seed` and on the pixels of the image, so an image is corrupted in the same way in every batch,
order and sample.
"""

import hashlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image
from PIL.Image import Resampling
from scipy import ndimage

from classifier.errors import DataError

SIDE = 32  # pixels a side for which the constants are chosen
# Of 1,500 parts of 32 × 32 pixels of the five photographs of frost that CIFAR-10-C uses, in its scale: mean colour
# (R, G, B), its standard deviation between the parts, and the standard deviation within a part.
FROST_MEAN, FROST_SPREAD, FROST_TEXTURE = np.array([0.565, 0.648, 0.694]), np.array([0.198, 0.140, 0.134]), 0.09


@dataclass(frozen=True)
class Kind:
    """A kind of corruption.

    Attributes:
        unit: what the first constant of each strength measures.
        strengths: the constants of `apply` at the five strengths, from mild to strong.
        apply: corrupts one image, float64 (H, W, 3) in [0, 1], with a random generator and the constants. The result
            may lie outside of [0, 1].
    """

    unit: str
    strengths: Sequence[Sequence[float]]
    apply: Callable[..., np.ndarray]


def corrupt(images: torch.Tensor, kind: str, strength: int, seed: int = 0) -> torch.Tensor:
    """Corrupts N images independently.

    Args:
        images: uint8 (N, 3, H, W), on the CPU.
        kind: a key of `KINDS`.
        strength: 1 (mild) to 5 (strong).
        seed: of the random numbers; at least 0.

    Returns:
        uint8 (N, 3, H, W).

    Raises:
        DataError: the kind or strength is unknown, or the images have another shape or dtype.
    """
    if kind not in KINDS:
        raise DataError(f"no corruption {kind!r}: choose from {', '.join(KINDS)}")
    if strength not in range(1, 6):
        raise DataError(f"no strength {strength!r} of {kind}: choose from 1 to 5")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise DataError(f"can't corrupt {images.dtype} {tuple(images.shape)}: pass torch.uint8 (N, 3, H, W)")
    apply, constants = KINDS[kind].apply, KINDS[kind].strengths[strength - 1]
    corrupted = torch.empty_like(images)
    for i, image in enumerate(images.permute(0, 2, 3, 1).contiguous().numpy()):
        changed = 255 * apply(image / 255, _generator(image, seed), *constants)
        # Float64 may put a value just below the integer that it is by its definition.
        corrupted[i] = torch.from_numpy((changed + 1e-9).clip(0, 255).astype(np.uint8)).permute(2, 0, 1)
    return corrupted


# --- Noise ------------------------------------------------------------------------------------------------------------


def _gaussian_noise(image: np.ndarray, rng: Generator, std: float) -> np.ndarray:
    return image + std * rng.standard_normal(image.shape)


def _shot_noise(image: np.ndarray, rng: Generator, photons: float) -> np.ndarray:
    """Counts of photons, of which white has so many on average."""
    return rng.poisson(image * photons) / photons


def _impulse_noise(image: np.ndarray, rng: Generator, share: float) -> np.ndarray:
    """Replaces a share of the values, in each channel on its own, by 0 or 1."""
    return np.where(rng.random(image.shape) < share, rng.integers(2, size=image.shape), image)


# --- Blur -------------------------------------------------------------------------------------------------------------


def _defocus_blur(image: np.ndarray, rng: Generator, radius: float, softness: float) -> np.ndarray:
    """Averages over a disk with a blurred edge; with a radius below 1 it is one pixel and only that blur is left."""
    scale = _scale(image)
    radius, softness = radius * scale, softness * scale
    reach = max(8, math.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    # The blur is of 3 × 3 pixels in an image of 32.
    disk = ndimage.gaussian_filter(
        ((x**2 + y**2) <= radius**2).astype(float), softness, radius=max(1, round(scale)), mode="mirror"
    )
    return ndimage.convolve(image, disk[:, :, None] / disk.sum(), mode="mirror")


def _glass_blur(image: np.ndarray, rng: Generator, sigma: float, reach: float, rounds: int) -> np.ndarray:
    """Each pixel, from the bottom right, takes the colour of one nearby, between two slight blurs.

    The published images were made by code that should exchange the two and copies one instead, which is done here, too.
    """
    reach = max(1, round(reach * _scale(image)))
    pixels = _gaussian_blur(image, sigma)
    height, width = image.shape[:2]
    for _ in range(rounds):
        moves = rng.integers(-reach, reach, (height, width, 2))
        for y in range(height - reach, reach, -1):
            for x in range(width - reach, reach, -1):
                pixels[y, x] = pixels[y + moves[y, x, 0], x + moves[y, x, 1]]
    return _gaussian_blur(pixels, sigma)


def _motion_blur(image: np.ndarray, rng: Generator, radius: float, sigma: float) -> np.ndarray:
    return _along_a_line(image, radius, sigma, rng.uniform(-45, 45))


def _zoom_blur(image: np.ndarray, rng: Generator, largest: float) -> np.ndarray:
    """The mean of the image and of it enlarged by 1.00, 1.01, … up to the largest factor."""
    factors = 1 + 0.01 * np.arange(round((largest - 1) * 100) + 1)
    return (image + sum(_enlarged(image, factor) for factor in factors)) / (len(factors) + 1)


# --- Weather ----------------------------------------------------------------------------------------------------------


def _fog(image: np.ndarray, rng: Generator, thickness: float, decay: float) -> np.ndarray:
    """Adds fractal clouds and scales the sum so that the lightest value of the image stays."""
    lightest = image.max()
    fogged = image + thickness * _clouds(image.shape[:2], rng, decay)[:, :, None]
    return fogged * lightest / (lightest + thickness)


def _frost(image: np.ndarray, rng: Generator, kept: float, frost: float) -> np.ndarray:
    """Adds needles of ice and takes some of the image away.

    The original adds a random part of one of five photographs of frost, which are files of its repository. The ice here
    is drawn with the statistics of such parts.
    """
    clouds = _clouds(image.shape[:2], rng, 1.2)
    angle = rng.uniform(0, 180)
    needles = _along_a_line(rng.standard_normal((*image.shape[:2], 1)), 6, 3, angle)[:, :, 0]
    ice = (clouds - clouds.mean()) / (clouds.std() + 1e-9) + (needles - needles.mean()) / (needles.std() + 1e-9)
    colour = FROST_MEAN + FROST_SPREAD * rng.standard_normal()
    return kept * image + frost * (colour + FROST_TEXTURE * ice[:, :, None] / math.sqrt(2)).clip(0, 1)


def _snow(
    image: np.ndarray,
    rng: Generator,
    mean: float,
    std: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    kept: float,
) -> np.ndarray:
    """Adds falling flakes, and the same flakes turned by 180 degrees, to an image with less colour."""
    flakes = _enlarged(rng.normal(mean, std, (*image.shape[:2], 1)), max(1, zoom * _scale(image)))
    flakes = np.where(flakes < threshold, 0, flakes).clip(0, 1)
    flakes = _along_a_line(flakes, radius, sigma, rng.uniform(-135, -45))
    grey = image @ [0.299, 0.587, 0.114]
    whitened = kept * image + (1 - kept) * np.maximum(image, grey[:, :, None] * 1.5 + 0.5)
    return whitened + flakes + flakes[::-1, ::-1]


# --- Colour and files -------------------------------------------------------------------------------------------------


def _brightness(image: np.ndarray, rng: Generator, added: float) -> np.ndarray:
    """Adds to the value of HSV, the maximum of R, G and B; scaling all three alike keeps hue and saturation."""
    value = image.max(axis=2, keepdims=True)
    brighter = (value + added).clip(max=1)
    return np.where(value > 0, image * brighter / np.maximum(value, 1e-9), brighter)  # black has no hue: it turns grey


def _contrast(image: np.ndarray, rng: Generator, factor: float) -> np.ndarray:
    """Scales the distance to the mean of each channel of the image."""
    mean = image.mean(axis=(0, 1))
    return (image - mean) * factor + mean


def _elastic_transform(image: np.ndarray, rng: Generator, alpha: float, sigma: float, reach: float) -> np.ndarray:
    """Maps three points to others at most `reach` away, and moves each pixel by smooth random waves."""
    height, width = image.shape[:2]
    scale = _scale(image)
    third = min(height, width) // 3
    corners = np.array([[1, 1], [1, -1], [-1, -1]]) * third + [height // 2, width // 2]  # (3 points, y and x)
    moved = corners + rng.uniform(-reach * scale, reach * scale, (3, 2))
    # The affine map that takes each point of the result to one of the image.
    affine = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners)  # (3, 2)
    y, x = np.mgrid[:height, :width].astype(float)
    from_y, from_x = np.moveaxis(np.stack([y, x, np.ones_like(y)], axis=-1) @ affine, -1, 0)
    image = _sampled(image, from_y, from_x, mode="mirror")
    waves = rng.uniform(-1, 1, (2, height, width))
    dy, dx = alpha * scale * ndimage.gaussian_filter(waves, sigma * scale, mode="reflect", truncate=3, axes=(1, 2))
    return _sampled(image, y + dy, x + dx, mode="reflect")


def _pixelate(image: np.ndarray, rng: Generator, fraction: float) -> np.ndarray:
    """Reduces the image to a fraction of the pixels a side and enlarges it again, by Pillow's box filter."""
    picture = _as_picture(image)
    small = max(1, int(picture.width * fraction)), max(1, int(picture.height * fraction))
    return np.asarray(picture.resize(small, Resampling.BOX).resize(picture.size, Resampling.BOX)) / 255


def _jpeg_compression(image: np.ndarray, rng: Generator, quality: int) -> np.ndarray:
    """JPEG by Pillow, chroma at half the resolution."""
    _as_picture(image).save(file := io.BytesIO(), "JPEG", quality=quality)
    return np.asarray(Image.open(file)) / 255


KINDS = {
    "gaussian_noise": Kind(
        "standard deviation, black to white being 1", [(0.04,), (0.06,), (0.08,), (0.09,), (0.1,)], _gaussian_noise
    ),
    "shot_noise": Kind("photons of white", [(500,), (250,), (100,), (75,), (50,)], _shot_noise),
    "impulse_noise": Kind("share of the values", [(0.01,), (0.02,), (0.03,), (0.05,), (0.07,)], _impulse_noise),
    "defocus_blur": Kind(
        "radius, pixels of an image of 32", [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)], _defocus_blur
    ),
    "glass_blur": Kind(
        "sigma, pixels of an image of 32",
        [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
        _glass_blur,
    ),
    "motion_blur": Kind("radius, pixels of an image of 32", [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)], _motion_blur),
    "zoom_blur": Kind("largest factor", [(1.05,), (1.1,), (1.15,), (1.2,), (1.25,)], _zoom_blur),
    "snow": Kind(
        "mean of the flakes",
        [
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ],
        _snow,
    ),
    "frost": Kind("share of the image", [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)], _frost),
    "fog": Kind("thickness", [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)], _fog),
    "brightness": Kind(
        "added to HSV's value, which is in [0, 1]", [(0.05,), (0.1,), (0.15,), (0.2,), (0.3,)], _brightness
    ),
    "contrast": Kind(
        "factor of the distance to the mean colour", [(0.75,), (0.5,), (0.4,), (0.3,), (0.15,)], _contrast
    ),
    "elastic_transform": Kind(
        "size of the waves, pixels of an image of 32",
        [(0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)],
        _elastic_transform,
    ),
    "pixelate": Kind(
        "fraction of the pixels a side that is left", [(0.95,), (0.9,), (0.85,), (0.75,), (0.65,)], _pixelate
    ),
    "jpeg_compression": Kind("quality, of 100", [(80,), (65,), (58,), (50,), (40,)], _jpeg_compression),
}


def _generator(image: np.ndarray, seed: int) -> Generator:
    """A random generator seeded by the pixels of an image and by `seed`."""
    digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
    return np.random.default_rng([seed, int.from_bytes(digest, "little")])


def _scale(image: np.ndarray) -> float:
    """How many pixels of the image one pixel of an image of 32 is."""
    return min(image.shape[:2]) / SIDE


def _as_picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(255 * image).astype(np.uint8))


def _gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """As scikit-image's `gaussian`, in steps of 1/255, as the original rounds down after it."""
    blurred = ndimage.gaussian_filter(image, sigma * _scale(image), mode="nearest", axes=(0, 1))
    return np.floor(255 * blurred + 1e-9) / 255


def _along_a_line(image: np.ndarray, radius: float, sigma: float, degrees: float) -> np.ndarray:
    """Averages each pixel with those before it on a line, weighted by half a Gaussian, as ImageMagick's motion blur."""
    scale = _scale(image)
    steps = np.arange(2 * math.ceil(radius * scale) + 1)
    weights = np.exp(-((steps / (sigma * scale)) ** 2) / 2)
    weights /= weights.sum()
    angle = math.radians(degrees)
    reach = len(steps)
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    height, width = image.shape[:2]
    blurred = np.zeros_like(image)
    for step, weight in zip(steps, weights, strict=True):
        y, x = (reach + math.ceil(step * part - 0.5) for part in (math.sin(angle), math.cos(angle)))
        blurred += weight * padded[y : y + height, x : x + width]
    return blurred


def _enlarged(image: np.ndarray, factor: float) -> np.ndarray:
    """The middle of the image, enlarged to the size of the whole: bilinear, (H, W, C)."""
    height, width = image.shape[:2]
    cut_height, cut_width = math.ceil(height / factor), math.ceil(width / factor)
    top, left = (height - cut_height) // 2, (width - cut_width) // 2
    middle = image[top : top + cut_height, left : left + cut_width]
    large = ndimage.zoom(middle, (factor, factor, 1), order=1)
    top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
    return large[top : top + height, left : left + width]


def _sampled(image: np.ndarray, y: np.ndarray, x: np.ndarray, mode: str) -> np.ndarray:
    """The image at the points (y, x), each (H, W), bilinear; `mode` is SciPy's for points outside of the image."""
    channels = [ndimage.map_coordinates(image[:, :, c], [y, x], order=1, mode=mode) for c in range(3)]
    return np.stack(channels, axis=2)


def _clouds(size: tuple[int, int], rng: Generator, decay: float) -> np.ndarray:
    """A fractal in [0, 1], (H, W), by the diamond-square algorithm; half the distance has 1 / `decay`² of the noise."""
    side = 2 ** math.ceil(math.log2(max(size)))
    clouds = np.zeros((side, side))
    step, noise = side, 100.0
    while step > 1:
        half = step // 2
        corners = clouds[::step, ::step]
        squares = (corners + np.roll(corners, -1, 0) + np.roll(corners, -1, 1) + np.roll(corners, -1, (0, 1))) / 4
        clouds[half::step, half::step] = squares + noise * rng.uniform(-1, 1, squares.shape)
        centres = clouds[half::step, half::step]
        for y, x, axis in ((0, half, 0), (half, 0, 1)):  # the middles of horizontal and of vertical sides
            beside = corners + np.roll(corners, -1, 1 - axis) + centres + np.roll(centres, 1, axis)
            clouds[y::step, x::step] = beside / 4 + noise * rng.uniform(-1, 1, beside.shape)
        step, noise = half, noise / decay**2
    clouds -= clouds.min()
    return clouds[: size[0], : size[1]] / clouds.max()
