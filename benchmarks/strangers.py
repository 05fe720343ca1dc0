"""Compares scores for telling photographs of none of the labels, at the threshold that 95% of validation images reach.

    python benchmarks/strangers.py models/cnn models/vit --photos path/to/photographs --dataset uoft-cs/cifar10

The photographs are a folder a label, and one that is called `none`. Writes benchmarks/strangers.json: for each model and
score the AUROC, the threshold, and what passes it of the photographs of labels and of the others. The app uses the top
probability, which a caller sees as well; the energy would have to be better by more than the few photographs can tell.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a script in a folder of its own does not see the library

import numpy as np  # noqa: E402

from classifier import data, load_predictor, pixels, strangers  # noqa: E402
from classifier.errors import DataError, run  # noqa: E402
from classifier.files import write_json  # noqa: E402
from classifier.predictor import Predictor  # noqa: E402

SCORES = {"max_probability": strangers.max_probability, "energy": strangers.energy}


def main() -> None:
    """A line a model and score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folders or Hub ids")
    parser.add_argument("--photos", type=Path, required=True, help="a folder a label, and `none`")
    parser.add_argument("--dataset", default="uoft-cs/cifar10", help="whose validation split sets thresholds (%(default)s)")
    parser.add_argument("--validation_fraction", type=float, default=0.02, help="as in training (%(default)s)")
    args = parser.parse_args()
    splits = data.load(args.dataset, validation=args.validation_fraction)
    photos = sorted(path for path in args.photos.glob("*/*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    names = {path.parent.name for path in photos}
    if "none" not in names or not names & set(splits.labels):
        raise DataError(f"{args.photos} has no folder `none` beside one of {', '.join(splits.labels)}: name another")
    rows = [row for model in args.models for row in compare(load_predictor(model), photos, splits)]
    counts = {"known": sum(path.parent.name != "none" for path in photos)}
    counts["none"] = len(photos) - counts["known"]
    write_json(Path(__file__).parent / "strangers.json", {"photographs": counts, "rows": rows})


def compare(predictor: Predictor, photos: list[Path], splits: data.Splits) -> list[dict]:
    """What each score tells of the photographs."""
    known = np.array([path.parent.name != "none" for path in photos])
    logits = predictor.logits([pixels.decode(path, reduce_to=predictor.reduce_to) for path in photos])
    validation = np.concatenate([predictor.logits(images) for images, _ in data.batches("validation", splits, 64)])
    rows = []
    for name, score in SCORES.items():
        found, threshold = score(logits), strangers.threshold(score(validation))
        rows.append(
            {
                "model": predictor.name,
                "score": name,
                "auroc": strangers.auroc(found[known], found[~known]),
                "threshold": threshold,
                "known_that_pass": float((found[known] >= threshold).mean()),
                "none_that_pass": float((found[~known] >= threshold).mean()),
            }
        )
        print(
            f"{predictor.name}, {name}: AUROC {rows[-1]['auroc']:.3f}; of the photographs {rows[-1]['known_that_pass']:.0%} of "
            f"labels and {rows[-1]['none_that_pass']:.0%} of none pass"
        )
    return rows


if __name__ == "__main__":
    run(main)
