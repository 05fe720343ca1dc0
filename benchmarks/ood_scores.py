"""Compares scores of out-of-distribution detection: on sets made of validation images, and on photographs.

    python -m benchmarks.ood_scores models/vit models/mobilenet models/cnn --photos path/to/tidy path/to/untidy

Each folder of photographs has a folder for each label, and a folder `none` for those of no label. Photographs are
reduced as the model's config.json says. A photograph has the score of the picture and, as `Predictor.energies`, the
mean of that and the score of a copy of 32 × 32 pixels, the size of the training images. The scores are fitted on the
first images of train and never see the photographs, so the table tells whether the sets that are made choose the score
that is best on photographs. benchmarks/ood_scores.json has the results, for the models of this and of earlier calls.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from classifier import load_predictor, runs
from classifier.data.splits import Splits, load_splits
from classifier.errors import run
from classifier.evaluation import ood, ood_scores, predictions
from classifier.evaluation.evaluate_model import first_images, predictions_of, training_of
from classifier.evaluation.photographs import NONE, decode_photographs, list_photographs
from classifier.evaluation.predictions import Predictions
from classifier.files import write_json
from classifier.models import processor
from classifier.models.predictor import Predictor

TRAINING_IMAGES, MADE_IMAGES, BATCH_SIZE = 3000, 250, 32
SMALL = 32  # pixels a side of the training images


def main() -> None:
    """Measures each model, prints the AUROCs and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="model folders")
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="folders of photographs")
    parser.add_argument(
        "--dataset", default="uoft-cs/cifar10", help="dataset whose train and validation splits are used (%(default)s)"
    )
    parser.add_argument("--validation_fraction", type=float, default=0.02, help="as in training (%(default)s)")
    args = parser.parse_args()
    splits = load_splits(args.dataset, splits=("train", "validation"), validation=args.validation_fraction)
    folders = {folder.name: list_photographs(folder, splits.labels) for folder in args.photos}
    counts = {
        name: {"labels": sum(label != NONE for _, label in found), "none": sum(label == NONE for _, label in found)}
        for name, found in folders.items()
    }
    output, measured = Path(__file__).parent / "ood_scores.json", {model.name for model in args.models}
    before = json.loads(output.read_text())["rows"] if output.exists() else []
    rows = [row for model in args.models for row in measure(model, splits, folders)]
    rows += [row for row in before if row["model"] not in measured]
    found = {"photographs": counts, "training_images": TRAINING_IMAGES, "rows": rows, "machine": runs.machine()}
    write_json(output, found)


def measure(model: Path, splits: Splits, folders: dict[str, list[tuple[Path, str]]]) -> list[dict]:
    """A row for each score of a model."""
    predictor = load_predictor(model)
    made = ood.synthetic_sets(first_images("validation", splits, MADE_IMAGES, processor.size_of(predictor.processor)))
    train = splits.select("train", np.arange(min(TRAINING_IMAGES, len(splits.class_indices["train"]))))
    training = training_of(predictor, predictions_of(predictor, "train", train))
    known = predictions_of(predictor, "validation", splits)
    strange = {name: of_images(predictor, images, name) for name, images in made.items()}
    seen = {name: of_photographs(predictor, found) for name, found in folders.items()}
    rows = []
    for name, score in ood_scores.fit(training).items():
        of_known = score(known.features, known.logits)
        row: dict = {
            "model": model.name,
            "score": name,
            "validation_accuracy": float((known.logits.argmax(axis=1) == known.labels).mean()),
            "made": {key: ood.auroc(of_known, score(each.features, each.logits)) for key, each in strange.items()},
        }
        for folder, (large, small) in seen.items():
            alone = score(large.features, large.logits)
            right = large.logits.argmax(axis=1) == large.labels
            row[folder] = {
                "accuracy": float(right[large.labels >= 0].mean()),
                "alone": separation(alone, right, large.labels),
                "with_small": separation((alone + score(small.features, small.logits)) / 2, right, large.labels),
            }
        rows.append(row)
        aurocs = ", ".join(f"{folder} {row[folder]['with_small']['auroc']:.3f}" for folder in folders)
        print(f"{model.name} {name}: made {np.mean(list(row['made'].values())):.3f}, {aurocs}", flush=True)
    return rows


def of_images(predictor: Predictor, images: np.ndarray, name: str) -> Predictions:
    """Predictions for images without labels, uint8 (N, 3, H, W)."""
    pictures = [Image.fromarray(image) for image in images.transpose(0, 2, 3, 1)]
    return in_batches(predictor, pictures, [-1] * len(pictures), name)


def of_photographs(predictor: Predictor, found: list[tuple[Path, str]]) -> tuple[Predictions, Predictions]:
    """Predictions for photographs, and for copies of SMALL pixels a side; the label is -1 for those of none."""
    images = list(decode_photographs([path for path, _ in found], reduce_to=predictor.reduce_to))
    labels = [-1 if label == NONE else predictor.labels.index(label) for _, label in found]
    small = [image.resize((SMALL, SMALL), Image.Resampling.LANCZOS) for image in images]
    return in_batches(predictor, images, labels, "photographs"), in_batches(predictor, small, labels, "small copies")


def separation(scores: np.ndarray, right: np.ndarray, labels: np.ndarray) -> dict:
    """How well scores (N,) tell photographs of a label from those of none, where 95% of the right ones are kept."""
    none = labels < 0
    flagged = float((scores[none] < ood.threshold(scores[right])).mean())
    return {"auroc": ood.auroc(scores[~none], scores[none]), "none_flagged_where_95_of_right_ones_pass": flagged}


def in_batches(predictor: Predictor, images: list[Image.Image], labels: list[int], name: str) -> Predictions:
    """Predictions for images in memory."""

    def batches() -> Iterator[tuple[list[Image.Image], list[int]]]:
        for i in range(0, len(images), BATCH_SIZE):
            yield images[i : i + BATCH_SIZE], labels[i : i + BATCH_SIZE]

    digest = hashlib.sha256(repr(labels).encode())
    for image in images:
        digest.update(image.tobytes())
    return predictions.compute(predictor, batches, images=digest.hexdigest(), n=len(images), name=name)


if __name__ == "__main__":
    run(main)
