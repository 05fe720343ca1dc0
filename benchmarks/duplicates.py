"""Measures how copies of training images in the test split change accuracy, and how many known copies classifier.clean
finds.

    python -m classifier.clean uoft-cs/cifar10 --model models/cnn --output_dir clean
    python -m benchmarks.duplicates models/cnn models/mobilenet models/vit --found clean --known duplicates_cifar10.csv

`--known` is the list of Barz and Denzler (arXiv:1902.00423), meta/duplicates_cifar10.csv of github.com/cvjena/cifair.
They searched the nearest training image of each test image by a CNN's features and judged the pairs by eye: 1,
near-duplicate, is the same photograph processed differently; 2, very similar, is another photograph. Writes
benchmarks/duplicates.json.
"""

import argparse
import csv
import json
from functools import partial
from pathlib import Path

import numpy as np

from classifier import load_predictor
from classifier.data.loaders import fingerprint, image_batches
from classifier.data.splits import Splits, load_splits
from classifier.errors import DataError, run
from classifier.evaluation import metrics, predictions
from classifier.files import write_json
from classifier.models.predictor import Predictor

JUDGMENTS = {"1": "near", "2": "very_similar"}  # there is no 0, exact, in CIFAR-10


def main() -> None:
    """Reads the output of classifier.clean, measures the models, prints and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="model folders")
    parser.add_argument(
        "--found", type=Path, default=Path("clean"), help="output_dir of classifier.clean (%(default)s)"
    )
    parser.add_argument("--dataset", default="uoft-cs/cifar10", help="dataset that was checked (%(default)s)")
    parser.add_argument("--known", type=Path, help="list of Barz and Denzler; only for CIFAR-10")
    args = parser.parse_args()
    if not (args.found / "clean.json").exists():
        raise DataError(
            f"no clean.json in {args.found}: run python -m classifier.clean {args.dataset} --output_dir {args.found}"
        )
    found = json.loads((args.found / "clean.json").read_text())
    copies = found.pop("copies_of_earlier_splits").get("test")
    if found["dataset"] != args.dataset or copies is None:
        raise DataError(
            f"{args.found} is of {found['dataset']} or has no test split: run classifier.clean on {args.dataset}"
        )
    splits = load_splits(args.dataset, splits=("test",))
    is_copy = np.zeros(len(splits.test), bool)
    is_copy[copies] = True
    models = [measure_model(load_predictor(folder), splits, is_copy) for folder in args.models]
    result = {"clean": found, "test_images_with_a_copy_in_train": len(copies), "models": models}
    if args.known:
        result["known"] = compare(args.known, is_copy)
    write_json(Path(__file__).parent / "duplicates.json", result)


def measure_model(predictor: Predictor, splits: Splits, is_copy: np.ndarray) -> dict:
    """Accuracy on all test images, on those without a copy in train, and on those with one."""
    found = predictions.compute(
        predictor,
        partial(image_batches, "test", splits, 64),
        images=fingerprint("test", splits),
        n=len(splits.test),
        name="test",
    )
    right = np.array(predictor.labels)[found.logits.argmax(axis=1)] == np.array(splits.labels)[found.labels]
    row: dict = {"model": predictor.name}
    for name, part in (("all", right), ("without_copies", right[~is_copy]), ("copies", right[is_copy])):
        if len(part):
            interval = list(metrics.bootstrap_interval(part.astype(float)))
            row[name] = {"n": len(part), "accuracy": float(part.mean()), "accuracy_ci95": interval}
    print(
        ", ".join(
            [predictor.name, *(f"{name} {row[name]['accuracy']:.2%} of {row[name]['n']:,}" for name in list(row)[1:])]
        )
    )
    return row


def compare(path: Path, is_copy: np.ndarray) -> dict:
    """For each judgment of the list, counts the test images that were found; also counts those found but not listed."""
    with path.open(newline="") as file:
        judged = {int(row["TestID"]): row["Judgment"] for row in csv.DictReader(file)}
    counts = {}
    for judgment, name in JUDGMENTS.items():
        images = [image for image, given in judged.items() if given == judgment]
        counts[name] = {"listed": len(images), "found": int(is_copy[images].sum())}
        print(f"{name}: {counts[name]['found']} of {len(images)} test images of the list are found")
    counts["found_beyond_the_list"] = int(is_copy.sum() - is_copy[list(judged)].sum())
    print(f"{counts['found_beyond_the_list']} are found that are not in the list")
    return counts


if __name__ == "__main__":
    run(main)
