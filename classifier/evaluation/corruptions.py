"""Corruptions of images at five strengths, to measure how accuracy falls with each.

    corrupted = corrupt(images, "gaussian_noise", strength=3)  # uint8 (N, 3, H, W), as `data.as_tensor` gives them

Six kinds are CIFAR-10-C's, with its own constants (Hendrycks and Dietterich, arXiv:1903.12261; ImageNet-C's are
harsher). Fractions of a level are cut off, as there, not rounded; where float64 falls just below a whole number there,
a level is lost that is kept here. Shift and rotation are ours. What they bring into view is mirrored: a black border
would be a corruption of its own.

The constants are for 32 pixels a side. In larger images blur and shift grow with the shorter side, and a block of
pixelation with each side; noise, brightness, contrast and JPEG act on pixels or 8 × 8 blocks, and stay as they are.

What is random is drawn from `seed` and the image's own pixels: an image is corrupted in the same way in whatever batch,
order or sample it comes, and from strength to strength the draw is the same, only larger.
"""

import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from PIL.Image import Resampling
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from classifier.errors import DataError

SIDE = 32  # pixels, for which the constants are made
CHUNK = 64  # images at a time, in float32


@dataclass(frozen=True)
class Kind:
    """A way to corrupt images.

    Attributes:
        name: its key in `KINDS`.
        unit: what the strengths measure.
        strengths: five, from mild to strong; not always rising.
        apply: takes uint8 (N, 3, H, W), one of the strengths and the seed; gives the same shape.
    """

    name: str
    unit: str
    strengths: tuple[float, float, float, float, float]
    apply: Callable[[torch.Tensor, float, int], torch.Tensor]


def corrupt(images: torch.Tensor, kind: str, strength: int, seed: int = 0) -> torch.Tensor:
    """Corrupts each of N images, by itself.

    Args:
        images: uint8 (N, 3, H, W), on the CPU.
        kind: a key of `KINDS`.
        strength: 1 (mild) to 5 (strong).
        seed: of the noise, and of the ways in which images are shifted and turned; 0 or above.

    Returns:
        uint8 (N, 3, H, W).

    Raises:
        DataError: there is no such kind or strength, or the images are of another shape or dtype.
    """
    if kind not in KINDS:
        raise DataError(f"no corruption {kind!r}: choose from {', '.join(KINDS)}")
    if strength not in range(1, 6):
        raise DataError(f"no strength {strength!r} of {kind}: choose from 1 to 5")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise DataError(f"can't corrupt {images.dtype} {tuple(images.shape)}: pass torch.uint8 (N, 3, H, W)")
    apply, value = KINDS[kind].apply, KINDS[kind].strengths[strength - 1]
    return torch.cat([apply(chunk, value, seed) for chunk in images.split(CHUNK)])


def _gaussian_noise(images: torch.Tensor, std: float, seed: int) -> torch.Tensor:
    noise = np.stack([rng.standard_normal(images.shape[1:], np.float32) for rng in _generators(images, seed)])
    return _cut(images + 255 * std * torch.from_numpy(noise))


def _gaussian_blur(images: torch.Tensor, sigma: float, seed: int) -> torch.Tensor:
    """As scikit-image's `gaussian`: 4 sigma a side, the edge's pixels repeated (torchvision would mirror them)."""
    sigma *= min(images.shape[-2:]) / SIDE
    # Between the two passes SciPy rounds to float32, so that a flat image stays as it is.
    return _cut(
        torch.from_numpy(gaussian_filter(images.numpy(), sigma, output=np.float32, mode="nearest", axes=(2, 3)))
    )


def _brightness(images: torch.Tensor, added: float, seed: int) -> torch.Tensor:
    """Adds to the value of HSV, that is the largest of R, G and B: hue and saturation stay where all three are scaled
    alike.
    """
    images = images.float()
    value = images.amax(dim=1, keepdim=True)  # (N, 1, H, W)
    brighter = (value + 255 * added).clamp(max=255)
    return _cut(torch.where(value > 0, images * brighter / value, brighter))  # black has no saturation: it turns grey


def _contrast(images: torch.Tensor, factor: float, seed: int) -> torch.Tensor:
    """About the mean of each channel of each image (torchvision takes that of the grey image)."""
    images = images.float()
    mean = images.mean(dim=(2, 3), keepdim=True)
    return _cut((images - mean) * factor + mean)


def _jpeg_compression(images: torch.Tensor, quality: float, seed: int) -> torch.Tensor:
    """By Pillow, chroma at half the resolution (torchvision's codec gives the same pixels, but is to be removed)."""

    def compressed(image: Image.Image) -> Image.Image:
        image.save(file := io.BytesIO(), "JPEG", quality=quality)
        return Image.open(file)

    return _each(images, compressed)


def _pixelate(images: torch.Tensor, fraction: float, seed: int) -> torch.Tensor:
    """Down to a fraction of the pixels a side and up again, by Pillow's box filter."""
    height, width = images.shape[-2:]
    small = max(1, int(width * fraction)), max(1, int(height * fraction))
    return _each(images, lambda image: image.resize(small, Resampling.BOX).resize(image.size, Resampling.BOX))


def _shift(images: torch.Tensor, fraction: float, seed: int) -> torch.Tensor:
    """Along both axes, each way as drawn, by the same whole number of pixels (at least 1), which blurs nothing."""
    height, width = images.shape[-2:]
    pixels = max(1, round(fraction * min(height, width)))
    x, y = _signs(images, seed, 2).T * pixels
    theta = torch.eye(2, 3).repeat(len(images), 1, 1)
    theta[:, 0, 2], theta[:, 1, 2] = x * 2 / width, y * 2 / height  # affine_grid's images go from -1 to 1
    return _resample(images, theta)


def _rotation(images: torch.Tensor, degrees: float, seed: int) -> torch.Tensor:
    """About the centre, clockwise or not as drawn, bilinear."""
    height, width = images.shape[-2:]
    cosine = torch.full((len(images),), math.cos(math.radians(degrees)))
    sine = _signs(images, seed, 1)[:, 0] * math.sin(math.radians(degrees))
    zero = torch.zeros(len(images))
    theta = torch.stack([cosine, -sine * height / width, zero, sine * width / height, cosine, zero], dim=1)
    return _resample(images, theta.view(-1, 2, 3))


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "gaussian_noise",
            "standard deviation, black to white being 1",
            (0.04, 0.06, 0.08, 0.09, 0.10),
            _gaussian_noise,
        ),
        Kind("gaussian_blur", "sigma, pixels of an image of 32", (0.4, 0.6, 0.7, 0.8, 1.0), _gaussian_blur),
        Kind("brightness", "added to HSV's value, which is in [0, 1]", (0.05, 0.1, 0.15, 0.2, 0.3), _brightness),
        Kind("contrast", "factor of the distance to the mean colour", (0.75, 0.5, 0.4, 0.3, 0.15), _contrast),
        Kind("jpeg_compression", "quality, of 100", (80, 65, 58, 50, 40), _jpeg_compression),
        Kind("pixelate", "fraction of the pixels a side that is left", (0.95, 0.9, 0.85, 0.75, 0.65), _pixelate),
        # Ours. Third and fifth are the bounds of Engstrom et al. (arXiv:1712.02779) on CIFAR-10: 3 pixels, 30 degrees.
        Kind(
            "shift", "fraction of the shorter side, along both axes", (1 / 32, 2 / 32, 3 / 32, 5 / 32, 8 / 32), _shift
        ),
        Kind("rotation", "degrees", (5, 10, 15, 20, 30), _rotation),
    )
}


def _cut(values: torch.Tensor) -> torch.Tensor:
    """Numbers in units of 255 -> uint8, without their fraction."""
    return values.clamp(0, 255).to(torch.uint8)


def _each(images: torch.Tensor, change: Callable[[Image.Image], Image.Image]) -> torch.Tensor:
    """Changes images of Pillow's one by one."""
    arrays = images.permute(0, 2, 3, 1).contiguous().numpy()  # (N, H, W, 3)
    changed = np.stack([change(Image.fromarray(image)) for image in arrays])
    return torch.from_numpy(changed).permute(0, 3, 1, 2).contiguous()


def _generators(images: torch.Tensor, seed: int) -> list[np.random.Generator]:
    """One for each image, from its pixels and the seed."""
    digests = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images.numpy()]
    return [np.random.default_rng([seed, int.from_bytes(digest, "little")]) for digest in digests]


def _signs(images: torch.Tensor, seed: int, n: int) -> torch.Tensor:
    """n numbers for each image, -1 or 1: float32 (N, n)."""
    return torch.tensor(np.array([rng.choice([-1, 1], n) for rng in _generators(images, seed)]), dtype=torch.float32)


def _resample(images: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """Moves each image by its affine map (N, 2, 3), bilinear, mirrored at the edge, rounded."""
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False).round().to(torch.uint8)
