"""Finds and checks the image column and the label column, and names the classes."""

import json
from pathlib import Path

import datasets
import numpy as np

from classifier.errors import DataError, first_line


def find_column(name: str, rows: datasets.Dataset, column: str | None, kind: type, what: str) -> str:
    """The column named, or the one of that feature type."""
    listed = "its columns are " + ", ".join(
        f"{column} ({feature_name(each)})" for column, each in rows.features.items()
    )
    if column is not None:
        if column not in rows.features:
            raise DataError(f"{name} has no column {column!r}: {listed}; pass one of them as --{what}_column")
        return column
    found = [column for column, feature in rows.features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        count = "no" if not found else f"{len(found)}"
        raise DataError(f"{name} has {count} columns of type {kind.__name__}: {listed}; pass --{what}_column")
    return found[0]


def feature_name(feature: object) -> str:
    """The name of a column's type, for messages."""
    return feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__


def cast_images(name: str, own: dict[str, datasets.Dataset], column: str) -> dict[str, datasets.Dataset]:
    """Sees to it that the column holds images in every split; encoded bytes become images."""
    for split, rows in own.items():
        feature = rows.features.get(column)
        is_encoded = feature == datasets.Value("binary") or (
            isinstance(feature, dict) and set(feature) == {"bytes", "path"}
        )
        if not is_encoded and not isinstance(feature, datasets.Image):
            held = "is missing" if feature is None else f"holds {feature_name(feature)}, not images,"
            raise DataError(f"column {column!r} of {name} {held} in {split}: pass the images' column as --image_column")
    return {split: rows.cast_column(column, datasets.Image()) for split, rows in own.items()}


def encode_labels(
    name: str, own: dict[str, datasets.Dataset], column: str
) -> tuple[dict[str, datasets.Dataset], list[str]]:
    """Sees to it that the column holds class indices in every split; strings and integers become classes, sorted."""
    feature = own["train"].features[column]
    is_plain = isinstance(feature, datasets.Value) and (
        feature.dtype in ("string", "large_string") or "int" in feature.dtype
    )
    if not is_plain and not isinstance(feature, datasets.ClassLabel):
        raise DataError(
            f"column {column!r} of {name} holds {feature_name(feature)}, not classes: pass one of classes, strings or "
            "integers as --label_column"
        )
    for split, rows in own.items():
        if rows.features.get(column) != feature:
            raise DataError(
                f"column {column!r} of {name} is {feature_name(rows.features.get(column))} in {split} and "
                f"{feature_name(feature)} in train: give every split the same columns"
            )
    if is_plain:
        values = {split: rows[column][:] for split, rows in own.items()}
        for split, listed in values.items():
            if None in listed:
                raise DataError(f"{name} has rows without a label in {split} (column {column!r}): remove them")
        classes = sorted(set(values["train"]))
        labels = [str(value) for value in classes]
        index_of = {value: index for index, value in enumerate(classes)}
        feature = datasets.ClassLabel(names=labels)
        for split, listed in values.items():
            check_same_classes(name, split, labels, [str(value) for value in set(listed)])
            indices = [index_of[value] for value in listed]
            own[split] = own[split].remove_columns(column).add_column(column, indices, feature=feature)
    present = np.unique(class_indices(name, "train", own["train"], column))
    if len(present) < 2:
        only = f"one class ({feature.names[present[0]]})" if len(present) else "no images"
        raise DataError(f"{name} has {only} in train: at least two classes are needed, each with images of its own")
    return own, list(feature.names)


def rename_labels(name: str, labels: list[str], file: Path) -> list[str]:
    """The labels by the names that a JSON file has for them."""
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
            some = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
            raise DataError(
                f"the classes of {name} differ between splits: {some} in {here} but not in {there}; name the classes "
                "alike, and give each images in both"
            )


def class_indices(name: str, split: str, rows: datasets.Dataset, column: str) -> np.ndarray:
    """The class index of each row, int64 (N,)."""
    values = rows[column][:]
    bad = sum(value is None or value < 0 for value in values)  # the Hub's test splits sometimes hide theirs as -1
    if bad:
        raise DataError(f"{name} has {bad} rows without a label in {split} (column {column!r}): remove them")
    return np.array(values, dtype=np.int64)
