"""Batched augmentation: a whole batch at once, on the images' device."""

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import gaussian_blur

# The strongest that `degrade` makes: noise as a fraction of the range of 255, blur in pixels of images of 32 × 32.
NOISE, BLUR, CONTRAST = 0.12, 1.5, 0.15


def normalize(images: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    """uint8 (N, C, H, W) -> float32 of the same shape, as the saved processor does it; mean and std in units of 255."""
    means = torch.tensor(mean, device=images.device).view(-1, 1, 1) * 255
    stds = torch.tensor(std, device=images.device).view(-1, 1, 1) * 255
    return (images.float() - means) / stds


def flip_by_turns(images: torch.Tensor, first: torch.Tensor, epoch: int) -> torch.Tensor:
    """Mirrors the images for which `first` (N,) is true in even epochs, and the others in odd ones.

    Each image is seen both ways in any two epochs, which random flips do not give (arXiv:2404.00498, section 3.6).
    """
    mirrored = first if epoch % 2 == 0 else ~first
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)


def shift(images: torch.Tensor, most: int, generator: torch.Generator) -> torch.Tensor:
    """Moves each image of (N, C, H, W) by whole pixels of its own in [-most, most], both ways, the edge reflected."""
    n, _, height, width = images.shape
    dy, dx = torch.randint(2 * most + 1, (2, n, 1), generator=generator).to(images.device)
    rows = dy + torch.arange(height, device=images.device)  # (N, H)
    columns = dx + torch.arange(width, device=images.device)  # (N, W)
    padded = F.pad(images, (most,) * 4, mode="reflect").permute(0, 2, 3, 1)  # (N, H + 2·most, W + 2·most, C)
    index = torch.arange(n, device=images.device)[:, None, None]
    return padded[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cutout(images: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Sets a square of `size` pixels a side, centred anywhere in each image, to 0, the mean (arXiv:1708.04552)."""
    n, _, height, width = images.shape
    y = torch.randint(height, (n, 1), generator=generator).to(images.device)
    x = torch.randint(width, (n, 1), generator=generator).to(images.device)
    rows = (torch.arange(height, device=images.device) - y + size // 2).clamp(-1, size)  # inside: 0 ... size - 1
    columns = (torch.arange(width, device=images.device) - x + size // 2).clamp(-1, size)
    inside = ((rows >= 0) & (rows < size))[:, None, :, None] & ((columns >= 0) & (columns < size))[:, None, None, :]
    return images.masked_fill(inside, 0)


def add_noise(images: torch.Tensor, most: float, generator: torch.Generator) -> torch.Tensor:
    """Adds Gaussian noise to half of a batch, which makes a model robust to noise of all kinds (arXiv:2001.06057).

    Args:
        images: uint8 (N, C, H, W).
        most: each image has a standard deviation of its own, even in [0, most]; a fraction of the range of 255.
        generator: on the CPU; the only source of randomness.

    Returns:
        Of the same shape and type.
    """
    n = len(images)
    deviations = most * 255 * torch.rand(n, generator=generator) * (torch.rand(n, generator=generator) < 0.5)
    noise = torch.randn(images.shape, generator=generator) * deviations.view(-1, 1, 1, 1)
    return (images + noise.to(images.device)).round_().clamp_(0, 255).to(torch.uint8)


def degrade(images: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Makes some images of a batch worse, so that a model recognises poor photographs too.

    Of these, a third each gets Gaussian noise (of a standard deviation of up to `NOISE`), a Gaussian blur (mixed with
    the image in any proportion) or less contrast (of down to `CONTRAST` of its own). How much is drawn for each image.

    Args:
        images: uint8 (N, C, H, W).
        share: of the images that are changed, in [0, 1].
        generator: on the CPU; the only source of randomness.

    Returns:
        Of the same shape and type.
    """
    amounts = torch.rand(len(images), generator=generator)
    kinds = (3 * torch.rand(len(images), generator=generator) / share).floor()  # 3 and more: unchanged
    noise, blur, flatness = ((amounts * (kinds == kind)).view(-1, 1, 1, 1).to(images.device) for kind in range(3))
    sigma = BLUR * min(images.shape[-2:]) / 32
    pixels = images.float()
    pixels = torch.lerp(pixels, gaussian_blur(pixels, 2 * math.ceil(2 * sigma) + 1, sigma), blur)
    pixels = torch.lerp(pixels, pixels.mean(dim=(2, 3), keepdim=True), (1 - CONTRAST) * flatness)
    pixels += 255 * NOISE * noise * torch.randn(images.shape, generator=generator).to(images.device)
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """float (N, C, H, W) -> (N, C, size, size), bilinear with antialiasing; unchanged if it has that size."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def size_at(stages: Sequence[tuple[float, int]], progress: float) -> int:
    """Pixels a side at `progress` in [0, 1) of training, of stages (weight, pixels a side) in proportion to weights."""
    total, done = sum(weight for weight, _ in stages), 0.0
    for weight, size in stages:
        done += weight / total
        if progress < done - 1e-9:
            return size
    return stages[-1][1]


def crop_boxes(
    n: int, height: int, width: int, scale: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes of random crops, as in torchvision's RandomResizedCrop but not in whole pixels.

    width / height is in [3/4, 4/3], or as near as the image leaves room for; a box of all of the area is the image.

    Args:
        n: boxes.
        height, width: of the images, pixels.
        scale: a box covers a fraction in [scale, 1] of the image's area.
        generator: on the CPU.

    Returns:
        top, left, height, width: pixels, float (n,) each.
    """
    area, aspect, y, x = torch.rand(4, n, generator=generator)
    area = (scale + (1 - scale) * area) * height * width
    aspect = torch.exp((2 * aspect - 1) * math.log(4 / 3)).clamp(area / height**2, width**2 / area)
    h, w = (area / aspect).sqrt(), (area * aspect).sqrt()
    return y * (height - h).clamp(min=0), x * (width - w).clamp(min=0), h, w  # a rounding may make them negative


def crop_resize(
    images: torch.Tensor,
    boxes: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    mirrored: torch.Tensor,
    size: int,
    bicubic: bool,
) -> torch.Tensor:
    """Cuts a box of its own from each image, resizes it and mirrors some: one batched matrix product a direction.

    The kernels are those of the saved processors (torchvision with antialiasing, Pillow), and so is the rounding to 8
    bits after each direction: a box that is the whole image gives their pixels.

    Args:
        images: uint8 (N, C, H, W).
        boxes: top, left, height, width; (N,) each.
        mirrored: which images to mirror, bool (N,).
        size: pixels a side of the result.
        bicubic: the kernel; bilinear otherwise.

    Returns:
        Whole numbers in [0, 255], float (N, C, size, size).
    """
    top, left, height, width = (edge.to(images.device) for edge in boxes)
    rows = _resampling(top, height, images.shape[-2], size, bicubic)  # (N, size, H)
    columns = _resampling(left, width, images.shape[-1], size, bicubic)  # (N, size, W)
    columns = torch.where(mirrored.to(images.device)[:, None, None], columns.flip(1), columns)
    cut = (images.to(columns.dtype) @ columns[:, None].transpose(-1, -2)).round_().clamp_(0, 255)  # (N, C, H, size)
    return (rows[:, None] @ cut).round_().clamp_(0, 255)  # (N, C, size, size)


def _resampling(start: torch.Tensor, extent: torch.Tensor, n: int, size: int, bicubic: bool) -> torch.Tensor:
    """Weights (N, size, n) with which `size` samples of the interval [start, start + extent) are made of n pixels."""
    step = (extent / size)[:, None]  # (N, 1)
    centres = start[:, None] + (torch.arange(size, device=start.device) + 0.5) * step  # (N, size)
    pixels = torch.arange(n, device=start.device) + 0.5
    x = ((pixels - centres[:, :, None]) / step.clamp(min=1)[:, :, None]).abs()  # wider where it shrinks: antialiasing
    if bicubic:  # Keys' kernel with a = -0.5
        weights = torch.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2) * (x < 2)
    else:
        weights = (1 - x).clamp(min=0)
    return weights / weights.sum(dim=-1, keepdim=True)


def mix(
    images: torch.Tensor, targets: torch.Tensor, mixup: float, cutmix: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Applies torchvision's MixUp (arXiv:1710.09412) or CutMix (arXiv:1905.04899) to a batch, with repeatable draws.

    Args:
        images: float (N, C, H, W).
        targets: a distribution over classes, float (N, num_labels).
        mixup, cutmix: alpha of the Beta distribution of the mixing ratio; 0 switches it off. With both, each batch gets
            one of them at random.
        generator: on the CPU; the only source of randomness.

    Returns:
        images and targets of the same shapes, mixed in the same ratio.
    """
    mixers = [kind(alpha=alpha) for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if alpha]
    if not mixers:
        return images, targets
    seed = int(torch.randint(2**62, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the CPU's global generator, and the model may too
        torch.random.default_generator.manual_seed(seed)
        return v2.RandomChoice(mixers)(images, targets)
