"""Decodes the images of a split: small ones into one tensor, large ones as a stream."""

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pillow_heif
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor, resize
from tqdm import tqdm

from classifier.data.splits import Splits
from classifier.errors import DataError, first_line
from classifier.images.convert import MALFORMED, to_rgb

pillow_heif.register_heif_opener()


def as_tensor(split: str, splits: Splits, size: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Decodes a split of small images into memory, once: upright, RGB.

    Args:
        split: train, validation or test.
        splits: from `load_splits`. Unreadable files are added to its `skipped` if it may skip them.
        size: side in pixels to which every image is squashed (bilinear, antialiased). None: all images must have one
            size, which they keep.

    Returns:
        Images uint8 (N, 3, H, W) and labels int64 (N,), in the split's order, without the images that were skipped.

    Raises:
        DataError: an unreadable file, or images that differ in size while `size` is None.
    """

    def to_pixels(image: Image.Image) -> torch.Tensor:
        """(3, H, W) uint8, resized as the saved processors do it."""
        pixels = pil_to_tensor(image)
        is_resized = size is None or image.size == (size, size)
        return pixels if is_resized else resize(pixels, [size, size], antialias=True)

    total, n = len(splits[split]), 0
    images, labels = None, torch.empty(total, dtype=torch.int64)
    with tqdm(total=total, desc=f"decoding {split}", unit=" images", disable=None) as bar:
        for batch in _readable_batches(split, splits, 100, to_pixels):  # few enough for photographs to fit in memory
            for where, pixels, label in batch:
                if images is None:
                    images = torch.empty((total, *pixels.shape), dtype=torch.uint8)
                elif pixels.shape != images.shape[1:]:
                    raise DataError(
                        f"images of {splits.name} differ in size: {where} is {_size(pixels)}, the first is "
                        f"{_size(images[0])}; pass --image_size to bring all to one"
                    )
                images[n], labels[n] = pixels, label
                n += 1
            bar.update(len(batch))
    if images is None:
        raise DataError(f"none of the {total} images in {split} of {splits.name} is readable: check the files")
    return images[:n], labels[:n]


def fingerprint(split: str, splits: Splits) -> str:
    """A digest of a split's images and labels, without decoding: files count by their path, size and date."""
    hashed = hashlib.sha256(repr(splits.labels).encode())
    rows = undecoded(splits[split], splits)
    for cell, label in zip(rows[splits.image_column], splits.class_indices[split].tolist(), strict=True):
        content: str | None
        if cell is not None and cell["bytes"] is not None:
            content = hashlib.sha256(cell["bytes"]).hexdigest()
        else:
            path = cell and cell["path"] and Path(cell["path"])
            status = path.stat() if path and path.is_file() else None  # decoding names the file that is missing
            content = status and f"{path} {status.st_size} {status.st_mtime_ns}"
        hashed.update(f"{content} {label}\n".encode())
    return hashed.hexdigest()


def image_batches(split: str, splits: Splits, batch_size: int) -> Iterator[tuple[list[Image.Image], list[int]]]:
    """Yields upright RGB images at their own sizes, and their labels, in the split's order.

    Args:
        split: train, validation or test.
        splits: from `load_splits`. Unreadable files are added to its `skipped` if it may skip them, and make their
            batch smaller.
        batch_size: images in a batch; they are in memory together.

    Raises:
        DataError: an unreadable file.
    """
    for batch in _readable_batches(split, splits, batch_size):
        if batch:
            yield [image for _, image, _ in batch], [label for _, _, label in batch]


def _readable_batches(
    split: str, splits: Splits, batch_size: int, transform: Callable[[Image.Image], Any] | None = None
) -> Iterator[list[tuple[str, Any, int]]]:
    """Yields batches of (a name for messages, image, label) without the unreadable images."""
    for rows in decode_batches(split, splits, batch_size, transform):
        batch = []
        for index, cell, image, label in rows:
            where = describe_cell(cell, index, split)
            if isinstance(image, Exception):
                skip_or_raise(splits, where, image)
            else:
                batch.append((where, image, label))
        yield batch


def decode_batches(
    split: str, splits: Splits, batch_size: int, transform: Callable[[Image.Image], Any] | None = None
) -> Iterator[list[tuple[int, dict | None, Any, int]]]:
    """Yields batches of (row, cell, transformed image or the exception that decoding it raised, label).

    Threads decode and transform the images of a batch; without a `transform` they stay Pillow images.
    """
    labels = splits.class_indices[split].tolist()
    start = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for rows in undecoded(splits[split], splits).iter(batch_size):
            cells = rows[splits.image_column]
            end = start + len(cells)
            images = pool.map(partial(decode_cell, transform=transform), cells)
            yield list(zip(range(start, end), cells, images, labels[start:end], strict=True))
            start = end


class Stream:
    """Iterates over batches (images, labels (N,)) of a split, decoded by worker processes. Made by `stream`."""

    def __init__(self, loader: torch.utils.data.DataLoader, splits: Splits):
        self.loader = loader
        self.splits = splits

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, labels, failures in self.loader:
            for (
                where,
                error,
            ) in failures:  # not raised by the worker: its message would hold a traceback
                skip_or_raise(self.splits, where, error)
            if len(labels):
                yield images, labels


def stream(
    split: str,
    splits: Splits,
    transform: Callable[[Image.Image], torch.Tensor],
    batch_size: int,
    num_workers: int = 0,
    *,
    shuffle: bool = False,
    seed: int = 0,
) -> Stream:
    """Makes batches of images that are too large, or too many, to be held in memory.

    Args:
        split: train, validation or test.
        splits: from `load_splits`. Unreadable files are added to its `skipped` if it may skip them, and make their
            batch smaller.
        transform: takes an upright RGB Pillow image and gives a tensor (3, H, W).
        batch_size: images in a batch.
        num_workers: number of processes that decode and transform; with 0 this process does it.
        shuffle: whether every pass draws a new order.
        seed: seed of the orders and of the workers' random numbers.

    Raises:
        DataError: while iterating, an unreadable file.
    """
    loader = torch.utils.data.DataLoader(
        DecodedSplit(split, splits, transform),
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=num_workers,
        collate_fn=collate,
        generator=torch.Generator().manual_seed(seed),
    )
    return Stream(loader, splits)


class DecodedSplit(torch.utils.data.Dataset):
    """A split as items (transform(image), label), or (name, exception) for an unreadable file; see `collate`."""

    def __init__(self, split: str, splits: Splits, transform: Callable[[Image.Image], Any]):
        self.rows = undecoded(splits[split], splits)
        self.split, self.splits = split, splits
        self.transform = transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, int | Exception]:
        cell = self.rows[index][self.splits.image_column]
        image = decode_cell(cell)
        if isinstance(image, Exception):
            return describe_cell(cell, index, self.split), image
        return self.transform(image), int(self.splits.class_indices[self.split][index])


def collate(items: list[tuple]) -> tuple[torch.Tensor, torch.Tensor, list[tuple[str, Exception]]]:
    """Items of `DecodedSplit` -> images (N, …), labels (N,), and the failures for `skip_or_raise`."""
    failures = [item for item in items if isinstance(item[1], Exception)]
    good = [item for item in items if not isinstance(item[1], Exception)]
    images = torch.stack([image for image, _ in good]) if good else torch.empty(0)
    return images, torch.tensor([label for _, label in good], dtype=torch.int64), failures


def undecoded(rows: datasets.Dataset, splits: Splits) -> datasets.Dataset:
    """Only the image column, with cells {"bytes", "path"}: decoding them ourselves takes half of the time."""
    return rows.select_columns([splits.image_column]).cast_column(splits.image_column, datasets.Image(decode=False))


def decode_cell(cell: dict | None, transform: Callable[[Image.Image], Any] | None = None) -> Any:
    """Decodes a cell to an upright RGB image, transformed if asked, or gives the exception that its file caused."""
    try:
        with Image.open(cell_source(cell)) as opened:
            image = to_rgb(opened)
    except MALFORMED as error:
        return error
    return transform(image) if transform else image


def cell_source(cell: dict | None) -> str | io.BytesIO:
    """What Pillow opens: the path or the bytes. ValueError where a row has no image."""
    if cell is None or (cell["bytes"] is None and not cell["path"]):
        raise ValueError("there is no image")
    return cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"])


def skip_or_raise(splits: Splits, where: str, error: Exception) -> None:
    """Adds an unreadable file to `splits.skipped`, or raises DataError if it may not be skipped."""
    if not splits.skip_unreadable:
        raise DataError(
            f"{where} of {splits.name} is not a readable image ({first_line(error)}): repair or remove it, or pass "
            "--skip_unreadable to go on without"
        )
    if where not in splits.skipped:  # a stream finds it again every epoch
        splits.skipped.append(where)


def describe_cell(cell: dict | None, index: int, split: str) -> str:
    """Names an image in a message: its path, if it has one, and its row."""
    row = f"row {index} of {split}"
    return row if cell is None or cell["path"] is None else f"{cell['path']} ({row})"


def _size(pixels: torch.Tensor) -> str:
    return f"{pixels.shape[-1]}×{pixels.shape[-2]}"
