"""Fine-tunes any image classifier of the Hub: ViT, DeiT, Swin, DINOv2, ConvNeXt, MobileNetV2, timm's.

    python finetune_vit.py --model facebook/deit-tiny-patch16-224 --dataset uoft-cs/cifar10 --output_dir runs/vit
    python finetune_vit.py --model google/mobilenet_v2_1.0_224 --dataset path/to/folder --output_dir runs/mine
    python finetune_vit.py --model runs/vit --learning_rate 1e-4 --output_dir runs/vit2     # a further stage
    python finetune_vit.py --freeze backbone --output_dir runs/probe                        # train the head only
    accelerate launch finetune_vit.py …                                                     # several GPUs
    torchrun --nproc_per_node 2 finetune_vit.py …                                           # several processes

Processes share each step, which is of per_device_train_batch_size × processes × gradient_accumulation_steps images. A
stopped run keeps that product when it goes on with another number of them. The first process writes, and trains a
frozen backbone's head by itself.

The flags are those below and those of transformers' TrainingArguments, of which some have defaults of our own.

What it reaches on CIFAR-10's test split, trained on 98% of train with two threads, mostly (one seed each):

    DeiT-tiny             96.86% by the defaults in 57 min; 97.52% by two more stages, 256 min in all;
                          97.76% by a fourth, 5 min on an NVIDIA H200
    EfficientNet-Lite0    96.62% in three stages, averaged, 206 min
    MobileNetV2           95.57% in four stages, averaged, 259 min
    their heads alone     89.68%, 90.44%, 85.70%, in 4 to 8 min

From benchmarks/backbones.json; docs/results.md has the commands. models/vit goes on from the third stage of DeiT-tiny,
with --photographs.
"""

import json
import os
import statistics
import sys
import time
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from accelerate import PartialState
from transformers import BaseImageProcessor, HfArgumentParser, PreTrainedModel, TrainingArguments
from transformers.utils import logging

from classifier import errors, runs
from classifier.data.loaders import as_tensor
from classifier.errors import ModelError, Stopped, first_few, first_line
from classifier.files import write_text
from classifier.hub import HUB_ID, check_login
from classifier.models import backbone
from classifier.models import processor as processors
from classifier.models.loading import default_device, locate, update_ood
from classifier.publish import export
from classifier.records import StartModel
from classifier.training import calibrate, callbacks, distill, finetune_trainer, probe, protocol, trainer_flags
from classifier.training.finetune_data import InMemory, Streamed, check_workers, explaining_workers
from classifier.training.finetune_plan import Plan, fit_sizes, make_plan
from classifier.training.photographs import Photographs
from classifier.training.runtime import StopSignal, has_bf16, keep_freed_memory

FEW = 500  # training images: with fewer, a whole backbone memorises them


def flag(default, help: str, **metadata):
    """A dataclass field that is a flag with that help."""
    return field(default=default, metadata={"help": help, **metadata})


@dataclass
class FinetuneArguments:
    """Flags of this script; the others are those of `Training`."""

    _argument_group_name = "this script"

    model: str = flag("facebook/deit-tiny-patch16-224", "Hub id, id@revision, or folder, such as an earlier stage's")
    freeze: str = flag(
        "auto",
        f"backbone: train the head alone, on cached features, as auto does for fewer than {FEW} images: by a grid of "
        "learning rates and weight decays, 10 times num_train_epochs, without augmentation; with --teacher or "
        "--photographs, auto is none",
        choices=("auto", "none", "backbone"),
    )
    folds: int | None = flag(
        None, "of a frozen backbone, also cross-validate the head on so many parts of all but test"
    )
    dataset: str = flag(
        "uoft-cs/cifar10", "Hub id, id:configuration, id@revision, folder, or table of paths and labels"
    )
    image_size: int | None = flag(None, "pixels a side that the model gets (its own)")
    crop_pct: float | None = flag(None, "side that the centre crop keeps (the model's; for small images 1: no crop)")
    train_sizes: str = flag("0.7:0.6 1:0.4", "fractions of image_size to train at : shares of the run's steps")
    crop_scale: float = flag(0.6, "smallest fraction of the area that a random training crop keeps, in (0, 1]")
    mirror: bool = flag(True, "mirror half of the training images")
    noise: float = flag(
        0.0,
        "add Gaussian noise to half of the training images, but not to photographs: of standard deviations up to this, "
        "a fraction of the pixels' range",
    )
    mixup: float = flag(0.0, "alpha of mixup; 0: none")
    cutmix: float = flag(0.0, "alpha of CutMix; 0: none")
    layer_decay: float | None = flag(
        None, "learning rate of a block, as a fraction of the next's (transformers 0.75, CNNs 1)"
    )
    drop_path: float = flag(0.0, "highest rate of stochastic depth, where the architecture has it")
    teacher: str | None = flag(
        None,
        "learn what this model (an id or a folder) thinks of each crop, instead of the labels; with --photographs, "
        "give one that was trained on photographs",
    )
    photographs: str | None = flag(
        None,
        "train on these too, so that photographs of users are recognised: a folder with folders named as labels, and "
        "one named none with pictures of other things",
    )
    class_weights: str = flag("none", "balanced: each class weighs the same in the loss", choices=("none", "balanced"))
    patience: int | None = flag(None, "stop after so many epochs without better validation, keep the best (never)")
    validation_fraction: float = flag(0.1, "cut off train if the dataset has no such split")
    image_column: str | None = flag(None, "(the column whose type is Image)")
    label_column: str | None = flag(None, "(the column whose type is ClassLabel)")
    label_names: str | None = field(default=None, init=False)  # set from Training's flag
    max_train_samples: int | None = flag(None, "train on so many images only (all)")
    max_eval_samples: int | None = flag(None, "validate on so many images only (all)")
    skip_unreadable: bool = flag(False, "leave out files that can't be read, and count them")
    allow_pickle: bool = flag(False, "load weights that are no safetensors: such a file can run code")
    overwrite_output_dir: bool = flag(False, "start again in an output_dir that holds a run")


@dataclass
class Training(TrainingArguments):
    """`TrainingArguments` with the defaults that do well for an hour of two cores."""

    _argument_group_name = "transformers.TrainingArguments"

    output_dir: str = flag("runs/vit", "folder for weights, figures and records")
    label_names: str | None = flag(None, 'a JSON file of other names for labels: {"cane": "dog", …}')
    seed: int = flag(0, "of order and augmentation; not of the validation cut")
    num_train_epochs: float = flag(6.0, "passes over train")
    per_device_train_batch_size: int = flag(64, "images a forward pass, of each process")
    per_device_eval_batch_size: int = flag(128, "images a forward pass")
    learning_rate: float = flag(1e-3, "AdamW's highest, for the head")
    weight_decay: float = flag(0.05, "AdamW's; norms, biases, tokens and positions have none")
    lr_scheduler_type: str = flag("cosine", "how the learning rate falls")
    warmup_steps: float = flag(0.1, "steps in which the learning rate rises, or their share of the run if below 1")
    dataloader_num_workers: int = flag(
        max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))),  # processes share the cores
        "processes that decode images which are not all in memory; 0: none",
    )
    label_smoothing_factor: float = flag(0.1, "share of a target that is spread over all classes")
    bf16: bool = flag(has_bf16(default_device()), "bfloat16 autocast, by default where the processor has it")
    use_cpu: bool = flag(default_device().type == "cpu", "don't use an accelerator")
    auto_find_batch_size: bool = flag(True, "a batch that does not fit memory is made smaller")
    eval_strategy: str = flag("epoch", "when to validate")
    save_strategy: str = flag("epoch", "when to save a checkpoint")
    save_total_limit: int | None = flag(1, "checkpoints to keep, beside the best one")
    load_best_model_at_end: bool = flag(False, "keep the best epoch's weights, not the last's; --patience does so too")
    metric_for_best_model: str | None = flag(
        "accuracy", "on validation: accuracy, f1 (mean over classes), or loss; --patience counts by it too"
    )
    logging_steps: float = flag(100, "optimiser steps between two lines of the log")
    logging_nan_inf_filter: bool = flag(False, "hide losses that are not finite")
    remove_unused_columns: bool = flag(False, "not used here")
    resume_from_checkpoint: str | None = flag(None, "a checkpoint's folder, a run's, or 'last': output_dir")

    def __post_init__(self):
        self.bf16 = self.bf16 and not self.fp16
        super().__post_init__()


class Help(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Defaults after each flag, and the description as it is."""


def parse_args() -> tuple[FinetuneArguments, Training]:
    """The command's flags; ModelError for values that don't go together."""
    parser = HfArgumentParser(
        [FinetuneArguments, Training],
        description=__doc__,
        formatter_class=Help,
        usage="%(prog)s [flags]",
        allow_abbrev=False,
    )
    words = sys.argv[1:]
    if any(word.partition("=")[0] == "--patience" for word in words):
        words.append("--load_best_model_at_end")  # for which validation and checkpoints have to go together
    try:
        flags, args, unknown = parser.parse_args_into_dataclasses(words, True, look_for_args_file=False)
    except (ValueError, RuntimeError, ImportError) as error:
        raise ModelError(f"these flags don't go together ({first_line(error)}): see --help") from error
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if flags.folds is not None and flags.folds < 2:
        raise ModelError(f"--folds {flags.folds} leaves nothing to train on: pass 2 or more")
    trainer_flags.check(args)
    flags.label_names, args.label_names = args.label_names, None  # Trainer's means something else
    if flags.teacher and flags.freeze == "backbone":
        raise ModelError("--teacher teaches all of a model: leave out --freeze backbone")
    if flags.photographs and flags.freeze == "backbone":
        raise ModelError("--photographs are for training all of a model: leave out --freeze backbone")
    if flags.photographs:
        flags.freeze = "none"
    if flags.teacher:
        flags.freeze, args.label_smoothing_factor = "none", 0.0  # a teacher's targets are soft
    if args.hub_token:
        raise ModelError(
            "--hub_token would stand in run.json, with the command: run hf auth login instead, or set HF_TOKEN"
        )
    if args.push_to_hub:
        check_login()
    return flags, args


@dataclass
class Job:
    """Everything that training works on."""

    flags: FinetuneArguments
    args: Training
    model: PreTrainedModel
    processor: BaseImageProcessor
    data: protocol.TrainingData
    plan: Plan
    teacher: distill.Teacher | None
    photographs: Photographs | None
    class_weights: torch.Tensor | None  # (num_labels,), or None for equal ones
    resume: Path | None  # the checkpoint to continue from


def main() -> None:
    """Data, model, training, calibration, saving."""
    flags, args = parse_args()
    logging.disable_progress_bar()  # of files that take milliseconds; training has its own
    keep_freed_memory()
    output_dir = Path(args.output_dir)
    to_push, args.push_to_hub = args.push_to_hub, False  # the finished folder is pushed, not Trainer's checkpoints
    protocol.check_parent("--model", flags.model, output_dir)
    wanted = fetch_checkpoint(args.resume_from_checkpoint)
    resume = protocol.checkpoint_to_resume(output_dir, wanted, find_checkpoint, overwrite=flags.overwrite_output_dir)

    splits, survey = protocol.load_data(flags, output_dir)
    if flags.freeze == "auto":
        flags.freeze = "backbone" if len(splits["train"]) < FEW else "none"
    if flags.folds and flags.freeze == "none":
        raise ModelError("--folds is for a frozen backbone: pass --freeze backbone, or leave it out")
    with PartialState().main_process_first():  # which downloads the weights
        start = backbone.load(flags.model, splits.labels, drop_path=flags.drop_path, allow_pickle=flags.allow_pickle)
    if flags.freeze == "backbone" and not args.should_save:
        return  # features are computed once, and a grid of heads takes seconds
    tensors = {name: as_tensor(name, splits) for name in protocol.SPLITS} if survey.is_small() else None
    data = protocol.TrainingData(splits, tensors)
    if tensors:
        args.dataloader_num_workers, args.dataloader_prefetch_factor = 0, None
    check_workers(args.dataloader_num_workers)
    plan = make_plan(flags, start, min(tensors["train"][0].shape[-2:]) if tensors else None)
    model = backbone.resize(start.model, plan.image_size).to(memory_format=torch.channels_last)
    if args.gradient_checkpointing and flags.freeze == "none" and not model.supports_gradient_checkpointing:
        raise ModelError(f"{type(model).__name__} has no gradient checkpointing: leave out --gradient_checkpointing")
    wanted_sizes = plan.sizes
    plan = fit_sizes(plan, model)
    processor = processors.resized(start.processor, model, plan.image_size, plan.crop_pct)
    teacher = photographs = None
    if flags.teacher:
        teacher = distill.Teacher(flags.teacher, splits.labels, *processors.mean_std(processor), args.device)
    if flags.photographs:
        photographs = Photographs(
            flags.photographs,
            splits.labels,
            plan.image_size,
            mirror=flags.mirror,
            bicubic=processors.is_bicubic(processor),
            reduce_to=plan.reduce_to,
            skip_unreadable=flags.skip_unreadable,
        )
    settings = changed_settings(flags, args) | {"device": args.device.type, "num_processes": args.world_size}
    run = runs.describe(settings, start.parent)
    run["model"] = StartModel(name=start.name, revision=start.revision, initialized=start.initialized)

    if args.should_save:  # in the main process
        print(f"{survey}{describe_imbalance(data.counts['train'], flags.class_weights)}")
        print(f"{start.name} at {plan.image_size} pixels, {describe_training(start.initialized, flags.freeze)}")
        if plan.sizes != wanted_sizes and flags.freeze == "none":
            print(f"{type(model).__name__} can't take other --train_sizes: all steps are at {plan.image_size} pixels")
        protocol.prepare_folder(
            output_dir, data, callbacks.CHECKPOINTS, overwrite=flags.overwrite_output_dir, keep=resume
        )

        if photographs:
            print(f"photographs: {photographs.describe()}")
    balanced = len(splits["train"]) / len(splits.labels) / data.counts["train"].clamp(min=1)
    weights = balanced if flags.class_weights == "balanced" else None
    train = train_head if flags.freeze == "backbone" else train_all
    with finetune_trainer.explaining_memory(), explaining_workers(), protocol.explaining_how_to_resume():
        result = train(Job(flags, args, model, processor, data, plan, teacher, photographs, weights, resume))
    if not args.should_save:
        return

    calibrated = calibrate.calibrate(model, processor, splits, output_dir.name, photographs)
    # A model that has seen photographs is not overconfident on them, so it needs no score of a small copy.
    update_ood(model.config, resize_to=None if flags.photographs else plan.ood_resize_to)
    model.config.reduce_to = plan.reduce_to
    export.save(model, processor, output_dir)
    protocol.finish_run(output_dir, data, callbacks.CHECKPOINTS, run, result, calibrated)
    if to_push:
        protocol.push_result(output_dir, args)


def train_all(job: Job) -> protocol.TrainingResult:
    """Trains the whole model, and leaves it with its last weights, or with the best ones on validation."""
    flags, args, plan, model = job.flags, job.args, job.plan, job.model
    data = dataset(job, "train", flags.crop_scale), dataset(job, "validation", None)
    labels = job.data.splits.labels
    photographs = job.photographs
    must_match = settings_to_match(flags, args, plan) | {
        "photographs": photographs and len(photographs),
        "train images": len(job.data.splits["train"]),
        "labels": labels,
        "model": type(model).__name__,
    }
    if job.resume:
        callbacks.check_resumable(job.resume, must_match)
    finetune_trainer.keep_step_images(args, job.resume)
    finetune_trainer.check_drop_last(args, len(job.data.splits["train"]))
    recipe = finetune_trainer.FinetuneRecipe(
        sizes=plan.sizes,
        crop_scale=flags.crop_scale,
        mirror=flags.mirror,
        noise=flags.noise,
        mixup=flags.mixup,
        cutmix=flags.cutmix,
        layer_decay=plan.layer_decay,
        class_weights=job.class_weights,
        teacher=job.teacher,
        photographs=photographs,
    )
    with StopSignal() as stop:
        progress = callbacks.ProgressTracker(
            Path(args.output_dir), must_match, stop, flags.patience, args.metric_for_best_model
        )
        trainer = finetune_trainer.FinetuneTrainer(model, args, job.processor, data, progress, recipe)
        if args.should_save and args.world_size > 1:
            own = args.train_batch_size * args.gradient_accumulation_steps
            print(f"steps of {own * args.world_size} images, {own} of them on each of {args.world_size} processes")
        trainer.train(resume_from_checkpoint=str(job.resume) if job.resume else None)
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # restores a forward pass without autocast
    step, total = trainer.state.global_step, trainer.state.max_steps
    if progress.is_stopping and step < total:
        raise Stopped(f"stopped after step {step} of {total} and saved in {args.output_dir}")
    epochs = trainer.state.epoch * total / step  # --max_steps may have set them
    names = ("crop_scale", "mirror", "noise", "mixup", "cutmix", "drop_path", "teacher")
    return protocol.TrainingResult(
        history=progress.history,
        best_epoch=progress.best_epoch if args.load_best_model_at_end and progress.history else None,
        train_seconds=progress.train_seconds,
        images_seen=progress.totals()["images_seen"],
        train_flops=int(trainer.state.total_flos),
        inference_flops=backbone.forward_flops(model, plan.image_size),
        recipe={
            "image_size": plan.image_size,
            "crop_pct": plan.crop_pct,
            "sizes": [(share * epochs, size) for share, size in plan.sizes],
            "batch_size": progress.step_images,
            "learning_rate": args.learning_rate,
            "layer_decay": plan.layer_decay,
            "weight_decay": args.weight_decay,
            "label_smoothing": args.label_smoothing_factor,
        }
        | {name: getattr(flags, name) for name in names}
        | ({"photographs": photographs.describe(), "photographs_from": photographs.sources} if photographs else {}),
    )


def train_head(job: Job) -> protocol.TrainingResult:
    """Trains the head alone, on features that are computed once: a grid of settings at once, the best on validation."""
    flags, args, model = job.flags, job.args, job.model
    began = time.perf_counter()
    model.to(args.device)
    train, validation = (
        probe.extract(
            model,
            job.processor,
            dataset(job, name, None),
            folder=Path(huggingface_hub.constants.HF_HOME) / "features",
            batch_size=args.per_device_eval_batch_size,
            num_workers=args.dataloader_num_workers,
            bf16=args.bf16,
        )
        for name in protocol.SPLITS
    )
    settings = probe.HeadSettings(
        num_labels=len(job.data.splits.labels),
        epochs=max(1, round(10 * args.num_train_epochs)),
        label_smoothing=args.label_smoothing_factor,
        class_weights=job.class_weights,
        seed=args.seed,
    )
    heads = probe.fit_heads(train, validation, settings)
    callbacks.report(heads.history, args, model)
    backbone.head(model).load_state_dict({"weight": heads.weight, "bias": heads.bias})
    write_text(Path(args.output_dir) / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in heads.history))
    seconds = time.perf_counter() - began  # without the cross-validation, which only measures
    recipe: dict[str, Any] = {"image_size": job.plan.image_size, "crop_pct": job.plan.crop_pct}
    recipe |= {"learning_rate": heads.learning_rate, "weight_decay": heads.weight_decay, "epochs": settings.epochs}
    recipe |= {"label_smoothing": settings.label_smoothing, "cached_features": train.was_cached}
    if flags.folds:
        accuracies = probe.cross_validate(train, validation, settings, folds=flags.folds)
        mean, std = statistics.mean(accuracies), statistics.stdev(accuracies)
        recipe["cross_validation"] = {"accuracies": accuracies, "mean": mean, "std": std}
        print(f"{flags.folds} parts, each by a head of the others: {mean:.1%} ± {std:.1%} right")
    n, flops = len(train.labels), backbone.forward_flops(model, job.plan.image_size)
    return protocol.TrainingResult(
        history=heads.history,
        best_epoch=heads.best_epoch,
        train_seconds=seconds,
        images_seen=n,
        train_flops=flops * n,  # once an image; those of the heads are few
        inference_flops=flops,
        recipe=recipe,
    )


def dataset(job: Job, name: str, crop_scale: float | None) -> InMemory | Streamed:
    """A split of the job's data: in memory, or decoded by workers, which cut random crops given a `crop_scale`."""
    if job.data.tensors:
        return InMemory(*job.data.tensors[name])
    return Streamed(name, job.data.splits, job.processor, crop_scale, job.plan.image_size, job.args.seed)


def describe_training(initialized: list[str], freeze: str) -> str:
    """The weights that were re-initialised, and the part of the model that is trained."""
    head = f"{first_few(initialized, 4)} re-initialised" if initialized else "its head fits the labels"
    part = "its head alone is trained, on cached features" if freeze == "backbone" else "all of it is trained"
    return f"{head}; {part} (--freeze)"


def describe_imbalance(counts: torch.Tensor, class_weights: str) -> str:
    """A hint at --class_weights if classes differ much in size; `counts` (num_labels,)."""
    is_even = counts.max() <= 1.5 * counts.min()
    return "" if is_even or class_weights == "balanced" else "; --class_weights balanced would weigh classes alike"


def changed_settings(flags: FinetuneArguments, args: Training) -> dict:
    """This script's flags, and those of TrainingArguments that are listed here or differ from its defaults."""
    defaults = TrainingArguments(output_dir=args.output_dir, use_cpu=args.use_cpu).to_dict()
    changed = {name: v for name, v in args.to_dict().items() if name in Training.__annotations__ or v != defaults[name]}
    return changed | asdict(flags)


def settings_to_match(flags: FinetuneArguments, args: Training, plan: Plan) -> dict:
    """The settings that a resumed run has to share with its checkpoint, or it would compute something else."""
    names = ["learning_rate", "weight_decay", "num_train_epochs", "max_steps", "label_smoothing_factor"]
    names += ["lr_scheduler_type", "warmup_steps", "seed", "bf16"]
    settings = {name: getattr(args, name) for name in names} | asdict(plan)
    del settings["reduce_to"]  # applied to users' photographs, not to training images
    names = ["crop_scale", "mirror", "noise", "mixup", "cutmix", "class_weights", "teacher"]
    return settings | {name: getattr(flags, name) for name in names}


def fetch_checkpoint(wanted: str | None) -> str | None:
    """The value of --resume_from_checkpoint; a repository of the Hub becomes the checkpoint downloaded from it."""
    if wanted and HUB_ID.fullmatch(wanted) and not Path(wanted).exists():
        folder, *_ = locate(wanted, ["last-checkpoint/*"])  # where Trainer's hub_strategy leaves it
        return str(folder / "last-checkpoint")
    return wanted


def find_checkpoint(path: Path) -> Path | None:
    """The newest complete checkpoint at a path, or in the folder of a run; None if there is none."""
    return path if (path / "trainer_state.json").exists() else callbacks.last_checkpoint(path)


if __name__ == "__main__":
    errors.run(main)
