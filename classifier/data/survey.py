"""Surveys what is in a dataset before anything is trained on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from classifier.data.loaders import cell_path, describe_row, open_cell, undecoded_cells
from classifier.data.splits import Splits
from classifier.errors import DataError, first_line
from classifier.files import write_text
from classifier.images.convert import MALFORMED
from classifier.images.folders import describe_left_out


@dataclass(frozen=True)
class Survey:
    """What a dataset holds, according to its labels and the headers of its files."""

    counts: dict[str, int]  # number of training images of each class
    n: int  # number of images in train and validation
    size: tuple[int, int]  # median width and height, in pixels, as stored
    has_one_size: bool  # whether all images have that size
    unreadable: int  # number of images that can't be opened
    left_out: Mapping[str, int] = field(default_factory=dict)  # number of files that are no pictures, by kind

    def __str__(self) -> str:
        """One line for the user. The sizes of the classes are those in train."""
        smallest, largest = (pick(self.counts, key=lambda label: self.counts[label]) for pick in (min, max))
        text = f"{self.n:,} images, {len(self.counts)} classes, smallest {self.counts[smallest]:,} ({smallest})"
        if self.counts[largest] > self.counts[smallest]:
            text += f", largest {self.counts[largest]:,} ({largest})"
        text += f"; median {self.size[0]}×{self.size[1]}"
        unreadable = f"{self.unreadable} unreadable" if self.unreadable else ""
        return "; ".join(filter(None, (text, unreadable, describe_left_out(self.left_out))))

    def is_small(self) -> bool:
        """Whether the images are for `as_tensor` as they are: all of one size, of at most 128 pixels a side."""
        return self.has_one_size and max(self.size) <= 128


def survey_splits(splits: Splits, listing: Path) -> Survey:
    """Opens every image of train and validation without decoding it.

    Only damaged headers are found here; damaged pixels are found when an image is decoded. Unreadable images are listed
    in the file `listing`, one a line.

    Raises:
        DataError: an image is unreadable and may not be skipped, or all images are unreadable.
    """
    sizes: list[tuple[int, int]] = []
    unreadable: dict[str, str] = {}  # image, as messages name it -> reason
    total = sum(len(splits[split]) for split in ("train", "validation"))
    with tqdm(total=total, desc="looking at images", unit=" images", disable=None, leave=False) as bar:
        for split in ("train", "validation"):
            for index, cell in enumerate(undecoded_cells(split, splits)):
                try:
                    with open_cell(cell) as image:
                        sizes.append(image.size)
                except MALFORMED as error:
                    unreadable[describe_row(cell_path(cell), index, split)] = first_line(error)
                bar.update()
    listing.unlink(missing_ok=True)  # an earlier run's
    if unreadable:
        write_text(listing, "".join(f"{where}: {reason}\n" for where, reason in unreadable.items()))
        where, reason = next(iter(unreadable.items()))
        first = f". The first is {where}: {reason}"
        if not sizes:
            raise DataError(
                f"none of the {total} images of {splits.name} is readable, see {listing}: check the files{first}"
            )
        if not splits.skip_unreadable:
            raise DataError(
                f"{len(unreadable)} of {total:,} images of {splits.name} are not readable, listed in {listing}: "
                f"repair or remove them, or pass --skip_unreadable to go on without{first}"
            )
    counts = np.bincount(splits.class_indices["train"], minlength=len(splits.labels))
    width, height = np.median(np.array(sizes), axis=0).astype(int).tolist()
    by_label = dict(zip(splits.labels, counts.tolist(), strict=True))
    return Survey(by_label, total, (width, height), len(set(sizes)) == 1, len(unreadable), splits.left_out)


def channel_mean_std(images: torch.Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of all pixels of uint8 (N, C, H, W), a number a channel, in units of 255; exact."""
    counts = torch.stack([images[:, c].flatten().bincount(minlength=256) for c in range(images.shape[1])]).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(dim=1, keepdim=True)  # (C, 256)
    mean = share @ values
    variance = share @ values**2 - mean**2
    return mean.tolist(), variance.sqrt().tolist()
