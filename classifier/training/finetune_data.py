"""The two kinds of data set that fine-tuning reads: small images in memory, and large ones decoded by workers."""

import torch
from torchvision.transforms.v2.functional import InterpolationMode, pil_to_tensor, resized_crop
from transformers import BaseImageProcessor

from classifier.data import loaders
from classifier.data.loaders import DecodedSplit
from classifier.models import processor as processors
from classifier.training.augment import crop_boxes
from classifier.training.runtime import seeded_generator


class InMemory(torch.utils.data.Dataset):
    """A split of small images as tensors, uint8 (N, 3, H, W), with labels, int64 (N,): a batch is an index."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> dict:
        """A batch at once, which is what the loader asks for where there is such a method."""
        return {"pixels": self.images[indices], "labels": self.labels[indices]}


class Streamed(DecodedSplit):
    """A split of large images: workers decode them, and cut a random crop or apply the processor.

    Args:
        split, splits: as in `DecodedSplit`.
        processor: what the model's pixels come from.
        crop_scale: smallest fraction of the area that a crop keeps; None prepares the image for evaluation.
        size: pixels a side of a crop.
        seed: of the crops, together with `epoch`, which the trainer sets before it starts workers.
    """

    def __init__(self, split, splits, processor: BaseImageProcessor, crop_scale: float | None, size: int, seed: int):
        super().__init__(split, splits, self.cut if crop_scale else self.process)
        self.processor, self.crop_scale, self.size, self.seed = processor, crop_scale, size, seed
        self.epoch = 0
        self.index = 0

    def __getitem__(self, index: int) -> tuple:
        """(pixels, label) of an image, or (name, exception)."""
        self.index = index
        return super().__getitem__(index)

    def cut(self, image) -> torch.Tensor:
        """A Pillow image -> a random crop, uint8 (3, size, size)."""
        draw = seeded_generator(self.seed, f"crop {self.index}", self.epoch)
        boxes = crop_boxes(1, image.height, image.width, self.crop_scale or 1.0, draw)
        top, left, height, width = (round(edge.item()) for edge in boxes)
        mode = InterpolationMode.BICUBIC if processors.is_bicubic(self.processor) else InterpolationMode.BILINEAR
        box = top, left, max(1, height), max(1, width)
        return resized_crop(pil_to_tensor(image), *box, [self.size, self.size], interpolation=mode, antialias=True)

    def process(self, image) -> torch.Tensor:
        """A Pillow image -> the model's pixels, float (3, size, size)."""
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]


def collate(items: dict | list[tuple]) -> dict:
    """A batch of either data set as `FinetuneTrainer` takes it: pixels, labels, and failures of a streamed one."""
    if isinstance(items, dict):
        return items
    pixels, labels, failures = loaders.collate(items)
    return {"pixels": pixels, "labels": labels, "failures": failures}
