"""Fine-tuning: `transformers.Trainer` on batched pixels, with a learning rate a depth, sizes that grow, and a clean
stop.

Everything random in a step is drawn from (seed, step), so that a resumed run computes what an uninterrupted one does.
"""

import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from safetensors import SafetensorError
from torch.nn import functional as F
from torchvision.transforms.v2.functional import InterpolationMode, pil_to_tensor, resized_crop
from tqdm import tqdm
from transformers import (
    BaseImageProcessor,
    EvalPrediction,
    PreTrainedModel,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import sort_checkpoints

from classifier.data import loaders
from classifier.data.loaders import DecodedSplit, skip_or_raise
from classifier.errors import DataError, ModelError
from classifier.files import write_text
from classifier.models import backbone
from classifier.models import processor as processors
from classifier.training import depthwise, distill
from classifier.training.augment import crop_boxes, crop_resize, mix, normalize
from classifier.training.depthwise import channels_last
from classifier.training.runtime import StopSignal, any_process, seeded_generator

IGNORED = -100  # in the place of a label, of an image that can't be read


class InMemory(torch.utils.data.Dataset):
    """A split of small images as tensors: a batch is an index.

    Args:
        images: uint8 (N, 3, H, W).
        labels: int64 (N,).
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> dict:
        """A batch at once, which is what the loader asks for where there is such a method."""
        return {"pixels": self.images[indices], "labels": self.labels[indices]}


class Streamed(DecodedSplit):
    """A split of large images: workers decode, and cut a random crop, or do what the processor does.

    Args:
        split, splits: as in `data.load`.
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
        top, left, height, width = (
            round(edge.item()) for edge in crop_boxes(1, image.height, image.width, self.crop_scale, draw)
        )
        mode = InterpolationMode.BICUBIC if processors.is_bicubic(self.processor) else InterpolationMode.BILINEAR
        box = top, left, max(1, height), max(1, width)
        return resized_crop(pil_to_tensor(image), *box, [self.size, self.size], interpolation=mode, antialias=True)

    def process(self, image) -> torch.Tensor:
        """A Pillow image -> the model's pixels, float (3, size, size)."""
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]


def collate(items: dict | list[tuple]) -> dict:
    """What `Tuner` takes, from a batch of either data set."""
    if isinstance(items, dict):
        return items
    pixels, labels, failures = loaders.collate(items)
    return {"pixels": pixels, "labels": labels, "failures": failures}


def progress_of(checkpoint: Path) -> dict:
    """The attributes of `ProgressTracker` in a checkpoint's folder; ModelError for one that has none."""
    callbacks = json.loads((checkpoint / "trainer_state.json").read_text())["stateful_callbacks"]
    if ProgressTracker.__name__ not in callbacks:
        raise ModelError("the checkpoint is not one of finetune_vit.py: give the folder of its run, or 'last'")
    return callbacks[ProgressTracker.__name__]["attributes"]


def check_resumable(checkpoint: Path, settings: dict) -> None:
    """Raises ModelError for a checkpoint from which nobody can go on with these settings of `Progress`."""
    before, now = progress_of(checkpoint)["settings"], json.loads(json.dumps(settings))
    if changed := [name for name in now if before.get(name) != now[name]]:
        was = ", ".join(f"{name} {before.get(name)} (now {now[name]})" for name in changed)
        raise ModelError(f"the checkpoint was trained with {was}: give the same settings, or another --output_dir")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a batch was too large, by what PyTorch's allocators and accelerate say."""
    return any(
        words in str(error).lower() for words in ("reached zero", "allocate memory", "out of memory", "out-of-memory")
    )


class ProgressTracker(TrainerCallback, ExportableState):
    """What a run has done so far: sums of the epoch at hand, a line of metrics an epoch, and seconds spent training.

    Of several processes each counts what it sees itself, and the first one also what a checkpoint says that all had
    seen.

    Attributes:
        settings: what a checkpoint must have been made with to go on from it.
        patience: epochs without a better validation accuracy after which training stops; None never does.
        history: a dict an epoch, as in metrics.jsonl.
        train_seconds: without validation.
        images_seen: by this process.
        step_images: of a step, on all processes.
        is_stopping: whether any process was told to stop; the same on all.
    """

    def __init__(self, output_dir: Path, settings: dict, stop: StopSignal, patience: int | None = None):
        self.output_dir, self.settings, self.stop = output_dir, json.loads(json.dumps(settings)), stop
        self.patience = patience
        self.reset()

    def reset(self) -> None:
        """As before the first step."""
        self.history: list[dict] = []
        self.train_seconds, self.epoch_seconds = 0.0, 0.0
        self.images_seen = self.epoch_images = 0
        self.sums = torch.zeros(2)  # of loss (nats) and of right predictions, in this epoch
        self.began: float | None = None
        self.size = self.step_images = 0
        self.is_stopping = False
        self.shared = {"sums": [0.0, 0.0], "images_seen": 0, "epoch_images": 0}  # totals, as a checkpoint keeps them

    def add(self, losses: torch.Tensor, right: torch.Tensor, n: int) -> None:
        """Counts a batch of n images: their summed loss, and how many were right. Nothing waits for the device."""
        self.sums = self.sums.to(losses.device) + torch.stack([losses, right]).detach()
        self.images_seen += n
        self.epoch_images += n

    def totals(self) -> dict:
        """`sums`, `images_seen` and `epoch_images` over all processes, all of which have to ask."""
        if PartialState().num_processes == 1:
            return {"sums": self.sums.tolist(), "images_seen": self.images_seen, "epoch_images": self.epoch_images}
        counts = torch.tensor([self.images_seen, self.epoch_images], dtype=torch.float64)
        mine = torch.cat([self.sums.cpu().double(), counts]).to(PartialState().device)  # NCCL takes nothing else
        loss, right, seen, of_epoch = reduce(mine, reduction="sum").tolist()
        return {"sums": [loss, right], "images_seen": int(seen), "epoch_images": int(of_epoch)}

    def share(self) -> None:
        """Before a checkpoint, on all processes: adds up what the one that writes it will say."""
        self.shared = self.totals()

    def clock(self) -> None:
        """Adds the time since the last call, while steps are running."""
        if self.began is not None:
            now = time.perf_counter()
            self.train_seconds += now - self.began
            self.epoch_seconds += now - self.began
            self.began = now

    def state(self) -> dict:
        """What a checkpoint keeps, as JSON."""
        self.clock()
        names = ("history", "train_seconds", "epoch_seconds", "step_images", "settings")
        return {"args": {}, "attributes": {name: getattr(self, name) for name in names} | self.shared}

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Takes over what the checkpoint had."""
        self.reset()
        if state.global_step == 0:
            self.step_images = state.train_batch_size * args.gradient_accumulation_steps * args.world_size
            return
        for name, value in state.stateful_callbacks[type(self).__name__]["attributes"].items():
            if name not in self.shared:
                setattr(self, name, value)
            elif state.is_world_process_zero:
                setattr(self, name, torch.tensor(value) if name == "sums" else value)
        self.step_images = args.train_batch_size * args.gradient_accumulation_steps * args.world_size

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs) -> None:
        """Tells a streamed data set the epoch, before workers get their copy of it."""
        dataset = train_dataloader.dataset
        if isinstance(dataset, Streamed):
            dataset.epoch = math.floor(state.epoch or 0)
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """After a signal: saves and stops, unless the epoch ends here, which is then finished first."""
        self.clock()
        self.is_stopping = any_process(self.stop.caught)  # where one saved and another went on, both would wait forever
        if self.is_stopping and state.epoch % 1 > 1e-9 and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs) -> None:
        """After a signal: forgets the best checkpoint, in whose favour `Trainer` may end by removing the newest one.

        The one just saved remembers it.
        """
        if self.is_stopping and state.global_step < state.max_steps:
            state.best_model_checkpoint = None

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        """An epoch that was broken off is neither validated nor saved again."""
        self.clock()
        self.began = None
        if self.is_stopping:
            if control.should_training_stop and state.global_step < state.max_steps:
                control.should_evaluate = control.should_save = control.should_log = False
            control.should_training_stop = True

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """Stops at a loss that is not finite."""
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            raise ModelError(
                f"the loss is {logs['loss']} before step {state.global_step}: "
                "start again with --overwrite_output_dir and a lower --learning_rate"
            )

    def on_evaluate(self, args, state, control, metrics=None, **kwargs) -> None:
        """Writes the epoch's line of metrics.jsonl."""
        totals = self.totals()
        if not totals["epoch_images"]:
            return
        loss, right = (each / totals["epoch_images"] for each in totals["sums"])
        line = {
            "epoch": len(self.history) + 1 if args.eval_strategy == "epoch" else round(state.epoch, 3),
            "step": state.global_step,
            "size": self.size,
            "train_loss": loss,
            "train_accuracy": right,
            "images_per_second": round(totals["epoch_images"] / self.epoch_seconds, 1),
            "train_seconds": round(self.train_seconds, 2),
            "validation_loss": metrics["eval_nll"],
            "validation_accuracy": metrics["eval_accuracy"],
        }
        self.history.append(line)
        self.sums, self.epoch_images, self.epoch_seconds = torch.zeros(2), 0, 0.0
        if state.is_world_process_zero:
            write_text(self.output_dir / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self.history))
            tqdm.write(" · ".join(f"{name} {value:g}" for name, value in line.items()))
        if self.began is not None:  # in the middle of an epoch: validation is not training
            self.began = time.perf_counter()
        if self.patience and self.evaluations_since_best >= self.patience:
            control.should_training_stop = True

    @property
    def evaluations_since_best(self) -> int:
        """How many lines of the history come after the best one."""
        accuracies = [line["validation_accuracy"] for line in self.history]
        return len(accuracies) - 1 - accuracies.index(max(accuracies))

    @property
    def best_epoch(self) -> int:
        """The epoch whose weights were kept: the first of the highest validation accuracy."""
        return max(self.history, key=lambda line: line["validation_accuracy"])["epoch"]


class ImageProgressBar(ProgressCallback):
    """Trainer's bar, with the loss beside it in place of lines of raw logs."""

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """Shows the mean loss since the last log."""
        if self.training_bar is not None and "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {logs['loss']:.3f}")


class FinetuneTrainer(Trainer):
    """A `Trainer` whose batches are 8-bit pixels, augmented on the device as they are needed.

    Args:
        model: for images of `processor`'s size.
        args: `per_device_train_batch_size` and the like; `label_smoothing_factor` is applied to soft targets too.
        processor: what evaluation's pixels come from.
        train, validation: `InMemory` or `Streamed`.
        progress: is told of every batch and epoch.
        sizes: (share of the steps, pixels a side), one after another; the shares sum to 1.
        crop_scale: smallest fraction of the area that a training crop keeps.
        mirror: whether half of the images are mirrored.
        mixup, cutmix: see `augment.mix`.
        layer_decay: the learning rate of a depth, as a fraction of the next deeper one's (arXiv:2106.08254).
        class_weights: (num_labels,), or None for equal ones.
        teacher: whose probabilities are the targets, instead of the labels; None for labels.
    """

    loss_is_scaled_for_ga = False  # `compute_loss` gives a batch's mean

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        processor: BaseImageProcessor,
        train: torch.utils.data.Dataset,
        validation: torch.utils.data.Dataset,
        progress: ProgressTracker,
        *,
        sizes: tuple[tuple[float, int], ...],
        crop_scale: float,
        mirror: bool,
        mixup: float,
        cutmix: float,
        layer_decay: float,
        class_weights: torch.Tensor | None,
        teacher: distill.Teacher | None = None,
    ):
        self.processor, self.progress, self.sizes = processor, progress, sizes
        self.crop_scale, self.mirror, self.mixup, self.cutmix = crop_scale, mirror, mixup, cutmix
        self.layer_decay, self.teacher = layer_decay, teacher
        self.mean, self.std = processors.mean_std(processor)
        self.bicubic = processors.is_bicubic(processor)
        self.flops = {size: backbone.forward_flops(model, size) for _, size in sizes}
        self.batches_drawn = 0
        if args.device.type == "cpu":
            backbone.use_matmul_attention(model)
            depthwise.speed_up(model)
        super().__init__(
            model,
            args,
            data_collator=collate,
            train_dataset=train,
            eval_dataset=validation,
            compute_metrics=accuracy_and_nll,
            callbacks=[progress],
        )
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(ImageProgressBar)
        self.class_weights = None if class_weights is None else class_weights.to(args.device)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """A group of parameters a depth, the head's first; norms, biases, tokens and positions are not decayed."""
        if self.optimizer is None:
            model = model or self.model
            depths = backbone.parameter_depths(self.model)
            top = max(depths.values())
            groups: dict[tuple[int, bool], list] = {}
            for (name, parameter), depth in zip(model.named_parameters(), depths.values(), strict=True):
                if parameter.requires_grad:
                    decayed = parameter.ndim > 1 and not name.endswith(("token", "embeddings", "pos_embed"))
                    groups.setdefault((depth, decayed), []).append(parameter)
            optimizer, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer(
                [
                    {
                        "params": parameters,
                        "lr": self.args.learning_rate * self.layer_decay ** (top - depth),
                        "weight_decay": self.args.weight_decay if decayed else 0.0,
                    }
                    for (depth, decayed), parameters in sorted(groups.items(), key=lambda item: -item[0][0])
                ],
                **kwargs,
            )
        return self.optimizer

    def size_now(self) -> int:
        """Pixels a side at this step."""
        done, progress = 0.0, self.state.global_step / self.state.max_steps
        for share, size in self.sizes:
            done += share
            if progress < done - 1e-9:
                return size
        return self.sizes[-1][1]

    def augmented(self, pixels: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 (N, 3, H, W) and classes (N,) -> the model's pixels (N, 3, size, size) and targets (N, num_labels)."""
        n, _, height, width = pixels.shape
        draw = seeded_generator(self.args.seed, f"augment {self.args.process_index}", self.batch_number())
        scale = 1.0 if isinstance(self.train_dataset, Streamed) else self.crop_scale  # workers have cut already
        boxes = crop_boxes(n, height, width, scale, draw)
        mirrored = torch.rand(n, generator=draw) < (0.5 if self.mirror else 0.0)
        pixels = crop_resize(pixels, boxes, mirrored, self.size_now(), self.bicubic)
        pixels = normalize(pixels, self.mean, self.std)
        targets = F.one_hot(labels, self.model.config.num_labels).float()
        return mix(pixels, targets, self.mixup, self.cutmix, draw)

    def batch_number(self) -> int:
        """Counts batches from the start of the run, several a step with gradient accumulation."""
        accumulated = self.args.gradient_accumulation_steps
        if self.batches_drawn // accumulated != self.state.global_step:  # a new step, or a resumed run
            self.batches_drawn = self.state.global_step * accumulated
        self.batches_drawn += 1
        return self.batches_drawn

    def training_step(self, model, inputs: dict, num_items_in_batch=None) -> torch.Tensor:
        """Augments on the device, then does what `Trainer` does."""
        inputs = self.readable(self._prepare_inputs(inputs))
        if not len(inputs["labels"]):
            return torch.zeros((), device=self.args.device)
        pixels, targets = self.augmented(inputs["pixels"], inputs["labels"])
        self.progress.size = pixels.shape[-1]
        if self.teacher:
            with self.compute_loss_context_manager():
                targets = self.teacher.probabilities(pixels)
        with self.within_memory():
            return super().training_step(model, {"pixel_values": pixels, "labels": targets}, num_items_in_batch)

    def prediction_step(self, model, inputs: dict, prediction_loss_only: bool, ignore_keys=None) -> tuple:
        """Evaluates the pixels that the processor gives."""
        inputs = self.readable(self._prepare_inputs(inputs))
        pixels, labels = inputs["pixels"], inputs["labels"]
        if missing := len(inputs.get("failures", ())):  # in their place nothing: processes share batches of one size
            size = processors.size_of(self.processor)
            pixels = torch.cat([pixels.view(len(labels), 3, size, size), pixels.new_zeros(missing, 3, size, size)])
            labels = F.pad(labels, (0, missing), value=IGNORED)
        pixels = pixels if pixels.is_floating_point() else processors.process_batch(self.processor, pixels)
        with torch.no_grad(), self.within_memory():
            logits = backbone.forward(model, channels_last(pixels), self.model).float()
        return F.cross_entropy(logits, labels, ignore_index=IGNORED), logits, labels

    @contextmanager
    def within_memory(self) -> Iterator[None]:
        """Makes an error of what does not fit after the first step; before it, `auto_find_batch_size` tries a smaller
        batch.

        It would start anew with the weights as they are by then: sizes that grow meet the bound late.
        """
        try:
            yield
        except RuntimeError as error:
            if self.state.global_step == 0 or not is_out_of_memory(error):
                raise
            parts = 2 * self.args.gradient_accumulation_steps
            raise ModelError(
                f"no memory for a batch after step {self.state.global_step} ({str(error).splitlines()[0]}): go on "
                "with half of "
                f"one, by --resume_from_checkpoint last --gradient_accumulation_steps {parts}"
                ", or with a lower --per_device_eval_batch_size where it was validation"
            ) from error

    def readable(self, inputs: dict) -> dict:
        """The batch, after its unreadable images were noted, or raised as a DataError."""
        for where, error in inputs.get("failures", ()):
            skip_or_raise(self.train_dataset.splits, where, error)
        return inputs

    def compute_loss(self, model, inputs: dict, return_outputs: bool = False, num_items_in_batch=None):
        """Cross-entropy (nats), smoothed and weighted, of pixel values (N, 3, H, W) and targets (N, num_labels)."""
        targets, weight = inputs["labels"], self.class_weights
        logits = backbone.forward(model, channels_last(inputs["pixel_values"]), self.model).float()
        if self.teacher:
            loss = distill.loss(logits, targets, weight)
        else:
            losses = F.cross_entropy(
                logits, targets, label_smoothing=self.args.label_smoothing_factor, reduction="none"
            )
            # The image's weight, also of what is smoothed: it would draw all to the class that has the highest
            loss = losses.sum() if weight is None else losses @ (targets @ weight)
        right = (logits.argmax(dim=1) == targets.argmax(dim=1)).sum()
        self.progress.add(loss, right, len(targets))
        return loss / len(targets)

    def floating_point_ops(self, inputs: dict) -> int:
        """Of a training step, whose backward pass costs two forwards."""
        return 3 * len(inputs["labels"]) * self.flops[self.size_now()]

    def _save(self, output_dir=None, state_dict=None) -> None:
        """Under the names that parameters have in memory: `Trainer` saves the Hub's older ones, and skips them on
        loading.
        """
        if self.args.should_save:
            self.accelerator.unwrap_model(self.model).save_pretrained(
                output_dir, state_dict=state_dict, save_original_format=False
            )

    def _save_checkpoint(self, model, trial) -> None:
        """Saves whole or not at all, so that the last good checkpoint stays the last."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        self.progress.share()
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:  # a full disk is any of these
            shutil.rmtree(folder, ignore_errors=True)
            kept = last_checkpoint(Path(self.args.output_dir))
            raise ModelError(
                f"can't save {folder} ({str(error).splitlines()[0]}): free some space, then go on with "
                + (f"--resume_from_checkpoint last, from step {kept.name.partition('-')[2]}" if kept else "a new run")
            ) from error


def accuracy_and_nll(predictions: EvalPrediction) -> dict[str, float]:
    """Accuracy (fraction) and mean negative log-likelihood (nats)."""
    known = predictions.label_ids != IGNORED
    if not known.any():
        raise DataError(f"none of the {len(known)} validation images is readable: check the files")
    logits, labels = predictions.predictions[known], predictions.label_ids[known]
    return {
        "accuracy": float(np.mean(logits.argmax(axis=1) == labels)),
        "nll": F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item(),
    }


def last_checkpoint(output_dir: Path) -> Path | None:
    """The newest whole checkpoint in a run's folder: its trainer_state.json is written last."""
    found = [Path(folder) for folder in sort_checkpoints(str(output_dir))]
    whole = [folder for folder in found if (folder / "trainer_state.json").exists()]
    return max(whole, key=lambda folder: int(folder.name.partition("-")[2]), default=None)
