"""Trains a CNN from scratch on images of about 32×32, CIFAR-10 by default.

    python train.py --dataset uoft-cs/cifar10 --output_dir runs/cnn
    python train.py --dataset path/to/folder --output_dir runs/mine     # folder/<label>/*.jpg or folder/train/<label>/*.jpg
    python train.py --recipe accurate --output_dir runs/cnn-accurate

What a recipe reaches is in README.md, from the run.json and evaluation.json of its runs.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
from transformers import ViTImageProcessor

from classifier import augment, data, errors, export, fit, measure, record, report
from classifier.cnn import CifarCnnConfig, CifarCnnForImageClassification
from classifier.errors import ModelError, Stopped
from classifier.files import write_json

RECIPES = {
    "fast": fit.Recipe(sizes=((5, 24), (3, 28), (2, 32)), views=6),
    "accurate": fit.Recipe(
        sizes=((10, 24), (7, 28), (7, 32)), widths=(128, 384, 512), depths=(2, 3, 3), shift=4, cutout=8, views=2
    ),
}


def parse_args() -> argparse.Namespace:
    """The command's flags, named as in `transformers.TrainingArguments` where that has them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", default="uoft-cs/cifar10", help="Hub id, id@revision, or folder of parquet or images (%(default)s)")
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
    add("--num_train_epochs", type=float, help="passes over train (the recipe's)")
    add("--per_device_train_batch_size", type=int, help="images an optimiser step (the recipe's; at most train / 20)")
    add("--learning_rate", type=float, help="Muon's, for convolutions, a fraction of a weight's norm (the recipe's)")
    add("--patience", type=int, metavar="EPOCHS", help="stop after so many without a better validation accuracy (never)")
    add("--image_size", type=int, default=32, metavar="PIXELS", help="a side, that images are squashed to (%(default)s)")
    add("--image_column", help="(the column whose type is Image)")
    add("--label_column", help="(the column whose type is ClassLabel)")
    add("--max_train_samples", type=int, metavar="N", help="train on so many images only (all)")
    add("--max_eval_samples", type=int, metavar="N", help="validate on so many images only (all)")
    add("--skip_unreadable", action="store_true", help="leave out files that can't be read, and count them")
    add("--bf16", action=argparse.BooleanOptionalAction, help="bfloat16 autocast (where the processor has it)")
    add("--resume_from_checkpoint", metavar="PATH", help="a checkpoint, or 'last' for the one in --output_dir")
    add("--overwrite_output_dir", action="store_true", help="start again in an --output_dir that holds a run")
    add(
        "--report_to",
        choices=("none", "tensorboard", "trackio"),
        default="none",
        help="log epochs there too (%(default)s)",
    )
    return parser.parse_args()


def main() -> None:
    """Data, model, fit, calibrate, save."""
    args = parse_args()
    resume = checkpoint_to_resume(args)
    device = torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu")
    bf16 = fit.has_bf16(device) if args.bf16 is None else args.bf16

    splits = data.load(
        args.dataset,
        validation=args.validation_fraction,
        image_column=args.image_column,
        label_column=args.label_column,
        max_train_samples=args.max_train_samples,
        max_eval_samples=args.max_eval_samples,
        skip_unreadable=args.skip_unreadable,
    )
    train = data.as_tensor("train", splits, size=args.image_size)
    validation = data.as_tensor("validation", splits, size=args.image_size)
    counts = {
        name: y.bincount(minlength=len(splits.labels))
        for name, (_, y) in zip(("train", "validation"), (train, validation), strict=True)
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)
    report.save_samples(args.output_dir / "samples.png", *train, splits.labels)
    report.save_classes(args.output_dir / "classes.png", counts, splits.labels)
    mean, std = augment.mean_std(train[0])

    recipe = recipe_for(args, len(train[0]))
    torch.manual_seed(args.seed)
    model = CifarCnnForImageClassification(
        CifarCnnConfig(
            widths=recipe.widths,
            depths=recipe.depths,
            views=recipe.views,
            image_size=args.image_size,
            id2label=dict(enumerate(splits.labels)),
            label2id={label: i for i, label in enumerate(splits.labels)},
        )
    )
    parent = load_parent(args.init_from, model) if args.init_from else None
    run = record.describe(vars(args) | {"bf16": bf16, "device": device.type}, parent)
    model.to(device)
    train, validation = [tuple(tensor.to(device) for tensor in split) for split in (train, validation)]

    seconds = fit.estimate_seconds(model, train[0], recipe, bf16)
    print(
        f"{len(train[0]):,} images, {recipe.epochs:g} epochs, about {max(1, round(seconds / 60))} min on this machine "
        f"({device.type}, {'bfloat16' if bf16 else 'float32'}, {torch.get_num_threads()} threads)"
    )
    with tracker(args) as log:
        try:
            progress = fit.fit(
                model,
                train,
                validation,
                recipe,
                args.output_dir,
                mean=mean,
                std=std,
                seed=args.seed,
                patience=args.patience,
                bf16=bf16,
                resume=resume,
                whiten=parent is None,
                log=log,
            )
        except Stopped as stopped:
            words = [w for w in sys.argv if w != "--overwrite_output_dir"]
            again = shlex.join([*words, *([] if resume else ["--resume_from_checkpoint", "last"])])
            raise Stopped(f"{stopped}; go on with: python {again}") from None

    # Calibrate on validation what will be stored: a temperature goes into the head, so every way of loading has it.
    model.half().float().eval()
    logits = fit.predict(lambda pixels: model(pixels).logits, validation[0], mean, std).cpu().numpy()
    labels = validation[1].cpu().numpy()
    temperature = measure.fit_temperature(logits, labels)
    with torch.no_grad():
        model.head.weight /= temperature
    model.config.known_threshold = measure.known_threshold(logits / temperature)
    model.config.reduce_to = 4 * args.image_size  # pixels: a photograph's shorter side, before the processor squashes it
    size = {"height": args.image_size, "width": args.image_size}
    export.save(model, ViTImageProcessor(size=size, image_mean=mean, image_std=std), args.output_dir)

    report.save_curves(args.output_dir / "curves.png", progress.history)
    results = {
        "data": {
            "images": len(train[0]),
            "labels": splits.labels,
            "counts": {name: count.tolist() for name, count in counts.items()},
            "skipped": len(splits.skipped),
        },
        "recipe": asdict(recipe),
        "train_seconds": round(progress.train_seconds, 1),
        "images_seen": progress.step * recipe.batch_size,
        "train_flops": fit.training_flops(model, recipe, len(train[0]), progress.step),
        "inference_flops": recipe.views * fit.forward_flops(model, args.image_size),  # an image
        "best_epoch": progress.best_epoch,
        "validation": {
            "accuracy": float((logits.argmax(axis=1) == labels).mean()),
            "accuracy_one_view": progress.best_accuracy,
            "nll": measure.nll(logits / temperature, labels),
            "temperature": temperature,
        },
    }
    write_json(args.output_dir / "run.json", run | results)
    (args.output_dir / fit.CHECKPOINT).unlink()  # what it was for is done, and it is not part of the model
    print(
        f"{results['validation']['accuracy']:.2%} of {len(labels):,} validation images right after "
        f"{progress.train_seconds:,.0f} s of training; saved in {args.output_dir}. "
        f"Measure it: python evaluate.py --model {args.output_dir} --dataset {args.dataset}"
    )


def checkpoint_to_resume(args: argparse.Namespace) -> Path | None:
    """The checkpoint that the flags ask for; ModelError rather than write over a run."""
    last = args.output_dir / fit.CHECKPOINT
    if args.resume_from_checkpoint:
        return last if args.resume_from_checkpoint == "last" else Path(args.resume_from_checkpoint)
    if not args.overwrite_output_dir and (last.exists() or (args.output_dir / "run.json").exists()):
        ways = "--resume_from_checkpoint last, " if last.exists() else ""
        raise ModelError(f"{args.output_dir} holds a run: pass {ways}--overwrite_output_dir or another --output_dir")
    return None


def recipe_for(args: argparse.Namespace, n: int) -> fit.Recipe:
    """The recipe with the flags' changes, and a batch that gives few images enough steps (n is the number of images)."""
    recipe = RECIPES[args.recipe]
    size = args.per_device_train_batch_size or min(recipe.batch_size, max(16, n // 20))
    if size > n:
        raise ModelError(f"a batch of {size} is more than the {n} training images: lower --per_device_train_batch_size")
    # A smaller batch has a noisier update of the same norm: the step shrinks with the square root (arXiv:2405.14578).
    rate = args.learning_rate or recipe.learning_rate * (size / recipe.batch_size) ** 0.5
    recipe = replace(recipe, batch_size=size, learning_rate=rate)
    return recipe.for_epochs(args.num_train_epochs) if args.num_train_epochs else recipe


def load_parent(folder: Path, model: CifarCnnForImageClassification) -> dict:
    """Loads an earlier stage's weights into `model`; gives its run.json and its weights' digest, for the chain."""
    try:
        earlier = CifarCnnForImageClassification.from_pretrained(folder, dtype=torch.float32)
        model.load_state_dict(earlier.state_dict())
        parent = json.loads((folder / "run.json").read_text())
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"--init_from {folder} can't be used: {reason}; give a folder that train.py wrote with this --recipe"
        ) from error
    return parent | {"model_sha256": record.sha256(folder / "model.safetensors")}


@contextmanager
def tracker(args: argparse.Namespace) -> Iterator[Callable[[dict], None]]:
    """A function that logs an epoch's metrics where --report_to says."""
    if args.report_to == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(args.output_dir / "tensorboard") as writer:
            yield lambda metrics: [writer.add_scalar(name, value, metrics["epoch"]) for name, value in metrics.items()]
    elif args.report_to == "trackio":
        import trackio

        trackio.init(project="cifar10-cnn", name=args.output_dir.name, space_id=None)  # local: no Space is made
        yield trackio.log
        trackio.finish()
    else:
        yield lambda metrics: None


if __name__ == "__main__":
    errors.run(main)
