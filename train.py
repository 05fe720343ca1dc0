"""Trains a CNN from scratch on images of about 32×32, CIFAR-10 by default.

    python train.py --dataset uoft-cs/cifar10 --output_dir runs/cnn
    python train.py --dataset path/to/folder --output_dir runs/mine   # holds <label>/*.jpg or train/<label>/*.jpg
    python train.py --recipe accurate --output_dir runs/cnn-accurate
    accelerate launch train.py …                                      # several GPUs share each batch
    torchrun --nproc_per_node 2 train.py …                            # several processes, also on CPUs

What the recipes reach on CIFAR-10's test split, trained on 98% of train with two threads (AVX-512, bfloat16):

    fast      93.74% ± 0.13% (mean ± standard deviation of 3 seeds, six views inside `forward`), 318 s of an Intel Xeon
    accurate  95.24% (one seed, two views inside `forward`), 55 min of an AMD EPYC beside other work

From benchmarks/seeds_fast.json and models/cnn/evaluation.json.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from transformers import ViTImageProcessor

from classifier import errors, runs
from classifier.cli import add_hub_flags, positive_float, positive_int
from classifier.data.loaders import as_tensor
from classifier.data.splits import load_splits
from classifier.data.survey import channel_mean_std, survey_splits
from classifier.errors import ModelError, Stopped
from classifier.evaluation import metrics, ood
from classifier.hub import check_login
from classifier.models.cnn import CifarCnnConfig, CifarCnnForImageClassification, average_views
from classifier.models.loading import default_device
from classifier.models.predictor import load_predictor
from classifier.publish import export
from classifier.publish.upload import push
from classifier.records import DataRecord, RunRecord, Validation
from classifier.reporting import card, figures
from classifier.training.checkpoint import CHECKPOINT
from classifier.training.cnn_trainer import (
    CnnRecipe,
    CnnTrainer,
    RunOptions,
    estimate_seconds,
    predict_logits,
    training_flops,
    view_flops,
)
from classifier.training.runtime import has_bf16

LARGE = 48  # pixels: the shorter side of images that have more to show than 32×32
RECIPES = {
    "fast": CnnRecipe(
        sizes=((3, 20), (3, 28), (4, 32)),
        hidden_act="hardswish",
        views=6,
        batch_size=1000,
        learning_rate=0.17,
        momentum=0.65,
        head_learning_rate=0.54,
        whiten_bias_epochs=0.2,
        freeze_from=0.8,
    ),
    "accurate": CnnRecipe(
        sizes=((10, 24), (7, 28), (7, 32)), widths=(128, 384, 512), depths=(2, 3, 3), shift=4, cutout=8, views=2
    ),
}


def parse_args() -> argparse.Namespace:
    """The command's flags, named as in `transformers.TrainingArguments` where that has them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--dataset",
        default="uoft-cs/cifar10",
        help="Hub id, id@revision, folder, or table of paths and labels (%(default)s)",
    )
    add("--output_dir", type=Path, default="runs/cnn", help="folder for weights, figures and records (%(default)s)")
    add(
        "--recipe",
        choices=RECIPES,
        default="fast",
        help="fast: minutes of a CPU; accurate: about an hour (%(default)s)",
    )
    add(
        "--init_from",
        type=Path,
        metavar="FOLDER",
        help="go on from the weights of an earlier stage (start from scratch)",
    )
    add("--seed", type=int, default=0, help="of weights, order, augmentation; not of the validation cut (%(default)s)")
    add(
        "--validation_fraction",
        type=float,
        default=0.1,
        help="cut off train if the dataset has no such split (%(default)s)",
    )
    add("--num_train_epochs", type=positive_float, help="passes over train (the recipe's)")
    add(
        "--per_device_train_batch_size",
        type=positive_int,
        help="images a step, of each process (the recipe's, in all; at most train / 20)",
    )
    add(
        "--learning_rate",
        type=positive_float,
        help="Muon's, for convolutions, a fraction of a weight's norm (the recipe's)",
    )
    add(
        "--patience",
        type=positive_int,
        metavar="EPOCHS",
        help="stop after so many without a better validation accuracy (never)",
    )
    add("--image_size", type=int, metavar="PIXELS", help="a side, that images are squashed to (32; 64 for photographs)")
    add(
        "--mirror",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="mirror images, in training and in the views of `forward` (%(default)s); not for digits or letters",
    )
    add("--image_column", help="(the column whose type is Image)")
    add("--label_column", help="(the column whose type is ClassLabel)")
    add("--label_names", type=Path, metavar="JSON", help='a file of other names for labels: {"cane": "dog", …}')
    add("--max_train_samples", type=positive_int, metavar="N", help="train on so many images only (all)")
    add("--max_eval_samples", type=positive_int, metavar="N", help="validate on so many images only (all)")
    add("--skip_unreadable", action="store_true", help="leave out files that can't be read, and count them")
    add("--bf16", action=argparse.BooleanOptionalAction, help="bfloat16 autocast (where the processor has it)")
    add("--resume_from_checkpoint", metavar="PATH", help="a checkpoint, the folder of one, or 'last': --output_dir")
    add("--overwrite_output_dir", action="store_true", help="start again in an --output_dir that holds a run")
    add(
        "--report_to",
        choices=("none", "tensorboard", "trackio"),
        default="none",
        help="log epochs there too (%(default)s)",
    )
    add_hub_flags(parser)
    return parser.parse_args()


def main() -> None:
    """Data, model, fit, calibrate, save."""
    args = parse_args()
    resume = checkpoint_to_resume(args)
    start_log = tracker(args)
    if args.push_to_hub:
        check_login()
    state = PartialState(cpu=default_device().type == "cpu")
    device = state.device if state.num_processes > 1 else default_device()
    bf16 = has_bf16(device) if args.bf16 is None else args.bf16

    with state.main_process_first():  # which leaves in the cache what it prepares
        splits = load_splits(
            args.dataset,
            validation=args.validation_fraction,
            image_column=args.image_column,
            label_column=args.label_column,
            label_names=args.label_names,
            max_train_samples=args.max_train_samples,
            max_eval_samples=args.max_eval_samples,
            skip_unreadable=args.skip_unreadable,
        )
        args.output_dir.mkdir(parents=True, exist_ok=True)
        found = survey_splits(splits, args.output_dir / "unreadable.txt")
    args.image_size = args.image_size or (64 if min(found.size) > LARGE else 32)
    state.print(f"{found}; squashed to {args.image_size}×{args.image_size}")
    train = as_tensor("train", splits, size=args.image_size)
    validation = as_tensor("validation", splits, size=args.image_size)
    counts = {
        name: y.bincount(minlength=len(splits.labels))
        for name, (_, y) in zip(("train", "validation"), (train, validation), strict=True)
    }
    if state.is_main_process:
        if args.overwrite_output_dir:  # not before the data is known to be good
            remove_stale(args.output_dir, keep=resume)
        figures.save_samples(args.output_dir / "samples.png", *train, splits.labels)
        figures.save_classes(args.output_dir / "classes.png", counts, splits.labels)
    mean, std = channel_mean_std(train[0])

    recipe = recipe_for(args, len(train[0]), state.num_processes)
    torch.manual_seed(args.seed)
    model = CifarCnnForImageClassification(
        CifarCnnConfig(
            widths=recipe.widths,
            depths=recipe.depths,
            hidden_act=recipe.hidden_act,
            views=recipe.views,
            image_size=args.image_size,
            id2label=dict(enumerate(splits.labels)),
            label2id={label: i for i, label in enumerate(splits.labels)},
        )
    )
    parent = load_parent(args.init_from, model) if args.init_from else None
    run = runs.describe(
        vars(args) | {"bf16": bf16, "device": device.type, "num_processes": state.num_processes}, parent
    )
    model.to(device)
    train, validation = [tuple(tensor.to(device) for tensor in split) for split in (train, validation)]

    seconds = estimate_seconds(model, train[0], recipe, bf16) / state.num_processes
    each = f"{state.num_processes} × " if state.num_processes > 1 else ""
    state.print(
        f"{len(train[0]):,} images, {recipe.epochs:g} epochs in batches of {recipe.batch_size}, about "
        f"{max(1, round(seconds / 60))} min on this machine ({each}{device.type}, {'bfloat16' if bf16 else 'float32'}, "
        f"{torch.get_num_threads()} threads)"
    )
    with start_log() if state.is_main_process else nullcontext() as log:
        try:
            options = RunOptions(
                args.output_dir,
                mean=mean,
                std=std,
                seed=args.seed,
                patience=args.patience,
                bf16=bf16,
                resume=resume,
                parent=parent and parent.model_sha256,
                log=log,
            )
            progress = CnnTrainer(model, train, validation, recipe, options).train()
        except Stopped as stopped:
            raise Stopped(f"{stopped}; go on with: python {runs.command_to_resume(sys.argv)}") from None
    if not state.is_main_process:
        return

    # Calibrate on validation what will be stored: a temperature goes into the head, so every way of loading has it.
    model.half().float().eval()
    views = predict_logits(model.forward_views, validation[0], mean, std).cpu().numpy()
    labels = validation[1].cpu().numpy()
    temperature = metrics.fit_temperature(views, labels, merge)
    with torch.no_grad():
        model.head.weight /= temperature
    logits = merge(views / temperature)
    model.config.known_threshold = ood.threshold(ood.energy(logits))
    model.config.reduce_to = (
        4 * args.image_size
    )  # pixels: a photograph's shorter side, before the processor squashes it
    size = {"height": args.image_size, "width": args.image_size}
    export.save(model, ViTImageProcessor(size=size, image_mean=mean, image_std=std), args.output_dir)

    figures.save_curves(args.output_dir / "curves.png", progress.history)
    reached = Validation(
        accuracy=float((logits.argmax(axis=1) == labels).mean()),
        accuracy_one_view=progress.best_accuracy,
        nll=metrics.nll(logits, labels),
        temperature=temperature,
    )
    record = RunRecord(
        **run,
        data=DataRecord(
            images=len(train[0]),
            labels=splits.labels,
            counts={name: count.tolist() for name, count in counts.items()},
            skipped=len(splits.skipped),
            test_cut=splits.test_cut,
        ),
        recipe=asdict(recipe),
        train_seconds=round(progress.train_seconds, 1),
        images_seen=progress.step * recipe.batch_size,
        train_flops=training_flops(model, recipe, len(train[0]), progress.step),
        inference_flops=recipe.views * view_flops(model, args.image_size),
        best_epoch=progress.best_epoch,
        validation=reached,
    )
    runs.RunFolder(args.output_dir).write_run(record)
    card.write(args.output_dir)
    (args.output_dir / CHECKPOINT).unlink(missing_ok=True)  # what it was for is done, and it is not part of the model
    print(
        f"{reached.accuracy:.2%} of {len(labels):,} validation images right after "
        f"{progress.train_seconds:,.0f} s of training; saved in {args.output_dir}. "
        f"Measure it: python evaluate.py --model {args.output_dir} --dataset {args.dataset}"
    )
    if args.push_to_hub:
        print(push(args.output_dir, args.hub_model_id, private=args.hub_private_repo, revision=args.hub_revision))


def merge(views: np.ndarray) -> np.ndarray:
    """Logits (views, N, num_labels) -> (N, num_labels), as `forward` does."""
    return average_views(torch.from_numpy(views)).numpy()


def checkpoint_to_resume(args: argparse.Namespace) -> Path | None:
    """The checkpoint that the flags ask for; ModelError rather than write over a run, or go on from nothing."""
    last = args.output_dir / CHECKPOINT
    wanted = last if args.resume_from_checkpoint == "last" else Path(args.resume_from_checkpoint or "")
    wanted = wanted / CHECKPOINT if args.resume_from_checkpoint and wanted.is_dir() else wanted
    finished = runs.RunFolder(args.output_dir).is_finished
    if args.init_from and args.init_from.resolve() == args.output_dir.resolve():
        raise ModelError(f"--init_from and --output_dir are both {args.output_dir}: give another --output_dir")
    if not args.overwrite_output_dir and (finished or (last.exists() and wanted.resolve() != last.resolve())):
        ways = "" if finished else "--resume_from_checkpoint last, "
        state = "a finished run" if finished else "a run"
        raise ModelError(f"{args.output_dir} holds {state}: pass {ways}--overwrite_output_dir or another --output_dir")
    if args.resume_from_checkpoint is None:
        return None
    if not wanted.is_file():
        raise ModelError(f"no checkpoint {wanted}: leave out --resume_from_checkpoint to start from scratch")
    return wanted


def remove_stale(output_dir: Path, keep: Path | None) -> None:
    """Removes what an earlier run left in `output_dir` and would speak of other weights, but for the checkpoint
    `keep`.
    """
    for name in (*runs.STALE, CHECKPOINT):
        if keep is None or (output_dir / name).resolve() != keep.resolve():
            (output_dir / name).unlink(missing_ok=True)


def recipe_for(args: argparse.Namespace, n: int, processes: int = 1) -> CnnRecipe:
    """The recipe with the flags' changes, for n training images of --image_size, a batch shared by so many
    processes.
    """
    recipe = RECIPES[args.recipe]
    if not args.mirror:
        recipe = replace(recipe, mirror=False, views=1)
    if args.image_size < 16:
        raise ModelError(f"--image_size {args.image_size} leaves nothing after three poolings: pass 16 or more")
    scale = args.image_size / 32  # recipes say pixels of an image of 32
    recipe = replace(
        recipe,
        sizes=tuple((epochs, round(size * scale)) for epochs, size in recipe.sizes),
        shift=round(recipe.shift * scale),
        cutout=round(recipe.cutout * scale),
    )
    size = (args.per_device_train_batch_size or 0) * processes
    size = size or min(recipe.batch_size, max(16, n // 20))  # few images need more steps
    if size > n:
        raise ModelError(
            f"a batch of {size} is more than the {n} training images: pass --per_device_train_batch_size {n}"
        )
    # A smaller batch has a noisier update of the same norm: the step shrinks with the square root (arXiv:2405.14578).
    rate = args.learning_rate or recipe.learning_rate * (size / recipe.batch_size) ** 0.5
    recipe = replace(recipe, batch_size=size, learning_rate=rate)
    return recipe.for_epochs(args.num_train_epochs) if args.num_train_epochs else recipe


def load_parent(folder: Path, model: CifarCnnForImageClassification) -> RunRecord:
    """Loads an earlier stage's weights into `model`; gives the record of the run that made them."""
    earlier = load_predictor(folder).model
    now, before = (json.loads(config.to_json_string(use_diff=False)) for config in (model.config, earlier.config))
    same = ("model_type", "widths", "depths", "hidden_act", "id2label")
    if different := [name for name in same if before.get(name) != now[name]]:
        raise ModelError(
            f"--init_from {folder} differs in {', '.join(different)}: give a folder of the same --recipe and data"
        )
    parent = runs.RunFolder(folder).as_parent()
    model.load_state_dict(earlier.state_dict())
    return parent


def tracker(args: argparse.Namespace) -> Callable[[], AbstractContextManager[Callable[[dict], None]]]:
    """What to enter for a function that logs an epoch's metrics where --report_to says."""
    if args.report_to == "none":
        return lambda: nullcontext(lambda metrics: None)
    try:
        package = importlib.import_module(
            {"tensorboard": "torch.utils.tensorboard"}.get(args.report_to, args.report_to)
        )
    except ImportError:
        raise ModelError(f"--report_to {args.report_to} needs a package: pip install {args.report_to}") from None

    @contextmanager
    def tensorboard() -> Iterator[Callable[[dict], None]]:
        with package.SummaryWriter(args.output_dir / "tensorboard") as writer:
            yield lambda metrics: [writer.add_scalar(name, value, metrics["epoch"]) for name, value in metrics.items()]

    @contextmanager
    def trackio() -> Iterator[Callable[[dict], None]]:
        package.init(project="cifar10-cnn", name=args.output_dir.name, space_id=None)  # local: no Space is made
        try:
            yield package.log
        finally:
            package.finish()

    return {"tensorboard": tensorboard, "trackio": trackio}[args.report_to]


if __name__ == "__main__":
    errors.run(main)
