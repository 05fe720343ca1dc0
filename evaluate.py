"""Measures models on a dataset's test split. It is the one script that reads that split.

    python evaluate.py --model runs/cnn --dataset uoft-cs/cifar10 --output_dir report
    python evaluate.py --model models/cnn user/cifar10-vit@main --dataset path/to/images

Writes evaluation.json and a confusion matrix a model to --output_dir, and each model's own beside its weights, with its card;
model_card.md, the card of the best embedded model, follows.
The file is the same on every run: intervals are seeded, and timings are not in it.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from classifier import card, data, hub, measure, metrics, report
from classifier.errors import DataError, ModelError, run
from classifier.files import write_json, write_text
from classifier.flags import add_hub_flags, positive_int
from classifier.predictor import Predictor, load_predictor

ROOT = Path(__file__).resolve().parent
EMBEDDED, MODEL_CARD = ROOT / "models", ROOT / "model_card.md"


def parse_args() -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", nargs="+", default=["models/cnn"], help="folders, Hub ids or id@revision (%(default)s)")
    add("--dataset", default="uoft-cs/cifar10", help="Hub id, id@revision, or folder of parquet or images (%(default)s)")
    add("--output_dir", type=Path, default="report", help="folder for evaluation.json and figures (%(default)s)")
    add("--per_device_eval_batch_size", type=positive_int, default=64, help="images a forward pass (%(default)s)")
    add("--max_eval_samples", type=positive_int, metavar="N", help="measure so many images only, drawn by class (all)")
    add("--image_column", help="(the column whose type is Image)")
    add("--label_column", help="(the column whose type is ClassLabel)")
    add("--skip_unreadable", action="store_true", help="leave out files that can't be read, and count them")
    add_hub_flags(parser)
    return parser.parse_args()


def main() -> None:
    """Test images once into memory, then each model over them, then the measures."""
    args = parse_args()
    check_push(args)
    predictors = [load_predictor(model) for model in args.model]
    splits = data.load(
        args.dataset,
        splits=("test",),
        image_column=args.image_column,
        label_column=args.label_column,
        max_eval_samples=args.max_eval_samples,
        skip_unreadable=args.skip_unreadable,
    )
    for model, predictor in zip(args.model, predictors, strict=True):
        if predictor.labels != splits.labels:
            raise DataError(f"{model} knows {', '.join(predictor.labels)}; {splits.name} has {', '.join(splits.labels)}")
    if len({predictor.name for predictor in predictors}) < len(predictors):
        raise ModelError(f"two of {', '.join(args.model)} have the same name: rename a folder")

    args.output_dir.mkdir(parents=True, exist_ok=True)
    header = {"dataset": splits.name, "dataset_revision": splits.revision, "split": "test"}
    evaluations = []
    for model, predictor in zip(args.model, predictors, strict=True):
        logits, labels = predict(predictor, splits, args.per_device_eval_batch_size)
        evaluation = {"model": predictor.name, "revision": predictor.revision, "n_parameters": predictor.n_parameters}
        evaluation |= summarize(logits, labels, splits.labels)
        if getattr(predictor.model.config, "views", 1) > 1:
            evaluation["views"], predictor.model.config.views = predictor.model.config.views, 1
            logits, _ = predict(predictor, splits, args.per_device_eval_batch_size)
            evaluation["accuracy_one_view"] = float((logits.argmax(axis=1) == labels).mean())
        evaluations.append(evaluation)

        matrix = np.array(evaluation["confusion_matrix"])
        report.save_confusion(args.output_dir / f"confusion_{predictor.name.replace('/', '_')}.png", matrix, splits.labels)
        if Path(model).is_dir() and args.max_eval_samples is None:  # a part of the split is not the model's result
            write_json(Path(model) / "evaluation.json", header | {"n": len(labels), "models": [evaluation]})
            report.save_confusion(Path(model) / "confusion_matrix.png", matrix, splits.labels)
            card.write(Path(model))
        low, high = evaluation["accuracy_ci95"]
        print(f"{model}: accuracy {evaluation['accuracy']:.4f} ({low:.4f} to {high:.4f}), macro F1 {evaluation['f1']:.4f}")
    write_json(args.output_dir / "evaluation.json", header | {"n": len(labels), "models": evaluations, "comparisons": []})
    write_model_card()
    skipped = f", without {len(splits.skipped)} unreadable files" if splits.skipped else ""
    print(f"{len(labels):,} images{skipped}; written to {args.output_dir}")
    if args.push_to_hub:
        for model in args.model:
            print(hub.push(Path(model), args.hub_model_id, private=args.hub_private_repo, revision=args.hub_revision))


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
        raise ModelError(f"--push_to_hub sends folders, and {elsewhere[0]} is none: fetch it, or leave out --push_to_hub")
    if args.hub_model_id and len(args.model) > 1:
        raise ModelError("--hub_model_id names one repository: give one --model, or leave it out (folders name repositories)")
    if args.max_eval_samples:
        raise ModelError("--max_eval_samples measures a part of the split: leave it out to push the model's result")
    hub.check_login()


def predict(predictor: Predictor, splits: data.Splits, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, C) and labels (N,) of the test split."""
    logits, labels = [], []
    with tqdm(total=len(splits.test), unit="img", desc=predictor.name) as bar:
        for images, batch_labels in data.batches("test", splits, batch_size):
            logits.append(predictor.logits(images))
            labels.extend(batch_labels)
            bar.update(len(images))
    if not labels:
        raise DataError(f"none of the {len(splits.test)} test images of {splits.name} is readable: check the files")
    return np.concatenate(logits), np.array(labels)


def summarize(logits: np.ndarray, labels: np.ndarray, names: list[str]) -> dict:
    """What evaluation.json says of one model: fractions, and macro means over classes."""
    predicted = logits.argmax(axis=1)
    low, high = measure.bootstrap_interval((predicted == labels).astype(float))
    found = metrics.load("classification").compute(predictions=predicted, references=labels, labels=list(range(len(names))))
    counts = np.bincount(labels, minlength=len(names))
    per_class = {
        name: {metric: values[i] for metric, values in found["per_class"].items()} | {"n": int(counts[i])}
        for i, name in enumerate(names)
    }
    interval = {"accuracy": found["accuracy"], "accuracy_ci95": [low, high]}
    return interval | found | {"per_class": per_class, "nll": measure.nll(logits, labels)}


if __name__ == "__main__":
    run(main)
