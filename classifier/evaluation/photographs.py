"""Measures a model on photographs as its users send them, which may be unlike the images of its test split."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from classifier.errors import DataError, ImageError, first_few
from classifier.evaluation import metrics
from classifier.images.folders import is_litter, is_picture
from classifier.images.workers import decode_many
from classifier.models.predictor import Predictor, batched
from classifier.records import PhotographResult

NONE = "none"  # the folder of photographs that show none of the labels
BATCH_SIZE = 64


def list_photographs(folder: Path, labels: list[str]) -> list[tuple[Path, str]]:
    """The photographs of a folder and the names of their folders: labels or, for pictures of other things, `none`.

    A folder of a label may have further folders.

    Raises:
        DataError: the folder has no photograph of a label, or a folder of another name; or a label is called `none`.
    """
    folders = sorted(path for path in folder.glob("*") if path.is_dir() and not is_litter(path.name))
    names = {each.name for each in folders}
    if unknown := sorted(names - {*labels, NONE}):
        raise DataError(
            f"{folder} has folders that are no labels ({first_few(unknown)}): name each as one of {first_few(labels)} "
            f"or, for photographs of none of these, {NONE}"
        )
    if NONE in names & {*labels}:
        raise DataError(
            f"photographs in {folder / NONE} are taken for other things than the labels, but a label has that name: "
            "rename it with --label_names"
        )
    found = [
        (path, each.name)
        for each in folders
        for path in sorted(each.rglob("*"))
        if not any(map(is_litter, path.relative_to(each).parts)) and path.is_file() and is_picture(path)
    ]
    if not {name for _, name in found} - {NONE}:
        raise DataError(f"{folder} has no photographs in folders named as labels, such as {folder / labels[0]}")
    return found


def decode_photographs(
    paths: Sequence[Path], *, reduce_to: int | None = None, skip_unreadable: bool = False
) -> Iterator[Image.Image | None]:
    """The photographs, upright and RGB, in order; None for one that can't be read. `reduce_to` is as in `decode`.

    Raises:
        DataError: a file can't be read and may not be skipped.
    """
    for path, image in zip(paths, decode_many(paths, reduce_to=reduce_to), strict=True):
        if not isinstance(image, ImageError):
            yield image
        elif skip_unreadable:
            yield None
        else:
            raise DataError(f"{image}: repair or remove {path}, or pass --skip_unreadable to go on without")


def measure(predictor: Predictor, folder: Path, *, skip_unreadable: bool = False) -> PhotographResult:
    """How many photographs of a folder a model labels correctly, and how many it takes for known ones.

    Raises:
        DataError: as `list_photographs` and `decode_photographs`, or no photograph of a label can be read.
    """
    found = list_photographs(folder, predictor.labels)
    names = np.array([name for _, name in found])
    is_readable: list[bool] = []
    predicted: list[str] = []
    known: list[bool | None] = []
    photographs = decode_photographs(
        [path for path, _ in found], reduce_to=predictor.reduce_to, skip_unreadable=skip_unreadable
    )
    for batch in batched(photographs, BATCH_SIZE):
        is_readable += [image is not None for image in batch]
        probabilities, known_of_batch = predictor.predict_with_ood([image for image in batch if image is not None])
        predicted += [predictor.labels[i] for i in probabilities.argmax(axis=1)]
        known += known_of_batch
    names = names[is_readable]
    right, has_label = np.array(predicted) == names, names != NONE
    if not has_label.any():
        raise DataError(f"no photograph of a label in {folder} is readable: check the files")
    accuracy, accuracy_ci95 = mean_and_interval(right[has_label])
    result = PhotographResult(
        folder=folder.absolute().name,
        n=int(has_label.sum()),
        n_none=int((~has_label).sum()),
        accuracy=accuracy,
        accuracy_ci95=accuracy_ci95,
        n_skipped=len(found) - len(names),
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
