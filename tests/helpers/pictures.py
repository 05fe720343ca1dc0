"""Generated pictures and image folders."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

COLOURS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40), "yellow": (200, 200, 40)}

# What a clone without Git LFS has in place of each large file
LFS_POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{7:064}\nsize 48123\n"


def picture(seed: int = 0, size: tuple[int, int] = (90, 60)) -> Image.Image:
    """Coloured blotches."""
    values = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def noise(n: int, size: int = 20, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images whose colour tells the class: uint8 (N, 3, size, size), int64 (N,)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % len(COLOURS)
    images = np.array(list(COLOURS.values()))[labels][:, :, None, None] + rng.normal(0, 30, (n, 3, size, size))
    return torch.tensor(images.clip(0, 255).astype(np.uint8)), torch.tensor(labels)


def write_images(folder: Path, images: torch.Tensor, labels: torch.Tensor, split: str = "train") -> Path:
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / split / list(COLOURS)[label] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return folder


def colours(n: int, size: int = 20, classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images whose colour tells the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    palette = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [200, 200, 40]])
    images = palette[labels][:, :, None, None] + rng.normal(0, 30, (n, 3, size, size))
    return torch.tensor(images.clip(0, 255).astype(np.uint8)), torch.tensor(labels)


def write_pictures(folder: Path, n: int) -> Path:
    """n files of 3 kB, in two folders."""
    for i in range(n):
        path = folder / "ab"[i % 2] / f"{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(i, (36, 36))))
    return folder
