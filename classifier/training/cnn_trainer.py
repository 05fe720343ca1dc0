"""The scratch CNN's training loop: schedule, optimiser, checkpoint, resume, early stop.

Everything random in a step is drawn from (seed, step) and everything in an epoch from (seed, epoch), so that a run
which was stopped anywhere and resumed computes what an uninterrupted one does, bit for bit, on the same machine.
"""

import copy
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from classifier.errors import ModelError, Stopped
from classifier.files import write_text
from classifier.training import augment
from classifier.training.augment import flip_by_turns, normalize, resize
from classifier.training.checkpoint import (
    CHECKPOINT,
    Progress,
    copy_state,
    data_digest,
    load_checkpoint,
    save_checkpoint,
)
from classifier.training.muon import Muon
from classifier.training.runtime import StopSignal, keep_freed_memory, seeded_generator


@dataclass(frozen=True)
class CnnRecipe:
    """What a run does, but for the data and the seed."""

    sizes: tuple[
        tuple[float, int], ...
    ]  # (epochs, pixels a side): images are shrunk to this size, one stage after another
    widths: tuple[int, ...] = (64, 256, 256)
    depths: tuple[int, ...] = (2, 2, 2)
    hidden_act: str = "gelu"
    views: int = 1  # averaged in evaluation, see CifarCnnConfig
    batch_size: int = 2000  # images an optimiser step
    chunk_size: int = (
        250  # images a forward pass, at most: activations then fit a CPU's cache, and batch norm sees this many
    )
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
    freeze_from: float = 1.0  # share of the run after which the first stage learns no more, which spares its gradient

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
        done = 0.0
        for epochs, size in self.sizes:
            done += epochs / self.epochs
            if progress < done - 1e-9:
                return size
        return self.sizes[-1][1]


def train_cnn(
    model: nn.Module,
    train: tuple[torch.Tensor, torch.Tensor],
    validation: tuple[torch.Tensor, torch.Tensor],
    recipe: CnnRecipe,
    output_dir: Path,
    *,
    mean: list[float],
    std: list[float],
    seed: int = 0,
    patience: int | None = None,
    bf16: bool = False,
    resume: Path | None = None,
    parent: str | None = None,
    log: Callable[[dict], None] = lambda metrics: None,
) -> Progress:
    """Trains `model` in place and leaves it with the weights of its best epoch on validation.

    Writes a checkpoint and metrics.jsonl (a line an epoch) to `output_dir` after each epoch. Of several processes (of
    torchrun or accelerate) the first writes. They share each batch, and add up gradients: what is learnt is what one
    process learns, up to the order of sums, and to batch norm where a part of the batch is smaller than `chunk_size`.

    Args:
        model: a `CifarCnnForImageClassification`, on its device.
        train, validation: (images uint8 (N, C, H, W), labels int64 (N,)), on the model's device.
        recipe: what to do.
        output_dir: an existing folder.
        mean, std: of the pixels, a number a channel, in [0, 1].
        seed: of order and augmentation.
        patience: epochs without a better validation accuracy after which training stops; None never does.
        bf16: convolutions and matrix products in bfloat16 (autocast).
        resume: a checkpoint to go on from.
        parent: digest of the weights that the model came with, None for fresh ones, whose whitening layer is then set.
        log: called with each epoch's metrics.

    Raises:
        ModelError: the loss is not finite (with the step), or the checkpoint can't be used.
        Stopped: on SIGINT or SIGTERM, after a checkpoint was written.
    """
    keep_freed_memory()
    state = PartialState()
    images, labels = train
    n, device = len(images), images.device
    batch_size, steps_per_epoch, total = recipe.batch_size, recipe.steps_per_epoch(n), recipe.steps(n)

    model.to(memory_format=torch.channels_last).train()
    if parent is None:
        enough = 5_000_000 // images[0, 0].numel()  # patches of 5,000 images of 32×32; more would only take memory
        sample = torch.randperm(n, generator=seeded_generator(seed, "whiten"))[:enough]
        model.init_whiten(normalize(images[sample.to(device)], mean, std))
    parts = state.num_processes * math.ceil(
        batch_size / state.num_processes / recipe.chunk_size
    )  # of a batch, as many each
    chunk_size = math.ceil(batch_size / parts)
    optimizers = build_optimizers(model, recipe, parts // state.num_processes)
    first_stage = [parameter for parameter in model.stages[0].parameters() if parameter.requires_grad]
    progress, best = Progress(), copy_state(model)
    data = {"train data": data_digest(*train), "validation data": data_digest(*validation)}
    settings = {"recipe": asdict(recipe), "seed": seed, "bf16": bf16, "parent": parent, **data}
    if resume is not None:
        progress, best = load_checkpoint(resume, model, optimizers, settings)
    flip_first = torch.rand(n, generator=seeded_generator(seed, "flip")) < 0.5

    def backward(index: torch.Tensor, epoch: int, size: int, draw: torch.Generator) -> torch.Tensor:
        """Adds the gradient of the images at `index` (on the CPU); gives (summed loss, count of right ones), on the
        device.
        """
        where = index.to(device)
        pixels = normalize(images[where], mean, std)
        pixels = flip_by_turns(pixels, flip_first[index].to(device), epoch) if recipe.mirror else pixels
        pixels = augment.shift(pixels, recipe.shift, draw) if recipe.shift else pixels
        pixels = augment.cutout(pixels, recipe.cutout, draw) if recipe.cutout else pixels
        pixels = resize(pixels, size).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = model(pixels).logits
        loss = F.cross_entropy(logits.float(), labels[where], label_smoothing=recipe.label_smoothing, reduction="sum")
        loss.backward()
        return torch.stack([loss.detach(), (logits.argmax(dim=1) == labels[where]).sum()])

    is_stopped = False
    sums = torch.zeros((total, 2), device=device)  # of loss (nats) and of right predictions, a row a step
    shown_by = {"unit": "img", "unit_scale": True, "smoothing": 0.05, "disable": not state.is_main_process}
    bar = tqdm(total=total * batch_size, initial=progress.step * batch_size, **shown_by)
    with bar, StopSignal() as stop:
        while progress.step < total and not out_of_patience(progress, patience):
            first = progress.step
            epoch = first // steps_per_epoch
            last = min(total, (epoch + 1) * steps_per_epoch)
            permutation = torch.randperm(n, generator=seeded_generator(seed, "order", epoch))
            began = shown = time.perf_counter()
            while progress.step < last and not is_stopped:
                step = progress.step
                size = recipe.size_at(step / total)
                # Where the bias is done learning, no gradient has to reach the first layer, the largest of all.
                model.whiten.bias.requires_grad_(step < recipe.whiten_bias_epochs * steps_per_epoch)
                for parameter in first_stage:
                    parameter.requires_grad_(step < recipe.freeze_from * total)
                start = step % steps_per_epoch * batch_size
                chunks = permutation[start : start + batch_size].split(chunk_size)
                own = range(state.process_index, len(chunks), state.num_processes)
                draws = {i: seeded_generator(seed, f"augment {step}", i) for i in own}
                found = sum(backward(chunks[i], epoch, size, draw) for i, draw in draws.items())
                sums[step], is_stopped = add_up(model, found, stop.caught)
                set_learning_rates(optimizers, step / total, step / (recipe.whiten_bias_epochs * steps_per_epoch))
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                progress.step += 1
                bar.update(batch_size)
                if time.perf_counter() - shown > 1:  # reading the loss waits for the device: once a second at most
                    shown = time.perf_counter()
                    bar.set_postfix_str(
                        f"epoch {epoch + 1}/{math.ceil(recipe.epochs)}, {size} px, loss "
                        f"{sums[step, 0] / batch_size:.3f}"
                    )
            check_finite(sums[first : progress.step, 0], first, epoch)
            seconds = time.perf_counter() - began
            progress.train_seconds += seconds
            average_statistics(model)
            if is_stopped and progress.step < last:  # at an epoch's end, what belongs to the epoch is done first
                if state.is_main_process:
                    save_checkpoint(output_dir / CHECKPOINT, model, optimizers, best, progress, settings)
                raise Stopped(f"stopped after step {progress.step} of {total} and saved in {output_dir}")

            mean_loss, mean_accuracy = (sums[first : progress.step].mean(dim=0) / batch_size).tolist()
            metrics = {
                "epoch": epoch + 1,
                "step": progress.step,
                "size": size,
                "train_loss": mean_loss,
                "train_accuracy": mean_accuracy,
                "images_per_second": round((progress.step - first) * batch_size / seconds, 1),
                "train_seconds": round(progress.train_seconds, 2),
            }
            metrics |= validate(model, validation, mean, std, bf16)
            broadcast_object_list(
                told := [metrics]
            )  # processors differ in the last digit, and all have to decide alike
            [metrics] = told
            progress.history.append(metrics)
            if metrics["validation_accuracy"] > progress.best_accuracy:
                progress.improved_epoch = epoch + 1
            if (
                metrics["validation_accuracy"] >= progress.best_accuracy
            ):  # of equals the later, which was trained longer
                progress.best_accuracy, progress.best_epoch = metrics["validation_accuracy"], epoch + 1
                best = copy_state(model)
            if state.is_main_process:
                write_text(output_dir / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in progress.history))
                save_checkpoint(output_dir / CHECKPOINT, model, optimizers, best, progress, settings)
                bar.write(" · ".join(f"{name} {value:g}" for name, value in metrics.items()))
                log(metrics)
    model.load_state_dict(best)
    return progress


def add_up(model: nn.Module, sums: torch.Tensor, caught: bool) -> tuple[torch.Tensor, bool]:
    """Makes gradients the sums over all processes; gives `sums` (2,) summed, and whether any process was told to
    stop.
    """
    if PartialState().num_processes == 1:
        return sums, caught
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    told = [
        *(gradient.flatten() for gradient in gradients),
        sums.float(),
        sums.new_tensor([caught], dtype=torch.float32),
    ]
    summed = reduce(torch.cat(told), reduction="sum").split([len(each) for each in told])
    for gradient, each in zip(gradients, summed, strict=False):
        gradient.copy_(each.view_as(gradient))
    return summed[-2], bool(summed[-1])


def average_statistics(model: nn.Module) -> None:
    """Makes batch norm's running statistics, of which each process has its own, their means."""
    if PartialState().num_processes > 1:
        buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        means = reduce(torch.cat([buffer.flatten() for buffer in buffers]), reduction="mean")
        for buffer, mean in zip(buffers, means.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(mean.view_as(buffer))


def build_optimizers(model: nn.Module, recipe: CnnRecipe, chunks: int) -> list[torch.optim.Optimizer]:
    """Muon for the convolutions, SGD for biases and head. Whitening filters and batch norm's scales stay as they are.

    `chunks` is how many parts of a batch this process sees.
    """
    model.whiten.weight.requires_grad_(False)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.requires_grad_(False)
        # Running statistics keep 0.6 of the past at each step, as weights move fast; a step updates them once a chunk.
        norm.momentum = 1 - 0.6 ** (1 / chunks)
    convolutions = [p for p in model.stages.parameters() if p.ndim == 4]
    biases = [norm.bias for norm in norms]
    groups = [
        ([model.whiten.bias], recipe.bias_learning_rate),
        (biases, recipe.bias_learning_rate),
        ([model.head.weight], recipe.head_learning_rate),
    ]
    decay = recipe.weight_decay * recipe.batch_size
    sgd = torch.optim.SGD(
        [{"params": params, "lr": lr, "weight_decay": decay / lr} for params, lr in groups],
        momentum=recipe.sgd_momentum,
        nesterov=True,
    )
    muon = Muon(convolutions, recipe.learning_rate, recipe.momentum)
    for group in sgd.param_groups + muon.param_groups:
        group["initial_lr"] = group["lr"]
    return [sgd, muon]


def set_learning_rates(optimizers: list[torch.optim.Optimizer], progress: float, whiten_progress: float) -> None:
    """Linear decay to 0 at `progress` 1; the whitening layer's bias, SGD's first group, by its own clock."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * (1 - progress)
    whiten = optimizers[0].param_groups[0]
    whiten["lr"] = whiten["initial_lr"] * max(0.0, 1 - whiten_progress)


def out_of_patience(progress: Progress, patience: int | None) -> bool:
    """True when the last `patience` epochs brought no better validation accuracy."""
    return patience is not None and len(progress.history) - progress.improved_epoch >= patience


def check_finite(losses: torch.Tensor, first: int, epoch: int) -> None:
    """Raises ModelError that names the first step whose loss is not finite; `losses` starts at step `first`."""
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = first + bad[0].item()
        raise ModelError(
            f"the loss is {losses[step - first].item()} at step {step}, epoch {epoch + 1}: "
            "start again with --overwrite_output_dir and a lower --learning_rate"
        )


@torch.inference_mode()
def predict_logits(
    forward: Callable, images: torch.Tensor, mean: list[float], std: list[float], bf16: bool = False
) -> torch.Tensor:
    """Logits (N, num_labels), float32, of uint8 images (N, C, H, W); `forward` takes normalised pixels and gives
    logits.

    Of a `forward` that gives (views, N, num_labels) for a batch, as many views of all.
    """
    logits = []
    for chunk in images.split(250):
        pixels = normalize(chunk, mean, std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            logits.append(forward(pixels).float())
    return torch.cat(logits, dim=-2)


def validate(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor], mean, std, bf16: bool) -> dict[str, float]:
    """Loss (nats) and accuracy (fraction) of (images uint8 (N, C, H, W), labels (N,)), in one view."""
    images, labels = data
    model.eval()
    logits = predict_logits(model.forward_view, images, mean, std, bf16)
    model.train()
    return {
        "validation_loss": F.cross_entropy(logits, labels).item(),
        "validation_accuracy": (logits.argmax(dim=1) == labels).sum().item() / len(labels),
    }


def estimate_seconds(model: nn.Module, images: torch.Tensor, recipe: CnnRecipe, bf16: bool) -> float:
    """What `fit` will take on this machine, from a forward and backward pass of one chunk at each size; (N, C, H,
    W).
    """
    keep_freed_memory()
    trial = copy.deepcopy(model).to(memory_format=torch.channels_last).train()
    chunk = images[: recipe.chunk_size].float()
    seconds = 0.0
    for epochs, size in recipe.sizes:
        pixels = resize(chunk / 255, size).contiguous(memory_format=torch.channels_last)
        for _ in range(2):  # the first pass compiles kernels and gets memory
            began = time.perf_counter()
            with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
                logits = trial(pixels).logits
            logits.float().sum().backward()
            logits[0, 0].item()  # waits for the device
            passed = time.perf_counter() - began
        seconds += passed * epochs * len(images) / len(chunk)
    return seconds


def training_flops(model: nn.Module, recipe: CnnRecipe, n: int, steps: int) -> int:
    """Floating-point operations of the first `steps` steps on `n` images, the backward pass counted as two forwards."""
    sizes = Counter(recipe.size_at(step / recipe.steps(n)) for step in range(steps))
    return sum(3 * recipe.batch_size * count * view_flops(model, size) for size, count in sizes.items())


def view_flops(model: nn.Module, size: int) -> int:
    """Floating-point operations of the forward pass of one view of one image of `size` pixels a side."""
    pixels = torch.zeros(1, model.config.num_channels, size, size, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.forward_view(pixels)
    return counter.get_total_flops()
