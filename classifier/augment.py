"""Batched augmentation: a whole batch at once, on the device that the images are on."""

import torch
from torch.nn import functional as F


def mean_std(images: torch.Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of all pixels of uint8 (N, C, H, W), a number a channel, in units of 255; exact."""
    counts = torch.stack([images[:, c].flatten().bincount(minlength=256) for c in range(images.shape[1])]).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(dim=1, keepdim=True)  # (C, 256)
    mean = share @ values
    variance = share @ values**2 - mean**2
    return mean.tolist(), variance.sqrt().tolist()


def normalize(images: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    """uint8 (N, C, H, W) -> float32 of the same shape, as the saved processor does it; mean and std in units of 255."""
    mean = torch.tensor(mean, device=images.device).view(-1, 1, 1) * 255
    std = torch.tensor(std, device=images.device).view(-1, 1, 1) * 255
    return (images.float() - mean) / std


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
    which = torch.arange(n, device=images.device)[:, None, None]
    return padded[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cutout(images: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Sets a square of `size` pixels a side, centred anywhere in each image, to 0, the mean (arXiv:1708.04552)."""
    n, _, height, width = images.shape
    y = torch.randint(height, (n, 1), generator=generator).to(images.device)
    x = torch.randint(width, (n, 1), generator=generator).to(images.device)
    rows = (torch.arange(height, device=images.device) - y + size // 2).clamp(-1, size)  # inside: 0 ... size - 1
    columns = (torch.arange(width, device=images.device) - x + size // 2).clamp(-1, size)
    inside = ((rows >= 0) & (rows < size))[:, None, :, None] & ((columns >= 0) & (columns < size))[:, None, None, :]
    return images.masked_fill(inside, 0)


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """float (N, C, H, W) -> (N, C, size, size), bilinear with antialiasing; unchanged if it has that size."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
