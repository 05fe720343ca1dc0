"""Finds and checks the image column and the label column, and names the classes."""

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import datasets
import numpy as np

from classifier.errors import DataError, first_few, first_line

MULTI_LABEL = (
    "the classifiers are single-label, so an image can have only one label; write one column with it, and name that by "
    "--label_column"
)


def find_column(name: str, rows: datasets.Dataset, column: str | None, kind: type, flag: str) -> str:
    """The column that the user named, or the only one of the feature type `kind`.

    Raises:
        DataError: there is no such column, or not exactly one of that type.
    """
    columns = ", ".join(f"{column} ({feature_name(feature)})" for column, feature in rows.features.items())
    if column is not None:
        if column not in rows.features:
            raise DataError(
                f"{name} has no column {column!r}: its columns are {columns}; pass one of them as --{flag}_column"
            )
        return column
    matches = [column for column, feature in rows.features.items() if isinstance(feature, kind)]
    if len(matches) != 1:
        if kind is datasets.ClassLabel:
            lists = [name for name, feature in rows.features.items() if isinstance(_item(feature), datasets.ClassLabel)]
            hot = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Value)]
            hot = [name for name in hot if is_multi_hot(rows, [name])]
            if lists or (len(hot) > 1 and not matches):
                raise DataError(f"{name} has several labels an image (column {first_few(lists or hot)}): {MULTI_LABEL}")
        count = len(matches) or "no"
        raise DataError(
            f"{name} has {count} columns of type {kind.__name__}: its columns are {columns}; pass --{flag}_column"
        )
    return matches[0]


def feature_name(feature: object) -> str:
    """The name of a column's type, for messages."""
    return feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__


def _item(feature: object) -> object:
    """The type of the items, for a column of lists; None for any other column."""
    return feature.feature if isinstance(feature, datasets.List | datasets.LargeList) else None


def is_multi_hot(rows: datasets.Dataset, columns: Sequence[str]) -> bool:
    """Whether the first rows have 0 or 1 (or false and true) in all of these columns."""
    sample = rows.select_columns(list(columns))[:100]
    texts = {str(value).lower() for column in columns for value in sample[column]}
    return texts <= {"0", "1", "0.0", "1.0", "false", "true"} and bool(texts)


def _check_single_label(name: str, column: str, values: Collection[object]) -> None:
    """Raises DataError if text lists several labels: cat|dog, or cat,dog where cat and dog are labels themselves."""
    for value in values:
        for separator in "|;,":
            parts = [part.strip() for part in str(value).split(separator)]
            if len(parts) > 1 and all(parts) and (separator == "|" or set(parts) <= set(map(str, values))):
                raise DataError(
                    f"column {column!r} of {name} has several labels an image, such as {value!r}: {MULTI_LABEL}"
                )


def cast_images(name: str, splits: dict[str, datasets.Dataset], column: str) -> dict[str, datasets.Dataset]:
    """Makes the column one of images in every split; encoded bytes become images.

    Raises:
        DataError: the column is missing in a split or holds something else.
    """
    for split, rows in splits.items():
        feature = rows.features.get(column)
        is_encoded = feature == datasets.Value("binary") or (
            isinstance(feature, dict) and set(feature) == {"bytes", "path"}
        )
        if not is_encoded and not isinstance(feature, datasets.Image):
            held = "is missing" if feature is None else f"holds {feature_name(feature)}, not images,"
            raise DataError(f"column {column!r} of {name} {held} in {split}: pass the images' column as --image_column")
    return {split: rows.cast_column(column, datasets.Image()) for split, rows in splits.items()}


def undecoded(rows: datasets.Dataset, column: str) -> datasets.Dataset:
    """The image column alone, with cells {"bytes", "path"}, or None where a row has no image."""
    return rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))


def encode_labels(
    name: str, splits: dict[str, datasets.Dataset], column: str, wanted: Collection[str]
) -> tuple[dict[str, datasets.Dataset], dict[str, np.ndarray], list[str]]:
    """Makes the label column one of class indices in every split. Strings, integers and booleans become classes.

    Classes are sorted: numbers by their values, also those that are spelt out, then text.

    Each split's column is read once.

    Args:
        name: the dataset's, for messages.
        splits: the rows of each split. Train, or else test, says which classes there are.
        column: the label column.
        wanted: the splits whose labels are needed, beside train. The others may lack them, as the Hub's test splits
            often do.

    Returns:
        The rows, the class indices int64 (N,) of each split whose labels are needed, and the names of the classes.

    Raises:
        DataError: the column does not hold classes, a label is missing, or there are fewer than two classes.
    """
    reference = "train" if "train" in splits else "test"
    feature = splits[reference].features[column]
    is_plain = isinstance(feature, datasets.Value) and (
        feature.dtype in ("string", "large_string", "bool") or "int" in feature.dtype
    )
    if _item(feature):
        raise DataError(f"column {column!r} of {name} has several labels an image: {MULTI_LABEL}")
    if not is_plain and not isinstance(feature, datasets.ClassLabel):
        raise DataError(
            f"column {column!r} of {name} holds {feature_name(feature)}, not classes: pass one of classes, strings or "
            "integers as --label_column"
        )
    for split, rows in splits.items():
        if rows.features.get(column) != feature:
            raise DataError(
                f"column {column!r} of {name} is {feature_name(rows.features.get(column))} in {split} and "
                f"{feature_name(feature)} in {reference}: give every split the same columns"
            )
    if is_plain:
        splits, indices, labels = _classes_from_values(name, splits, column, reference)
    else:
        labels = list(feature.names)
        wanted = {reference, *wanted}
        indices = {split: _read_indices(name, split, rows, column) for split, rows in splits.items() if split in wanted}
    present = np.unique(indices[reference])
    if len(present) < 2:
        content = f"one class ({labels[present[0]]})" if len(present) else "no images"
        raise DataError(
            f"{name} has {content} in {reference}: at least two classes are needed, each with images of its own"
        )
    return splits, indices, labels


def _classes_from_values(
    name: str, splits: dict[str, datasets.Dataset], column: str, reference: str
) -> tuple[dict[str, datasets.Dataset], dict[str, np.ndarray], list[str]]:
    """Replaces strings or integers by class indices: the rows, the indices of each split, and the names."""
    values_by_split = {split: rows[column][:] for split, rows in splits.items()}
    for split, values in values_by_split.items():
        if None in values:
            raise DataError(f"{name} has rows without a label in {split} (column {column!r}): remove them")
    classes = sorted(set(values_by_split[reference]), key=_sort_key)
    _check_single_label(name, column, classes)
    labels = [str(value) for value in classes]
    index_of = {value: index for index, value in enumerate(classes)}
    feature = datasets.ClassLabel(names=labels)
    encoded, indices = {}, {}
    for split, values in values_by_split.items():
        check_same_classes(name, split, labels, [str(value) for value in set(values)])
        indices[split] = np.array([index_of[value] for value in values], dtype=np.int64)
        encoded[split] = splits[split].remove_columns(column).add_column(column, indices[split], feature=feature)
    return encoded, indices, labels


def _sort_key(value: object) -> tuple[bool, float, str]:
    """Numbers, also those that are spelt out, come first, by their values; then text."""
    text = str(value)
    is_number = bool(re.fullmatch(r"[+-]?\d+(\.\d+)?", text))
    return not is_number, float(text) if is_number else 0.0, text


def _read_indices(name: str, split: str, rows: datasets.Dataset, column: str) -> np.ndarray:
    """Reads a ClassLabel column: the class index of each row, int64 (N,)."""
    values = rows[column][:]
    missing = sum(value is None or value < 0 for value in values)  # the Hub's test splits sometimes hide theirs as -1
    if missing:
        raise DataError(f"{name} has {missing} rows without a label in {split} (column {column!r}): remove them")
    return np.array(values, dtype=np.int64)


def rename_labels(name: str, labels: list[str], file: Path) -> list[str]:
    """The labels, renamed as a JSON file says. DataError if the file names unknown labels or repeats a name."""
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"--label_names {file} can't be read ({first_line(error)}): pass a JSON file") from error
    if not isinstance(names, dict) or not all(isinstance(value, str) and value for value in names.values()):
        raise DataError(f'--label_names {file} is no object of names: write {{"{labels[0]}": "what to call it", …}}')
    if unknown := sorted(set(names) - set(labels)):
        raise DataError(
            f"--label_names {file} names {unknown[0]!r}, which is no label of {name}: it has {', '.join(labels[:9])}"
        )
    renamed = [names.get(label, label) for label in labels]
    if twice := [label for label in renamed if renamed.count(label) > 1]:
        raise DataError(f"--label_names {file} gives two labels the name {twice[0]!r}: give each its own")
    return renamed


def check_same_classes(name: str, split: str, train: list[str], other: list[str]) -> None:
    """Raises DataError unless a split has exactly the classes of train."""
    for here, there, missing in (
        ("train", split, sorted(set(train) - set(other))),
        (split, "train", sorted(set(other) - set(train))),
    ):
        if missing:
            raise DataError(
                f"the classes of {name} differ between splits: {first_few(missing)} in {here} but not in {there}; "
                "name the classes alike, and give each images in both"
            )
