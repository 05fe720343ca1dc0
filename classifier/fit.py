"""The scratch CNN's training loop: schedule, optimiser, checkpoint, resume, early stop.

Everything random in a step is drawn from (seed, step) and everything in an epoch from (seed, epoch), so that a run
which was stopped anywhere and resumed computes what an uninterrupted one does, bit for bit, on the same machine.
"""

import copy
import ctypes
import hashlib
import json
import math
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from classifier import augment
from classifier.errors import ModelError, Stopped
from classifier.files import replacing, write_text

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Recipe:
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

    def for_epochs(self, epochs: float) -> "Recipe":
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


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum whose update of each convolution is orthogonalised and whose weights keep their norm.

    Muon (Keller Jordan, https://kellerjordan.github.io/posts/muon) in the form that airbench94_muon uses for
    convolutions: a kernel is a matrix (out, in·k·k), its norm is set to √out before each step. `torch.optim.Muon` takes
    matrices only.

    Args:
        params: convolution weights, (out, in, k, k).
        lr: step size; an update has spectral norm about 1 before it is multiplied by this.
        momentum: in [0, 1).
    """

    def __init__(self, params, lr: float, momentum: float):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """Takes one step with the gradients at hand."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:  # frozen
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(weight.grad)
                update = weight.grad.add(buffer, alpha=group["momentum"])
                weight.mul_(len(weight) ** 0.5 / weight.norm())
                weight.add_(orthogonalize(update.flatten(1)).view_as(weight), alpha=-group["lr"])


def orthogonalize(matrix: torch.Tensor, steps: int = 3) -> torch.Tensor:
    """(m, n) -> a matrix with the same singular vectors and singular values near 1, by a quintic Newton-Schulz
    iteration.

    In bfloat16; the coefficients are Muon's, which raise small singular values fast rather than converge to exactly 1.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    for _ in range(steps):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return (wide if x.shape[0] <= x.shape[1] else wide.T).to(matrix.dtype)


@dataclass
class Progress:
    """Where a run is: all that a checkpoint holds beside tensors."""

    step: int = 0
    best_accuracy: float = -1.0  # on validation, a fraction
    best_epoch: int = 0
    improved_epoch: int = 0  # the last one that was better than all before, not as good
    train_seconds: float = 0.0  # spent in steps, without validation
    history: list[dict] = field(default_factory=list)  # a dict an epoch, as in metrics.jsonl


def fit(
    model: nn.Module,
    train: tuple[torch.Tensor, torch.Tensor],
    validation: tuple[torch.Tensor, torch.Tensor],
    recipe: Recipe,
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
        sample = torch.randperm(n, generator=generator(seed, "whiten"))[:enough]
        model.init_whiten(augment.normalize(images[sample.to(device)], mean, std))
    parts = state.num_processes * math.ceil(
        batch_size / state.num_processes / recipe.chunk_size
    )  # of a batch, as many each
    chunk_size = math.ceil(batch_size / parts)
    optimizers = build_optimizers(model, recipe, parts // state.num_processes)
    first_stage = [parameter for parameter in model.stages[0].parameters() if parameter.requires_grad]
    progress, best = Progress(), copy_state(model)
    data = {"train data": digest(*train), "validation data": digest(*validation)}
    settings = {"recipe": asdict(recipe), "seed": seed, "bf16": bf16, "parent": parent, **data}
    if resume is not None:
        progress, best = load_checkpoint(resume, model, optimizers, settings)
    flip_first = torch.rand(n, generator=generator(seed, "flip")) < 0.5

    def backward(index: torch.Tensor, epoch: int, size: int, draw: torch.Generator) -> torch.Tensor:
        """Adds the gradient of the images at `index` (on the CPU); gives (summed loss, count of right ones), on the
        device.
        """
        where = index.to(device)
        pixels = augment.normalize(images[where], mean, std)
        pixels = augment.flip_by_turns(pixels, flip_first[index].to(device), epoch) if recipe.mirror else pixels
        pixels = augment.shift(pixels, recipe.shift, draw) if recipe.shift else pixels
        pixels = augment.cutout(pixels, recipe.cutout, draw) if recipe.cutout else pixels
        pixels = augment.resize(pixels, size).contiguous(memory_format=torch.channels_last)
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
            permutation = torch.randperm(n, generator=generator(seed, "order", epoch))
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
                draws = {i: generator(seed, f"augment {step}", i) for i in own}
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


def any_told(caught: bool) -> bool:
    """Whether any process was told to stop. All have to ask, and get the same answer."""
    state = PartialState()
    if state.num_processes == 1:
        return caught
    return bool(reduce(torch.tensor(float(caught), device=state.device), reduction="sum"))


def average_statistics(model: nn.Module) -> None:
    """Makes batch norm's running statistics, of which each process has its own, their means."""
    if PartialState().num_processes > 1:
        buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        means = reduce(torch.cat([buffer.flatten() for buffer in buffers]), reduction="mean")
        for buffer, mean in zip(buffers, means.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(mean.view_as(buffer))


def generator(seed: int, purpose: str, counter: int = 0) -> torch.Generator:
    """A CPU generator of its own for each (seed, purpose, counter): what makes any step repeatable by itself."""
    digest = hashlib.sha256(f"{seed} {purpose} {counter}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


def build_optimizers(model: nn.Module, recipe: Recipe, chunks: int) -> list[torch.optim.Optimizer]:
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
def predict(
    forward: Callable, images: torch.Tensor, mean: list[float], std: list[float], bf16: bool = False
) -> torch.Tensor:
    """Logits (N, num_labels), float32, of uint8 images (N, C, H, W); `forward` takes normalised pixels and gives
    logits.

    Of a `forward` that gives (views, N, num_labels) for a batch, as many views of all.
    """
    logits = []
    for chunk in images.split(250):
        pixels = augment.normalize(chunk, mean, std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            logits.append(forward(pixels).float())
    return torch.cat(logits, dim=-2)


def validate(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor], mean, std, bf16: bool) -> dict[str, float]:
    """Loss (nats) and accuracy (fraction) of (images uint8 (N, C, H, W), labels (N,)), in one view."""
    images, labels = data
    model.eval()
    logits = predict(model.forward_view, images, mean, std, bf16)
    model.train()
    return {
        "validation_loss": F.cross_entropy(logits, labels).item(),
        "validation_accuracy": (logits.argmax(dim=1) == labels).sum().item() / len(labels),
    }


def estimate_seconds(model: nn.Module, images: torch.Tensor, recipe: Recipe, bf16: bool) -> float:
    """What `fit` will take on this machine, from a forward and backward pass of one chunk at each size; (N, C, H,
    W).
    """
    keep_freed_memory()
    trial = copy.deepcopy(model).to(memory_format=torch.channels_last).train()
    chunk = images[: recipe.chunk_size].float()
    seconds = 0.0
    for epochs, size in recipe.sizes:
        pixels = augment.resize(chunk / 255, size).contiguous(memory_format=torch.channels_last)
        for _ in range(2):  # the first pass compiles kernels and gets memory
            began = time.perf_counter()
            with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
                logits = trial(pixels).logits
            logits.float().sum().backward()
            logits[0, 0].item()  # waits for the device
            passed = time.perf_counter() - began
        seconds += passed * epochs * len(images) / len(chunk)
    return seconds


def training_flops(model: nn.Module, recipe: Recipe, n: int, steps: int) -> int:
    """Floating-point operations of the first `steps` steps on `n` images, the backward pass counted as two forwards."""
    sizes = Counter(recipe.size_at(step / recipe.steps(n)) for step in range(steps))
    return sum(3 * recipe.batch_size * count * forward_flops(model, size) for size, count in sizes.items())


def forward_flops(model: nn.Module, size: int) -> int:
    """Floating-point operations of the forward pass of one view of one image of `size` pixels a side."""
    pixels = torch.zeros(1, model.config.num_channels, size, size, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.forward_view(pixels)
    return counter.get_total_flops()


def has_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies matrices in bfloat16 natively, so that autocast makes it faster."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def copy_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's parameters and buffers, detached and copied."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def save_checkpoint(path: Path, model, optimizers, best, progress: Progress, settings: dict) -> None:
    """Writes all that `load_checkpoint` needs to one safetensors file, whole or not at all; ModelError on a full
    disk.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for i, optimizer in enumerate(optimizers):
        for j, state in optimizer.state_dict()["state"].items():
            tensors[f"optimizer.{i}.{j}"] = state["momentum_buffer"]
    metadata = {"progress": json.dumps(asdict(progress)), "settings": json.dumps(settings)}
    try:
        with replacing(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)
    except (OSError, SafetensorError) as error:
        go_on = "go on with --resume_from_checkpoint last" if path.exists() else "start again"
        raise ModelError(f"can't save {path} ({error}): free some space, then {go_on}") from error


def load_checkpoint(path: Path, model, optimizers, settings: dict) -> tuple[Progress, dict[str, torch.Tensor]]:
    """Restores model and optimizers in place; gives the progress and the best weights so far.

    Raises:
        ModelError: a damaged file, or one of a run with other settings (which are named).
    """
    try:
        with safe_open(path, framework="pt", device=str(next(model.parameters()).device)) as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged ({error}): delete it and start again") from error
    if not metadata or "settings" not in metadata:
        raise ModelError(f"{path} is not a checkpoint of train.py: give the folder of the run, or 'last'")
    saved, now = json.loads(metadata["settings"]), json.loads(json.dumps(settings))
    flat = [{**s.pop("recipe"), **s} for s in (saved, now)]
    if changed := [name for name in flat[1] if flat[0].get(name) != flat[1][name]]:
        was = ", ".join(f"{name} {flat[0].get(name)} (now {flat[1][name]})" for name in changed)
        raise ModelError(f"{path} was trained with {was}: give the same settings, or another --output_dir")

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    model.load_state_dict(part("model."))
    for i, optimizer in enumerate(optimizers):
        state = {int(j): {"momentum_buffer": tensor} for j, tensor in part(f"optimizer.{i}.").items()}
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return Progress(**json.loads(metadata["progress"])), part("best.")


def digest(images: torch.Tensor, labels: torch.Tensor) -> str:
    """What tells one data set from another: 12 hex digits of SHA-256 over pixels and labels."""
    hashed = hashlib.sha256(images.cpu().numpy().tobytes())
    hashed.update(labels.cpu().numpy().tobytes())
    return hashed.hexdigest()[:12]


class StopSignal:
    """Within this context SIGINT and SIGTERM set `caught`, so that the step at hand is finished and saved."""

    caught = False

    def __enter__(self) -> "StopSignal":
        self._before = {s: signal.signal(s, self._catch) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number, frame) -> None:
        self.caught = True


def keep_freed_memory() -> None:
    """Tells glibc to keep freed blocks instead of handing them back to the kernel, where it is glibc.

    Activations are large blocks, which glibc maps and unmaps anew at each allocation; the page faults of that cost a
    fifth of a training step on the CPU. Costs nothing but a resident size that stays at its peak.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, -1)  # never; activations are more than the 2 GB that an int can say
