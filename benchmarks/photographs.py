"""Chooses by measurement the size to which photographs are reduced for a model, and its out-of-distribution threshold.

    python -m benchmarks.photographs models/cnn models/vit --photos path/to/photographs --dataset uoft-cs/cifar10
    python -m benchmarks.photographs models/vit --photos path/to/photographs --save         # into config.json

The photographs are in one folder per label, and in a folder `none` for those of no label. `reduce_to` is the size, in
pixels of the shorter side, with the highest accuracy: a model trained on small images has never seen a sharp one. Of
sizes with equal accuracy and an AUROC of the energy for `none` within 0.01 of the best, the largest is chosen, because
people look at that image too. `ood_resize_to` is the reduction, or None, with the highest AUROC at that size.
`ood_threshold` is the energy that 95% of the correctly labelled photographs reach, and 95% of the validation images;
wrongly labelled photographs may fall below it. benchmarks/photographs.json has these choices and everything that was
tried, for the models of this and of earlier calls.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from classifier import load_predictor, runs
from classifier.data.loaders import image_batches
from classifier.data.splits import load_splits
from classifier.errors import DataError, run
from classifier.evaluation import metrics, ood, ood_scores
from classifier.files import write_json
from classifier.images.workers import decode_many
from classifier.models import processor
from classifier.models.predictor import Predictor

REDUCTIONS = 32, 40, 48, 64, 96, 128, 224  # pixels of the shorter side; decoding more takes time
RESIZE_TO = None, 32  # only for models with a larger input


def main() -> None:
    """Measures each model, prints the choices and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="model folders")
    parser.add_argument("--photos", type=Path, required=True, help="has one folder per label, and a folder `none`")
    parser.add_argument(
        "--dataset", default="uoft-cs/cifar10", help="dataset whose validation split is used too (%(default)s)"
    )
    parser.add_argument("--validation_fraction", type=float, default=0.02, help="as in training (%(default)s)")
    parser.add_argument("--save", action="store_true", help="write the choices to each model's config.json")
    args = parser.parse_args()
    splits = load_splits(args.dataset, splits=("train", "validation"), validation=args.validation_fraction)
    photos = sorted(path for path in args.photos.glob("*/*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    names = np.array([path.parent.name for path in photos])
    if "none" not in names or not set(names) <= {"none", *splits.labels}:
        raise DataError(f"{args.photos} needs a folder `none`, and others named as labels of {splits.name}")
    images, _ = zip(*image_batches("validation", splits, 64), strict=True)
    validation = [image for batch in images for image in batch]
    rows = [choose(load_predictor(folder), photos, names, validation) for folder in args.models]
    if args.save:
        for folder, row in zip(args.models, rows, strict=True):
            config = json.loads((folder / "config.json").read_text())
            ood_settings = {"threshold": row["ood_threshold"], "resize_to": row["ood_resize_to"]}
            write_json(folder / "config.json", config | {"reduce_to": row["reduce_to"], "ood": ood_settings})
    output, names_now = Path(__file__).parent / "photographs.json", {row["model"] for row in rows}
    before = json.loads(output.read_text())["models"] if output.exists() else []
    rows = sorted([*rows, *(row for row in before if row["model"] not in names_now)], key=lambda row: row["model"])
    counts = {"labels": int((names != "none").sum()), "none": int((names == "none").sum())}
    found = {"photographs": counts, "validation_images": len(validation), "models": rows, "machine": runs.machine()}
    write_json(output, found)


def choose(predictor: Predictor, photos: list[Path], names: np.ndarray, validation: list[Image.Image]) -> dict:
    """The choices for one model, and the result of each reduction and score."""
    known = names != "none"
    tried = []
    for reduce_to in REDUCTIONS:
        images = list(decode_many(photos, reduce_to=reduce_to))
        for resize_to in RESIZE_TO[: 1 + (processor.size_of(predictor.processor) > RESIZE_TO[1])]:
            logits, energies = predictor.energies(images, resize_to)
            right = np.array(predictor.labels)[logits.argmax(axis=1)] == names
            if not right.any():
                continue
            scores = {"energy": energies}
            if not resize_to:
                scores["max_probability"] = ood_scores.max_probability(logits)
            for score, found in scores.items():
                least = ood.threshold(found[known & right])
                tried.append(
                    {
                        "reduce_to": reduce_to,
                        "ood_resize_to": resize_to,
                        "score": score,
                        "accuracy": float(right[known].mean()),
                        "accuracy_ci95": list(metrics.bootstrap_interval(right[known].astype(float))),
                        "auroc": ood.auroc(found[known], found[~known]),
                        "none_flagged_where_95_of_right_ones_pass": float((found[~known] < least).mean()),
                        "wrong_flagged": int((found[known & ~right] < least).sum()),
                        "threshold_of_photographs": least,
                    }
                )
    if not tried:
        raise DataError(f"{predictor.name} labels none of the photographs right: pass other --photos")
    best = best_of(tried)
    of_validation = ood.threshold(predictor.energies(validation, best["ood_resize_to"])[1])
    chosen = {
        "model": predictor.name,
        **best,
        "threshold_of_validation": of_validation,
        "ood_threshold": min(best["threshold_of_photographs"], of_validation),
    }
    print(
        f"{predictor.name}: reduced to {best['reduce_to']}, {best['accuracy']:.1%} of {known.sum()} right; energy, "
        "resized to "
        f"{best['ood_resize_to']}, AUROC {best['auroc']:.3f}, flags "
        f"{best['none_flagged_where_95_of_right_ones_pass']:.0%} of "
        f"{(~known).sum()} of none; threshold {chosen['ood_threshold']:.3f} ({of_validation:.3f} on validation)",
        flush=True,
    )
    return chosen | {"tried": tried}


def best_of(tried: list[dict]) -> dict:
    """The row with the best reduction, as the module's docstring describes it."""
    energies = [row for row in tried if row["score"] == "energy"]
    most_right = max(row["accuracy"] for row in energies)
    candidates = [row for row in energies if row["accuracy"] == most_right]
    highest = max(row["auroc"] for row in candidates)
    sharpest = max(row["reduce_to"] for row in candidates if row["auroc"] > highest - 0.01)
    return max((row for row in candidates if row["reduce_to"] == sharpest), key=lambda row: row["auroc"])


if __name__ == "__main__":
    run(main)
