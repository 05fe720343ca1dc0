"""Photographs to train on beside a dataset of other images, such as small ones.

A model that was trained on small images alone is wrong on many photographs, and confident. In each step it sees some
photographs as well: of its labels and, with all labels as equally probable, of other things. The latter is outlier
exposure (Hendrycks et al., arXiv:1812.04606): the model learns to be unsure of what is none of its labels.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from tqdm import tqdm

from classifier.data.splits import sample_by_name
from classifier.errors import DataError
from classifier.evaluation.photographs import NONE, decode_photographs, list_photographs
from classifier.training.augment import crop_boxes, crop_resize

SHARE = 0.5  # photographs for each image of the dataset, in a step
CROP_SCALE = 0.35  # smallest fraction of the area that a crop keeps
MARGIN = 8 / 7  # pixels a side that are kept in memory, for each that the model gets
SOURCES = "SOURCES.txt"  # in the folder, if there is one: whose photographs they are, and under which licence
SHRUNK = 1 / 8  # smallest factor by which half of the photographs of a batch are shrunk, to lose their details


class Photographs:
    """Photographs in memory, squashed to squares: 196 kB each for a model of 224 pixels, in each process.

    A tenth of them, chosen by their names, is held out at its own size: score and threshold of out-of-distribution
    detection are chosen on photographs that the model was not trained on.

    Args:
        folder: has a folder for each of at least one of the labels, and one named `none`. Without the latter, all are
            of labels.
        labels: those of the model.
        size: pixels a side that the model gets.
        mirror: whether half of the photographs are mirrored.
        bicubic: the kernel that resizes crops; bilinear otherwise.
        reduce_to: of the model; pixels to which the shorter side of those that are held out is reduced, as in `decode`.
        skip_unreadable: leave out files that can't be read, and count them.

    Attributes:
        images, targets: those to train on, uint8 (N, 3, H, H) and float (N, num_labels).
        held_out, held_out_labels: the others, as users' photographs are decoded, and their class indices, -1 for none.
        sources: the text of SOURCES.txt in the folder, for the model's card; None without such a file.

    Raises:
        DataError: there is no such folder, or as `list_photographs`; a file can't be read and may not be skipped, or
            none of a label can be read.
    """

    def __init__(
        self,
        folder: str,
        labels: list[str],
        size: int,
        *,
        mirror: bool,
        bicubic: bool,
        reduce_to: int | None,
        skip_unreadable: bool = False,
    ):
        if not Path(folder).is_dir():
            raise DataError(f"no folder {folder} with photographs: give one that has a folder for each label")
        found = list_photographs(Path(folder), labels)
        path = Path(folder, SOURCES)
        self.sources = " ".join(path.read_text(encoding="utf-8", errors="replace").split()) if path.is_file() else None
        self.mirror, self.bicubic = mirror, bicubic
        side = round(size * MARGIN)
        decoded = decode_photographs([path for path, _ in found], reduce_to=side, skip_unreadable=skip_unreadable)
        pixels = torch.empty((len(found), 3, side, side), dtype=torch.uint8)
        is_readable = torch.zeros(len(found), dtype=torch.bool)
        bar = tqdm(decoded, desc="decoding photographs", total=len(found), unit=" images", disable=None)
        for i, image in enumerate(bar):
            if image is not None:
                square = image.resize((side, side), Image.Resampling.BILINEAR)
                pixels[i] = torch.from_numpy(np.array(square)).permute(2, 0, 1)
                is_readable[i] = True
        self.n_skipped = int((~is_readable).sum())
        if self.n_skipped:
            pixels, found = pixels[is_readable], [found[i] for i in is_readable.nonzero().flatten().tolist()]
        classes = torch.tensor([labels.index(label) if label != NONE else -1 for _, label in found])
        if not (classes >= 0).any():
            raise DataError(f"no photograph of a label in {folder} is readable: check the files")
        names = [path.relative_to(folder).as_posix() for path, _ in found]
        held_out = torch.zeros(len(found), dtype=torch.bool)
        held_out[sample_by_name(names, classes.numpy())] = True
        paths = [found[i][0] for i in held_out.nonzero().flatten().tolist()]
        self.held_out = [image for image in decode_photographs(paths, reduce_to=reduce_to) if image is not None]
        self.held_out_labels = classes[held_out].numpy()
        self.images, own = pixels[~held_out], classes[~held_out]
        is_none = own < 0
        self.n_labelled, self.n_none = int((~is_none).sum()), int(is_none.sum())
        one_hot = F.one_hot(own.clamp(min=0), len(labels)).float()
        self.targets = torch.where(is_none[:, None], 1 / len(labels), one_hot)
        # Half of a batch is drawn from `none`, the other half evenly from the labels.
        of_class = (own + 1).bincount().float()[own + 1]
        self.weights = 1 / (of_class * torch.where(is_none, 1, len(own[~is_none].unique())))

    def __len__(self) -> int:
        return len(self.images)

    def describe(self) -> str:
        """How many there are, for the record."""
        skipped = f", {self.n_skipped:,} unreadable left out" if self.n_skipped else ""
        others = f"{len(self.held_out):,} others held out"
        return f"{self.n_labelled:,} of a label and {self.n_none:,} of none, {others}{skipped}"

    def batch(self, n: int, size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Random crops of n photographs, drawn with replacement; half are shrunk, by one factor, and enlarged again.

        Args:
            n: how many.
            size: pixels a side of the crops.
            generator: on the CPU; the only source of randomness.

        Returns:
            Pixels in [0, 255], float (n, 3, size, size), and targets (n, num_labels), each of sum 1.
        """
        drawn = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        images = self.images[drawn]
        boxes = crop_boxes(n, self.images.shape[-2], self.images.shape[-1], CROP_SCALE, generator)
        mirrored = torch.rand(n, generator=generator) < (0.5 if self.mirror else 0.0)
        crops = crop_resize(images, boxes, mirrored, size, self.bicubic)
        shrunk = max(1, round(size * SHRUNK ** torch.rand((), generator=generator).item()))
        half = F.interpolate(crops[: n // 2], (shrunk, shrunk), mode="bilinear", antialias=True)
        crops[: n // 2] = F.interpolate(half, (size, size), mode="bicubic").clamp(0, 255)
        return crops, self.targets[drawn]
