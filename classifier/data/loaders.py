"""Decodes the images of a split: small ones into one tensor, large ones as a stream."""

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pillow_heif
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor, resize, to_pil_image
from tqdm import tqdm

from classifier.data.splits import Splits
from classifier.errors import DataError, first_line
from classifier.images.convert import MALFORMED, to_rgb

pillow_heif.register_heif_opener()


def as_tensor(split: str, splits: Splits, size: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Decodes a split of small images into memory, once: upright, RGB.

    Args:
        split: train, validation or test.
        splits: what `load` returned. Unreadable files are added to its `skipped`, if it may skip them.
        size: pixels a side to squash every image to (bilinear, antialiased). None: images have one size and keep it.

    Returns:
        images uint8 (N, 3, H, W) and labels int64 (N,), in the split's order, without the images that were skipped.

    Raises:
        DataError: an unreadable file, or images that differ in size while `size` is None.
    """
    total = len(splits[split])
    images = labels = None
    n = 0
    with tqdm(total=total, desc=f"decoding {split}", unit=" images", disable=None) as bar:
        for batch in _batches(split, splits, 100, size):  # few enough for photographs to fit in memory
            for where, image, label in batch:
                pixels = np.asarray(image).transpose(2, 0, 1)  # (3, H, W)
                if images is None:
                    images = np.empty((total, *pixels.shape), np.uint8)
                    labels = np.empty(total, np.int64)
                elif pixels.shape != images.shape[1:]:
                    raise DataError(
                        f"images of {splits.name} differ in size: {where} is {_size(pixels)}, the first is "
                        f"{_size(images[0])}; pass --image_size to bring all to one"
                    )
                images[n], labels[n] = pixels, label
                n += 1
            bar.update(len(batch))
    if n == 0:
        raise DataError(f"none of the {total} images in {split} of {splits.name} is readable: check the files")
    return torch.from_numpy(images[:n]), torch.from_numpy(labels[:n])


def fingerprint(split: str, splits: Splits) -> str:
    """What tells one split's images and labels from another's, without decoding: files by their name, size and date."""
    rows = undecoded(splits[split], splits)
    hashed = hashlib.sha256(repr(splits.labels).encode())
    for row in rows:
        cell = row[splits.image_column]
        if cell is not None and cell["bytes"] is not None:
            what = hashlib.sha256(cell["bytes"]).hexdigest()
        else:
            path = cell and cell["path"] and Path(cell["path"])
            status = path.stat() if path and path.is_file() else None  # who decodes it tells what is missing
            what = status and f"{path} {status.st_size} {status.st_mtime_ns}"
        hashed.update(f"{what} {row[splits.label_column]}\n".encode())
    return hashed.hexdigest()


def image_batches(split: str, splits: Splits, batch_size: int) -> Iterator[tuple[list[Image.Image], list[int]]]:
    """Upright RGB images at their own sizes, and their labels, in the split's order.

    Args:
        split: train, validation or test.
        splits: what `load` returned. Unreadable files are added to its `skipped`, if it may skip them, and make their
            batch smaller.
        batch_size: images a batch, which are in memory together.

    Raises:
        DataError: an unreadable file.
    """
    for batch in _batches(split, splits, batch_size):
        if batch:
            yield [image for _, image, _ in batch], [label for _, _, label in batch]


def _batches(
    split: str, splits: Splits, batch_size: int, size: int | None = None
) -> Iterator[list[tuple[str, Image.Image, int]]]:
    """Batches of (where it is from, image, label), without unreadable ones."""
    for attempts in decode_batches(split, splits, batch_size, size):
        batch = []
        for index, cell, image, label in attempts:
            where = describe_cell(cell, index, split)
            if isinstance(image, Exception):
                skip_or_raise(splits, where, image)
            else:
                batch.append((where, image, label))
        yield batch


def decode_batches(
    split: str, splits: Splits, batch_size: int, size: int | None = None
) -> Iterator[list[tuple[int, dict | None, Image.Image | Exception, int]]]:
    """Batches of (row, cell, image or the exception that it caused, label)."""
    start = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for rows in undecoded(splits[split], splits).iter(batch_size):
            cells = rows[splits.image_column]
            images = pool.map(decode_cell, cells, [size] * len(cells))
            yield list(zip(range(start, start + len(cells)), cells, images, rows[splits.label_column], strict=True))
            start += len(cells)


class Stream:
    """Batches of a split, decoded by workers: iterates over (images, labels (N,)). Made by `stream`."""

    def __init__(self, loader: torch.utils.data.DataLoader, splits: Splits):
        self.loader = loader
        self.splits = splits

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, labels, failures in self.loader:
            for where, error in failures:  # raised here, as a worker's exception arrives with its traceback as message
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
    """Batches of images that are too large, or too many, to be held in memory.

    Args:
        split: train, validation or test.
        splits: what `load` returned. Unreadable files are added to its `skipped`, if it may skip them, and make their
            batch smaller.
        transform: takes an upright RGB Pillow image, gives a tensor (3, H, W).
        batch_size: images a batch.
        num_workers: processes that decode and transform; 0 does so in this one.
        shuffle: whether every pass has an order of its own.
        seed: of the orders, and of the workers' random numbers.

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
    """A split as items (transform(image), label), or (name, exception) for an unreadable file: see `collate`."""

    def __init__(self, split: str, splits: Splits, transform: Callable[[Image.Image], torch.Tensor]):
        self.rows = undecoded(splits[split], splits)
        self.columns = splits.image_column, splits.label_column
        self.split, self.splits = split, splits
        self.transform = transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int] | tuple[str, Exception]:
        row = self.rows[index]
        cell, label = (row[column] for column in self.columns)
        image = decode_cell(cell)
        if isinstance(image, Exception):
            return describe_cell(cell, index, self.split), image
        return self.transform(image), label


def collate(items: list[tuple]) -> tuple[torch.Tensor, torch.Tensor, list[tuple[str, Exception]]]:
    """Items of `Decoded` -> images, labels and the failures among them, which are for `unreadable`."""
    failures = [item for item in items if isinstance(item[1], Exception)]
    good = [item for item in items if not isinstance(item[1], Exception)]
    images = torch.stack([image for image, _ in good]) if good else torch.empty(0)
    return images, torch.tensor([label for _, label in good], dtype=torch.int64), failures


def undecoded(rows: datasets.Dataset, splits: Splits) -> datasets.Dataset:
    """The two columns, with images as {"bytes", "path"}: decoding them ourselves takes half of the time."""
    columns = [splits.image_column, splits.label_column]
    return rows.select_columns(columns).cast_column(splits.image_column, datasets.Image(decode=False))


def decode_cell(cell: dict | None, size: int | None = None) -> Image.Image | Exception:
    """An upright RGB image, or the exception that its file caused; squashed to size × size pixels if that is given."""
    try:
        with Image.open(cell_source(cell)) as image:
            image = to_rgb(image)
    except MALFORMED as error:
        return error
    if size is None or image.size == (size, size):
        return image
    return to_pil_image(resize(pil_to_tensor(image), [size, size], antialias=True))  # as the saved processors do it


def cell_source(cell: dict | None) -> str | io.BytesIO:
    """What Pillow opens. ValueError where a row has no image."""
    if cell is None or (cell["bytes"] is None and not cell["path"]):
        raise ValueError("there is no image")
    return cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"])


def skip_or_raise(splits: Splits, where: str, error: Exception) -> None:
    """Notes an unreadable file in `splits.skipped`, or raises DataError if it may not be skipped."""
    if not splits.skip_unreadable:
        raise DataError(
            f"{where} of {splits.name} is not a readable image ({first_line(error)}): repair or remove it, or pass "
            "--skip_unreadable to go on without"
        )
    if where not in splits.skipped:  # a stream meets it again every epoch
        splits.skipped.append(where)


def describe_cell(cell: dict | None, index: int, split: str) -> str:
    """Names an image in a message: its path, if it has one, and its row."""
    row = f"row {index} of {split}"
    return row if cell is None or cell["path"] is None else f"{cell['path']} ({row})"


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[-1]}×{pixels.shape[-2]}"
