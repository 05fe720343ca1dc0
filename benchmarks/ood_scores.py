"""Compares scores of out-of-distribution detection: on sets made of validation images, and on photographs.

    python -m benchmarks.ood_scores models/vit models/mobilenet models/cnn --photos path/to/tidy path/to/untidy

Each folder of photographs has a folder for each label, and a folder `none` for those of no label. Photographs are
reduced as the model's config.json says. A photograph has the score of the picture and, as in
`Predictor.logits_and_scores`, the mean of that and the score of a copy of 32 × 32 pixels, the size of the training
images. The copies of the photographs of no label are also a set of their own, "near", which is compared with validation
images: it has small images of other things, as CIFAR-100 would. The scores are fitted on the first images of
train and never see the photographs, so the table tells whether the sets that are made choose the score that is best on
photographs.

Of several models in a call, the agreement is a score as well: the highest mean of their probabilities for a label.
benchmarks/ood_scores.json has the results, for the models of this and of earlier calls.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from classifier import load_predictor, runs
from classifier.data.loaders import first_images
from classifier.data.splits import Splits, load_splits
from classifier.errors import run
from classifier.evaluation import metrics, ood, ood_scores, predictions
from classifier.evaluation.evaluate_model import predictions_of, training_of
from classifier.evaluation.photographs import NONE, decode_photographs, list_photographs
from classifier.evaluation.predictions import Predictions
from classifier.files import write_json
from classifier.models import processor
from classifier.models.logit_scores import max_probability
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
    seen = [see(load_predictor(model), splits, folders) for model in args.models]
    rows = [row for each in seen for row in measure(each, ood_scores.fit(each.training))]
    if len(seen) > 1:
        rows += measure(agreeing(seen), {"agreement": lambda features, logits: max_probability(logits)})
    for row in rows:
        aurocs = [f"{name} {row[name]['with_small']['auroc']:.3f}" for name in folders]
        made = np.mean(list(row["made"].values()))
        print(f"{row['model']}, {row['score']}: made {made:.3f}, near {row['near']:.3f}, {', '.join(aurocs)}")
    counts = {
        name: {"labels": sum(label != NONE for _, label in found), "none": sum(label == NONE for _, label in found)}
        for name, found in folders.items()
    }
    output, measured = Path(__file__).parent / "ood_scores.json", {row["model"] for row in rows}
    before = json.loads(output.read_text())["rows"] if output.exists() else []
    rows += [row for row in before if measured.isdisjoint([row["model"], *row["model"].split(" + ")])]
    found = {"photographs": counts, "training_images": TRAINING_IMAGES, "rows": rows, "machine": runs.machine()}
    write_json(output, found)


@dataclass
class Seen:
    """What a model predicts for everything that the scores are compared on."""

    model: str  # its name
    training: ood_scores.Training | None
    validation: Predictions
    made: dict[str, Predictions]  # by set
    photographs: dict[str, tuple[Predictions, Predictions]]  # by folder: of the pictures and of their small copies


def see(predictor: Predictor, splits: Splits, folders: dict[str, list[tuple[Path, str]]]) -> Seen:
    """The predictions of one model."""
    made = ood.synthetic_sets(first_images("validation", splits, MADE_IMAGES, processor.size_of(predictor.processor)))
    train = splits.select("train", np.arange(min(TRAINING_IMAGES, len(splits.class_indices["train"]))))
    return Seen(
        predictor.name,
        training_of(predictor, predictions_of(predictor, "train", train)),
        predictions_of(predictor, "validation", splits),
        {name: of_images(predictor, images, name) for name, images in made.items()},
        {name: of_photographs(predictor, found) for name, found in folders.items()},
    )


def agreeing(models: list[Seen]) -> Seen:
    """The mean of the probabilities of several models, as the logits of one."""

    def mean(several: Sequence[Predictions]) -> Predictions:
        return replace(several[0], logits=metrics.ensemble_logits([each.logits for each in several]))

    first = models[0]
    return Seen(
        " + ".join(each.model for each in models),
        None,
        mean([each.validation for each in models]),
        {name: mean([each.made[name] for each in models]) for name in first.made},
        {
            name: (
                mean([each.photographs[name][0] for each in models]),
                mean([each.photographs[name][1] for each in models]),
            )
            for name in first.photographs
        },
    )


def measure(seen: Seen, scores: dict[str, ood_scores.Score]) -> list[dict]:
    """A row for each score of a model."""
    rows = []
    known = seen.validation
    for name, score in scores.items():
        of_known = score(known.features, known.logits)
        row: dict = {
            "model": seen.model,
            "score": name,
            "validation_accuracy": float((known.logits.argmax(axis=1) == known.labels).mean()),
            "made": {key: ood.auroc(of_known, score(each.features, each.logits)) for key, each in seen.made.items()},
        }
        near = []
        for folder, (large, small) in seen.photographs.items():
            alone, of_small = score(large.features, large.logits), score(small.features, small.logits)
            right = large.logits.argmax(axis=1) == large.labels
            row[folder] = {
                "accuracy": float(right[large.labels >= 0].mean()),
                "alone": separation(alone, right, large.labels),
                "with_small": separation((alone + of_small) / 2, right, large.labels),
            }
            near.append(of_small[large.labels < 0])
        rows.append(row | {"near": ood.auroc(of_known, np.concatenate(near))})
    return rows


def of_images(predictor: Predictor, images: np.ndarray, name: str) -> Predictions:
    """Predictions for images without labels, uint8 (N, 3, H, W)."""
    return in_batches(predictor, ood.as_pictures(images), [-1] * len(images), name)


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
