"""Reads a table with one image a row, and finds the files that it names. What CSV and JSON spell out stays text."""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath

import datasets

from classifier.data.columns import MULTI_LABEL, feature_name, is_multi_hot
from classifier.errors import DataError, first_few
from classifier.files import check_no_lfs_pointer
from classifier.images.folders import is_picture
from classifier.images.limits import SUFFIXES as IMAGE_SUFFIXES

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
SEPARATORS = ",;\t|"
# Label columns of tables, whose types do not say what a column holds. The first one that exists is taken.
LABEL_COLUMNS = ("label", "labels", "class", "category", "target")
URL = re.compile(r"[a-z][a-z0-9+.-]+://|data:", re.IGNORECASE)
ABSOLUTE_ON_WINDOWS = re.compile(r"[a-z]:[\\/]|\\\\", re.IGNORECASE)


def read_table(file: Path) -> datasets.Dataset:
    """The rows of a table. Cells of CSV and JSON become strings without blanks around them, None if they are empty.

    Raises:
        DataError: the file is no table, or its text or its rows can't be read.
        OSError, ValueError, RuntimeError, DatasetsError: a parquet file is damaged.
    """
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{file} is no table ({', '.join(SUFFIXES)}): pass one, or the folder that holds the images")
    check_no_lfs_pointer(file, DataError)
    if suffix == ".parquet":
        return datasets.load_dataset("parquet", data_files=str(file), split="train")
    parse = _parse_json if suffix in (".json", ".jsonl") else _parse_csv
    columns = parse(file, _read_text(file))
    features = {
        name: datasets.List(datasets.Value("string"))
        if any(isinstance(value, list) for value in values)
        else datasets.Value("string")
        for name, values in columns.items()
    }
    cells = {
        name: [_as_list(v) for v in values]
        if isinstance(features[name], datasets.List)
        else list(map(_as_text, values))
        for name, values in columns.items()
    }
    return datasets.Dataset.from_dict(cells, features=datasets.Features(features))


def _as_text(value: object) -> str | None:
    return None if value is None else str(value).strip() or None


def _as_list(value: object) -> list[str | None]:
    return [_as_text(each) for each in (value if isinstance(value, list) else [value])]


def _read_text(file: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark. DataError for any other encoding."""
    content = file.read_bytes()
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    where = len(content)
    with suppress(UnicodeDecodeError):
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
        if "\0" not in text:
            return text
    try:
        content.decode()
    except UnicodeDecodeError as error:
        where = error.start
    line = content.count(b"\n", 0, where) + 1
    raise DataError(f"{file} is not UTF-8 text (line {line}): save it as UTF-8, in Excel as 'CSV UTF-8'")


def _parse_csv(file: Path, text: str) -> dict[str, list]:
    """The cells of each column. Empty lines are skipped. DataError for rows that do not fit the header."""
    first, _, rest = text.partition("\n")
    if chosen := re.fullmatch(r'"?sep=(.)"?\s*', first):  # as Excel writes it
        separator, text = chosen[1], rest
    else:
        separator = _find_separator(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    header: list[str] = []
    rows = []
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            while len(cells) > len(header) > 0 and not cells[-1]:
                cells.pop()
            if not any(cells):
                continue
            if not header:
                header = cells
            elif len(cells) == len(header):
                rows.append(cells)
            else:
                raise DataError(
                    f"line {reader.line_num} of {file} has {len(cells)} cells, but the header has {len(header)}: put "
                    f"cells that contain {separator!r} into double quotes"
                )
    except csv.Error as error:
        raise DataError(f"line {reader.line_num} of {file} can't be read ({error}): repair it") from error
    if not rows:
        raise DataError(f"{file} has no rows below a header: write a header such as image,label, and a row per image")
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise DataError(f"{file} has two columns called {twice[0]!r}, or no header: give every column its own name")
    names = [name or f"Unnamed: {i}" for i, name in enumerate(header)]  # pandas writes its index without a name
    return {name: list(cells) for name, cells in zip(names, zip(*rows, strict=True), strict=True)}


def _find_separator(text: str) -> str:
    """The separator that splits the first rows into the same number of cells; the comma if none splits them."""

    def fit(separator: str) -> tuple[bool, int]:
        widths = [0]
        with suppress(csv.Error):
            rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
            widths = [len(row) for row in islice(rows, 20) if row] or [0]
        return len(set(widths)) == 1 and widths[0] > 1, widths[0]

    return max(SEPARATORS, key=fit)


def _parse_json(file: Path, text: str) -> dict[str, list]:
    """The values of each key in a list of objects, or in one object a line."""
    try:
        try:
            rows = json.loads(text)
        except ValueError:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except ValueError as error:
        raise DataError(f"{file} can't be read as JSON ({error}): write a list of objects, or one a line") from error
    rows = [rows] if isinstance(rows, dict) else rows
    if not rows or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{file} holds no rows: write a list of objects with the same keys, or one object a line")
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(key for row in rows for key in row)}


class Pictures:
    """The image files in the folder of a table, at any depth, by what the table calls them.

    Args:
        file: the table.
        files: the files in its folder, relative to it. They are taken only if a cell is no path to a file.
    """

    def __init__(self, file: Path, files: Iterable[Path]):
        self.file, self.folder, self.files = file, file.parent, files

    @cached_property
    def by_name(self) -> dict[str, list[PurePosixPath]]:
        """Relative paths by name, with and without suffix, in lower case."""
        paths: dict[str, list[PurePosixPath]] = {}
        for path in map(PurePosixPath, sorted(self.files)):
            if is_picture(self.folder / path):
                for name in {path.name.lower(), path.stem.lower()}:
                    paths.setdefault(name, []).append(path)
        return paths

    def candidates(self, cell: str) -> list[Path]:
        """The files that a cell may mean: that at this path, or those whose paths end like it, suffix or not."""
        name = PurePosixPath(cell.replace("\\", "/"))  # Windows separates by backslashes
        for path in (self.folder / cell, self.folder / name):
            with suppress(OSError, ValueError):  # too long for a name, or a null byte in it
                if path.is_file():
                    return [path]
        paths = [
            path
            for path in self.by_name.get(name.name.lower(), [])
            if any(f"/{p}".lower().endswith(f"/{name}".lower()) for p in (path, path.with_suffix("")))
        ]
        # Datasets that number the pictures of train and of test alike have a table of train's labels.
        in_train = [path for path in paths if {"train", self.file.stem.lower()} & {p.lower() for p in path.parts[:-1]}]
        return [self.folder / path for path in (in_train if len(in_train) == 1 else paths)]

    def locate(self, cell: str) -> tuple[Path, bool]:
        """The file that a cell names, and whether it exists.

        Raises:
            DataError: the cell is a URL or an absolute path of Windows, or several files have this name.
        """
        if URL.match(cell):
            raise DataError(
                f"{self.file} names pictures by URLs, such as {cell[:80]}: download them first, and write their paths"
            )
        candidates = self.candidates(cell)
        if not candidates and ABSOLUTE_ON_WINDOWS.match(cell):
            raise DataError(
                f"{self.file} names pictures by absolute paths of Windows, such as {cell}: write paths relative to "
                f"{self.folder}"
            )
        if len(candidates) > 1:
            raise DataError(
                f"{cell} in {self.file} may be {candidates[0]} or {candidates[1]}: write the path relative to "
                f"{self.folder}"
            )
        return (candidates[0], True) if candidates else (self.folder / cell.replace("\\", "/"), False)


def locate_pictures(pictures: Pictures, cells: Sequence[str | None]) -> list[str | None]:
    """The paths of the image files that a column names, None for empty cells. A file that is missing keeps its path.

    Raises:
        DataError: as in `Pictures.locate`; or all files are missing.
    """
    located = [cell and pictures.locate(cell) for cell in cells]
    if not any(each and each[1] for each in located):
        missing = next((cell for cell in cells if cell), "an empty cell")
        raise DataError(
            f"none of the {len(cells):,} pictures that {pictures.file} names exists, such as {missing}: write paths "
            f"relative to {pictures.folder}"
        )
    return [each and str(each[0]) for each in located]


def drop_repeated_rows(
    file: Path, paths: Sequence[str | None], labels: Sequence[object], splits: Sequence[str]
) -> list[int]:
    """The indices of the rows to keep: a picture that is listed twice in a split, with one label, counts once.

    Raises:
        DataError: a picture has several labels.
    """
    first: dict[tuple, object] = {}
    kept = []
    for i, (path, label, split) in enumerate(zip(paths, labels, splits, strict=True)):
        if path is None or (path, split) not in first:
            first[path, split] = label
            kept.append(i)
        elif first[path, split] != label:
            raise DataError(f"{file} gives {path} two labels, {first[path, split]} and {label}: {MULTI_LABEL}")
    return kept


def table_columns(
    pictures: Pictures, rows: datasets.Dataset, image_column: str | None, label_column: str | None
) -> tuple[str, str]:
    """The columns of images and of labels: those named, or by their content and by LABEL_COLUMNS.

    Raises:
        DataError: there is no such column, or more than one could be meant.
    """
    file, names = pictures.file, rows.column_names
    listing = f"its columns are {', '.join(names)}"
    images = [image_column] if image_column else _image_columns(pictures, rows, label_column)
    first_row = [name for name in names if _is_picture(name) or URL.match(name)]
    if not first_row and len(images) == 1 and file.suffix.lower() in (".csv", ".tsv"):
        first_row = [name for name in images if pictures.candidates(name)]
    if first_row:
        raise DataError(
            f"{file} has no header: its first row names the picture {first_row[0]}. Write a first line such as "
            "image,label"
        )
    if len(images) != 1 or images[0] not in names:
        hint = "" if len(names) > 1 else "; cells are separated by commas, semicolons, tabs or |"
        raise DataError(f"{file} has no single column of image files ({listing}{hint}): pass --image_column")
    others = [
        name for name in names if name != images[0] and name.lower() != "split" and not name.startswith("Unnamed: ")
    ]
    by_name = sorted(
        (name for name in others if name.lower() in LABEL_COLUMNS), key=lambda name: LABEL_COLUMNS.index(name.lower())
    )
    labels = [label_column] if label_column else by_name[:1] or others
    if not label_column and len(labels) > 1 and is_multi_hot(rows, labels):
        raise DataError(f"{file} has a column of 0 and 1 for each label ({first_few(labels)}): {MULTI_LABEL}")
    if len(labels) != 1 or labels[0] not in others:
        raise DataError(f"{file} has no single column of labels ({listing}): pass --label_column")
    return images[0], labels[0]


def _image_columns(pictures: Pictures, rows: datasets.Dataset, label_column: str | None) -> list[str]:
    """The columns that may be the images': of that type, or of names of image files, or else of URLs or ids."""
    if typed := [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]:
        return typed
    samples = {
        name: [value for value in rows[name][:100] if value]
        for name, feature in rows.features.items()
        if feature_name(feature) in ("string", "large_string") and name != label_column
    }
    samples = {name: values for name, values in samples.items() if values}
    if named := [name for name, values in samples.items() if _is_picture(values[0]) and not URL.match(values[0])]:
        return named
    if urls := [name for name, values in samples.items() if URL.match(values[0])]:
        return urls
    found = {
        name: sum(bool(pictures.candidates(value)) for value in set(values))
        for name, values in samples.items()
        if name.lower() not in LABEL_COLUMNS
    }
    return [name for name, n in found.items() if n == max(found.values()) > 0]


def _is_picture(cell: str) -> bool:
    """Whether a cell ends like the name of an image file."""
    return PurePosixPath(cell).suffix.lower() in IMAGE_SUFFIXES
