"""Measures models on a dataset's test split, which no training reads.

    python evaluate.py --model models/cnn models/vit --dataset uoft-cs/cifar10 --output_dir report
    python evaluate.py --model user/cifar10-vit@main --dataset path/to/images
    python evaluate.py --model runs/cnn --corrupted_samples 0 --bf16          # a quick look

Writes evaluation.json, timing.json and a report to --output_dir (report.md, report.pdf, slides.pptx, figures/), and
each model's own numbers beside its weights, with its card; model_card.md, the card of the best embedded model, follows.
evaluation.json is the same on every run: what is drawn is drawn by seed, and timings are in timing.json. What the
models gave is cached, so a run that was stopped goes on.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from classifier import runs
from classifier.cli import add_hub_flags, positive_int
from classifier.data.loaders import fingerprint, image_batches
from classifier.data.splits import Splits, load_splits, sample_by_class
from classifier.errors import DataError, ModelError, run
from classifier.evaluation import corruptions, metrics, ood, predictions, profiling
from classifier.evaluation.evaluate_metrics.classification import Classification
from classifier.evaluation.predictions import CACHE, Predictions
from classifier.files import write_json, write_text
from classifier.hub import check_login
from classifier.models import explain, processor
from classifier.models.cnn import average_views
from classifier.models.predictor import Predictor, load_predictor
from classifier.publish.upload import push
from classifier.reporting import card, figures, formatting
from classifier.reporting import report as pages
from classifier.training.runtime import keep_freed_memory

ROOT = Path(__file__).resolve().parent
EMBEDDED, MODEL_CARD = ROOT / "models", ROOT / "model_card.md"
MISTAKES = 12  # that are told
PICTURES = 64  # a batch


def parse_args() -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", nargs="+", default=["models/cnn"], help="folders, Hub ids or id@revision (%(default)s)")
    add(
        "--dataset",
        default="uoft-cs/cifar10",
        help="Hub id, id@revision, folder, or table of paths and labels (%(default)s)",
    )
    add("--output_dir", type=Path, default="report", help="folder for evaluation.json and the report (%(default)s)")
    add("--format", nargs="*", choices=pages.FORMATS, default=pages.FORMATS, help="of the report (all)")
    add("--max_eval_samples", type=positive_int, metavar="N", help="measure so many images only, drawn by class (all)")
    add(
        "--corrupted_samples",
        type=int,
        default=1000,
        metavar="N",
        help="images to corrupt, by class; 0: none (%(default)s)",
    )
    add(
        "--ood_samples",
        type=int,
        default=250,
        metavar="N",
        help="images of no label, of each set of them; 0: none (%(default)s)",
    )
    add("--ood_dataset", nargs="*", default=[], help="data sets of none of the labels, beside the sets that are made")
    add(
        "--bf16",
        action="store_true",
        help="compute in bfloat16, several times as fast where the processor has it; written to --output_dir alone",
    )
    add("--image_column", help="(the column whose type is Image)")
    add("--label_column", help="(the column whose type is ClassLabel)")
    add("--label_names", type=Path, metavar="JSON", help="a file of other names for labels, as in training")
    add("--skip_unreadable", action="store_true", help="leave out files that can't be read, and count them")
    add_hub_flags(parser)
    return parser.parse_args()


def main() -> None:
    """Each model's outputs for test, strange and corrupted images; the measures of these; figures and cards."""
    args = parse_args()
    check_push(args)
    keep_freed_memory()
    predictors = {model: load_predictor(model) for model in args.model}
    for predictor in predictors.values():
        predictor.bf16 = args.bf16
    if len({predictor.name for predictor in predictors.values()}) < len(args.model):
        raise ModelError(f"two of {', '.join(args.model)} have the same name: rename a folder")
    how = {
        "image_column": args.image_column,
        "label_column": args.label_column,
        "skip_unreadable": args.skip_unreadable,
    }
    splits = load_splits(
        args.dataset,
        splits=("train", "test"),
        label_names=args.label_names,
        max_train_samples=1000,
        max_eval_samples=args.max_eval_samples,
        **how,
    )
    others = {
        name: load_splits(name, splits=("test",), max_eval_samples=args.ood_samples)
        for name in args.ood_dataset
        if args.ood_samples
    }
    for model, predictor in predictors.items():
        check_labels(model, predictor, splits)
        warn_of_another_cut(model, args.dataset, splits)

    args.output_dir.mkdir(parents=True, exist_ok=True)
    tests: dict[str, Predictions] = {}
    evaluations, timings = [], []
    for model, predictor in predictors.items():
        test = tests[predictor.name] = outputs_of(predictor, "test", splits)
        evaluation = {"model": predictor.name, "revision": predictor.revision, "n_parameters": predictor.n_parameters}
        evaluation |= summarize(test, splits.labels, temperature_of(model))
        if (views := getattr(predictor.model.config, "views", 1)) > 1:
            evaluation |= {
                "views": views,
                "accuracy_one_view": float((test.views[:, 0].argmax(axis=1) == test.labels).mean()),
            }
        evaluation["strangers"] = tell_strangers(predictor, test, splits, args.ood_samples, others)
        evaluation["corrupted"] = under_corruption(predictor, splits, args.corrupted_samples)
        evaluations.append(evaluation)
        timings.append({"model": predictor.name, **profiling.measure(predictor)})
        low, high = evaluation["accuracy_ci95"]
        print(
            f"{model}: accuracy {evaluation['accuracy']:.4f} ({low:.4f} to {high:.4f}), macro F1 {evaluation['f1']:.4f}"
        )

    if absent := [label for label, found in evaluations[0]["per_class"].items() if not found["n"]]:
        print(
            f"no test image is of {', '.join(absent[:5])}: precision, recall and F1 of such a class count as 0 in "
            "the means"
        )
    head = {"bf16": True} if args.bf16 else {}
    head |= {"dataset": splits.name, "dataset_revision": splits.revision, "split": "test", "n": len(test.labels)}
    together = {"comparisons": compared(tests), "average": averaged(tests)}
    write_json(args.output_dir / "evaluation.json", head | {"models": evaluations} | together)
    write_json(args.output_dir / "timing.json", {"machine": runs.machine(), "models": timings})
    for model, evaluation, timing in zip(predictors, evaluations, timings, strict=True):
        if Path(model).is_dir() and not (args.max_eval_samples or args.bf16):  # which are not the model's result
            write_json(Path(model) / "evaluation.json", head | {"models": [evaluation]})
            write_json(Path(model) / "timing.json", {"machine": runs.machine(), "models": [timing]})
            matrix = np.array(evaluation["confusion_matrix"])
            figures.save_confusion(Path(model) / "confusion_matrix.png", matrix, splits.labels)
            if (Path(model) / "run.json").exists() or not (
                Path(model) / "README.md"
            ).exists():  # not over another's card
                card.write(Path(model))
    if not args.bf16 and any(Path(model).resolve().parent == EMBEDDED for model in args.model):
        write_model_card()
    if args.format:
        command = runs.command()
        pages.write(args.output_dir, predictors, splits, heat_map=looked_at, command=command, formats=args.format)
    skipped = len(splits.test) - len(test.labels)
    without = f", without {formatting.plural(skipped, 'unreadable file')}" if skipped else ""
    print(f"{len(test.labels):,} images{without}; written to {args.output_dir}")
    if args.push_to_hub:
        for model in args.model:
            print(push(Path(model), args.hub_model_id, private=args.hub_private_repo, revision=args.hub_revision))


def check_labels(model: str, predictor: Predictor, splits: Splits) -> None:
    """DataError unless the model knows the dataset's labels, in whatever order."""
    if set(predictor.labels) == set(splits.labels):
        return
    apart = [
        f"{who} {', '.join(names[:5])}{' …' if len(names) > 5 else ''}"
        for who, names in (
            ("only the model has", sorted(set(predictor.labels) - set(splits.labels))),
            ("only the data has", sorted(set(splits.labels) - set(predictor.labels))),
        )
        if names
    ]
    raise DataError(
        f"{model} and {splits.name} have other labels ({'; '.join(apart)}): fine-tune it on this data, or rename"
    )


def warn_of_another_cut(model: str, dataset: str, splits: Splits) -> None:
    """Says so where a model may have been trained on what it is tested on: the dataset has no test split, and has
    changed.
    """
    run = card.read(Path(model) / "run.json")
    stages = [stage for stage in card.stages_of(run) if stage["settings"].get("dataset") == dataset] if run else []
    if splits.test_cut and any(stage["data"].get("test_cut") != splits.test_cut for stage in stages):
        print(
            f"{model} was trained when other images were cut for test: it may know some that it is tested on now. "
            "Train it "
            "again, or keep a test split of your own in the dataset"
        )


def outputs_of(predictor: Predictor, split: str, splits: Splits) -> Predictions:
    """A split's outputs, the logits in the order of the dataset's labels if the model knows these."""
    found = predictions.compute(
        predictor,
        lambda: image_batches(split, splits, PICTURES),
        images=fingerprint(split, splits),
        folder=CACHE,
        n=len(splits[split]),
        name=f"{splits.name} {split}",
    )
    return in_order(found, predictor.labels, splits.labels)


def in_order(found: Predictions, own: list[str], wanted: list[str]) -> Predictions:
    """Outputs whose logits are in another order of the same labels; unchanged if the labels are others."""
    if own == wanted or set(own) != set(wanted):
        return found
    order = [own.index(label) for label in wanted]
    return replace(found, logits=found.logits[:, order], views=found.views[..., order])


def summarize(test: Predictions, names: list[str], temperature: float | None) -> dict:
    """What evaluation.json says of one model on test: fractions, and means over classes."""
    logits, labels = test.logits, test.labels
    predicted = logits.argmax(axis=1)
    found = Classification().compute(predictions=predicted, references=labels, labels=list(range(len(names))))
    counts = np.bincount(labels, minlength=len(names))
    columns = found.pop("per_class")
    per_class = {
        name: {metric: values[i] for metric, values in columns.items()} | {"n": int(counts[i])}
        for i, name in enumerate(names)
    }
    intervals = metrics.bootstrap(labels, predicted, num_labels=len(names))
    weighted = {
        metric: float(np.average([per_class[name][metric] for name in names], weights=counts))
        for metric in ("precision", "recall", "f1")
    }
    summary = {}
    for metric in ("accuracy", "precision", "recall", "f1"):
        summary |= {metric: found.pop(metric), f"{metric}_ci95": list(intervals[metric])}
    summary |= {"weighted": weighted, "per_class": per_class} | found
    summary["top_k_accuracy"] = {str(k): metrics.top_k_accuracy(logits, labels, k) for k in (2, 3, 5) if k < len(names)}
    summary |= calibration(logits, labels)
    summary["temperature"] = temperature
    summary["before_temperature"] = calibration(untempered(test, temperature), labels) if temperature else None
    wrong = metrics.most_confident_mistakes(logits, labels, MISTAKES)
    top = np.exp(-metrics.nll_per_image(logits[wrong], predicted[wrong]))
    summary["mistakes"] = [
        {"image": int(i), "label": names[labels[i]], "predicted": names[predicted[i]], "probability": float(p)}
        for i, p in zip(wrong, top, strict=True)
    ]
    confused = metrics.most_confused(np.array(summary["confusion_matrix"]), 5)
    summary["confused"] = [{"label": names[a], "predicted": names[b], "n": n} for a, b, n in confused]
    return summary


def untempered(test: Predictions, temperature: float) -> np.ndarray:
    """The logits (N, C) before each view's were divided by the temperature."""
    views = torch.from_numpy(test.views * np.float32(temperature))
    return (views[:, 0] if views.shape[1] == 1 else average_views(views.transpose(0, 1))).numpy()


def calibration(logits: np.ndarray, labels: np.ndarray) -> dict:
    """How far probabilities can be believed."""
    bins = metrics.reliability(logits, labels)
    return {
        "nll": metrics.nll(logits, labels),
        "brier": metrics.brier(logits, labels),
        "ece": metrics.ece(logits, labels),
        "reliability": {name: values.tolist() for name, values in bins._asdict().items()},
    }


def temperature_of(model: str) -> float | None:
    """The temperature that was folded into a folder's weights, as its run.json tells; None elsewhere."""
    path = Path(model) / "run.json"
    return json.loads(path.read_text())["validation"].get("temperature") if path.exists() else None


def tell_strangers(
    predictor: Predictor, test: Predictions, splits: Splits, n: int, others: dict[str, Splits]
) -> dict | None:
    """How well images of none of the labels are told from those of test, by each score and for each set of `n`
    strangers.

    AUROC, and FPR95: the fraction of strangers that pass where 95% of test do. None for no strangers.
    """
    if not n:
        return None
    side = processor.size_of(predictor.processor)
    key = fingerprint("test", splits)
    made = ood.synthetic_sets(first_images(splits, n, side))  # {name: uint8 (N, 3, side, side)}

    def batches(images: np.ndarray) -> Iterator[tuple[list[Image.Image], list[int]]]:
        for i in range(0, len(images), PICTURES):
            pictures = [Image.fromarray(image) for image in images[i : i + PICTURES].transpose(0, 2, 3, 1)]
            yield pictures, [0] * len(pictures)

    found = {
        name: predictions.compute(
            predictor,
            partial(batches, images),
            images=f"{key} {name} {len(images)} of {side}",
            folder=CACHE,
            n=len(images),
            name=name,
        )
        for name, images in made.items()
    }
    found |= {name: outputs_of(predictor, "test", other) for name, other in others.items()}
    scores = {
        "max_probability": lambda each: ood.max_probability(each.logits),
        "energy": lambda each: ood.energy(each.logits),
    }
    if splits.train is not None:  # which a test split alone has not
        neighbours = ood.fit_neighbours(outputs_of(predictor, "train", splits).features)
        scores["neighbours"] = lambda each: neighbours.scores(each.features)
    told: dict[str, dict] = {}
    for score, of in scores.items():
        own = of(test)
        told[score] = {
            name: {"auroc": ood.auroc(own, of(each)), "fpr95": ood.fpr_at(own, of(each))}
            for name, each in found.items()
        }
    return told


def first_images(splits: Splits, n: int, side: int) -> np.ndarray:
    """The first readable test images, squashed: uint8 (at most n, 3, side, side)."""
    found: list[np.ndarray] = []
    for images, _ in image_batches("test", splits, PICTURES):
        found += [
            np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)).transpose(2, 0, 1) for image in images
        ]
        if len(found) >= n:
            break
    return np.stack(found[:n])


def under_corruption(predictor: Predictor, splits: Splits, n: int) -> dict | None:
    """Accuracy on `n` test images, clean and at each strength of each corruption; None for no images."""
    if not n:
        return None
    labels = splits.class_indices["test"]
    rows = sample_by_class(labels, n, seed=0) if n < len(labels) else np.arange(len(labels))
    part = splits.select("test", rows)
    key = fingerprint("test", part)

    def batches(kind: str, strength: int) -> Iterator[tuple[list[Image.Image], list[int]]]:
        for images, batch_labels in image_batches("test", part, PICTURES):
            for i, image in enumerate(images):  # one after the other: photographs are large
                pixels = torch.from_numpy(np.array(image).transpose(2, 0, 1)[None])
                images[i] = Image.fromarray(corruptions.corrupt(pixels, kind, strength)[0].permute(1, 2, 0).numpy())
            yield images, batch_labels

    def accuracy(found: Predictions) -> float:
        return float((found.logits.argmax(axis=1) == found.labels).mean())

    def corrupted(kind: str, strength: int) -> float:
        images, name = f"{key} {kind} {strength}", f"{kind} {strength}"
        make = partial(batches, kind, strength)
        found = predictions.compute(predictor, make, images=images, folder=CACHE, n=len(rows), name=name)
        return accuracy(in_order(found, predictor.labels, splits.labels))

    clean = outputs_of(predictor, "test", part)
    told = {"n": len(clean.labels), "clean": accuracy(clean)}
    told["accuracy"] = {kind: [corrupted(kind, strength) for strength in range(1, 6)] for kind in corruptions.KINDS}
    return told


def compared(tests: dict[str, Predictions]) -> list[dict]:
    """Each two models on the same images."""
    return [
        {"models": [a, b], **metrics.compare(tests[a].logits, tests[b].logits, tests[a].labels)}
        for a, b in combinations(tests, 2)
    ]


def averaged(tests: dict[str, Predictions]) -> dict | None:
    """What the mean of all models' probabilities reaches; None for a single model."""
    if len(tests) < 2:
        return None
    labels = next(iter(tests.values())).labels
    right = metrics.ensemble_logits([found.logits for found in tests.values()]).argmax(axis=1) == labels
    return {
        "models": list(tests),
        "accuracy": float(right.mean()),
        "accuracy_ci95": list(metrics.bootstrap_interval(right.astype(float))),
    }


def looked_at(predictor: Predictor, image: Image.Image) -> Image.Image | None:
    """What the model saw of an image, and over it where it looked; None for an architecture that can't be explained."""
    try:
        return explain.overlay(explain.preprocessed_image(predictor, image), explain.heatmap(predictor, image))
    except ModelError:
        return None


def write_model_card() -> None:
    """Renders model_card.md, the card of the best embedded model, where it is not that already."""
    evaluations = {path.parent: json.loads(path.read_text()) for path in EMBEDDED.glob("*/evaluation.json")}
    if not evaluations:
        return
    best = max(evaluations, key=lambda folder: evaluations[folder]["models"][0]["accuracy"])
    text = f"{card.render(best, figures=f'models/{best.name}/')}\n"
    if not MODEL_CARD.exists() or MODEL_CARD.read_text(encoding="utf-8") != text:
        write_text(MODEL_CARD, text)


def check_push(args: argparse.Namespace) -> None:
    """ModelError or HubError, before the work, for a --push_to_hub that could not be done after it."""
    if not args.push_to_hub:
        return
    if elsewhere := [model for model in args.model if not Path(model).is_dir()]:
        raise ModelError(
            f"--push_to_hub sends folders, and {elsewhere[0]} is none: fetch it, or leave out --push_to_hub"
        )
    if args.hub_model_id and len(args.model) > 1:
        raise ModelError(
            "--hub_model_id names one repository: give one --model, or leave it out (folders name repositories)"
        )
    if args.max_eval_samples or args.bf16:
        raise ModelError("--max_eval_samples and --bf16 do not give the model's result: leave them out to push it")
    check_login()


if __name__ == "__main__":
    run(main)
