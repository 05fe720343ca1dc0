"""Corruptions of images at five strengths, to measure how accuracy decreases with each.

    corrupted = corrupt(images, "gaussian_noise", strength=3)  # uint8 (N, 3, H, W), as from `loaders.as_tensor`

Six kinds are those of CIFAR-10-C with its constants (Hendrycks and Dietterich, arXiv:1903.12261; the constants of
ImageNet-C are harsher). Values are truncated to integers, as there. Results can differ by one level where float64
rounding puts a value of the original just below an integer. Shift and rotation are additions of this project. They
mirror the image at its border, because a black border would be another corruption.

The constants are for 32 pixels a side. In larger images, blur and shift grow with the shorter side and the blocks of
pixelation with each side; noise, brightness, contrast and JPEG act on pixels or blocks of 8 × 8 and do not change.

Random numbers depend on `seed` and on the pixels of the image, so an image is corrupted in the same way in every batch,
order and sample. All strengths use the same numbers, differently scaled.
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

SIDE = 32  # pixels a side for which the constants are chosen
CHUNK = 64  # images in memory in float32


@dataclass(frozen=True)
class Kind:
    """A kind of corruption."""

    unit: str  # what the strengths measure
    strengths: tuple[float, float, float, float, float]  # five values from mild to strong, which may be decreasing
    apply: Callable[[torch.Tensor, float, int], torch.Tensor]  # images uint8 (N, 3, H, W), strength, seed -> images


def corrupt(images: torch.Tensor, kind: str, strength: int, seed: int = 0) -> torch.Tensor:
    """Corrupts N images independently.

    Args:
        images: uint8 (N, 3, H, W), on the CPU.
        kind: a key of `KINDS`.
        strength: 1 (mild) to 5 (strong).
        seed: of the noise and of the directions of shift and rotation; at least 0.

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
    apply, value = KINDS[kind].apply, KINDS[kind].strengths[strength - 1]
    return torch.cat([apply(chunk, value, seed) for chunk in images.split(CHUNK)])


def _gaussian_noise(images: torch.Tensor, std: float, seed: int) -> torch.Tensor:
    noise = np.stack([rng.standard_normal(images.shape[1:], np.float32) for rng in _generators(images, seed)])
    return _truncate(images + 255 * std * torch.from_numpy(noise))


def _gaussian_blur(images: torch.Tensor, sigma: float, seed: int) -> torch.Tensor:
    """As scikit-image's `gaussian`: radius 4 sigma, pixels repeated at the border (torchvision mirrors them)."""
    sigma *= min(images.shape[-2:]) / SIDE
    # SciPy rounds to float32 between the two passes, so that a uniform image does not change.
    return _truncate(
        torch.from_numpy(gaussian_filter(images.numpy(), sigma, output=np.float32, mode="nearest", axes=(2, 3)))
    )


def _brightness(images: torch.Tensor, added: float, seed: int) -> torch.Tensor:
    """Adds to the value of HSV, the maximum of R, G and B; scaling all three alike keeps hue and saturation."""
    images = images.float()
    value = images.amax(dim=1, keepdim=True)  # (N, 1, H, W)
    brighter = (value + 255 * added).clamp(max=255)
    return _truncate(torch.where(value > 0, images * brighter / value, brighter))  # black has no hue: it becomes grey


def _contrast(images: torch.Tensor, factor: float, seed: int) -> torch.Tensor:
    """Scales the distance to the mean of each channel of each image (torchvision uses the mean of the grey image)."""
    images = images.float()
    mean = images.mean(dim=(2, 3), keepdim=True)
    return _truncate((images - mean) * factor + mean)


def _jpeg_compression(images: torch.Tensor, quality: float, seed: int) -> torch.Tensor:
    """JPEG by Pillow, chroma at half the resolution (torchvision's codec gives the same pixels, but is deprecated)."""

    def compressed(image: Image.Image) -> Image.Image:
        image.save(file := io.BytesIO(), "JPEG", quality=quality)
        return Image.open(file)

    return _map_images(images, compressed)


def _pixelate(images: torch.Tensor, fraction: float, seed: int) -> torch.Tensor:
    """Reduces the image to a fraction of the pixels a side and enlarges it again, by Pillow's box filter."""
    height, width = images.shape[-2:]
    small = max(1, int(width * fraction)), max(1, int(height * fraction))
    return _map_images(images, lambda image: image.resize(small, Resampling.BOX).resize(image.size, Resampling.BOX))


def _shift(images: torch.Tensor, fraction: float, seed: int) -> torch.Tensor:
    """Shifts along both axes in random directions by the same integer number of pixels (at least 1), without blur."""
    height, width = images.shape[-2:]
    pixels = max(1, round(fraction * min(height, width)))
    x, y = _signs(images, seed, 2).T * pixels
    theta = torch.eye(2, 3).repeat(len(images), 1, 1)
    theta[:, 0, 2], theta[:, 1, 2] = x * 2 / width, y * 2 / height  # affine_grid has coordinates from -1 to 1
    return _resample(images, theta)


def _rotation(images: torch.Tensor, degrees: float, seed: int) -> torch.Tensor:
    """Rotates about the centre in a random direction, bilinear."""
    height, width = images.shape[-2:]
    cosine = torch.full((len(images),), math.cos(math.radians(degrees)))
    sine = _signs(images, seed, 1)[:, 0] * math.sin(math.radians(degrees))
    zero = torch.zeros(len(images))
    theta = torch.stack([cosine, -sine * height / width, zero, sine * width / height, cosine, zero], dim=1)
    return _resample(images, theta.view(-1, 2, 3))


KINDS = {
    "gaussian_noise": Kind(
        "standard deviation, black to white being 1", (0.04, 0.06, 0.08, 0.09, 0.10), _gaussian_noise
    ),
    "gaussian_blur": Kind("sigma, pixels of an image of 32", (0.4, 0.6, 0.7, 0.8, 1.0), _gaussian_blur),
    "brightness": Kind("added to HSV's value, which is in [0, 1]", (0.05, 0.1, 0.15, 0.2, 0.3), _brightness),
    "contrast": Kind("factor of the distance to the mean colour", (0.75, 0.5, 0.4, 0.3, 0.15), _contrast),
    "jpeg_compression": Kind("quality, of 100", (80, 65, 58, 50, 40), _jpeg_compression),
    "pixelate": Kind("fraction of the pixels a side that is left", (0.95, 0.9, 0.85, 0.75, 0.65), _pixelate),
    # Ours. Third and fifth are the bounds of Engstrom et al. (arXiv:1712.02779) on CIFAR-10: 3 pixels, 30 degrees.
    "shift": Kind("fraction of the shorter side, along both axes", (1 / 32, 2 / 32, 3 / 32, 5 / 32, 8 / 32), _shift),
    "rotation": Kind("degrees", (5, 10, 15, 20, 30), _rotation),
}


def _truncate(values: torch.Tensor) -> torch.Tensor:
    """Values in units of 255 -> uint8, clipped and without their fraction."""
    return values.clamp(0, 255).to(torch.uint8)


def _map_images(images: torch.Tensor, change: Callable[[Image.Image], Image.Image]) -> torch.Tensor:
    """Applies a function of Pillow images to each image."""
    arrays = images.permute(0, 2, 3, 1).contiguous().numpy()  # (N, H, W, 3)
    changed = np.stack([np.asarray(change(Image.fromarray(image))) for image in arrays])
    return torch.from_numpy(changed).permute(0, 3, 1, 2).contiguous()


def _generators(images: torch.Tensor, seed: int) -> list[np.random.Generator]:
    """One random generator per image, seeded by its pixels and `seed`."""
    digests = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images.numpy()]
    return [np.random.default_rng([seed, int.from_bytes(digest, "little")]) for digest in digests]


def _signs(images: torch.Tensor, seed: int, n: int) -> torch.Tensor:
    """n random numbers per image, -1 or 1: float32 (N, n)."""
    return torch.tensor(np.array([rng.choice([-1, 1], n) for rng in _generators(images, seed)]), dtype=torch.float32)


def _resample(images: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """Transforms each image by its affine map, (N, 2, 3): bilinear, mirrored at the border, rounded."""
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False).round().to(torch.uint8)
