"""Loads any image-classification dataset as three splits: train, validation and test.

    splits = load_splits("uoft-cs/cifar10")  # a Hub id, id@revision, a folder, or a table of paths and labels
    print(survey_splits(splits, Path("unreadable.txt")))  # 50,000 images, 10 classes, smallest 4,500 (airplane); …
    images, labels = as_tensor("train", splits)  # uint8 (45000, 3, 32, 32), int64 (45000,)
    batches = image_batches("train", splits, 64)  # of large images: PIL images at their own sizes, and labels

There are always three splits, unless `cut` is off. A missing validation split is cut from train, by class and by seed.
A missing test split is cut from train too, in the same way on every run, so that no run trains on images that another
run is tested on. In an image folder the test split is chosen by file name, so it does not change when files are added
or removed. A test split without labels is left aside, and no other one is cut.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import datasets
import numpy as np

from classifier.data.columns import cast_images, encode_labels, find_column, rename_labels, undecoded
from classifier.data.sources import load_source, rename_splits
from classifier.errors import DataError, first_few

# The test cut of a dataset without a test split. Both are fixed, so that every run is tested on the same images.
TEST_FRACTION, TEST_SEED = 0.1, 0


@dataclass(frozen=True)
class Splits:
    """The splits of a dataset and what is needed to read them.

    Attributes:
        train, validation, test: the rows, None for a split that was not asked for or does not exist.
        class_indices: the class index of every row, int64 (N,), of each split that is not None. Read once, when the
            dataset is loaded, so that nothing else has to read the label column.
        image_column, label_column: the columns of the rows.
        labels: the names of the classes, in the order of their indices.
        name: the Hub id, or the name of the folder without its parents.
        revision: the Hub's commit, None for a folder.
        test_cut: a digest of the rows that were cut from train for test, None where the dataset has a test split.
        skip_unreadable: whether unreadable files are skipped instead of raising an error.
        skipped: the unreadable files found so far. It grows while images are decoded.
        left_out: the number of files of the folder that are no pictures, by kind.
        n_unlabelled: the number of images in a test split without labels, which is left aside.
        notes: one line for each split that lacks something, for the user.
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
    left_out: Mapping[str, int] = field(default_factory=dict)
    n_unlabelled: int = 0
    notes: Sequence[str] = ()

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
        return self._with(split, self[split].select(indices), self.class_indices[split][indices])

    def cut(self, split: str, indices: np.ndarray) -> "Splits":
        """The same splits, with the rows of train at `indices` moved to `split`.

        Raises:
            DataError: a class would have no images left in train.
        """
        in_train = self.class_indices["train"]
        rest = np.setdiff1d(np.arange(len(in_train)), indices)
        emptied = np.setdiff1d(in_train, in_train[rest])
        if len(emptied):
            label = self.labels[emptied[0]]
            raise DataError(f"too few images of class {label!r} in {self.name} to cut splits from: add more")
        return self._with(split, self["train"].select(indices), in_train[indices]).select("train", rest)

    def only(self, names: Sequence[str]) -> "Splits":
        """The splits named, where they exist; the others are None."""
        return replace(
            self,
            train=self.train if "train" in names else None,
            validation=self.validation if "validation" in names else None,
            test=self.test if "test" in names else None,
            class_indices={split: indices for split, indices in self.class_indices.items() if split in names},
        )

    def _with(self, split: str, rows: datasets.Dataset, class_indices: np.ndarray) -> "Splits":
        return replace(self, **{split: rows}, class_indices=self.class_indices | {split: class_indices})


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
    limits = {"train": max_train_samples, "validation": max_eval_samples, "test": max_eval_samples}
    _check_options(validation, max_train_samples=max_train_samples, max_eval_samples=max_eval_samples)
    data = _load_uncut(dataset, splits, image_column, label_column, is_trained_on=cut and "validation" in splits)
    data = replace(data, skip_unreadable=skip_unreadable)
    if label_names:
        data = replace(data, labels=rename_labels(data.name, data.labels, Path(label_names)))
    if cut and data.n_unlabelled and "test" in splits:
        raise DataError(
            f"test of {data.name} has no labels, and measuring needs them: sort its images into test/<label>/, or "
            "classify them by python -m classifier.predict"
        )
    if cut and data.test is None and not data.n_unlabelled:
        indices, digest = _draw_test(data, Path(dataset))
        data = replace(data.cut("test", indices), test_cut=digest)
    if cut and data.train is not None and data.validation is None:
        n = max(1, round(validation * len(data.train)))
        data = data.cut("validation", sample_by_class(data.class_indices["train"], n, seed))
    data = replace(data, notes=_notes(data)).only(splits)
    for split, labels in data.class_indices.items():
        limit = limits[split]
        if limit is not None and limit < len(labels):
            data = data.select(split, sample_by_class(labels, limit, seed))
    return data


def _check_options(validation: float, **limits: int | None) -> None:
    """Raises DataError for a fraction or a number of samples that leaves nothing."""
    if not 0 < validation <= 0.5:
        raise DataError(f"a validation fraction of {validation:g} is out of range: pass one above 0 and up to 0.5")
    for flag, limit in limits.items():
        if limit is not None and limit < 1:
            raise DataError(f"--{flag} {limit} leaves no images: pass 1 or more")


def _load_uncut(
    dataset: str, splits: Sequence[str], image_column: str | None, label_column: str | None, is_trained_on: bool
) -> Splits:
    """Loads all splits that the dataset itself has, with the class indices of train and of the `splits` named."""
    source = load_source(dataset, image_column, label_column)
    rows = rename_splits(source, is_trained_on)
    reference = rows["train" if "train" in rows else "test"]
    image_column = find_column(source.name, reference, source.image_column, datasets.Image, "image")
    label_column = find_column(source.name, reference, source.label_column, datasets.ClassLabel, "label")
    images = cast_images(source.name, rows, image_column)
    rows, class_indices, labels = encode_labels(source.name, images, label_column, splits)
    return Splits(
        train=rows.get("train"),
        validation=rows.get("validation"),
        test=rows.get("test"),
        image_column=image_column,
        label_column=label_column,
        labels=labels,
        name=source.name,
        revision=source.revision,
        class_indices=class_indices,
        left_out=source.left_out,
        n_unlabelled=len(images["test"]) if "test" in images and "test" not in rows else 0,
    )


def _notes(data: Splits) -> list[str]:
    """A line for each split that lacks images of some classes, and for a test split without labels."""
    notes = []
    present = np.unique(data.class_indices["train"]) if "train" in data.class_indices else np.array([], np.int64)
    for split, indices in data.class_indices.items():
        if absent := [data.labels[i] for i in np.setdiff1d(present, indices)]:
            classes = "this class is" if len(absent) == 1 else "these classes are"
            notes.append(
                f"{split} of {data.name} has no images of {first_few(absent)}, so {classes} not measured there"
            )
    if data.n_unlabelled:
        notes.append(f"test of {data.name} has no labels: its {data.n_unlabelled:,} images are left aside")
    return notes


def _draw_test(data: Splits, dataset: Path) -> tuple[np.ndarray, str]:
    """Draws the test split from train: by file name where the images are files, otherwise by class.

    Returns:
        Sorted indices into train, int64, and a digest of the rows drawn, 32 hex digits.
    """
    labels = data.class_indices["train"]
    if files := _file_names(data["train"], data.image_column, dataset):
        indices = sample_by_name(files, labels)
        names = [files[i] for i in indices]
    else:
        indices = sample_by_class(labels, max(1, round(TEST_FRACTION * len(labels))), TEST_SEED)
        names = [f"{i} of {len(labels)}" for i in indices]
    return indices, hashlib.sha256("\n".join(sorted(names)).encode(errors="surrogateescape")).hexdigest()[:32]


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
        generator.permutation(np.flatnonzero(labels == class_index))[:quota]
        for class_index, quota in zip(classes, quotas, strict=True)
    ]
    return np.sort(np.concatenate(drawn))


def sample_by_name(files: Sequence[str], labels: np.ndarray) -> np.ndarray:
    """Draws about TEST_FRACTION of N files by a digest of their names, so that a draw does not depend on other files.

    Small classes are exceptions: every class keeps at least one image, and a class of five or more gives at least one.
    At least one image is drawn in all if some class has two.

    Takes unique file names and class indices, int (N,); gives sorted indices, int64.
    """
    digests = [hashlib.sha256(f"{TEST_SEED} {file}".encode(errors="surrogateescape")).digest()[:8] for file in files]
    score = np.array([int.from_bytes(digest) / 2**64 for digest in digests])  # in [0, 1)
    drawn = score < TEST_FRACTION
    kept = []
    for class_index, n in zip(*np.unique(labels, return_counts=True), strict=True):
        members = np.flatnonzero(labels == class_index)
        order = members[np.argsort(score[members], kind="stable")]
        drawn[order[0]] |= n * TEST_FRACTION >= 0.5
        kept.append(order[-1])
    drawn[kept] = False
    others = np.setdiff1d(np.arange(len(labels)), kept)
    if not drawn.any() and len(others):
        drawn[others[np.argmin(score[others])]] = True
    return np.flatnonzero(drawn)


def _file_names(rows: datasets.Dataset, column: str, dataset: Path) -> list[str] | None:
    """The images' paths relative to the dataset's folder; None if the images are not files in a folder."""
    if not dataset.exists():
        return None
    folder = dataset.parent if dataset.is_file() else dataset
    names = []
    for index, row in enumerate(undecoded(rows, column)):
        cell = row[column]
        if cell and cell["bytes"] is not None:
            return None
        path = Path(cell["path"]) if cell and cell["path"] else Path(f"nothing in row {index}")
        names.append((path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix())
    return names
