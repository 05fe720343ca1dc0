"""Loads any image-classification dataset as three splits: train, validation and test.

    splits = load_splits("uoft-cs/cifar10")  # a Hub id, id@revision, a folder, or a table of paths and labels
    print(survey_splits(splits, Path("unreadable.txt")))  # 50,000 images, 10 classes, smallest 4,500 (airplane); …
    images, labels = as_tensor("train", splits)  # uint8 (45000, 3, 32, 32), int64 (45000,)
    loader = stream("train", splits, transform, batch_size=64, num_workers=2, shuffle=True)

There are always three splits, unless `cut` is off. A missing validation split is cut from train, by class and by seed.
A missing test split is cut from train too, in the same way on every run, so that no run trains on images that another
run is tested on. In an image folder the test split is chosen by file name, so it does not change when files are added
or removed.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np

from classifier.data.columns import cast_images, class_indices, encode_labels, find_column, rename_labels
from classifier.data.sources import SPLIT_NAMES, digest_of_files, load_source, load_table, splits_by_name
from classifier.errors import DataError

# Of a dataset without a test split; fixed, so that every run is tested on the same images.
TEST_FRACTION, TEST_SEED = 0.1, 0


@dataclass(frozen=True)
class Splits:
    """A dataset's splits, None where not asked for or not there, and what is needed to read them.

    `skipped` grows while images are decoded: the files that were unreadable, where `skip_unreadable` lets that pass.
    """

    train: datasets.Dataset | None
    validation: datasets.Dataset | None
    test: datasets.Dataset | None
    image_column: str
    label_column: str
    labels: list[str]  # the dataset's own names in its own order
    name: str  # Hub id, or the folder's name without what leads to it
    revision: str | None  # the Hub's commit
    test_cut: str | None = None  # a digest of which images that is, where test was cut from train
    skip_unreadable: bool = False
    skipped: list[str] = field(default_factory=list)

    def __getitem__(self, split: str) -> datasets.Dataset:
        """The split of that name, which must have been asked for.

        Raises:
            KeyError: the split was not asked for.
        """
        found = {"train": self.train, "validation": self.validation, "test": self.test}[split]
        if found is None:
            raise KeyError(f"load_splits(…, splits=…) was not asked for {split!r}")
        return found


class Images(NamedTuple):
    """The images of one split, in its order, without their labels.

    Attributes:
        rows: each cell of `column` is {"bytes", "path"}, undecoded, or None.
        column: of the images.
        split: the dataset's own name of it.
        name: Hub id, or the folder's name without what leads to it.
        revision: the Hub's commit; of a folder, a digest of its files' names, sizes and dates.
    """

    rows: datasets.Dataset
    column: str
    split: str
    name: str
    revision: str


def load_splits(
    dataset: str,
    *,
    splits: Sequence[str] = ("train", "validation"),
    validation: float = 0.1,
    seed: int = 0,
    image_column: str | None = None,
    label_column: str | None = None,
    label_names: str | Path | None = None,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    skip_unreadable: bool = False,
    cut: bool = True,
) -> Splits:
    """Loads a dataset and cuts it into train, validation and test. No image is decoded here.

    Args:
        dataset: a Hub id (`user/name`), `id@revision`, a folder that `datasets` can load (parquet), or an image folder
            (`train/<label>/…` with `validation` or `val` or `dev` and `test` beside it, or `<label>/…`), or a file
            (CSV, JSON, parquet) with a row an image: a path, relative to the file's folder, a label, and perhaps a
            `split`.
        splits: which of train, validation, test to return. Training never asks for test.
        validation: fraction of train that becomes validation, where the dataset has none of its own, in (0, 0.5].
        seed: of the validation cut and of the samples. The test cut doesn't depend on it.
        image_column: the column of images; found by type (Image) if None.
        label_column: the column of labels; found by type (ClassLabel) if None. Strings and integers become classes.
        label_names: a JSON file, `{"a label of the dataset": "what to call it", …}`; labels that it leaves out keep
        their name.
        max_train_samples: at most so many images of train, drawn by class.
        max_eval_samples: at most so many images of validation, and of test, drawn by class.
        skip_unreadable: whether decoding goes on past unreadable files (counted in `Splits.skipped`) or raises.
        cut: whether a split that the dataset has not is cut from train. Otherwise it stays None, and rows are the
            dataset's.

    Raises:
        DataError: the dataset, a folder, a file or a column can't be used. The message says which, and what to do.
    """
    if not 0 < validation <= 0.5:
        raise DataError(f"a validation fraction of {validation:g} is out of range: pass one above 0 and up to 0.5")
    for flag, value in (("max_train_samples", max_train_samples), ("max_eval_samples", max_eval_samples)):
        if value is not None and value < 1:
            raise DataError(f"--{flag} {value} leaves no images: pass 1 or more")

    if Path(dataset).is_file():
        loaded, name, image_column, label_column = load_table(Path(dataset), image_column, label_column)
        revision = None
    else:
        loaded, name, revision = load_source(dataset)
    own = splits_by_name(name, loaded, is_trained_on=cut and "validation" in splits)
    is_test_alone = own["train"] is own.get("test")
    image_column = find_column(name, own["train"], image_column, datasets.Image, "image")
    label_column = find_column(name, own["train"], label_column, datasets.ClassLabel, "label")
    own = cast_images(name, own, image_column)
    own, labels = encode_labels(name, own, label_column)
    labels = rename_labels(name, labels, Path(label_names)) if label_names else labels

    test_cut = None
    if cut and "test" not in own:
        rows, y = own["train"], class_indices(name, "train", own["train"], label_column)
        files = _file_names(rows, image_column, Path(dataset))
        chosen = (
            sample_by_name(files, y) if files else sample_by_class(y, max(1, round(TEST_FRACTION * len(y))), TEST_SEED)
        )
        own["train"], own["test"] = _cut(name, rows, y, chosen, labels)
        names = [files[i] for i in chosen] if files else [f"{i} of {len(y)}" for i in chosen]
        test_cut = hashlib.sha256("\n".join(sorted(names)).encode(errors="surrogateescape")).hexdigest()[:32]
    if is_test_alone:
        del own["train"]
    elif cut and "validation" not in own:
        rows, y = own["train"], class_indices(name, "train", own["train"], label_column)
        chosen = sample_by_class(y, max(1, round(validation * len(y))), seed)
        own["train"], own["validation"] = _cut(name, rows, y, chosen, labels)
    wanted = {split: own[split] for split in splits if split in own}
    for split, rows in wanted.items():
        limit = max_train_samples if split == "train" else max_eval_samples
        y = class_indices(name, split, rows, label_column)
        if limit is not None and limit < len(rows):
            wanted[split] = rows.select(sample_by_class(y, limit, seed))
    return Splits(
        **{split: wanted.get(split) for split in ("train", "validation", "test")},
        image_column=image_column,
        label_column=label_column,
        labels=labels,
        name=name,
        revision=revision,
        test_cut=test_cut,
        skip_unreadable=skip_unreadable,
    )


def load_images(dataset: str, *, split: str | None = None, image_column: str | None = None) -> Images:
    """Loads one split's images, for those who label them: it needs neither labels nor a train split. Nothing is
    decoded.

    Args:
        dataset: as in `load`, but for files.
        split: test if None, or the only one that there is.
        image_column: as in `load`.

    Raises:
        DataError: the dataset, the split or the column can't be used. The message says which, and what to do.
    """
    if Path(dataset).is_file():
        raise DataError(f"{dataset} is a file: pass the folder that holds it")
    loaded, name, revision = load_source(dataset)
    wanted = split or ("test" if len(loaded) > 1 else next(iter(loaded)))
    found = [own for own in loaded if own == wanted] or [
        own for own in loaded if SPLIT_NAMES.get(own.lower()) == wanted
    ]
    if not found:
        raise DataError(f"{name} has no {wanted} split, only {', '.join(loaded)}: pass one of them as --split")
    [own, *_] = found
    column = find_column(name, loaded[own], image_column, datasets.Image, "image")
    rows = cast_images(name, {own: loaded[own]}, column)[own]
    rows = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    if not len(rows):
        raise DataError(f"the {own} split of {name} is empty: pass another --split")
    return Images(rows, column, own, name, revision or digest_of_files(Path(dataset)))


def sample_by_class(labels: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Draws n of N indices so that each class keeps its share, to within one image; the same ones for the same seed.

    Each class gives the whole part of its share; the images still missing come one each from the classes with the
    largest remainders (ties: the lower class). A class of one image gives none if others can.

    Args:
        labels: class indices, int (N,).
        n: how many to draw, at most N.
        seed: of the draw.

    Returns:
        Sorted indices, int64 (n,).
    """
    classes, counts = np.unique(labels, return_counts=True)
    quotas, remainders = np.divmod(counts * n, len(labels))  # in whole numbers: no rounding to differ between machines
    remainders[counts == 1] = -1
    quotas[np.argsort(-remainders, kind="stable")[: n - quotas.sum()]] += 1
    generator = np.random.default_rng(seed)
    drawn = [
        generator.permutation(np.flatnonzero(labels == each))[:quota]
        for each, quota in zip(classes, quotas, strict=True)
    ]
    return np.sort(np.concatenate(drawn))


def sample_by_name(files: Sequence[str], labels: np.ndarray) -> np.ndarray:
    """Draws about TEST_FRACTION of N files by digests of their names: whether one is drawn depends on no other.

    That holds but for few: a class keeps one, and gives one if it has five or more; and of all together one is drawn,
    if a class has two.

    Args:
        files: names, which tell one from another.
        labels: class indices, int (N,).

    Returns:
        Sorted indices, int64.
    """
    digests = [hashlib.sha256(f"{TEST_SEED} {file}".encode(errors="surrogateescape")).digest()[:8] for file in files]
    place = np.array([int.from_bytes(digest) / 2**64 for digest in digests])  # in [0, 1)
    drawn = place < TEST_FRACTION
    kept = []
    for each, n in zip(*np.unique(labels, return_counts=True), strict=True):
        members = np.flatnonzero(labels == each)
        order = members[np.argsort(place[members], kind="stable")]
        drawn[order[0]] |= n * TEST_FRACTION >= 0.5
        kept.append(order[-1])
    drawn[kept] = False
    others = np.setdiff1d(np.arange(len(labels)), kept)
    if not drawn.any() and len(others):
        drawn[others[np.argmin(place[others])]] = True
    return np.flatnonzero(drawn)


def _file_names(rows: datasets.Dataset, column: str, dataset: Path) -> list[str] | None:
    """Names of a split's images within the dataset's folder; None where they are not files of one."""
    if not dataset.exists():
        return None
    folder, names = dataset.parent if dataset.is_file() else dataset, []
    for index, row in enumerate(rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))):
        cell = row[column]
        if cell and cell["bytes"] is not None:
            return None
        path = Path(cell["path"]) if cell and cell["path"] else Path(f"nothing in row {index}")
        names.append((path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix())
    return names


def _cut(
    name: str, rows: datasets.Dataset, y: np.ndarray, cut: np.ndarray, labels: list[str]
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Splits rows of labels y into (the rest, those that are cut)."""
    rest = np.setdiff1d(np.arange(len(y)), cut)
    lost = np.setdiff1d(y, y[rest])
    if len(lost):
        raise DataError(f"too few images of class {labels[lost[0]]!r} in {name} to cut splits from: add more")
    return rows.select(rest), rows.select(cut)
