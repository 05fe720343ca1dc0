"""The two kinds of data set that fine-tuning reads: small images in memory, and large ones decoded by workers."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torchvision.transforms.v2.functional import InterpolationMode, pil_to_tensor, resized_crop
from transformers import BaseImageProcessor

from classifier.data import loaders
from classifier.data.loaders import DecodedSplit
from classifier.errors import ModelError, first_sentence
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


class Batch(dict):
    """A batch that a worker sends through a pipe: PyTorch sends tensors through /dev/shm, which containers keep small.

    Where that is full, PyTorch drops the batch, and the process that waits for it waits for ever.
    """

    def __reduce__(self) -> tuple:
        return unpack, ({k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in self.items()},)


def unpack(arrays: dict) -> Batch:
    """The batch that was sent as NumPy arrays."""
    return Batch({k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in arrays.items()})


def collate(items: dict | list[tuple]) -> dict:
    """A batch of either data set as `FinetuneTrainer` takes it: pixels, labels, and failures of a streamed one."""
    if isinstance(items, dict):
        return items
    pixels, labels, failures = loaders.collate(items)
    return Batch(pixels=pixels, labels=labels, failures=failures)


def check_workers(n: int) -> None:
    """Raises ModelError if n workers can't start: their locks are files in /dev/shm, so its size and rights matter."""
    try:
        [multiprocessing.Lock() for _ in range(2 * (8 + 3 * n) if n else 0)]  # of two loaders, training and validation
    except OSError as error:
        raise ModelError(
            f"can't start {n} processes that decode images ({error}): check /dev/shm and its free space, or pass "
            "--dataloader_num_workers 0"
        ) from error


@contextmanager
def explaining_workers() -> Iterator[None]:
    """Turns the death of a worker into a ModelError."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ModelError(
            f"a process that decodes images has died ({first_sentence(error)}): check the machine's memory and "
            "/dev/shm, and go on with a lower --dataloader_num_workers, or 0"
        ) from error
