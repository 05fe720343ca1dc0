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
        wanted: the splits whose labels are needed, beside train. The others may lack some.

    Returns:
        The rows, the class indices int64 (N,) of each split, and the names of the classes. A test split without any
        labels is not among the rows; a split that is not wanted and lacks some labels has no class indices.

    Raises:
        DataError: the column does not hold classes, a label is missing, a split has classes that train lacks, or there
            are fewer than two classes.
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
    values = _read_labels(name, splits, column, reference, wanted)
    splits = {split: splits[split] for split in values}
    complete = {split: of_split for split, of_split in values.items() if of_split is not None}
    present = set(complete[reference])
    label_of = dict(enumerate(feature.names)) if not is_plain else {v: str(v) for v in sorted(present, key=_sort_key)}
    if is_plain:
        _check_single_label(name, column, list(label_of))
    if len(present) < 2:
        content = f"one class ({label_of[present.pop()]})" if present else "no images"
        raise DataError(
            f"{name} has {content} in {reference}: at least two classes are needed, each with images of its own"
        )
    for split, of_split in complete.items():
        known, held = ([label_of.get(value, str(value)) for value in each] for each in (present, set(of_split)))
        check_known_classes(name, split, known, held)
    labels = list(label_of.values())
    index_of = {value: index for index, value in enumerate(label_of)}
    indices = {split: np.array([index_of[v] for v in of_split], np.int64) for split, of_split in complete.items()}
    if is_plain:
        new = datasets.ClassLabel(names=labels)
        splits = {
            split: rows.remove_columns(column).add_column(column, indices[split], feature=new)
            for split, rows in splits.items()
        }
    return splits, indices, labels


def _read_labels(
    name: str, splits: dict[str, datasets.Dataset], column: str, reference: str, wanted: Collection[str]
) -> dict[str, list | None]:
    """The cells of each split's label column; None for those of a split that is not `wanted` and lacks some.

    A test split without any labels is left out.

    Raises:
        DataError: columns differ in type, or a label is missing.
    """
    feature = splits[reference].features[column]
    has_names = isinstance(feature, datasets.ClassLabel)
    cells: dict[str, list | None] = {}
    for split, rows in splits.items():
        kind, may_lack = rows.features.get(column), split == "test" != reference
        if may_lack and kind in (None, datasets.Value("null")):
            continue
        if kind != feature:
            raise DataError(
                f"column {column!r} of {name} is {feature_name(kind)} in {split} and {feature_name(feature)} in "
                f"{reference}: give every split the same columns"
            )
        values = rows[column][:]
        n_missing = sum(value is None or (has_names and value < 0) for value in values)  # the Hub hides some as -1
        if may_lack and n_missing == len(values):
            continue
        if n_missing and (not has_names or split in (reference, *wanted)):
            raise DataError(f"{name} has {n_missing} rows without a label in {split} (column {column!r}): remove them")
        cells[split] = None if n_missing else values
    return cells


def _sort_key(value: object) -> tuple[bool, float, str]:
    """Numbers, also those that are spelt out, come first, by their values; then text."""
    text = str(value)
    is_number = bool(re.fullmatch(r"[+-]?\d+(\.\d+)?", text))
    return not is_number, float(text) if is_number else 0.0, text


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


def check_known_classes(name: str, split: str, train: Collection[str], other: Collection[str]) -> None:
    """Raises DataError if a split has classes that train lacks. The reverse is fine."""
    if unknown := sorted(set(other) - set(train)):
        raise DataError(
            f"{name} has {first_few(unknown)} in {split} but not in train, so no model can learn it: name the classes "
            f"alike, add images to train, or remove them from {split}"
        )
