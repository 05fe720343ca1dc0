"""Measures a model on photographs as its users send them, which may be unlike the images of its test split."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from classifier.errors import DataError, first_few
from classifier.evaluation import metrics
from classifier.images.folders import is_litter, is_picture
from classifier.models.predictor import Predictor, batched
from classifier.records import PhotographResult

NONE = "none"  # the folder of photographs that show none of the labels
BATCH_SIZE = 64


def list_photographs(folder: Path, labels: list[str]) -> list[tuple[Path, str]]:
    """The photographs of a folder and the names of their folders: labels or, for pictures of other things, `none`.

    Raises:
        DataError: the folder has no photograph of a label, or has a folder of another name.
    """
    folders = sorted(path for path in folder.glob("*") if path.is_dir() and not is_litter(path.name))
    found = [
        (path, each.name)
        for each in folders
        for path in sorted(each.iterdir())
        if not is_litter(path.name) and is_picture(path)
    ]
    check_names(folder, [each.name for each in folders], labels)
    if not {name for _, name in found} - {NONE}:
        raise DataError(f"{folder} has no photographs in folders named as labels, such as {folder / labels[0]}")
    return found


def check_names(folder: Path, names: Sequence[str], labels: Sequence[str]) -> None:
    """DataError unless the names of the folders in `folder` are labels or `none`."""
    if unknown := sorted({*names} - {*labels, NONE}):
        raise DataError(
            f"{folder} has folders that are no labels ({first_few(unknown)}): name each as one of {first_few(labels)} "
            f"or, for photographs of none of these, {NONE}"
        )


def measure(predictor: Predictor, folder: Path) -> PhotographResult:
    """How many photographs of a folder a model labels correctly, and how many it takes for known ones.

    Raises:
        DataError: as `list_photographs`.
        ImageError: a file can't be read.
    """
    found = list_photographs(folder, predictor.labels)
    predicted: list[str] = []
    known: list[bool | None] = []
    for batch in batched((path for path, _ in found), BATCH_SIZE):
        probabilities, known_of_batch = predictor.predict_with_ood(batch)
        predicted += [predictor.labels[i] for i in probabilities.argmax(axis=1)]
        known += known_of_batch
    names = np.array([name for _, name in found])
    right, has_label = np.array(predicted) == names, names != NONE
    accuracy, accuracy_ci95 = mean_and_interval(right[has_label])
    result = PhotographResult(
        folder=folder.absolute().name,
        n=int(has_label.sum()),
        n_none=int((~has_label).sum()),
        accuracy=accuracy,
        accuracy_ci95=accuracy_ci95,
    )
    if predictor.ood_threshold is not None:
        is_known = np.array(known, bool)
        result.kept, result.kept_ci95 = mean_and_interval(is_known[has_label])
        if result.n_none:
            result.flagged, result.flagged_ci95 = mean_and_interval(~is_known[~has_label])
    return result


def mean_and_interval(values: np.ndarray) -> tuple[float, tuple[float, float]]:
    """The mean of booleans (N,) and its 95% interval."""
    return float(values.mean()), metrics.bootstrap_interval(values.astype(float))
