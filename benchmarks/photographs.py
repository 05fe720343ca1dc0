"""Chooses by measurement how photographs reach a model, and the threshold of its out-of-distribution score.

    python -m benchmarks.photographs models/cnn models/vit --photos path/to/tidy path/to/untidy
    python -m benchmarks.photographs models/vit --photos path/to/tidy --save         # into config.json

Each folder of photographs has folders named as labels, and one named `none` for pictures of other things. Accuracies
and AUROCs are means over the folders. `reduce_to` is the size, in pixels of the shorter side, to which photographs are
shrunk first: a model trained on small images alone has never seen a sharp one. Of the sizes with an accuracy within
0.02 of the best, and an AUROC of the energy for `none` within 0.01 of the best of these, the largest is chosen, because
people look at that image too. `ood_resize_to` is the size of the copy of which the energy is averaged with the
photograph's, or None, with the highest AUROC at that reduction. The threshold is the highest energy that 95% of the
correctly labelled photographs of each folder reach, and 95% of the validation images; wrongly labelled photographs may
fall below it.

Such a threshold suits the photographs that it was chosen on. What it does to others is measured by cross-validation:
that of four fifths of the photographs is applied to the last fifth. benchmarks/photographs.json has the choices and
everything that was tried, for the models of this and of earlier calls.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from PIL import Image

from classifier import load_predictor, runs
from classifier.data.loaders import image_batches
from classifier.data.splits import load_splits
from classifier.errors import DataError, run
from classifier.evaluation import metrics, ood
from classifier.evaluation.photographs import NONE, decode_photographs, list_photographs
from classifier.files import write_json
from classifier.models import processor
from classifier.models.predictor import Predictor

REDUCTIONS = 32, 40, 48, 64, 96, 128, 224  # pixels of the shorter side; decoding more takes time
RESIZE_TO = None, 32  # only for models with a larger input
ALIKE = 0.02  # a hundred photographs do not tell two accuracies apart that differ by less
FOLDS, DRAWS = 5, 1000  # of the cross-validation, and of the bootstrap of the threshold


@dataclass
class Scored:
    """The photographs of a folder, as a model sees them."""

    energies: np.ndarray  # (N,)
    right: np.ndarray  # bool (N,), whether the label is that of the folder
    known: np.ndarray  # bool (N,), whether there is a label

    def threshold(self, part: np.ndarray | None = None) -> float:
        """The energy that 95% of the correctly labelled photographs reach, of all or of those at the indices `part`."""
        part = np.arange(len(self.energies)) if part is None else part
        return ood.threshold(self.energies[part][self.right[part]])


def main() -> None:
    """Measures each model, prints the choices and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="model folders")
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="folders of photographs")
    parser.add_argument(
        "--dataset", default="uoft-cs/cifar10", help="dataset whose validation split is used too (%(default)s)"
    )
    parser.add_argument("--validation_fraction", type=float, default=0.02, help="as in training (%(default)s)")
    parser.add_argument("--save", action="store_true", help="write the choices to each model's config.json")
    args = parser.parse_args()
    splits = load_splits(args.dataset, splits=("train", "validation"), validation=args.validation_fraction)
    folders = {folder.name: list_photographs(folder, splits.labels) for folder in args.photos}
    images, _ = zip(*image_batches("validation", splits, 64), strict=True)
    validation = [image for batch in images for image in batch]
    rows = [choose(load_predictor(folder), folders, validation) for folder in args.models]
    if args.save:
        for folder, row in zip(args.models, rows, strict=True):
            config = json.loads((folder / "config.json").read_text())
            ood_settings = {"threshold": row["ood_threshold"], "resize_to": row["ood_resize_to"]}
            write_json(folder / "config.json", config | {"reduce_to": row["reduce_to"], "ood": ood_settings})
    output, names_now = Path(__file__).parent / "photographs.json", {row["model"] for row in rows}
    before = json.loads(output.read_text())["models"] if output.exists() else []
    rows = sorted([*rows, *(row for row in before if row["model"] not in names_now)], key=lambda row: row["model"])
    counts = {
        name: {"labels": sum(label != NONE for _, label in found), "none": sum(label == NONE for _, label in found)}
        for name, found in folders.items()
    }
    found = {"photographs": counts, "validation_images": len(validation), "models": rows, "machine": runs.machine()}
    write_json(output, found)


def choose(predictor: Predictor, folders: dict[str, list[tuple[Path, str]]], validation: list[Image.Image]) -> dict:
    """The choices for one model, what they do to each folder, and the result of each reduction."""
    tried: list[dict] = []
    results: dict[tuple, dict[str, Scored]] = {}
    for reduce_to in REDUCTIONS:
        images = {
            name: list(decode_photographs([path for path, _ in found], reduce_to=reduce_to))
            for name, found in folders.items()
        }
        for resize_to in RESIZE_TO[: 1 + (processor.size_of(predictor.processor) > RESIZE_TO[1])]:
            scored = {
                name: score(predictor, images[name], [label for _, label in found], resize_to)
                for name, found in folders.items()
            }
            if not all(each.right.any() for each in scored.values()):
                continue
            results[reduce_to, resize_to] = scored
            tried.append(
                {
                    "reduce_to": reduce_to,
                    "ood_resize_to": resize_to,
                    "accuracy": fmean(float(each.right[each.known].mean()) for each in scored.values()),
                    "auroc": fmean(auroc(each) for each in scored.values()),
                }
            )
    if not tried:
        raise DataError(f"{predictor.name} labels none of the photographs right: pass other --photos")
    best = best_of(tried)
    scored = results[best["reduce_to"], best["ood_resize_to"]]
    of_validation = predictor.energies(validation, best["ood_resize_to"])[1]
    chosen = {
        "model": predictor.name,
        **best,
        "ood_threshold": min(*(each.threshold() for each in scored.values()), ood.threshold(of_validation)),
        "ood_threshold_ci95": threshold_interval(list(scored.values()), of_validation),
        "threshold_of_validation": ood.threshold(of_validation),
        "folders": {
            name: {
                "accuracy": float(each.right[each.known].mean()),
                "accuracy_ci95": metrics.bootstrap_interval(each.right[each.known].astype(float)),
                "auroc": auroc(each),
                "none_flagged_where_95_of_right_ones_pass": float(
                    (each.energies[~each.known] < each.threshold()).mean()
                ),
                **cross_validated(scored, name, of_validation),
            }
            for name, each in scored.items()
        },
    }
    print(
        f"{predictor.name}: reduced to {best['reduce_to']}, energy with a copy of {best['ood_resize_to']} pixels, "
        f"threshold {chosen['ood_threshold']:.3f} ({chosen['threshold_of_validation']:.3f} on validation)",
        *(
            f"{name}: {row['accuracy']:.1%} right, AUROC {row['auroc']:.3f}, kept {row['kept']:.1%}, "
            f"flagged {row['flagged']:.1%}"
            for name, row in chosen["folders"].items()
        ),
        sep="\n    ",
        flush=True,
    )
    return chosen | {"tried": tried}


def score(predictor: Predictor, images: list[Image.Image], names: list[str], resize_to: int | None) -> Scored:
    """What the model makes of photographs whose folders have the given names."""
    logits, energies = predictor.energies(images, resize_to)
    right = np.array(predictor.labels)[logits.argmax(axis=1)] == np.array(names)
    return Scored(energies, right, np.array(names) != NONE)


def auroc(scored: Scored) -> float:
    """The probability that a photograph of a label has a higher energy than one of none."""
    return ood.auroc(scored.energies[scored.known], scored.energies[~scored.known])


def best_of(tried: list[dict]) -> dict:
    """The row with the best reduction, as the module's docstring describes it."""
    most_right = max(row["accuracy"] for row in tried)
    candidates = [row for row in tried if row["accuracy"] > most_right - ALIKE]
    highest = max(row["auroc"] for row in candidates)
    sharpest = max(row["reduce_to"] for row in candidates if row["auroc"] > highest - 0.01)
    return max((row for row in candidates if row["reduce_to"] == sharpest), key=lambda row: row["auroc"])


def cross_validated(folders: dict[str, Scored], name: str, of_validation: np.ndarray) -> dict:
    """The fractions of a folder's photographs kept and flagged, each by a threshold that other photographs gave."""
    rng = np.random.default_rng(0)
    folds = {each: np.arange(len(scored.energies)) % FOLDS for each, scored in folders.items()}
    for fold in folds.values():
        rng.shuffle(fold)
    own = folders[name]
    passes = np.zeros(len(own.energies), bool)
    for i in range(FOLDS):
        others = [scored.threshold(np.flatnonzero(folds[each] != i)) for each, scored in folders.items()]
        held_out = folds[name] == i
        passes[held_out] = own.energies[held_out] >= min(*others, ood.threshold(of_validation))
    kept, flagged = passes[own.known], ~passes[~own.known]
    return {
        "kept": float(kept.mean()),
        "kept_ci95": metrics.bootstrap_interval(kept.astype(float)),
        "flagged": float(flagged.mean()),
        "flagged_ci95": metrics.bootstrap_interval(flagged.astype(float)),
    }


def threshold_interval(folders: list[Scored], of_validation: np.ndarray) -> tuple[float, float]:
    """The 95% bootstrap interval of the threshold, over photographs and validation images."""
    rng = np.random.default_rng(0)

    def draw() -> float:
        parts = [each.energies[each.right] for each in folders] + [of_validation]
        return min(ood.threshold(part[rng.integers(len(part), size=len(part))]) for part in parts)

    return metrics.percentiles([draw() for _ in range(DRAWS)])


if __name__ == "__main__":
    run(main)
