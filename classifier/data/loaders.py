"""Decodes the images of a split: small ones into one tensor, large ones in batches or one by one."""

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor, resize
from tqdm import tqdm

from classifier.data.columns import undecoded
from classifier.data.splits import Splits
from classifier.errors import DataError, first_line
from classifier.images.convert import MALFORMED, to_rgb
from classifier.images.limits import check_bytes, open_image

Pixels = TypeVar("Pixels")  # what a decoder makes of a cell: a Pillow image or an array


@dataclass(frozen=True)
class Row(Generic[Pixels]):
    """A row of a split, decoded."""

    index: int  # its number in the split
    file: str | None  # the image's path, or the name that the table has for it; None where it has none
    image: Pixels | Exception  # upright RGB, or the exception that says why it can't be decoded
    label: int  # class index


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
    total = len(splits[split])
    images: np.ndarray | None = None
    labels: list[int] = []
    with tqdm(total=total, desc=f"decoding {split}", unit=" images", disable=None) as bar:
        # Batches of 100 are few enough for photographs to fit in memory.
        for rows in decode_rows(split, splits, 100, partial(decode_pixels, size=size)):
            for row, pixels in _readable(rows, split, splits):
                if images is None:
                    images = np.empty((total, *pixels.shape), np.uint8)
                elif pixels.shape != images.shape[1:]:
                    raise DataError(
                        f"images of {splits.name} differ in size: {describe_row(row.file, row.index, split)} is "
                        f"{_size(pixels)}, the first is {_size(images[0])}; pass --image_size to bring all to one"
                    )
                images[len(labels)] = pixels
                labels.append(row.label)
            bar.update(len(rows))
    if images is None:
        raise DataError(f"none of the {total} images in {split} of {splits.name} is readable: check the files")
    return torch.from_numpy(images[: len(labels)]), torch.tensor(labels)


def fingerprint(split: str, splits: Splits) -> str:
    """A digest of a split's images and labels, without decoding: files count by their path, size and date."""
    hashed = hashlib.sha256(repr(splits.labels).encode())
    for cell, label in zip(undecoded_cells(split, splits), splits.class_indices[split].tolist(), strict=True):
        content = None  # of a missing image, which is an error only where it is decoded
        if cell is not None and cell["bytes"] is not None:
            content = hashlib.sha256(cell["bytes"]).hexdigest()
        elif cell is not None and cell["path"] and (path := Path(cell["path"])).is_file():
            status = path.stat()
            content = f"{path} {status.st_size} {status.st_mtime_ns}"
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
    for rows in decode_rows(split, splits, batch_size, decode_cell):
        if batch := list(_readable(rows, split, splits)):
            yield [image for _, image in batch], [row.label for row, _ in batch]


def first_images(split: str, splits: Splits, n: int, side: int) -> np.ndarray:
    """The first readable images of a split, squashed: uint8 (at most n, 3, side, side). Errors as `image_batches`."""
    found: list[np.ndarray] = []
    for images, _ in image_batches(split, splits, batch_size=64):
        found += [
            np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)).transpose(2, 0, 1) for image in images
        ]
        if len(found) >= n:
            break
    return np.stack(found[:n])


def decode_rows(
    split: str, splits: Splits, batch_size: int, decode: Callable[[dict | None], Pixels | Exception]
) -> Iterator[list[Row[Pixels]]]:
    """Yields every row of a split, in batches that threads decode. An image that can't be decoded is a row too."""
    labels = splits.class_indices[split].tolist()
    start = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for columns in undecoded(splits[split], splits.image_column).iter(batch_size):
            cells = columns[splits.image_column]
            images = pool.map(decode, cells)
            yield [
                Row(index, cell_path(cell), image, labels[index])
                for index, (cell, image) in enumerate(zip(cells, images, strict=True), start)
            ]
            start += len(cells)


def _readable(rows: list[Row[Pixels]], split: str, splits: Splits) -> Iterator[tuple[Row[Pixels], Pixels]]:
    """Yields the rows that could be decoded, each with its image."""
    for row in rows:
        if isinstance(row.image, Exception):
            skip_or_raise(splits, describe_row(row.file, row.index, split), row.image)
        else:
            yield row, row.image


class DecodedSplit(torch.utils.data.Dataset):
    """A split as items (transform(image), label), or (name, exception) for an unreadable file; see `collate`."""

    def __init__(self, split: str, splits: Splits, transform: Callable[[Image.Image], Any]):
        self.rows = undecoded(splits[split], splits.image_column)
        self.split, self.splits = split, splits
        self.transform = transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, int | Exception]:
        cell = self.rows[index][self.splits.image_column]
        image = decode_cell(cell)
        if isinstance(image, Exception):
            return describe_row(cell_path(cell), index, self.split), image
        return self.transform(image), int(self.splits.class_indices[self.split][index])


def collate(items: list[tuple]) -> tuple[torch.Tensor, torch.Tensor, list[tuple[str, Exception]]]:
    """Items of `DecodedSplit` -> images (N, …), labels (N,), and the failures for `skip_or_raise`."""
    failures = [item for item in items if isinstance(item[1], Exception)]
    good = [item for item in items if not isinstance(item[1], Exception)]
    images = torch.stack([image for image, _ in good]) if good else torch.empty(0)
    return images, torch.tensor([label for _, label in good], dtype=torch.int64), failures


def undecoded_cells(split: str, splits: Splits) -> Iterator[dict | None]:
    """Yields the images of a split as {"bytes", "path"}, None where a row has none."""
    for columns in undecoded(splits[split], splits.image_column).iter(1000):
        yield from columns[splits.image_column]


def open_cell(cell: dict | None) -> Image.Image:
    """Opens the image of a cell without decoding it. Raises one of MALFORMED, also for one beyond the bounds."""
    source = cell_source(cell)
    check_bytes(len(source.getbuffer()) if isinstance(source, io.BytesIO) else Path(source).stat().st_size)
    return open_image(source)


def decode_cell(cell: dict | None) -> Image.Image | Exception:
    """Decodes a cell to an upright RGB image, or gives the exception that it caused.

    `datasets` decodes too, but takes twice as long.
    """
    try:
        with open_cell(cell) as image:
            return to_rgb(image)
    except MALFORMED as error:
        return error


def decode_pixels(cell: dict | None, size: int | None) -> np.ndarray | Exception:
    """Decodes a cell to uint8 (3, H, W), squashed to H = W = `size` if that is given, or gives the exception."""
    image = decode_cell(cell)
    if isinstance(image, Exception):
        return image
    if size is None or image.size == (size, size):
        return np.asarray(image).transpose(2, 0, 1)
    return resize(pil_to_tensor(image), [size, size], antialias=True).numpy()  # as the saved processors do it


def cell_source(cell: dict | None) -> str | io.BytesIO:
    """What Pillow opens: the path or the bytes. ValueError where a row has no image."""
    if cell is None or (cell["bytes"] is None and not cell["path"]):
        raise ValueError("there is no image")
    return cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"])


def cell_path(cell: dict | None) -> str | None:
    """The image's path, or the name that the table has for it; None where it has none."""
    return None if cell is None else cell["path"]


def skip_or_raise(splits: Splits, where: str, error: Exception) -> None:
    """Adds an unreadable file to `splits.skipped`, or raises DataError if it may not be skipped."""
    if not splits.skip_unreadable:
        raise DataError(
            f"{where} of {splits.name} is not a readable image ({first_line(error)}): repair or remove it, or pass "
            "--skip_unreadable to go on without"
        )
    if where not in splits.skipped:  # a streamed split finds it again every epoch
        splits.skipped.append(where)


def describe_row(file: str | None, index: int, split: str) -> str:
    """Names an image in a message: its path, if it has one, and its row."""
    row = f"row {index} of {split}"
    return row if file is None else f"{file} ({row})"


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[-1]}×{pixels.shape[-2]}"
