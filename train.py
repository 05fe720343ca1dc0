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
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker
from transformers import ViTImageProcessor

from classifier import errors, runs
from classifier.cli import add_hub_flags, positive_float, positive_int
from classifier.data.loaders import as_tensor
from classifier.data.survey import channel_mean_std
from classifier.errors import ModelError
from classifier.evaluation import metrics, ood
from classifier.hub import check_login
from classifier.models.cnn import CifarCnnConfig, CifarCnnForImageClassification, average_views
from classifier.models.loading import default_device, update_ood
from classifier.models.logit_scores import SCORES
from classifier.models.predictor import load_predictor
from classifier.publish import export
from classifier.records import RunRecord, Validation
from classifier.training import protocol
from classifier.training.checkpoint import CHECKPOINT
from classifier.training.cnn_recipe import CnnRecipe, RunOptions
from classifier.training.cnn_trainer import (
    CnnTrainer,
    Tensors,
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
        sizes=((10, 24), (7, 28), (7, 32)),
        widths=(128, 384, 512),
        depths=(2, 3, 3),
        shift=4,
        cutout=8,
        degraded=0.5,
        views=2,
    ),
}


def parse_args() -> argparse.Namespace:
    """The command's flags, named as in `transformers.TrainingArguments` where that has them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--dataset",
        default="uoft-cs/cifar10",
        help="Hub id, id:configuration, id@revision, folder, or table of paths and labels (%(default)s)",
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
    """Data, model, training, calibration, saving."""
    args = parse_args()
    if args.init_from:
        protocol.check_parent("--init_from", args.init_from, args.output_dir)
    resume = protocol.checkpoint_to_resume(
        args.output_dir, args.resume_from_checkpoint, find_checkpoint, overwrite=args.overwrite_output_dir
    )
    if args.report_to != "none" and not find_spec(args.report_to):
        raise ModelError(f"--report_to {args.report_to} needs a package: pip install {args.report_to}")
    if args.push_to_hub:
        check_login()
    state = PartialState(cpu=default_device().type == "cpu")
    device = state.device if state.num_processes > 1 else default_device()
    bf16 = has_bf16(device) if args.bf16 is None else args.bf16

    splits, survey = protocol.load_data(args, args.output_dir)
    args.image_size = args.image_size or (64 if min(survey.size) > LARGE else 32)
    state.print(f"{survey}; squashed to {args.image_size}×{args.image_size}")
    tensors = {name: as_tensor(name, splits, size=args.image_size) for name in protocol.SPLITS}
    data = protocol.TrainingData(splits, tensors)
    if state.is_main_process:
        protocol.prepare_folder(args.output_dir, data, CHECKPOINT, overwrite=args.overwrite_output_dir, keep=resume)
    mean, std = channel_mean_std(tensors["train"][0])

    recipe = recipe_for(args, len(tensors["train"][0]), state.num_processes)
    torch.manual_seed(args.seed)
    model = build_model(recipe, args.image_size, splits.labels)
    parent = load_parent(args.init_from, model) if args.init_from else None
    run = runs.describe(
        vars(args) | {"bf16": bf16, "device": device.type, "num_processes": state.num_processes}, parent
    )
    model.to(device)
    train, validation = ((images.to(device), labels.to(device)) for images, labels in tensors.values())
    state.print(describe_plan(model, train[0], recipe, bf16))
    tracked = args.report_to != "none" and state.is_main_process
    log_to = tracking(args.report_to, args.output_dir) if tracked else nullcontext(lambda metrics: None)
    with log_to as log, protocol.explaining_how_to_resume():
        options = RunOptions(
            args.output_dir,
            mean=mean,
            std=std,
            seed=args.seed,
            patience=args.patience,
            bf16=bf16,
            resume=resume,
            parent=parent.model_sha256 if parent else None,
            log=log,
        )
        progress = CnnTrainer(model, train, validation, recipe, options).train()
    if not state.is_main_process:
        return

    calibrated = calibrate_views(model, validation, mean, std)
    model.config.reduce_to = 4 * args.image_size  # pixels: a photograph's shorter side before it is squashed
    size = {"height": args.image_size, "width": args.image_size}
    export.save(model, ViTImageProcessor(size=size, image_mean=mean, image_std=std), args.output_dir)
    result = protocol.TrainingResult(
        history=progress.history,
        best_epoch=progress.best_epoch,
        train_seconds=progress.train_seconds,
        images_seen=progress.step * recipe.batch_size,
        train_flops=training_flops(model, recipe, len(train[0]), progress.step),
        inference_flops=recipe.views * view_flops(model, args.image_size),
        recipe=asdict(recipe),
    )
    calibrated.accuracy_one_view = progress.best_accuracy
    protocol.finish_run(args.output_dir, data, CHECKPOINT, run, result, calibrated)
    if args.push_to_hub:
        protocol.push_result(args.output_dir, args)


def build_model(recipe: CnnRecipe, image_size: int, labels: list[str]) -> CifarCnnForImageClassification:
    """The recipe's CNN with random weights, for images of `image_size` pixels a side."""
    return CifarCnnForImageClassification(
        CifarCnnConfig(
            widths=recipe.widths,
            depths=recipe.depths,
            hidden_act=recipe.hidden_act,
            views=recipe.views,
            image_size=image_size,
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
        )
    )


def describe_plan(model: CifarCnnForImageClassification, images: torch.Tensor, recipe: CnnRecipe, bf16: bool) -> str:
    """Images, epochs and the estimated time in one line; `images` (N, C, H, W) are on their device."""
    processes, device = PartialState().num_processes, images.device.type
    seconds = estimate_seconds(model, images, recipe, bf16) / processes
    return (
        f"{len(images):,} images, {recipe.epochs:g} epochs in batches of {recipe.batch_size}, about "
        f"{max(1, round(seconds / 60))} min on this machine ({f'{processes} × ' if processes > 1 else ''}{device}, "
        f"{'bfloat16' if bf16 else 'float32'}, {torch.get_num_threads()} threads)"
    )


def calibrate_views(model: CifarCnnForImageClassification, validation: Tensors, mean: list, std: list) -> Validation:
    """Rounds the model to float16, folds a temperature fitted on validation into its head, and sets `config.ood`.

    The temperature is stored in the head, so every loader applies it. The score of out-of-distribution detection is the
    one that best tells validation images from sets that are made of them; 95% of them reach its threshold.

    Returns:
        accuracy (fraction), nll (nats) and temperature, with the views that `forward` averages.
    """
    model.half().float().eval()
    views = predict_logits(model.forward_views, validation[0], mean, std).cpu().numpy()
    labels = validation[1].cpu().numpy()
    temperature = metrics.fit_temperature(views, labels, merge)
    with torch.no_grad():
        model.head.weight /= temperature
    logits = merge(views / temperature)
    images = validation[0].cpu().numpy()
    score = ood.best_score_on_synthetic(logits, images, lambda made: logits_of(model, made, mean, std))
    update_ood(model.config, score=score, threshold=ood.threshold(SCORES[score](logits)))
    accuracy = float((logits.argmax(axis=1) == labels).mean())
    return Validation(accuracy=accuracy, nll=metrics.nll(logits, labels), temperature=temperature)


def logits_of(model: CifarCnnForImageClassification, images: np.ndarray, mean: list, std: list) -> np.ndarray:
    """Logits (N, num_labels) of images uint8 (N, C, H, W), with the views that `forward` averages."""
    pixels = torch.from_numpy(images).to(model.device)
    return merge(predict_logits(model.forward_views, pixels, mean, std).cpu().numpy())


def merge(views: np.ndarray) -> np.ndarray:
    """Logits (views, N, num_labels) -> (N, num_labels), as `forward` does."""
    return average_views(torch.from_numpy(views)).numpy()


def find_checkpoint(path: Path) -> Path | None:
    """The checkpoint at `path` or in it; None if there is none."""
    path = path / CHECKPOINT if path.is_dir() else path
    return path if path.is_file() else None


def recipe_for(args: argparse.Namespace, n: int, processes: int = 1) -> CnnRecipe:
    """The recipe with the flags' changes, for n training images of --image_size; processes share each batch."""
    recipe = RECIPES[args.recipe]
    if not args.mirror:
        recipe = replace(recipe, mirror=False, views=1)
    if args.image_size < 16:
        raise ModelError(f"--image_size {args.image_size} leaves nothing after three poolings: pass 16 or more")
    scale = args.image_size / 32  # recipes give pixels for images of 32×32
    recipe = replace(
        recipe,
        sizes=tuple((epochs, round(size * scale)) for epochs, size in recipe.sizes),
        shift=round(recipe.shift * scale),
        cutout=round(recipe.cutout * scale),
    )
    size = (args.per_device_train_batch_size or 0) * processes
    size = size or min(recipe.batch_size, max(16, n // 20), n)  # few images need more steps
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


@contextmanager
def tracking(report_to: str, output_dir: Path) -> Iterator[Callable[[dict], None]]:
    """Gives a function that logs an epoch's metrics to the tracker of --report_to."""
    tracker: GeneralTracker
    if report_to == "tensorboard":
        tracker = TensorBoardTracker("tensorboard", output_dir)  # the folder's name within output_dir
    else:
        tracker = TrackioTracker("cifar10-cnn", name=output_dir.name, space_id=None)  # local: no Space is made
    tracker.start()
    try:
        yield lambda metrics: tracker.log(metrics, step=metrics["epoch"])
    finally:
        tracker.finish()


if __name__ == "__main__":
    errors.run(main)
