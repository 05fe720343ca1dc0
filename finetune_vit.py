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

    DeiT-tiny             96.86% by the defaults in 57 min; 97.52% by two more stages, 256 min in all (embedded);
                          97.76% by a fourth, 5 min on an NVIDIA H200
    EfficientNet-Lite0    96.62% in three stages, averaged, 206 min
    MobileNetV2           95.57% in four stages, averaged, 259 min
    their heads alone     89.68%, 90.44%, 85.70%, in 4 to 8 min

From benchmarks/backbones.json; docs/results.md has the commands.
"""

import json
import math
import os
import shutil
import statistics
import sys
import time
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import huggingface_hub
import torch
from accelerate import PartialState
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils import logging

from classifier import errors, runs
from classifier.data.loaders import as_tensor
from classifier.data.splits import Splits, load_splits
from classifier.data.survey import survey_splits
from classifier.errors import ModelError, Stopped
from classifier.files import write_text
from classifier.hub import HUB_ID, check_login
from classifier.models import backbone
from classifier.models import processor as processors
from classifier.models.loading import default_device, locate
from classifier.publish import export
from classifier.publish.upload import push
from classifier.records import DataRecord, RunRecord, StartModel
from classifier.reporting import card, figures
from classifier.training import calibrate, callbacks, distill, finetune_data, finetune_trainer, probe
from classifier.training.runtime import StopSignal, has_bf16, keep_freed_memory

NAMES = ("train", "validation")
FEW = 500  # training images: below, all of a backbone learns them by heart


def flag(default, help: str, **metadata):
    """A dataclass field that is a flag with that help."""
    return field(default=default, metadata={"help": help, **metadata})


@dataclass
class Recipe:
    """Flags of this script; the others are those of `Training`."""

    _argument_group_name = "this script"

    model: str = flag("facebook/deit-tiny-patch16-224", "Hub id, id@revision, or folder, such as an earlier stage's")
    freeze: str = flag(
        "auto",
        f"backbone: train the head alone, on cached features, as auto does for fewer than {FEW} images: by a grid of "
        "learning "
        "rates and weight decays, 10 times num_train_epochs, without augmentation",
        choices=("auto", "none", "backbone"),
    )
    folds: int | None = flag(
        None, "of a frozen backbone, also cross-validate the head on so many parts of all but test"
    )
    dataset: str = flag("uoft-cs/cifar10", "Hub id, id@revision, folder, or table of paths and labels")
    image_size: int | None = flag(None, "pixels a side that the model gets (its own)")
    crop_pct: float | None = flag(None, "side that the centre crop keeps (the model's; for small images 1: no crop)")
    train_sizes: str = flag("0.7:0.6 1:0.4", "fractions of image_size to train at : shares of the run's steps")
    crop_scale: float = flag(0.6, "smallest fraction of the area that a random training crop keeps, in (0, 1]")
    mirror: bool = flag(True, "mirror half of the training images")
    mixup: float = flag(0.0, "alpha of mixup; 0: none")
    cutmix: float = flag(0.0, "alpha of CutMix; 0: none")
    layer_decay: float | None = flag(
        None, "learning rate of a block, as a fraction of the next's (transformers 0.75, CNNs 1)"
    )
    drop_path: float = flag(0.0, "highest rate of stochastic depth, where the architecture has it")
    teacher: str | None = flag(
        None, "learn what this model (an id or a folder) thinks of each crop, instead of the labels"
    )
    class_weights: str = flag("none", "balanced: each class weighs the same in the loss", choices=("none", "balanced"))
    patience: int | None = flag(
        None, "stop after so many epochs without a better validation accuracy, keep the best (never)"
    )
    validation_fraction: float = flag(0.1, "cut off train if the dataset has no such split")
    image_column: str | None = flag(None, "(the column whose type is Image)")
    label_column: str | None = flag(None, "(the column whose type is ClassLabel)")
    label_names: str | None = field(default=None, init=False)  # the flag is Training's, which has one of that name
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
    label_smoothing_factor: float = flag(0.1, "share of a target that is spread over all classes")
    bf16: bool = flag(has_bf16(default_device()), "bfloat16 autocast, by default where the processor has it")
    use_cpu: bool = flag(default_device().type == "cpu", "don't use an accelerator")
    auto_find_batch_size: bool = flag(True, "a batch that does not fit memory is made smaller")
    eval_strategy: str = flag("epoch", "when to validate")
    save_strategy: str = flag("epoch", "when to save a checkpoint")
    save_total_limit: int | None = flag(1, "checkpoints to keep, beside the best one")
    load_best_model_at_end: bool = flag(False, "keep the best epoch's weights, not the last's; --patience does so too")
    metric_for_best_model: str | None = flag("accuracy", "on validation")
    logging_steps: float = flag(100, "optimiser steps between two lines of the log")
    logging_nan_inf_filter: bool = flag(False, "hide losses that are not finite")
    remove_unused_columns: bool = flag(False, "not used here")
    resume_from_checkpoint: str | None = flag(None, "a checkpoint's folder, a run's, or 'last': output_dir")

    def __post_init__(self):
        self.bf16 = self.bf16 and not self.fp16
        super().__post_init__()


class Help(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Defaults after each flag, and the description as it is."""


def parse_args() -> tuple[Recipe, Training]:
    """The command's flags; ModelError for values that don't go together."""
    parser = HfArgumentParser(
        [Recipe, Training], description=__doc__, formatter_class=Help, usage="%(prog)s [flags]", allow_abbrev=False
    )
    words = sys.argv[1:]
    if any(word.partition("=")[0] == "--patience" for word in words):
        words.append("--load_best_model_at_end")  # for which validation and checkpoints have to go together
    try:
        recipe, args, unknown = parser.parse_args_into_dataclasses(words, True, look_for_args_file=False)
        for tracker in get_reporting_integration_callbacks(args.report_to):
            tracker()  # which says whether its package is there
    except (ValueError, RuntimeError, ImportError) as error:
        raise ModelError(f"these flags don't go together ({str(error).splitlines()[0]}): see --help") from error
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if recipe.folds is not None and recipe.folds < 2:
        raise ModelError(f"--folds {recipe.folds} leaves nothing to train on: pass 2 or more")
    if args.eval_strategy == "no":
        raise ModelError("--eval_strategy no leaves nothing to choose weights by: pass epoch, or steps")
    recipe.label_names, args.label_names = args.label_names, None  # Trainer's means something else
    if recipe.teacher and recipe.freeze == "backbone":
        raise ModelError("--teacher teaches all of a model: leave out --freeze backbone")
    if recipe.teacher:
        recipe.freeze, args.label_smoothing_factor = "none", 0.0  # a teacher's targets are soft
    if args.hub_token:
        raise ModelError(
            "--hub_token would stand in run.json, with the command: run hf auth login instead, or set HF_TOKEN"
        )
    if args.push_to_hub:
        check_login()
    return recipe, args


def main() -> None:
    """Data, model, fit, calibrate, save."""
    recipe, args = parse_args()
    logging.disable_progress_bar()  # of files that take milliseconds; training has its own
    keep_freed_memory()
    output_dir = Path(args.output_dir)
    to_push, args.push_to_hub = args.push_to_hub, False  # the finished folder goes up, not what Trainer has meanwhile
    resume = checkpoint_to_resume(recipe, args)

    with PartialState().main_process_first():  # which leaves in the caches what it prepares and fetches
        splits = load_splits(
            recipe.dataset,
            validation=recipe.validation_fraction,
            image_column=recipe.image_column,
            label_column=recipe.label_column,
            label_names=recipe.label_names,
            max_train_samples=recipe.max_train_samples,
            max_eval_samples=recipe.max_eval_samples,
            skip_unreadable=recipe.skip_unreadable,
        )
        if recipe.freeze == "auto":
            recipe.freeze = "backbone" if len(splits.train) < FEW else "none"
        if recipe.folds and recipe.freeze == "none":
            raise ModelError("--folds is for a frozen backbone: pass --freeze backbone, or leave it out")
        surveyed = survey_splits(splits, output_dir / "unreadable.txt")
        found = backbone.load(recipe.model, splits.labels, drop_path=recipe.drop_path, allow_pickle=recipe.allow_pickle)
    if recipe.freeze == "backbone" and not args.should_save:
        return  # features are computed once, and a grid of heads takes seconds
    tensors = {name: as_tensor(name, splits) for name in NAMES} if surveyed.is_small() else None
    counts = {name: class_counts(name, splits, tensors) for name in NAMES}
    plan = make_plan(recipe, found, min(tensors["train"][0].shape[-2:]) if tensors else None)
    model = backbone.resize(found.model, plan.image_size).to(memory_format=torch.channels_last)
    processor = processors.resized(found.processor, model, plan.image_size, plan.crop_pct)
    settings = changed_settings(recipe, args) | {"device": args.device.type, "num_processes": args.world_size}
    run = runs.describe(settings, found.parent)

    if args.should_save:  # of several processes, one
        print(f"{surveyed}{tell_weights(counts['train'], recipe.class_weights)}")
        learns = (
            "its head alone is trained, on cached features" if recipe.freeze == "backbone" else "all of it is trained"
        )
        print(f"{found.name} at {plan.image_size} pixels, {tell_initialized(found.initialized)}; {learns} (--freeze)")
        output_dir.mkdir(parents=True, exist_ok=True)
        if recipe.overwrite_output_dir:  # not before data and model are known to be good
            remove_stale(output_dir, keep=resume)
        if tensors:
            figures.save_samples(output_dir / "samples.png", *tensors["train"], splits.labels)
        figures.save_classes(output_dir / "classes.png", counts, splits.labels)

    weights = len(splits.train) / len(splits.labels) / counts["train"].clamp(min=1)
    weights = weights if recipe.class_weights == "balanced" else None
    fit_model = fit_head if recipe.freeze == "backbone" else fit_all
    try:
        outcome = fit_model(model, processor, splits, tensors, recipe, args, plan, weights, resume)
    except RuntimeError as error:
        if not finetune_trainer.is_out_of_memory(error):
            raise
        raise ModelError(
            f"a batch does not fit into memory ({str(error).splitlines()[0]}): pass a lower --image_size, "
            "--gradient_checkpointing, a lower --per_device_eval_batch_size, or a lower "
            "--per_device_train_batch_size with "
            "more --gradient_accumulation_steps"
        ) from error
    if not args.should_save:
        return

    calibrated = calibrate.calibrate(model, processor, splits, output_dir.name)
    model.config.known_at = plan.known_at
    model.config.reduce_to = plan.reduce_to
    export.save(model, processor, output_dir)

    figures.save_curves(output_dir / "curves.png", outcome.history)
    record = RunRecord(
        **run,
        model=StartModel(name=found.name, revision=found.revision, initialized=found.initialized),
        data=DataRecord(
            images=int(counts["train"].sum()),
            labels=splits.labels,
            counts={name: count.tolist() for name, count in counts.items()},
            skipped=len(splits.skipped),
            test_cut=splits.test_cut,
        ),
        recipe={"image_size": plan.image_size, "crop_pct": plan.crop_pct} | outcome.recipe,
        train_seconds=round(outcome.train_seconds, 1),
        images_seen=outcome.images_seen,
        train_flops=outcome.train_flops,
        inference_flops=backbone.forward_flops(model, plan.image_size),
        best_epoch=outcome.best_epoch,
        validation=calibrated,
    )
    runs.RunFolder(output_dir).write_run(record)
    card.write(output_dir)
    for folder in output_dir.glob("checkpoint-*"):  # what they were for is done, and they are not part of the model
        shutil.rmtree(folder)
    print(
        f"{calibrated.accuracy:.2%} of {counts['validation'].sum():,} validation images right after "
        f"{outcome.train_seconds:,.0f} s of training; saved in {output_dir}. "
        f"Measure it: python evaluate.py --model {output_dir} --dataset {recipe.dataset}"
    )
    if to_push:
        print(push(output_dir, args.hub_model_id, private=bool(args.hub_private_repo), revision=args.hub_revision))


@dataclass
class Plan:
    """What follows from the flags for this model and these images."""

    image_size: int  # pixels a side that the model gets
    crop_pct: float  # of the centre crop
    sizes: tuple[tuple[float, int], ...]  # (share of the steps, pixels a side)
    layer_decay: float
    reduce_to: int  # pixels: a photograph's shorter side, before the processor
    known_at: int | None  # pixels of small training images: where a photograph is looked at too, to tell if it is known


@dataclass
class Outcome:
    """What a fit gave, beside the model's weights."""

    history: list[dict]
    best_epoch: int | None  # whose weights were kept; None: the last one's
    train_seconds: float
    images_seen: int
    train_flops: int
    recipe: dict  # the settings in force, for the record


def make_plan(recipe: Recipe, found: backbone.Backbone, side: int | None) -> Plan:
    """The flags' values, and the defaults of those left out; `side` is the images' in pixels, None if they are
    large.
    """
    own, patch = processors.size_of(found.processor), getattr(found.model.config, "patch_size", 32)
    patch = patch if isinstance(patch, int) and patch >= 8 else 32  # Swin's patches of 4 are merged three times
    is_small = side is not None and side < own
    size = recipe.image_size or own
    crop_pct = recipe.crop_pct or (1.0 if is_small else processors.crop_pct_of(found.processor))
    return Plan(
        image_size=size,
        crop_pct=crop_pct,
        sizes=train_sizes(recipe.train_sizes, size, patch),
        layer_decay=recipe.layer_decay or (0.75 if backbone.has_attention(found.model) else 1.0),
        reduce_to=math.ceil(size / crop_pct),  # more costs time, and less blurs: of 87 labels, 4 change at 0.6 of it
        known_at=side if is_small else None,
    )


def fit_all(model, processor, splits, tensors, recipe, args, plan, weights, resume) -> Outcome:
    """Trains all of the model, and leaves it with the weights of its best epoch on validation."""
    if tensors:
        train, validation = (finetune_data.InMemory(*tensors[name]) for name in NAMES)
    else:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # on this machine, whose cores they share
        args.dataloader_num_workers = args.dataloader_num_workers or max(1, os.cpu_count() // processes)
        train = finetune_data.Streamed("train", splits, processor, recipe.crop_scale, plan.image_size, args.seed)
        validation = finetune_data.Streamed("validation", splits, processor, None, plan.image_size, args.seed)
    teacher = None
    if recipe.teacher:
        teacher = distill.Teacher(recipe.teacher, splits.labels, *processors.mean_std(processor), args.device)
    if args.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise ModelError(f"{type(model).__name__} has no gradient checkpointing: leave out --gradient_checkpointing")
    must_match = what_must_match(recipe, args, plan, model, splits)
    if resume:
        callbacks.check_resumable(resume, must_match)
    keep_step(args, resume)
    with StopSignal() as stop:
        progress = callbacks.ProgressTracker(Path(args.output_dir), must_match, stop, recipe.patience)
        trainer = finetune_trainer.FinetuneTrainer(
            model,
            args,
            processor,
            (train, validation),
            progress,
            finetune_trainer.FinetuneRecipe(
                sizes=plan.sizes,
                crop_scale=recipe.crop_scale,
                mirror=recipe.mirror,
                mixup=recipe.mixup,
                cutmix=recipe.cutmix,
                layer_decay=plan.layer_decay,
                class_weights=weights,
                teacher=teacher,
            ),
        )
        if args.should_save and args.world_size > 1:
            each = args.train_batch_size * args.gradient_accumulation_steps
            print(f"steps of {each * args.world_size} images, {each} of them on each of {args.world_size} processes")
        trainer.train(resume_from_checkpoint=resume and str(resume))
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # its forward is its own again, without autocast
    step, total = trainer.state.global_step, trainer.state.max_steps
    if progress.is_stopping and step < total:
        raise Stopped(
            f"stopped after step {step} of {total} and saved in {args.output_dir}; "
            f"go on with: python {runs.command_to_resume(sys.argv)}"
        )
    epochs = trainer.state.epoch * total / step  # --max_steps may have set them
    return Outcome(
        progress.history,
        progress.best_epoch if args.load_best_model_at_end and progress.history else None,
        progress.train_seconds,
        progress.totals()["images_seen"],
        int(trainer.state.total_flos),
        {
            "sizes": [(share * epochs, size) for share, size in plan.sizes],
            "batch_size": progress.step_images,
            "learning_rate": args.learning_rate,
            "layer_decay": plan.layer_decay,
            "weight_decay": args.weight_decay,
            "label_smoothing": args.label_smoothing_factor,
            **{
                name: getattr(recipe, name)
                for name in ("crop_scale", "mirror", "mixup", "cutmix", "drop_path", "teacher")
            },
        },
    )


def fit_head(model, processor, splits, tensors, recipe, args, plan, weights, resume) -> Outcome:
    """Trains the head alone, on features that are computed once: a grid of settings at once, the best on validation."""
    began = time.perf_counter()
    model.to(args.device)
    found = {}
    for name in NAMES:
        dataset = finetune_data.InMemory(*tensors[name]) if tensors else None
        dataset = dataset or finetune_data.Streamed(name, splits, processor, None, plan.image_size, args.seed)
        found[name] = probe.extract(
            model,
            processor,
            dataset,
            folder=Path(huggingface_hub.constants.HF_HOME) / "features",
            batch_size=args.per_device_eval_batch_size,
            num_workers=0 if tensors else args.dataloader_num_workers or os.cpu_count(),
            bf16=args.bf16,
        )
    train, validation = found.values()
    epochs = max(1, round(10 * args.num_train_epochs))
    smoothing = args.label_smoothing_factor
    settings = {"epochs": epochs, "label_smoothing": smoothing, "class_weights": weights, "seed": args.seed}
    heads = probe.fit_heads(train, validation, len(splits.labels), **settings)
    backbone.head(model).load_state_dict({"weight": heads.weight, "bias": heads.bias})
    write_text(Path(args.output_dir) / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in heads.history))
    n = len(train.labels)
    chosen = {"learning_rate": heads.learning_rate, "weight_decay": heads.weight_decay, "epochs": epochs}
    chosen |= {"label_smoothing": smoothing, "cached_features": train.was_cached}
    seconds = time.perf_counter() - began  # without what only measures
    if recipe.folds:
        parts = probe.cross_validate(train, validation, len(splits.labels), folds=recipe.folds, **settings)
        mean, std = statistics.mean(parts), statistics.stdev(parts)
        chosen["cross_validation"] = {"accuracies": parts, "mean": mean, "std": std}
        print(f"{recipe.folds} parts, each by a head of the others: {mean:.1%} ± {std:.1%} right")
    flops = backbone.forward_flops(model, plan.image_size) * n  # once an image; the heads' own are few
    return Outcome(heads.history, heads.best_epoch, seconds, n, flops, chosen)


def train_sizes(text: str, size: int, multiple: int) -> tuple[tuple[float, int], ...]:
    """'0.6:0.5 1:0.5' -> ((share of the steps, pixels a side), …), pixels rounded to multiples of the patch size."""
    try:
        pairs = [tuple(float(number) for number in word.split(":")) for word in text.split()]
        sizes = [(share, max(multiple, round(size * fraction / multiple) * multiple)) for fraction, share in pairs]
    except ValueError:
        raise ModelError(f"--train_sizes {text!r} is no list of fraction:share: pass such as '0.6:0.5 1:0.5'") from None
    total = sum(share for share, _ in sizes)
    if not sizes or min(share for share, _ in sizes) <= 0:
        raise ModelError(f"--train_sizes {text!r} has no share above 0: pass such as '0.6:0.5 1:0.5'")
    return tuple((share / total, size if pixels > size else pixels) for share, pixels in sizes)


def class_counts(name: str, splits: Splits, tensors: dict | None) -> torch.Tensor:
    """Images of each class in a split, int (C,)."""
    labels = tensors[name][1] if tensors else torch.from_numpy(splits.class_indices[name])
    return labels.bincount(minlength=len(splits.labels))


def tell_initialized(names: list[str]) -> str:
    """What was re-initialised, in words."""
    return (
        f"{', '.join(names[:4])}{' …' if len(names) > 4 else ''} re-initialised"
        if names
        else "its head fits the labels"
    )


def tell_weights(counts: torch.Tensor, class_weights: str) -> str:
    """What can be done about classes of other sizes, in words, where they are."""
    is_even = counts.max() <= 1.5 * counts.min()
    return "" if is_even or class_weights == "balanced" else "; --class_weights balanced would weigh classes alike"


def changed_settings(recipe: Recipe, args: Training) -> dict:
    """This script's flags, and those of TrainingArguments that are listed here or differ from its defaults."""
    defaults = TrainingArguments(output_dir=args.output_dir, use_cpu=args.use_cpu).to_dict()
    changed = {name: v for name, v in args.to_dict().items() if name in Training.__annotations__ or v != defaults[name]}
    return changed | asdict(recipe)


def what_must_match(recipe: Recipe, args: Training, plan: Plan, model, splits: Splits) -> dict:
    """The settings without which going on from a checkpoint would compute something else."""
    names = (
        "learning_rate",
        "weight_decay",
        "num_train_epochs",
        "max_steps",
        "label_smoothing_factor",
        "lr_scheduler_type",
    )
    names += ("warmup_steps", "seed", "bf16")
    chosen = {name: getattr(args, name) for name in names} | asdict(plan)
    del chosen["reduce_to"]  # which no training image meets
    chosen |= {
        name: getattr(recipe, name) for name in ("crop_scale", "mirror", "mixup", "cutmix", "class_weights", "teacher")
    }
    data_set = {"train images": len(splits.train), "labels": splits.labels}
    return chosen | data_set | {"model": type(model).__name__}


def checkpoint_to_resume(recipe: Recipe, args: Training) -> Path | None:
    """The checkpoint that the flags ask for; ModelError rather than write over a run, or go on from nothing."""
    output_dir, wanted = Path(args.output_dir), args.resume_from_checkpoint
    last = callbacks.last_checkpoint(output_dir)
    finished = runs.RunFolder(output_dir).is_finished
    if Path(recipe.model).resolve() == output_dir.resolve():
        raise ModelError(f"--model and --output_dir are both {output_dir}: give another --output_dir")
    if not recipe.overwrite_output_dir and (finished or (last and wanted is None)):
        ways = "" if finished else "--resume_from_checkpoint last, "
        state = "a finished run" if finished else "a run"
        raise ModelError(f"{output_dir} holds {state}: pass {ways}--overwrite_output_dir or another --output_dir")
    if wanted is None:
        return None
    folder = last if wanted == "last" else Path(wanted)
    if HUB_ID.fullmatch(wanted) and not folder.exists():
        folder = (
            locate(wanted, ["last-checkpoint/*"])[0] / "last-checkpoint"
        )  # as Trainer's hub_strategy leaves it there
    if folder and not (folder / "trainer_state.json").exists():
        folder = callbacks.last_checkpoint(folder)
    if folder is None:
        raise ModelError(
            f"no checkpoint in {output_dir if wanted == 'last' else wanted}: leave out --resume_from_checkpoint"
        )
    return folder


def keep_step(args: Training, resume: Path | None) -> None:
    """Makes a step of the run that is gone on with as many images as before, whatever the number of processes.

    Raises:
        ModelError: they can't be shared out evenly.
    """
    # A batch is made smaller in the process that runs out of memory, and may be neither where others or a checkpoint
    # wait.
    args.auto_find_batch_size &= args.world_size == 1 and resume is None
    if resume is None:
        return
    images = callbacks.progress_of(resume)["step_images"]
    parts = args.world_size * args.gradient_accumulation_steps * max(1, args.n_gpu)
    if images % parts:
        raise ModelError(
            f"a step of {resume} is of {images} images, which {args.world_size} processes and "
            f"{args.gradient_accumulation_steps} gradient_accumulation_steps can't share evenly: pass others"
        )
    args.per_device_train_batch_size = images // parts


def remove_stale(output_dir: Path, keep: Path | None) -> None:
    """Removes what an earlier run left in `output_dir` and would speak of other weights, but for the checkpoint
    `keep`.
    """
    for name in runs.STALE:
        (output_dir / name).unlink(missing_ok=True)
    for folder in output_dir.glob("checkpoint-*"):
        if keep is None or folder.resolve() != keep.resolve():
            shutil.rmtree(folder)


if __name__ == "__main__":
    errors.run(main)
