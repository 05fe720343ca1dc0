"""The scratch CNN's training loop: schedule, optimiser, checkpoint, resume, early stop.

All random numbers of a step are drawn from (seed, step), and those of an epoch from (seed, epoch). A run that was
stopped anywhere and resumed therefore computes what an uninterrupted one does, bit for bit, on the same machine.
"""

import copy
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from classifier.errors import ModelError, Stopped
from classifier.files import write_text
from classifier.models.cnn import CifarCnnForImageClassification as Cnn
from classifier.training import augment, small_grids
from classifier.training.augment import flip_by_turns, normalize, resize
from classifier.training.checkpoint import (
    CHECKPOINT,
    Progress,
    copy_state,
    data_digest,
    load_checkpoint,
    save_checkpoint,
)
from classifier.training.cnn_recipe import CnnRecipe, RunOptions
from classifier.training.muon import Muon
from classifier.training.runtime import StopSignal, keep_freed_memory, prepare_batch_norm, seeded_generator

Tensors = tuple[torch.Tensor, torch.Tensor]  # images uint8 (N, C, H, W), labels int64 (N,)


class CnnTrainer:
    """Trains a CNN in place and leaves it with the weights of its best epoch on validation.

    Writes a checkpoint and metrics.jsonl (a line an epoch) to the output folder after each epoch. Of several processes
    (of torchrun or accelerate) the first writes. They share each batch and add up gradients: the result is that of one
    process, up to the order of sums, and to batch norm where a part of the batch is smaller than `chunk_size`.

    Args:
        model: on its device.
        train, validation: (images uint8 (N, C, H, W), labels int64 (N,)), on the model's device.
        recipe: schedule, optimiser and augmentation.
        options: folder, seed and the like.

    Raises:
        ModelError: the checkpoint can't be used.
    """

    def __init__(self, model: Cnn, train: Tensors, validation: Tensors, recipe: CnnRecipe, options: RunOptions):
        keep_freed_memory()
        self.model, self.validation, self.recipe, self.options = model, validation, recipe, options
        self.images, self.labels = train
        self.state = PartialState()
        n, self.device = len(self.images), self.images.device
        self.steps_per_epoch, self.total_steps = recipe.steps_per_epoch(n), recipe.steps(n)
        self.progress, self.is_stopped = Progress(), False

        model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]  # its wrapper is typed as a function
        if self.device.type == "cpu" and options.bf16:
            small_grids.speed_up(model)
        model.train()
        if options.parent is None:
            self.init_whitening()
        own_batch = recipe.batch_size / self.state.num_processes
        parts = math.ceil(own_batch / recipe.chunk_size)  # forward passes a step, in each process
        self.chunk_size = math.ceil(recipe.batch_size / (parts * self.state.num_processes))
        self.optimizers = build_optimizers(model, recipe, parts)
        self.first_stage = [parameter for parameter in model.stages[0].parameters() if parameter.requires_grad]
        self.best = copy_state(model)
        digests = {"train data": data_digest(*train), "validation data": data_digest(*validation)}
        self.settings = {"recipe": asdict(recipe), "seed": options.seed, "bf16": options.bf16, "parent": options.parent}
        self.settings |= digests
        if options.resume is not None:
            self.progress, self.best = load_checkpoint(options.resume, model, self.optimizers, self.settings)
        self.flip_first = torch.rand(n, generator=seeded_generator(options.seed, "flip")) < 0.5

    def init_whitening(self) -> None:
        """Sets the whitening layer from patches of the training images."""
        enough = 5_000_000 // self.images[0, 0].numel()  # 5,000 images of 32×32; more would only take memory
        order = torch.randperm(len(self.images), generator=seeded_generator(self.options.seed, "whiten"))
        sample = self.images[order[:enough].to(self.device)]
        self.model.init_whiten(normalize(sample, self.options.mean, self.options.std))

    def train(self) -> Progress:
        """Runs all epochs that are left.

        Raises:
            ModelError: the loss is not finite (with the step).
            Stopped: on SIGINT or SIGTERM, after a checkpoint was written.
        """
        progress, size = self.progress, self.recipe.batch_size
        bar = tqdm(
            total=self.total_steps * size,
            initial=progress.step * size,
            unit="img",
            unit_scale=True,
            smoothing=0.05,
            disable=not self.state.is_main_process,
        )
        with bar, StopSignal() as stop:
            while progress.step < self.total_steps and not out_of_patience(progress, self.options.patience):
                epoch = progress.step // self.steps_per_epoch
                last = min(self.total_steps, (epoch + 1) * self.steps_per_epoch)
                sums, seconds = self.train_epoch(epoch, last, bar, stop)
                if self.is_stopped and progress.step < last:  # at an epoch's end, the epoch is finished first
                    self.save()
                    raise Stopped(
                        f"stopped after step {progress.step} of {self.total_steps} and saved in "
                        f"{self.options.output_dir}"
                    )
                metrics = self.epoch_metrics(epoch, sums, seconds)
                self.keep_best(metrics)
                if self.state.is_main_process:
                    lines = "".join(json.dumps(line) + "\n" for line in progress.history)
                    write_text(self.options.output_dir / "metrics.jsonl", lines)
                    self.save()
                    bar.write(" · ".join(f"{name} {value:g}" for name, value in metrics.items()))
                    self.options.log(metrics)
        self.model.load_state_dict(self.best)
        return progress

    def train_epoch(self, epoch: int, last: int, bar: tqdm, stop: StopSignal) -> tuple[torch.Tensor, float]:
        """Takes the steps before step `last`, or those before a signal.

        Returns:
            (summed loss in nats, count of right predictions) of each step, (steps, 2), and the seconds.
        """
        recipe, first = self.recipe, self.progress.step
        order = torch.randperm(len(self.images), generator=seeded_generator(self.options.seed, "order", epoch))
        sums = torch.zeros((last - first, 2), device=self.device)
        began = shown = time.perf_counter()
        while self.progress.step < last and not self.is_stopped:
            step = self.progress.step
            start = step % self.steps_per_epoch * recipe.batch_size
            sums[step - first] = self.train_step(step, order[start : start + recipe.batch_size], stop)
            self.progress.step += 1
            bar.update(recipe.batch_size)
            if time.perf_counter() - shown > 1:  # reading the loss waits for the device: once a second at most
                shown = time.perf_counter()
                bar.set_postfix_str(
                    f"epoch {epoch + 1}/{math.ceil(recipe.epochs)}, {self.size_at(step)} px, loss "
                    f"{sums[step - first, 0] / recipe.batch_size:.3f}"
                )
        sums = sums[: self.progress.step - first]
        check_finite(sums[:, 0], first, epoch)
        seconds = time.perf_counter() - began
        self.progress.train_seconds += seconds
        average_statistics(self.model)
        return sums, seconds

    def train_step(self, step: int, batch: torch.Tensor, stop: StopSignal) -> torch.Tensor:
        """One optimiser step on the images at `batch` (on the CPU): their summed loss and right predictions, (2,)."""
        recipe = self.recipe
        whiten_steps = recipe.whiten_bias_epochs * self.steps_per_epoch
        bias = self.model.whiten.bias
        assert bias is not None  # the layer is built with one
        # Once the bias is trained, no gradient has to reach the first layer, the largest of all.
        bias.requires_grad_(step < whiten_steps)
        for parameter in self.first_stage:
            parameter.requires_grad_(step < recipe.freeze_from * self.total_steps)
        chunks = batch.split(self.chunk_size)
        own = range(self.state.process_index, len(chunks), self.state.num_processes)
        sums = torch.zeros(2, device=self.device)
        for i in own:
            sums += self.backward(chunks[i], step, seeded_generator(self.options.seed, f"augment {step}", i))
        sums, self.is_stopped = add_up(self.model, sums, stop.caught)
        set_learning_rates(self.optimizers, step / self.total_steps, step / whiten_steps)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return sums

    def backward(self, index: torch.Tensor, step: int, generator: torch.Generator) -> torch.Tensor:
        """Adds the gradient for the images at `index` (on the CPU) to the parameters.

        Returns:
            (summed loss, count of right predictions), (2,), on the device.
        """
        recipe, where = self.recipe, index.to(self.device)
        images = self.images[where]
        images = augment.degrade(images, recipe.degraded, generator) if recipe.degraded else images
        pixels = normalize(images, self.options.mean, self.options.std)
        if recipe.mirror:
            pixels = flip_by_turns(pixels, self.flip_first[index].to(self.device), step // self.steps_per_epoch)
        pixels = augment.shift(pixels, recipe.shift, generator) if recipe.shift else pixels
        pixels = augment.cutout(pixels, recipe.cutout, generator) if recipe.cutout else pixels
        pixels = resize(pixels, self.size_at(step)).contiguous(memory_format=torch.channels_last)
        prepare_batch_norm(self.model, len(index))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bf16):
            logits = self.model(pixels).logits
        labels = self.labels[where]
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing, reduction="sum")
        loss.backward()
        return torch.stack([loss.detach(), (logits.argmax(dim=1) == labels).sum()])

    def size_at(self, step: int) -> int:
        """Pixels a side of the images of a step."""
        return self.recipe.size_at(step / self.total_steps)

    def epoch_metrics(self, epoch: int, sums: torch.Tensor, seconds: float) -> dict:
        """The line of metrics.jsonl for an epoch, the same on all processes."""
        loss, accuracy = (sums.mean(dim=0) / self.recipe.batch_size).tolist()
        metrics = {
            "epoch": epoch + 1,
            "step": self.progress.step,
            "size": self.size_at(self.progress.step - 1),
            "train_loss": loss,
            "train_accuracy": accuracy,
            "images_per_second": round(len(sums) * self.recipe.batch_size / seconds, 1),
            "train_seconds": round(self.progress.train_seconds, 2),
        }
        options = self.options
        metrics |= validate(self.model, self.validation, options.mean, options.std, options.bf16)
        shared = [metrics]
        broadcast_object_list(shared)  # processors differ in the last digit, and all processes have to decide alike
        return shared[0]

    def keep_best(self, metrics: dict) -> None:
        """Adds an epoch to the history, and copies the weights if none were better."""
        progress, accuracy = self.progress, metrics["validation_accuracy"]
        progress.history.append(metrics)
        if accuracy > progress.best_accuracy:
            progress.improved_epoch = metrics["epoch"]
        if accuracy >= progress.best_accuracy:  # of equal epochs the later, which was trained longer
            progress.best_accuracy, progress.best_epoch = accuracy, metrics["epoch"]
            self.best = copy_state(self.model)

    def save(self) -> None:
        """Writes the checkpoint, in the first process."""
        if self.state.is_main_process:
            path = self.options.output_dir / CHECKPOINT
            save_checkpoint(path, self.model, self.optimizers, self.best, self.progress, self.settings)


def add_up(model: nn.Module, sums: torch.Tensor, caught: bool) -> tuple[torch.Tensor, bool]:
    """Replaces gradients by their sums over all processes.

    Returns:
        The sum of `sums` (2,) over all processes, and whether any process caught a signal.
    """
    if PartialState().num_processes == 1:
        return sums, caught
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    parts = [
        *(gradient.flatten() for gradient in gradients),
        sums.float(),
        sums.new_tensor([caught], dtype=torch.float32),
    ]
    summed = reduce(torch.cat(parts), reduction="sum").split([len(part) for part in parts])
    for gradient, total in zip(gradients, summed[:-2], strict=True):
        gradient.copy_(total.view_as(gradient))
    return summed[-2], bool(summed[-1])


def average_statistics(model: nn.Module) -> None:
    """Replaces batch norm's running statistics by their means over all processes."""
    if PartialState().num_processes > 1:
        buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        means = reduce(torch.cat([buffer.flatten() for buffer in buffers]), reduction="mean")
        for buffer, mean in zip(buffers, means.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(mean.view_as(buffer))


def build_optimizers(model: Cnn, recipe: CnnRecipe, chunks: int) -> list[torch.optim.Optimizer]:
    """Muon for the convolutions, SGD for biases and head. Whitening filters and batch norm's scales stay as they are.

    `chunks` is the number of forward passes a step in this process.
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
    """Linear decay to 0 at `progress` 1; for the whitening layer's bias, SGD's first group, at `whiten_progress` 1."""
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
        step = first + int(bad[0])
        raise ModelError(
            f"the loss is {losses[bad[0]].item()} at step {step}, epoch {epoch + 1}: "
            "start again with --overwrite_output_dir and a lower --learning_rate"
        )


@torch.inference_mode()
def predict_logits(
    forward: Callable, images: torch.Tensor, mean: list[float], std: list[float], bf16: bool = False
) -> torch.Tensor:
    """Logits (N, num_labels), float32, of uint8 images (N, C, H, W); `forward` maps normalised pixels to logits.

    If `forward` gives (views, N, num_labels), so does this.
    """
    logits = []
    for chunk in images.split(250):
        pixels = normalize(chunk, mean, std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            logits.append(forward(pixels).float())
    return torch.cat(logits, dim=-2)


def validate(model: Cnn, data: Tensors, mean: list[float], std: list[float], bf16: bool) -> dict[str, float]:
    """Loss (nats) and accuracy (fraction) of (images uint8 (N, C, H, W), labels (N,)), in one view."""
    images, labels = data
    model.eval()
    logits = predict_logits(model.forward_view, images, mean, std, bf16)
    model.train()
    return {
        "validation_loss": F.cross_entropy(logits, labels).item(),
        "validation_accuracy": (logits.argmax(dim=1) == labels).sum().item() / len(labels),
    }


def estimate_seconds(model: Cnn, images: torch.Tensor, recipe: CnnRecipe, bf16: bool) -> float:
    """Estimated training time here, by a forward and backward pass of one chunk of images (N, C, H, W) at each size."""
    keep_freed_memory()
    trial = copy.deepcopy(model).train()
    trial.to(memory_format=torch.channels_last)
    chunk = images[: recipe.chunk_size].float()
    seconds = 0.0
    for epochs, size in recipe.sizes:
        pixels = resize(chunk / 255, size).contiguous(memory_format=torch.channels_last)
        for _ in range(2):  # the first pass compiles kernels and allocates memory
            began = time.perf_counter()
            with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
                logits = trial(pixels).logits
            logits.float().sum().backward()
            logits[0, 0].item()  # waits for the device
            passed = time.perf_counter() - began
        seconds += passed * epochs * len(images) / len(chunk)
    return seconds


def training_flops(model: Cnn, recipe: CnnRecipe, n: int, steps: int) -> int:
    """Floating-point operations of the first `steps` steps on `n` images; a backward pass counts as two forwards."""
    sizes = Counter(recipe.size_at(step / recipe.steps(n)) for step in range(steps))
    return sum(3 * recipe.batch_size * count * view_flops(model, size) for size, count in sizes.items())


def view_flops(model: Cnn, size: int) -> int:
    """Floating-point operations of the forward pass of one view of one image of `size` pixels a side."""
    pixels = torch.zeros(1, model.config.num_channels, size, size, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.forward_view(pixels)
    return counter.get_total_flops()
