"""Photographs to train on beside a dataset of other images, such as small ones.

A model that was trained on small images alone is wrong on many photographs, and confident. In each step it sees some
photographs as well: of its labels and, with all labels as equally probable, of other things. The latter is outlier
exposure (Hendrycks et al., arXiv:1812.04606): the model learns to be unsure of what is none of its labels.
"""

from pathlib import Path

import torch
from PIL import Image
from torch.nn import functional as F

from classifier.data.loaders import as_tensor
from classifier.data.splits import load_splits, sample_by_class
from classifier.errors import DataError
from classifier.evaluation.photographs import NONE, check_names
from classifier.training.augment import crop_boxes, crop_resize

SHARE = 0.5  # photographs for each image of the dataset, in a step
CROP_SCALE = 0.35  # smallest fraction of the area that a crop keeps
MARGIN = 8 / 7  # pixels a side that are kept in memory, for each that the model gets
HELD_OUT = 0.1  # of each folder: not trained on, to choose the threshold of out-of-distribution detection
SOURCES = "SOURCES.txt"  # in the folder, if there is one: whose photographs they are, and under which licence
SHRUNK = 1 / 8  # least size, as a fraction, to which half of the photographs of a batch are shrunk and enlarged again


class Photographs:
    """Photographs in memory, squashed to squares: 196 kB each for a model of 224 pixels.

    Args:
        folder: has a folder for each of at least one of the labels, and one named `none`.
        labels: those of the model.
        size: pixels a side that the model gets.
        mirror: whether half of the photographs are mirrored.
        bicubic: the kernel that resizes; bilinear otherwise.

    Attributes:
        images, targets: those to train on, uint8 (N, 3, H, H) and float (N, num_labels).
        held_out, held_out_labels: the others, Pillow images of H × H pixels, and their class indices, -1 for none.
        sources: the text of SOURCES.txt in the folder, for the model's card; None without such a file.

    Raises:
        DataError: there is no such folder, it has a folder of another name, or a file can't be read.
    """

    def __init__(self, folder: str, labels: list[str], size: int, *, mirror: bool, bicubic: bool):
        if not Path(folder).is_dir():
            raise DataError(f"no folder {folder} with photographs: give one that has a folder for each label")
        splits = load_splits(folder, splits=("train",), cut=False)
        check_names(Path(folder), splits.labels, labels)
        path = Path(folder, SOURCES)
        self.sources = " ".join(path.read_text(encoding="utf-8", errors="replace").split()) if path.is_file() else None
        self.mirror, self.bicubic = mirror, bicubic
        images, classes = as_tensor("train", splits, round(size * MARGIN))  # uint8 (N, 3, H, H)
        own = torch.tensor([labels.index(label) if label != NONE else -1 for label in splits.labels])[classes]
        held_out = torch.zeros(len(own), dtype=torch.bool)
        held_out[sample_by_class(classes.numpy(), round(HELD_OUT * len(classes)), seed=0)] = True
        self.held_out = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images[held_out]]
        self.held_out_labels = own[held_out].numpy()
        self.images, classes, own = images[~held_out], classes[~held_out], own[~held_out]
        is_none = own < 0
        self.n_labelled, self.n_none = int((~is_none).sum()), int(is_none.sum())
        one_hot = F.one_hot(own.clamp(min=0), len(labels)).float()
        self.targets = torch.where(is_none[:, None], 1 / len(labels), one_hot)
        # Half of a batch is drawn from `none`, the other half evenly from the labels.
        of_class = classes.bincount(minlength=len(splits.labels)).float()[classes]
        n_labels = len({*splits.labels} - {NONE})
        self.weights = 1 / (of_class * torch.where(is_none, 1, n_labels))

    def __len__(self) -> int:
        return len(self.images)

    def describe(self) -> str:
        """How many there are, for the record."""
        return f"{self.n_labelled:,} of a label and {self.n_none:,} of none, {len(self.held_out):,} others held out"

    def batch(self, n: int, size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Random crops of n photographs, drawn with replacement; half of them have lost their details.

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
