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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np

from classifier.data.columns import cast_images, encode_labels, find_column, rename_labels
from classifier.data.sources import SPLIT_NAMES, digest_of_files, load_source, load_table, splits_by_name
from classifier.errors import DataError

# Of a dataset without a test split; fixed, so that every run is tested on the same images.
TEST_FRACTION, TEST_SEED = 0.1, 0


@dataclass(frozen=True)
class Splits:
    """The splits of a dataset and what is needed to read them.

    Attributes:
        train, validation, test: the rows, None for a split that was not asked for or does not exist.
        class_indices: the class index of every row, int64 (N,), of each split that is not None.
        image_column, label_column: the columns of the rows.
        labels: the names of the classes, in the order of their indices.
        name: the Hub id, or the name of the folder without its parents.
        revision: the Hub's commit, None for a folder.
        test_cut: a digest of the rows that were cut from train for test, None where the dataset has a test split.
        skip_unreadable: whether unreadable files are skipped instead of raising an error.
        skipped: the unreadable files found so far. It grows while images are decoded.
    """

    train: datasets.Dataset | None
    validation: datasets.Dataset | None
    test: datasets.Dataset | None
    image_column: str
    label_column: str
    labels: list[str]
    name: str
    revision: str | None
    class_indices: dict[str, np.ndarray] = field(default_factory=dict)
    test_cut: str | None = None
    skip_unreadable: bool = False
    skipped: list[str] = field(default_factory=list)

    def __getitem__(self, split: str) -> datasets.Dataset:
        """The rows of a split.

        Raises:
            KeyError: the split was not asked for.
        """
        rows = {"train": self.train, "validation": self.validation, "test": self.test}[split]
        if rows is None:
            raise KeyError(f"load_splits(…, splits=…) was not asked for {split!r}")
        return rows

    def select(self, split: str, indices: np.ndarray | Sequence[int]) -> "Splits":
        """The same splits, with only the rows at `indices` in `split`."""
        class_indices = self.class_indices | {split: self.class_indices[split][indices]}
        return replace(self, **{split: self[split].select(indices)}, class_indices=class_indices)


class Images(NamedTuple):
    """The images of one split, in its order, without labels.

    Attributes:
        rows: each cell of `column` is {"bytes", "path"}, undecoded, or None.
        column: the image column.
        split: the dataset's own name of the split.
        name: the Hub id, or the name of the folder without its parents.
        revision: the Hub's commit; for a folder, a digest of the names, sizes and dates of its files.
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
    """Loads a dataset as train, validation and test. Missing splits are cut from train. No image is decoded here.

    Args:
        dataset: a Hub id (`user/name`), `id@revision`, a folder that `datasets` can load (parquet), an image folder
            (`train/<label>/…` with `validation` or `val` or `dev` and `test` beside it, or `<label>/…`), or a table
            (CSV, JSON, parquet) with one image a row: a path relative to the table's folder, a label, and optionally
            a `split`.
        splits: which of train, validation and test to return. Training never asks for test.
        validation: fraction of train that becomes validation if the dataset has no such split, in (0, 0.5].
        seed: seed of the validation cut and of the samples. The test cut does not depend on it.
        image_column: the image column; by default the only column of type Image.
        label_column: the label column; by default the only column of type ClassLabel. Strings and integers become
            classes.
        label_names: a JSON file, `{"a label of the dataset": "its new name", …}`. Labels that it does not list keep
            their names.
        max_train_samples: at most this many training images, drawn by class.
        max_eval_samples: at most this many images of validation and of test each, drawn by class.
        skip_unreadable: skip unreadable files and count them in `Splits.skipped` instead of raising an error.
        cut: cut missing splits from train. If False, they stay None, and rows keep the dataset's numbering.

    Raises:
        DataError: the dataset, a folder, a file or a column can't be used. The message names it and the next step.
    """
    _check_arguments(validation, max_train_samples=max_train_samples, max_eval_samples=max_eval_samples)
    if Path(dataset).is_file():
        loaded, name, image_column, label_column = load_table(Path(dataset), image_column, label_column)
        revision = None
    else:
        loaded, name, revision = load_source(dataset)
    rows = splits_by_name(name, loaded, is_trained_on=cut and "validation" in splits)
    is_test_alone = rows["train"] is rows.get("test")
    image_column = find_column(name, rows["train"], image_column, datasets.Image, "image")
    label_column = find_column(name, rows["train"], label_column, datasets.ClassLabel, "label")
    rows = cast_images(name, rows, image_column)
    rows, class_indices, labels = encode_labels(name, rows, label_column, {"train", *splits})
    parts = _Parts(name, rows, class_indices, labels)

    test_cut = None
    if cut and "test" not in rows:
        test_cut = parts.cut_test(_file_names(rows["train"], image_column, Path(dataset)))
    if is_test_alone:
        del rows["train"]
    elif cut and "validation" not in rows:
        n = max(1, round(validation * len(rows["train"])))
        parts.cut("validation", sample_by_class(class_indices["train"], n, seed))
    for split in splits:
        limit = max_train_samples if split == "train" else max_eval_samples
        if split in rows and limit is not None and limit < len(rows[split]):
            parts.keep(split, sample_by_class(class_indices[split], limit, seed))
    wanted = {split: rows[split] for split in splits if split in rows}
    return Splits(
        train=wanted.get("train"),
        validation=wanted.get("validation"),
        test=wanted.get("test"),
        image_column=image_column,
        label_column=label_column,
        labels=rename_labels(name, labels, Path(label_names)) if label_names else labels,
        name=name,
        revision=revision,
        class_indices={split: class_indices[split] for split in wanted},
        test_cut=test_cut,
        skip_unreadable=skip_unreadable,
    )


def _check_arguments(validation: float, **limits: int | None) -> None:
    """Raises DataError for a fraction or a number of samples that leaves nothing."""
    if not 0 < validation <= 0.5:
        raise DataError(f"a validation fraction of {validation:g} is out of range: pass one above 0 and up to 0.5")
    for flag, value in limits.items():
        if value is not None and value < 1:
            raise DataError(f"--{flag} {value} leaves no images: pass 1 or more")


@dataclass
class _Parts:
    """The rows and class indices of a dataset's splits while missing splits are cut from train."""

    name: str
    rows: dict[str, datasets.Dataset]
    class_indices: dict[str, np.ndarray]
    labels: list[str]

    def keep(self, split: str, indices: np.ndarray) -> None:
        """Keeps only the rows at `indices` in a split."""
        self.rows[split] = self.rows[split].select(indices)
        self.class_indices[split] = self.class_indices[split][indices]

    def cut(self, split: str, indices: np.ndarray) -> None:
        """Moves the rows of train at `indices` to a new split.

        Raises:
            DataError: a class would have no images left in train.
        """
        in_train = self.class_indices["train"]
        rest = np.setdiff1d(np.arange(len(in_train)), indices)
        lost = np.setdiff1d(in_train, in_train[rest])
        if len(lost):
            label = self.labels[lost[0]]
            raise DataError(f"too few images of class {label!r} in {self.name} to cut splits from: add more")
        self.rows[split], self.class_indices[split] = self.rows["train"].select(indices), in_train[indices]
        self.keep("train", rest)

    def cut_test(self, files: list[str] | None) -> str:
        """Cuts the test split from train, by file name where there are files, and gives a digest of its rows."""
        in_train = self.class_indices["train"]
        if files:
            indices = sample_by_name(files, in_train)
            names = [files[i] for i in indices]
        else:
            indices = sample_by_class(in_train, max(1, round(TEST_FRACTION * len(in_train))), TEST_SEED)
            names = [f"{i} of {len(in_train)}" for i in indices]
        self.cut("test", indices)
        return hashlib.sha256("\n".join(sorted(names)).encode(errors="surrogateescape")).hexdigest()[:32]


def load_images(dataset: str, *, split: str | None = None, image_column: str | None = None) -> Images:
    """Loads the images of one split, which needs neither labels nor a train split. Nothing is decoded.

    Args:
        dataset: as in `load_splits`, except for single files.
        split: by default test, or the only split of the dataset.
        image_column: as in `load_splits`.

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
    """Draws n of N indices so that every class keeps its share, to within one image. The same seed draws the same ones.

    Each class gives the whole part of its share. The images that are still missing come from the classes with the
    largest remainders, one each (ties: the lower class). A class of one image gives none if others can.

    Args:
        labels: class indices, int (N,).
        n: number of indices to draw, at most N.
        seed: seed of the draw.

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
    """Draws about TEST_FRACTION of N files by a digest of their names, so that a draw does not depend on other files.

    Small classes are exceptions: every class keeps at least one image, and a class of five or more gives at least one.
    At least one image is drawn in all if some class has two.

    Args:
        files: unique file names.
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
