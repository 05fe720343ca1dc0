"""Fine-tuning: `transformers.Trainer` on batched pixels, with layer-wise learning rates, growing image sizes, and a
clean stop.

All random numbers of a step are drawn from (seed, step), so that a resumed run computes what an uninterrupted one does.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from sklearn.metrics import f1_score
from torch.nn import functional as F
from transformers import (
    BaseImageProcessor,
    EvalPrediction,
    PreTrainedModel,
    ProgressCallback,
    Trainer,
    TrainingArguments,
)

from classifier.data.loaders import skip_or_raise
from classifier.errors import DataError, ModelError, first_line
from classifier.models import backbone
from classifier.models import processor as processors
from classifier.training import depthwise, distill
from classifier.training.augment import add_noise, crop_boxes, crop_resize, mix, normalize, size_at
from classifier.training.callbacks import ImageProgressBar, ProgressTracker, last_checkpoint, progress_of
from classifier.training.depthwise import channels_last
from classifier.training.finetune_data import InMemory, Streamed, collate
from classifier.training.photographs import SHARE, Photographs
from classifier.training.runtime import prepare_batch_norm, seeded_generator

IGNORED = -100  # the label of an image that can't be read


@dataclass(frozen=True)
class FinetuneRecipe:
    """How a model is fine-tuned, beyond what `TrainingArguments` says."""

    sizes: tuple[tuple[float, int], ...]  # (share of the steps, pixels a side), one after another; the shares sum to 1
    crop_scale: float = 1.0  # smallest fraction of the area that a training crop keeps
    mirror: bool = False  # whether half of the images are mirrored
    noise: float = 0.0  # see `augment.add_noise`
    mixup: float = 0.0  # see `augment.mix`
    cutmix: float = 0.0  # likewise
    layer_decay: float = 1.0  # learning rate of a depth, as a fraction of the next deeper one's (arXiv:2106.08254)
    class_weights: torch.Tensor | None = None  # (num_labels,), or None for equal ones
    teacher: distill.Teacher | None = None  # its probabilities are the targets; None trains on the labels
    photographs: Photographs | None = None  # `SHARE` of them for each image of the dataset


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, according to the messages of PyTorch's allocators and of accelerate."""
    return any(
        words in str(error).lower() for words in ("reached zero", "allocate memory", "out of memory", "out-of-memory")
    )


class FinetuneTrainer(Trainer):
    """A `Trainer` whose batches are 8-bit pixels, augmented on the device as they are needed.

    Args:
        model: for images of `processor`'s size.
        args: `per_device_train_batch_size` and the like; `label_smoothing_factor` is applied to soft targets too.
        processor: prepares the validation images.
        data: training and validation images.
        progress: counts every batch and epoch.
        recipe: sizes, augmentation, targets.
    """

    model: PreTrainedModel
    loss_is_scaled_for_ga = False  # `compute_loss` returns the mean over a batch

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        processor: BaseImageProcessor,
        data: tuple[InMemory | Streamed, InMemory | Streamed],
        progress: ProgressTracker,
        recipe: FinetuneRecipe,
    ):
        self.processor, self.progress, self.recipe = processor, progress, recipe
        self.mean, self.std = processors.mean_std(processor)
        self.bicubic = processors.is_bicubic(processor)
        self.flops = {size: backbone.forward_flops(model, size) for _, size in recipe.sizes}
        self.batches_drawn = 0
        if args.device.type == "cpu":
            backbone.use_matmul_attention(model)
            depthwise.speed_up(model)
        super().__init__(
            model,
            args,
            data_collator=collate,
            train_dataset=data[0],
            eval_dataset=data[1],
            compute_metrics=validation_metrics,
            callbacks=[progress],
        )
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(ImageProgressBar)
        self.class_weights = None if recipe.class_weights is None else recipe.class_weights.to(args.device)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """A group of parameters per depth, the head's first; norms, biases, tokens and positions are not decayed."""
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
                        "lr": self.args.learning_rate * self.recipe.layer_decay ** (top - depth),
                        "weight_decay": self.args.weight_decay if decayed else 0.0,
                    }
                    for (depth, decayed), parameters in sorted(groups.items(), key=lambda item: -item[0][0])
                ],
                **kwargs,
            )
        return self.optimizer

    def get_eval_dataloader(self, eval_dataset=None):
        """All validation images: --dataloader_drop_last is for training."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop_last

    def size_now(self) -> int:
        """Pixels a side at this step."""
        return size_at(self.recipe.sizes, self.state.global_step / self.state.max_steps)

    def augmented(self, pixels: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 (N, 3, H, W) and classes (N,) -> the model's pixels (M, 3, size, size) and targets (M, num_labels).

        The first N are the images, the others photographs, if the recipe has such.
        """
        n, _, height, width = pixels.shape
        draw = seeded_generator(self.args.seed, f"augment {self.args.process_index}", self.batch_number())
        scale = 1.0 if isinstance(self.train_dataset, Streamed) else self.recipe.crop_scale  # workers crop those
        boxes = crop_boxes(n, height, width, scale, draw)
        mirrored = torch.rand(n, generator=draw) < (0.5 if self.recipe.mirror else 0.0)
        if self.recipe.noise:
            pixels = add_noise(pixels, self.recipe.noise, draw)
        pixels = crop_resize(pixels, boxes, mirrored, self.size_now(), self.bicubic)
        pixels = normalize(pixels, self.mean, self.std)
        num_labels = self.model.config.num_labels
        assert num_labels is not None  # it is the length of id2label
        targets = F.one_hot(labels, num_labels).float()
        pixels, targets = mix(pixels, targets, self.recipe.mixup, self.recipe.cutmix, draw)
        if self.recipe.photographs:
            more, targets_of_more = self.recipe.photographs.batch(self.photographs_beside(n), self.size_now(), draw)
            more = normalize(more.to(pixels.device), self.mean, self.std)
            pixels, targets = torch.cat([pixels, more]), torch.cat([targets, targets_of_more.to(targets)])
        return pixels, targets

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
        if self.recipe.teacher:
            with self.compute_loss_context_manager():
                targets = self.recipe.teacher.probabilities(pixels)
        with self.within_memory():
            batch = {"pixel_values": pixels, "labels": targets, "n": len(inputs["labels"])}
            return super().training_step(model, batch, num_items_in_batch)

    def prediction_step(self, model, inputs: dict, prediction_loss_only: bool, ignore_keys=None) -> tuple:
        """The loss, logits and labels of a validation batch, which the processor prepares."""
        inputs = self.readable(self._prepare_inputs(inputs))
        pixels, labels = inputs["pixels"], inputs["labels"]
        if missing := len(inputs.get("failures", ())):  # blank images stand in: processes need batches of one size
            size = processors.size_of(self.processor)
            pixels = torch.cat([pixels.view(len(labels), 3, size, size), pixels.new_zeros(missing, 3, size, size)])
            labels = F.pad(labels, (0, missing), value=IGNORED)
        pixels = pixels if pixels.is_floating_point() else processors.process_batch(self.processor, pixels)
        with torch.no_grad(), self.within_memory():
            logits = backbone.forward(model, channels_last(pixels), self.model).float()
        return F.cross_entropy(logits, labels, ignore_index=IGNORED), logits, labels

    @contextmanager
    def within_memory(self) -> Iterator[None]:
        """Raises ModelError for a batch that does not fit into memory after the first step.

        Before it, `auto_find_batch_size` tries a smaller batch. Later it would start again with changed weights, and
        growing sizes may reach the limit late.
        """
        try:
            yield
        except RuntimeError as error:
            if self.state.global_step == 0 or not is_out_of_memory(error):
                raise
            parts = 2 * self.args.gradient_accumulation_steps
            raise ModelError(
                f"no memory for a batch after step {self.state.global_step} ({first_line(error)}): go on "
                f"with half of one, by --resume_from_checkpoint last --gradient_accumulation_steps {parts}, "
                "or with a lower --per_device_eval_batch_size where it was validation"
            ) from error

    def readable(self, inputs: dict) -> dict:
        """The batch, after its unreadable images were added to `skipped`, or raised as a DataError."""
        if isinstance(self.train_dataset, Streamed):
            for where, error in inputs["failures"]:
                skip_or_raise(self.train_dataset.splits, where, error)
        return inputs

    def compute_loss(self, model, inputs: dict, return_outputs: bool = False, num_items_in_batch=None):
        """Cross-entropy (nats), smoothed and weighted, of pixel values (N, 3, H, W) and targets (N, num_labels).

        The first `n` are images of the dataset, and progress counts these alone.
        """
        targets, weight, n = inputs["labels"], self.class_weights, inputs["n"]
        prepare_batch_norm(model, len(targets))
        logits = backbone.forward(model, channels_last(inputs["pixel_values"]), self.model).float()
        if self.recipe.teacher:
            losses = distill.losses(logits, targets)
        else:
            smoothing = self.args.label_smoothing_factor
            losses = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")
        if weight is not None:
            losses = weigh(losses, targets, weight, n)
        right = logits.argmax(dim=1) == targets.argmax(dim=1)
        self.progress.add(losses[:n].sum(), right[:n].sum(), n)
        return losses.mean()

    def floating_point_ops(self, inputs: dict) -> int:
        """Operations of a training step; the backward pass counts as two forward passes."""
        n = len(inputs["labels"])
        return 3 * (n + self.photographs_beside(n)) * self.flops[self.size_now()]

    def photographs_beside(self, n: int) -> int:
        """How many photographs a batch of n images gets."""
        return max(1, round(SHARE * n)) if self.recipe.photographs else 0

    def _save(self, output_dir=None, state_dict=None) -> None:
        """Saves parameters under their names in memory: `Trainer` saves the Hub's older ones but can't load those."""
        if self.args.should_save:
            self.accelerator.unwrap_model(self.model).save_pretrained(
                output_dir, state_dict=state_dict, save_original_format=False
            )

    def _save_checkpoint(self, model, trial) -> None:
        """Saves a complete checkpoint or none, so that the last one can always be resumed from."""
        output_dir = Path(self.args.output_dir or "")
        folder = output_dir / f"checkpoint-{self.state.global_step}"
        self.progress.share()
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:  # a full disk is any of these
            shutil.rmtree(folder, ignore_errors=True)
            kept = last_checkpoint(output_dir)
            raise ModelError(
                f"can't save {folder} ({first_line(error)}): free some space, then go on with "
                + (f"--resume_from_checkpoint last, from step {kept.name.partition('-')[2]}" if kept else "a new run")
            ) from error


def weigh(losses: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor, n: int) -> torch.Tensor:
    """Losses (N,) times the weights of the images, of targets (N, num_labels) and class weights (num_labels,).

    Those after the first n are of photographs, which are drawn evenly from the labels already, and keep their weight.

    The weight multiplies an image's whole loss: a weight per class within the sum over a smoothed target would pull
    every prediction towards the class with the highest weight.
    """
    return torch.cat([losses[:n] * (targets[:n] @ weight), losses[n:]])


@contextmanager
def explaining_memory() -> Iterator[None]:
    """Turns an error about memory into a ModelError that names the flags which need less."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(
            f"a batch does not fit into memory ({first_line(error)}): pass a lower --image_size, "
            "--gradient_checkpointing, a lower --per_device_eval_batch_size, or a lower "
            "--per_device_train_batch_size with more --gradient_accumulation_steps"
        ) from error


def keep_step_images(args: TrainingArguments, resume: Path | None) -> None:
    """Sets the batch size so that a step of a resumed run has as many images as before, on any number of processes.

    Raises:
        ModelError: the images can't be divided evenly.
    """
    # A batch is reduced only in the process that runs out of memory, so not where other processes or a checkpoint rely
    # on its size.
    args.auto_find_batch_size &= args.world_size == 1 and resume is None
    if resume is None:
        return
    images = progress_of(resume)["step_images"]
    parts = args.world_size * args.gradient_accumulation_steps * max(1, args.n_gpu)
    if images % parts:
        raise ModelError(
            f"a step of {resume} is of {images} images, which {args.world_size} processes and "
            f"{args.gradient_accumulation_steps} gradient_accumulation_steps can't share evenly: pass others"
        )
    args.per_device_train_batch_size = images // parts


def check_drop_last(args: TrainingArguments, n: int) -> None:
    """Raises ModelError if --dataloader_drop_last drops all of n training images."""
    batch = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and n < batch:
        raise ModelError(
            f"--dataloader_drop_last drops all of the {n} training images, which are fewer than a batch of {batch}: "
            "leave it out, or pass a lower --per_device_train_batch_size"
        )


def validation_metrics(predictions: EvalPrediction) -> dict[str, float]:
    """Accuracy (fraction), macro F1 (fraction) and mean negative log-likelihood (nats)."""
    logits, labels = np.asarray(predictions.predictions), np.asarray(predictions.label_ids)
    readable = labels != IGNORED
    if not readable.any():
        raise DataError(f"none of the {len(readable)} validation images is readable: check the files")
    logits, labels = logits[readable], labels[readable]
    predicted = logits.argmax(axis=1)
    return {
        "accuracy": float(np.mean(predicted == labels)),
        "f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
        "nll": F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item(),
    }
