"""How the scratch CNN is trained: the settings of a recipe, and those of one run of it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from classifier.training import augment


@dataclass(frozen=True)
class CnnRecipe:
    """Architecture, schedule, optimiser and augmentation of a run."""

    sizes: tuple[tuple[float, int], ...]  # stages of (epochs, pixels a side) that images are shrunk to
    widths: tuple[int, ...] = (64, 256, 256)
    depths: tuple[int, ...] = (2, 2, 2)
    hidden_act: str = "gelu"
    views: int = 1  # averaged in evaluation, see CifarCnnConfig
    batch_size: int = 2000  # images an optimiser step
    chunk_size: int = 250  # images a forward pass, at most: activations fit a CPU's cache; batch norm sees this many
    learning_rate: float = 0.24  # Muon's, for convolutions; falls linearly to 0. Fraction of a weight's norm, roughly
    momentum: float = 0.6
    bias_learning_rate: float = 0.053  # SGD's, for batch norm's and the whitening layer's biases
    head_learning_rate: float = 0.67
    sgd_momentum: float = 0.85
    weight_decay: float = 2e-6  # per image of a batch, divided by the learning rate: SGD's parameters only
    whiten_bias_epochs: float = 3  # the whitening layer's bias is trained this long
    label_smoothing: float = 0.2
    mirror: bool = True  # every second time that an image is seen
    shift: int = 2  # pixels at full size, each way
    cutout: int = 0  # pixels a side at full size
    degraded: float = 0.0  # share of the images that get noise, blur or less contrast
    freeze_from: float = 1.0  # share of the run after which the first stage is frozen, which saves its gradient

    @property
    def epochs(self) -> float:
        """Epochs of all stages together."""
        return sum(epochs for epochs, _ in self.sizes)

    def for_epochs(self, epochs: float) -> "CnnRecipe":
        """The same recipe with its stages stretched or shrunk to `epochs` in all."""
        return replace(self, sizes=tuple((e * epochs / self.epochs, size) for e, size in self.sizes))

    def steps_per_epoch(self, n: int) -> int:
        """Optimiser steps in a pass over `n` images; the last, smaller batch is left out."""
        return n // self.batch_size

    def steps(self, n: int) -> int:
        """Optimiser steps of the whole run over `n` images."""
        return max(1, round(self.epochs * self.steps_per_epoch(n)))

    def size_at(self, progress: float) -> int:
        """Pixels a side at `progress` in [0, 1) of training."""
        return augment.size_at(self.sizes, progress)


@dataclass(frozen=True)
class RunOptions:
    """What is particular to one run of a recipe."""

    output_dir: Path  # where checkpoint and metrics.jsonl go
    mean: list[float]  # of the pixels of each channel, in [0, 1]
    std: list[float]  # likewise
    seed: int = 0  # of order and augmentation
    patience: int | None = None  # epochs without a better validation accuracy after which to stop; None: never
    bf16: bool = False  # convolutions and matrix products in bfloat16 (autocast)
    resume: Path | None = None  # a checkpoint to continue from
    parent: str | None = None  # digest of the weights to start from; None for fresh ones: the whitening layer is set
    log: Callable[[dict], None] = lambda metrics: None  # called with each epoch's metrics
