"""Chooses by measurement how photographs reach a model, and how it recognises those of none of its labels.

    python -m benchmarks.photographs models/cnn models/vit --photos path/to/tidy path/to/untidy
    python -m benchmarks.photographs models/vit --photos path/to/tidy --save         # into config.json

Each folder of photographs has folders named as labels, and one named `none` for pictures of other things. Accuracies
and AUROCs are means over the folders. Three settings are chosen together (`best_of`):

- `reduce_to`, the size in pixels of the shorter side to which photographs are shrunk first: a model trained on small
  images alone has never seen a sharp one. Of the sizes with an accuracy within 0.02 of the best, and an AUROC within
  0.01 of the best of these, the largest is chosen, because people look at that image too.
- `ood_score`, the score of out-of-distribution detection, and `ood_resize_to`, the size of the copy of which the score
  is averaged with the photograph's, or None: those with the highest AUROC at that size. It is the energy without a copy
  unless others are better by more than 0.005.

The threshold is the highest score that 95% of the correctly labelled photographs of each folder reach, and 95% of the
validation images; wrongly labelled photographs may fall below it.

Such choices suit the photographs that they were made on. What they do to others is measured by cross-validation: all
are made on four fifths of the photographs and applied to the last fifth. benchmarks/photographs.json has the choices
and everything that was tried, for the models of this and of earlier calls.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

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
from classifier.models.logit_scores import SCORES
from classifier.models.predictor import Predictor, average_copies, small_copies

REDUCTIONS = 32, 40, 48, 64, 96, 128, 224  # pixels of the shorter side; decoding more takes time
SMALL = 32  # pixels a side of the copy that models with a larger input may score as well
SAME_ACCURACY = 0.02  # a hundred photographs do not tell two accuracies apart that differ by less
FOLDS, DRAWS = 5, 1000  # of the cross-validation, and of the bootstrap of the threshold


class Setting(NamedTuple):
    """How photographs reach a model, and how it scores them; as the keys of config.json."""

    reduce_to: int
    ood_resize_to: int | None
    ood_score: str


@dataclass
class Scored:
    """The photographs of a folder, as a model sees them."""

    scores: np.ndarray  # (N,), of out-of-distribution detection
    right: np.ndarray  # bool (N,), whether the label is that of the folder
    known: np.ndarray  # bool (N,), whether there is a label

    def part(self, mask: np.ndarray) -> "Scored":
        """The photographs where a mask (N,) is true."""
        return Scored(self.scores[mask], self.right[mask], self.known[mask])

    @property
    def accuracy(self) -> float:
        """The fraction of the photographs of a label that are labelled correctly."""
        return float(self.right[self.known].mean())

    @property
    def auroc(self) -> float:
        """The probability that a photograph of a label has a higher score than one of none."""
        return ood.auroc(self.scores[self.known], self.scores[~self.known])

    @property
    def threshold(self) -> float:
        """The score that 95% of the correctly labelled photographs reach."""
        return ood.threshold(self.scores[self.right])


Folders = dict[str, Scored]


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
            settings = {name: row[f"ood_{name}"] for name in ("threshold", "resize_to", "score")}
            write_json(folder / "config.json", config | {"reduce_to": row["reduce_to"], "ood": settings})
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
    """The choices for one model, what they do to each folder, and the result of each setting."""
    results: dict[Setting, Folders] = {}
    of_validation: dict[Setting, np.ndarray] = {}
    for reduce_to in REDUCTIONS:
        for name, found in folders.items():
            images = list(decode_photographs([path for path, _ in found], reduce_to=reduce_to))
            for (resize_to, score), scored in scores_of(predictor, images, [label for _, label in found]).items():
                results.setdefault(Setting(reduce_to, resize_to, score), {})[name] = scored
    for (resize_to, score), scored in scores_of(predictor, validation, [""] * len(validation)).items():
        of_validation |= {Setting(reduce_to, resize_to, score): scored.scores for reduce_to in REDUCTIONS}
    best = best_of(results)
    if best is None:
        raise DataError(f"{predictor.name} labels none of the photographs right: pass other --photos")
    crossed = cross_validate(results, of_validation)
    chosen = {
        "model": predictor.name,
        **describe(best, results[best]),
        "ood_threshold": threshold(results[best], of_validation[best]),
        "ood_threshold_ci95": threshold_interval(results[best], of_validation[best]),
        "threshold_of_validation": ood.threshold(of_validation[best]),
        "folders": {
            name: {"auroc": each.auroc, "cross_validated": crossed[name]} for name, each in results[best].items()
        },
    }
    print(
        f"{predictor.name}: reduced to {best.reduce_to}, {best.ood_score} with a copy of {best.ood_resize_to} pixels, "
        f"threshold {chosen['ood_threshold']:.3f} ({chosen['threshold_of_validation']:.3f} on validation)",
        *(
            f"{name}: {row['accuracy']:.1%} right, kept {row['kept']:.1%}, flagged {row['flagged']:.1%}, "
            f"AUROC {results[best][name].auroc:.3f}"
            for name, row in crossed.items()
        ),
        sep="\n    ",
        flush=True,
    )
    return chosen | {"tried": [describe(setting, each) for setting, each in results.items()]}


def scores_of(
    predictor: Predictor, images: list[Image.Image], names: list[str]
) -> dict[tuple[int | None, str], Scored]:
    """What the model makes of images whose folders have the given names, by (ood_resize_to, ood_score)."""
    sizes = [None, SMALL] if processor.size_of(predictor.processor) > SMALL else [None]
    large, copies = small_copies(images, sizes[-1])
    logits = predictor.logits([*images, *copies])
    right = np.array(predictor.labels)[logits[: len(images)].argmax(axis=1)] == np.array(names)
    known = np.array(names) != NONE
    found = {}
    for name, function in SCORES.items():
        scores = function(logits)
        found[None, name] = Scored(scores[: len(images)].copy(), right, known)
        if sizes[-1]:
            found[sizes[-1], name] = Scored(average_copies(scores, large), right, known)
    return found


def describe(setting: Setting, folders: Folders) -> dict:
    """A setting, and the mean accuracy and AUROC of the folders with it."""
    return {
        **setting._asdict(),
        "accuracy": fmean(each.accuracy for each in folders.values()),
        "auroc": fmean(each.auroc for each in folders.values()),
    }


def best_of(results: dict[Setting, Folders]) -> Setting | None:
    """The best setting, as the module's docstring describes it; None if no photograph of a folder is labelled right."""
    rows = {
        setting: describe(setting, folders)
        for setting, folders in results.items()
        if all(each.right.any() for each in folders.values())
    }
    if not rows:
        return None
    most_right = max(row["accuracy"] for row in rows.values())
    rows = {setting: row for setting, row in rows.items() if row["accuracy"] > most_right - SAME_ACCURACY}
    highest = max(row["auroc"] for row in rows.values())
    sharpest = max(setting.reduce_to for setting, row in rows.items() if row["auroc"] > highest - 0.01)
    simple = Setting(sharpest, None, "energy")
    best = max((each for each in rows if each.reduce_to == sharpest), key=lambda each: rows[each]["auroc"])
    return best if rows[best]["auroc"] > rows[simple]["auroc"] + ood.SAME_AUROC else simple


def threshold(folders: Folders, of_validation: np.ndarray) -> float:
    """The highest score that 95% of the right photographs of each folder reach, and 95% of the validation images."""
    return min(*(each.threshold for each in folders.values()), ood.threshold(of_validation))


def cross_validate(results: dict[Setting, Folders], of_validation: dict[Setting, np.ndarray]) -> dict[str, dict]:
    """By folder, the fractions of photographs that are labelled right, kept and flagged, with 95% intervals.

    Each fold has the setting and the threshold that are best for the other folds of all folders.

    Raises:
        DataError: the other folds of a folder have no photograph that is labelled right.
    """
    rng = np.random.default_rng(0)
    some = next(iter(results.values()))
    folds = {name: rng.permutation(np.arange(len(each.scores)) % FOLDS) for name, each in some.items()}
    passes, right = ({name: np.zeros(len(fold), bool) for name, fold in folds.items()} for _ in range(2))
    for i in range(FOLDS):
        others = {
            setting: {name: each.part(folds[name] != i) for name, each in folders.items()}
            for setting, folders in results.items()
        }
        setting = best_of(others)
        if setting is None:
            raise DataError("too few photographs are labelled right for a cross-validation: pass more --photos")
        least = threshold(others[setting], of_validation[setting])
        for name, each in results[setting].items():
            held_out = folds[name] == i
            passes[name][held_out] = each.scores[held_out] >= least
            right[name][held_out] = each.right[held_out]
    found: dict[str, dict] = {}
    for name, each in some.items():
        known, found[name] = each.known, {}
        measured = {"accuracy": right[name][known], "kept": passes[name][known], "flagged": ~passes[name][~known]}
        for key, values in measured.items():
            interval = metrics.bootstrap_interval(values.astype(float))
            found[name] |= {key: float(values.mean()), f"{key}_ci95": interval}
    return found


def threshold_interval(folders: Folders, of_validation: np.ndarray) -> tuple[float, float]:
    """The 95% bootstrap interval of the threshold, over photographs and validation images."""
    rng = np.random.default_rng(0)

    def draw() -> float:
        parts = [each.scores[each.right] for each in folders.values()] + [of_validation]
        return min(ood.threshold(part[rng.integers(len(part), size=len(part))]) for part in parts)

    return metrics.percentiles([draw() for _ in range(DRAWS)])


if __name__ == "__main__":
    run(main)
