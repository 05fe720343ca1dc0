"""Measures what brings back the knowledge that a backbone lost in fine-tuning, and how photographs are best cut.

    python -m benchmarks.forgetting models/vit runs/vit3 --photos path/to/tidy path/to/untidy

Each model is mixed with shares of the weights that its first stage started from, as `classifier.average
--pretrained_share` does it, and measured on validation images and on photographs: accuracy, and the AUROC of the energy
for photographs of none of the labels. Each model as it is gets the photographs in three ways: as its saved processor
takes them, cut to the square in their middle first, and both, with the mean of the probabilities and of the energies.
Photographs are reduced to the model's input size first. Writes benchmarks/forgetting.json.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.special import softmax

from classifier import load_predictor, runs
from classifier.average import interpolate, load_pretrained
from classifier.data.loaders import image_batches
from classifier.data.splits import load_splits
from classifier.errors import run
from classifier.evaluation import ood
from classifier.evaluation.photographs import NONE, decode_photographs, list_photographs
from classifier.files import write_json
from classifier.models import logit_scores, processor
from classifier.models.predictor import Predictor
from classifier.runs import RunFolder

SHARES = 0.1, 0.3, 0.5


def centre_square(image: Image.Image) -> Image.Image:
    """The largest square in the middle of an image."""
    side, (width, height) = min(image.size), image.size
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def as_it_is(image: Image.Image) -> Image.Image:
    """The image; the processor squashes it, or cuts it, to the model's input."""
    return image


CUTS: dict[str, tuple[Callable, ...]] = {
    "as saved": (as_it_is,),
    "centre square": (centre_square,),
    "mean of both": (as_it_is, centre_square),
}


def main() -> None:
    """Measures all models and writes what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="model folders of finetune_vit.py")
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="folders of photographs")
    parser.add_argument("--dataset", default="uoft-cs/cifar10", help="dataset of the validation images (%(default)s)")
    parser.add_argument("--validation_fraction", type=float, default=0.02, help="as in training (%(default)s)")
    args = parser.parse_args()
    splits = load_splits(args.dataset, splits=("train", "validation"), validation=args.validation_fraction)
    images, labels = zip(*image_batches("validation", splits, 64), strict=True)
    validation = [image for batch in images for image in batch], np.concatenate(labels)
    folders = {folder.name: list_photographs(folder, splits.labels) for folder in args.photos}
    rows = [row for model in args.models for row in rows_of(model, folders, validation)]
    counts = {
        name: {"labels": sum(label != NONE for _, label in found), "none": sum(label == NONE for _, label in found)}
        for name, found in folders.items()
    }
    output = Path(__file__).parent / "forgetting.json"
    write_json(output, {"photographs": counts, "rows": rows, "machine": runs.machine()})


def rows_of(
    folder: Path, folders: dict[str, list[tuple[Path, str]]], validation: tuple[list[Image.Image], np.ndarray]
) -> list[dict]:
    """What was measured of a model: by ways to cut a photograph, and by shares of the pre-trained weights."""
    predictor = load_predictor(folder)
    size = processor.size_of(predictor.processor)
    photographs = {
        name: (
            list(decode_photographs([path for path, _ in found], reduce_to=size)),
            np.array([label for _, label in found]),
        )
        for name, found in folders.items()
    }

    def measured(share: float, cuts: list[str]) -> list[dict]:
        right = float((predictor.logits(validation[0]).argmax(axis=1) == validation[1]).mean())
        found = []
        for cut in cuts:
            row = {"model": folder.name, "pretrained_share": share, "cut": cut, "validation_accuracy": right}
            row |= {name: measure(predictor, images, names, CUTS[cut]) for name, (images, names) in photographs.items()}
            print(row, flush=True)
            found.append(row)
        return found

    rows = measured(0.0, list(CUTS))
    own = {name: tensor.clone() for name, tensor in predictor.model.state_dict().items()}
    _, pretrained = load_pretrained(predictor, RunFolder(folder).finished_run())
    for share in SHARES:
        predictor.model.load_state_dict(interpolate(own, pretrained, share))
        rows += measured(share, ["as saved"])
    return rows


def measure(predictor: Predictor, images: list[Image.Image], names: np.ndarray, cuts: tuple[Callable, ...]) -> dict:
    """Accuracy on the photographs of a label, and the AUROC of the energy for those of none."""
    logits = [predictor.logits([cut(image) for image in images]) for cut in cuts]
    probabilities = np.mean([softmax(each, axis=1) for each in logits], axis=0)
    energies = np.mean([logit_scores.energy(each) for each in logits], axis=0)
    right, of_a_label = np.array(predictor.labels)[probabilities.argmax(axis=1)] == names, names != NONE
    return {
        "accuracy": float(right[of_a_label].mean()),
        "auroc": ood.auroc(energies[of_a_label], energies[~of_a_label]),
    }


if __name__ == "__main__":
    run(main)
