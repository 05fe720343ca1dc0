"""Features of a frozen backbone, computed once and memory-mapped, and linear heads trained on them, a grid at once.

train, validation = (extract(model, processor, each, folder=cache) for each in (train, validation))
heads = fit_heads(train, validation, HeadSettings(num_labels=10, epochs=60))
accuracies = cross_validate(train, validation, HeadSettings(num_labels=10, epochs=60), folds=5)
"""

import hashlib
import json
import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold
from torch.nn import functional as F
from tqdm import tqdm
from transformers import BaseImageProcessor, PreTrainedModel

from classifier.data.loaders import fingerprint, skip_or_raise
from classifier.data.splits import sample_by_class
from classifier.errors import DataError, ModelError
from classifier.files import replacing
from classifier.models import backbone
from classifier.models import processor as processors
from classifier.training.checkpoint import data_digest
from classifier.training.depthwise import channels_last
from classifier.training.finetune_data import InMemory, Streamed, collate
from classifier.training.runtime import seeded_generator

LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # Adam's, on features of standard deviation 1
WEIGHT_DECAYS = (0.0, 0.01, 0.1, 1.0)  # AdamW's, times the learning rate


@dataclass
class Features:
    """The inputs of a model's head for every readable image of a split."""

    inputs: np.ndarray  # float32 (N, D), memory-mapped
    labels: np.ndarray  # int64 (N,)
    was_cached: bool


@dataclass(frozen=True)
class HeadSettings:
    """How heads are trained."""

    num_labels: int  # classes
    epochs: int  # passes over the features
    batch_size: int = 512  # images a step
    label_smoothing: float = 0.0  # share of a target that is spread over all classes
    class_weights: torch.Tensor | None = None  # (num_labels,), or None for equal ones
    seed: int = 0  # of the order


@dataclass
class Heads:
    """The best of a grid of heads on validation, and how it got there."""

    weight: torch.Tensor  # (num_labels, D), for features as they are
    bias: torch.Tensor  # (num_labels,)
    learning_rate: float
    weight_decay: float
    best_epoch: int
    history: list[dict]  # a dict an epoch, as in metrics.jsonl


def extract(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    dataset: InMemory | Streamed,
    *,
    folder: Path,
    batch_size: int = 128,
    num_workers: int = 0,
    bf16: bool = False,
) -> Features:
    """The features of a split, from the cache in `folder` if weights, processor and images are those of an entry.

    Args:
        model: on its device; its head doesn't matter.
        processor: makes the pixels.
        dataset: for evaluation, without random crops.
        folder: of the cache; files are named by the digest of everything that they depend on.
        batch_size: images a forward pass.
        num_workers: processes that decode a `Streamed` split.
        bf16: matrix products in bfloat16 (autocast).

    Raises:
        DataError: no image is readable.
        ModelError: the head takes more than a vector of features an image.
    """
    name = key(model, processor, dataset, bf16)
    inputs_path, labels_path = folder / f"{name}.npy", folder / f"{name}.labels.npy"
    if labels_path.exists():  # written last
        labels = np.load(labels_path)
        return Features(np.load(inputs_path, mmap_mode="r")[: len(labels)], labels, True)

    loader = torch.utils.data.DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=collate)
    caught, labels, n = [], [], 0
    hook = backbone.head(model).register_forward_pre_hook(
        lambda module, args: caught.append(args[0].float().cpu().numpy())
    )
    model.eval()
    with replacing(inputs_path) as temporary, torch.inference_mode(), tqdm(total=len(dataset), unit=" images") as bar:
        inputs = None
        for batch in loader:
            if isinstance(dataset, Streamed):
                for where, error in batch["failures"]:
                    skip_or_raise(dataset.splits, where, error)
            if not len(batch["labels"]):
                continue
            pixels = batch["pixels"].to(model.device)
            pixels = pixels if pixels.is_floating_point() else processors.process_batch(processor, pixels)
            with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
                backbone.forward(model, channels_last(pixels))
            rows = caught.pop()
            if rows.ndim != 2:
                raise ModelError(
                    f"the head of {type(model).__name__} takes features of shape {rows.shape[1:]} an image, "
                    "not a vector: train it with the backbone, --freeze none"
                )
            if inputs is None:
                inputs = np.lib.format.open_memmap(temporary, "w+", np.float32, (len(dataset), rows.shape[1]))
            inputs[n : n + len(rows)] = rows
            n += len(rows)
            labels.append(batch["labels"].numpy())
            bar.update(len(rows))
        if inputs is None:
            raise DataError(f"none of the {len(dataset)} images of a split is readable: check the files")
        inputs.flush()
    hook.remove()
    with replacing(labels_path) as temporary:
        np.save(temporary, np.concatenate(labels))
    return Features(np.load(inputs_path, mmap_mode="r")[:n], np.concatenate(labels), False)


def key(model: PreTrainedModel, processor: BaseImageProcessor, dataset: InMemory | Streamed, bf16: bool) -> str:
    """32 hex digits of SHA-256 over all that features depend on: weights, processor, images, number format."""
    hashed = hashlib.sha256()
    top = backbone.head_name(model)
    for name, tensor in model.state_dict().items():
        if not name.startswith(f"{top}."):
            hashed.update(f"{name} {tuple(tensor.shape)}".encode())
            hashed.update(tensor.contiguous().cpu().numpy().tobytes())
    settings = {k: v for k, v in processor.to_dict().items() if k != "image_processor_type"}
    hashed.update(json.dumps([settings, backbone.trained_size(model), bf16], sort_keys=True, default=str).encode())
    if isinstance(dataset, InMemory):
        hashed.update(data_digest(dataset.images, dataset.labels).encode())
    else:
        hashed.update(fingerprint(dataset.split, dataset.splits).encode())
    return hashed.hexdigest()[:32]


def fit_heads(train: Features, validation: Features, settings: HeadSettings) -> Heads:
    """Trains a linear head for each learning rate and weight decay of the grid, and gives the best one on validation.

    The heads are one tensor (G, D + 1, num_labels), so a step is one batched matrix product. Each head has its own rate
    and decay, by AdamW (arXiv:1711.05101) with a cosine to 0. They are trained on standardised features; the result
    applies to plain ones. Of heads and epochs with the same accuracy, the one with the lowest loss is taken.
    """
    began = time.perf_counter()
    grid = [(rate, decay) for rate in LEARNING_RATES for decay in WEIGHT_DECAYS]
    rates, decays = (torch.tensor(column).view(-1, 1, 1) for column in zip(*grid, strict=True))
    mean, std = standardisation(train.inputs)
    weights = settings.class_weights if settings.class_weights is None else settings.class_weights.float()

    def standardised(inputs: np.ndarray) -> torch.Tensor:
        return (torch.tensor(inputs) - mean) / std

    n, dimension = train.inputs.shape
    heads = torch.zeros(len(grid), dimension + 1, settings.num_labels)  # the last row is the bias
    first, second = torch.zeros_like(heads), torch.zeros_like(heads)
    decayed = torch.ones(dimension + 1, 1)
    decayed[-1] = 0
    steps_per_epoch = math.ceil(n / settings.batch_size)
    step, total = 0, settings.epochs * steps_per_epoch
    validation_inputs, validation_labels = standardised(validation.inputs), torch.from_numpy(validation.labels)
    best = (-1.0, 0.0)
    history: list[list[dict]] = [[] for _ in grid]
    for epoch in tqdm(range(settings.epochs), unit=" epochs", desc=f"{len(grid)} heads", leave=False):
        epoch_began = time.perf_counter()
        sums = torch.zeros(len(grid), 2)
        order = torch.randperm(n, generator=seeded_generator(settings.seed, "order", epoch))
        for index in order.split(settings.batch_size):
            index = index.sort().values  # a memory map is read forwards
            inputs, labels = standardised(train.inputs[index.numpy()]), torch.from_numpy(train.labels[index.numpy()])
            gradient, batch_sums = head_gradient(heads, inputs, labels, weights, settings.label_smoothing)
            sums += batch_sums
            step += 1
            first.lerp_(gradient, 0.1)
            second.lerp_(gradient**2, 0.001)
            rate = rates * 0.5 * (1 + math.cos(math.pi * (step - 1) / total))
            update = first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            heads -= rate * (update + decays * decayed * heads)
        seconds = time.perf_counter() - epoch_began
        logits = validation_inputs @ heads[:, :-1] + heads[:, -1:]  # (G, N, num_labels)
        accuracies = (logits.argmax(dim=2) == validation_labels).sum(dim=1) / len(validation_labels)
        losses = torch.stack([F.cross_entropy(one, validation_labels) for one in logits])
        for g, lines in enumerate(history):
            lines.append(
                {
                    "epoch": epoch + 1,
                    "step": step,
                    "train_loss": (sums[g, 0] / n).item(),
                    "train_accuracy": (sums[g, 1] / n).item(),
                    "images_per_second": round(n / seconds, 1),
                    "train_seconds": round(time.perf_counter() - began, 2),
                    "validation_loss": losses[g].item(),
                    "validation_accuracy": accuracies[g].item(),
                }
            )
            reached = accuracies[g].item(), -losses[g].item()
            if reached > best:
                best, kept, best_g, best_epoch = reached, heads[g].clone(), g, epoch + 1
    weight = (kept[:-1] / std[:, None]).T
    bias = kept[-1] - weight @ mean
    return Heads(weight, bias, *grid[best_g], best_epoch, history[best_g])


def cross_validate(train: Features, validation: Features, settings: HeadSettings, *, folds: int) -> list[float]:
    """Accuracy on each of `folds` stratified parts of all images, of a head that was trained on the other parts.

    A fifth of the other parts chooses learning rate, weight decay and epoch, so accuracy is measured on unseen images.
    Raises:
        DataError: no class has as many images as there are parts.
    """
    inputs, labels = (
        np.concatenate([getattr(split, name) for split in (train, validation)]) for name in ("inputs", "labels")
    )
    if (most := np.bincount(labels).max()) < folds:
        raise DataError(f"--folds {folds} is more than the {most} images of the largest class: pass fewer")
    accuracies = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about classes with fewer images than parts
        cuts = list(StratifiedKFold(folds, shuffle=True, random_state=settings.seed).split(inputs, labels))
    for others, part in cuts:
        choosing = others[sample_by_class(labels[others], max(1, len(others) // 5), settings.seed)]
        fitting = np.setdiff1d(others, choosing)
        train, validation = (Features(inputs[rows], labels[rows], True) for rows in (fitting, choosing))
        heads = fit_heads(train, validation, settings)
        logits = torch.from_numpy(inputs[part]) @ heads.weight.T + heads.bias
        accuracies.append(float((logits.argmax(dim=1).numpy() == labels[part]).mean()))
    return accuracies


def head_gradient(
    heads: torch.Tensor,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None,
    label_smoothing: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient (G, D + 1, num_labels) of each head's mean loss, and its sums of (loss, right predictions), (G, 2).

    Args:
        heads: (G, D + 1, num_labels); the last row is the bias.
        inputs: (N, D).
        labels: (N,).
        weights: of the classes, (num_labels,).
        label_smoothing: share of a target that is spread over all classes.
    """
    heads = heads.detach().requires_grad_()
    logits = inputs @ heads[:, :-1] + heads[:, -1:]  # (G, N, num_labels)
    flat = logits.flatten(0, 1), labels.repeat(len(heads))
    losses = F.cross_entropy(*flat, label_smoothing=label_smoothing, reduction="none").view(len(heads), -1)
    losses = losses if weights is None else losses * weights[labels]  # an image's weight, also of what is smoothed
    (gradient,) = torch.autograd.grad(losses.sum() / len(labels), heads)
    return gradient, torch.stack([losses.detach().sum(dim=1), (logits.argmax(dim=2) == labels).sum(dim=1)], dim=1)


def standardisation(inputs: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (D,) of features (N, D), a part at a time; a constant one has deviation 1."""
    parts = range(0, len(inputs), 10_000)
    mean = sum(inputs[i : i + 10_000].sum(axis=0, dtype=np.float64) for i in parts) / len(inputs)
    variance = sum(((inputs[i : i + 10_000] - mean) ** 2).sum(axis=0) for i in parts) / len(inputs)
    std = np.where(variance > 1e-12, np.sqrt(variance), 1.0)
    return torch.from_numpy(mean).float(), torch.from_numpy(std).float()
