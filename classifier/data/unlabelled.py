"""Images to be labelled: files in a folder, files that match a pattern, or rows of a dataset. Nothing is decoded."""

import fnmatch
import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import datasets

from classifier.data.columns import cast_images, find_column, undecoded
from classifier.data.sources import SPLIT_NAMES, TABLE_SUFFIXES, digest_of_files, load_source
from classifier.data.tables import SUFFIXES as TABLES
from classifier.errors import DataError
from classifier.images.folders import is_litter, is_picture, kind_of


class Item(NamedTuple):
    """One image."""

    file: str  # its name in a table
    where: str | int  # path, or row of the dataset
    stamp: str = ""  # size (bytes) and date (ns) of the file, which change when the file does
    error: str = ""  # why it can't be read, if that is known already


class Files:
    """The image files in a folder, at any depth, or all files that match a pattern; sorted by name, folder by folder.

    Litter (`is_litter`) is not looked at, and links to folders are not followed. A folder that can't be listed is an
    item with that error.

    Args:
        source: a folder, or a pattern: `*`, `?`, `[…]` within a name, `**` for any number of folders.
        leave_out: absolute paths to leave out, such as the output of the command.

    Raises:
        OSError: the folder itself can't be listed.
    """

    def __init__(self, source: str, leave_out: Iterable[Path] = ()):
        self.root, self.prefix = Path(source), ""
        pattern: tuple[str, ...] = ()
        if not self.root.is_dir():
            parts = self.root.parts
            n_fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
            self.root, pattern = Path(*parts[:n_fixed]), parts[n_fixed:]
            self.prefix = f"{str(self.root).rstrip('/')}/" if n_fixed else ""
        self.root, self.leave_out = self.root.resolve(), {str(path) for path in leave_out}
        self.settings = {"source": as_text(str(Path(self.root, *pattern)))}
        self.n_links = 0  # links to folders
        self.errors: dict[str, str] = {}  # by path of a folder that can't be listed
        files = list(self._walk(pattern or ("**",))) if self.root.is_dir() else []
        self.has_tables = not pattern and any(Path(path).suffix.lower() in TABLE_SUFFIXES for path in files)
        images = [path for path in files if pattern or is_picture(self.root / path)]
        self.left_out = Counter(kind_of(self.root / path) for path in sorted(set(files) - set(images)))
        self.paths = sorted([*images, *self.errors], key=lambda path: path.replace("/", "\0"))  # folder by folder

    def _walk(self, pattern: Sequence[str]) -> Iterator[str]:
        """Paths within `root` of the files that match."""

        def add_error(error: OSError) -> None:
            if Path(error.filename) == self.root:
                raise error
            self.errors[str(Path(error.filename).relative_to(self.root))] = error.strerror or str(error)

        for folder, folders, files in os.walk(self.root, onerror=add_error):
            names = Path(folder).relative_to(self.root).parts
            hidden = {n for n in (*folders, *files) if is_litter(n) or f"{folder}/{n}" in self.leave_out}
            folders[:] = [n for n in folders if n not in hidden and matches((*names, n), pattern, is_folder=True)]
            self.n_links += sum(Path(folder, name).is_symlink() for name in folders)
            yield from ("/".join((*names, n)) for n in files if n not in hidden and matches((*names, n), pattern))

    def __len__(self) -> int:
        return len(self.paths)

    def items(self, start: int, stop: int) -> list[Item]:
        """The images from `start` to before `stop`."""
        items = []
        for path in self.paths[start:stop]:
            where, stamp = f"{self.root}/{path}", ""
            with suppress(OSError):  # reading it gives the error
                status = Path(where).stat()
                stamp = f"{status.st_size} {status.st_mtime_ns}"
            items.append(Item(as_text(self.prefix + path), where, stamp, self.errors.get(path, "")))
        return items

    @staticmethod
    def read(item: Item) -> str:
        """The path to decode."""
        return str(item.where)


class Rows:
    """The images of one split of a dataset, in its order. Neither labels nor a train split are needed.

    Args:
        source: as in `load_splits`, except for single files.
        split: by default test, or the only split of the dataset.
        image_column: as in `load_splits`.

    Raises:
        DataError: the dataset, the split or the column can't be used. The message says which, and what to do.
    """

    def __init__(self, source: str, split: str | None = None, image_column: str | None = None):
        if Path(source).is_file():
            raise DataError(f"{source} is a file: pass the folder that holds it")
        name, splits, revision, *_ = load_source(source)
        wanted = split or ("test" if len(splits) > 1 else next(iter(splits)))
        matches = [own for own in splits if own == wanted] or [
            own for own in splits if SPLIT_NAMES.get(own.lower()) == wanted
        ]
        if not matches:
            raise DataError(f"{name} has no {wanted} split, only {', '.join(splits)}: pass one of them as --split")
        self.split, rows = matches[0], splits[matches[0]]
        self.column = find_column(name, rows, image_column, datasets.Image, "image")
        self.rows = undecoded(cast_images(name, {self.split: rows}, self.column)[self.split], self.column)
        if not len(self.rows):
            raise DataError(f"the {self.split} split of {name} is empty: pass another --split")
        self.n_links, self.left_out = 0, Counter[str]()
        self.settings = {
            "source": name,
            "split": self.split,
            "image_column": self.column,
            "content": revision or digest_of_files(Path(source)),  # instead of a stamp per row
        }

    def __len__(self) -> int:
        return len(self.rows)

    def items(self, start: int, stop: int) -> list[Item]:
        """The images from `start` to before `stop`."""
        return [Item(f"{self.split}/{row}", row) for row in range(start, min(stop, len(self)))]

    def read(self, item: Item) -> str | bytes:
        """The bytes, or the path, to decode; no bytes for an empty cell, which is an error there."""
        cell = self.rows[item.where][self.column] or {"bytes": None, "path": None}
        return (cell["path"] or b"") if cell["bytes"] is None else cell["bytes"]


def open_source(
    source: str, split: str | None = None, image_column: str | None = None, leave_out: Sequence[Path] = ()
) -> Files | Rows:
    """A folder, a pattern, or a dataset. A folder of parquet files without images is a dataset.

    Args:
        source: a folder, a pattern as `Files` takes it, or a dataset as `Rows` takes it.
        split: of a dataset.
        image_column: of a dataset.
        leave_out: absolute paths of what is written meanwhile. They can't be in the folder of a dataset.

    Raises:
        DataError: there are no images, or the dataset can't be used.
    """
    path = Path(source)
    is_table = path.is_file() and path.suffix.lower() in TABLES
    if (path.exists() or glob.has_magic(source)) and not is_table and not split and not image_column:
        files = Files(source, leave_out)
        if files.paths:
            return files
        if not path.is_dir():
            raise DataError(
                f"nothing matches {source!r}: check the pattern, in which ** stands for any number of folders"
            )
        if not files.has_tables:
            raise DataError(f"no images in {source}: check the path, or pass '{source}/**' for files of any suffix")
    for own in leave_out:
        if path.is_dir() and path.resolve() in own.parents:
            raise DataError(f"{own} would be part of the dataset {source}: pass an --output outside of that folder")
    return Rows(source, split, image_column)


def matches(names: Sequence[str], pattern: Sequence[str], *, is_folder: bool = False) -> bool:
    """Whether the names in a path match a pattern; for a folder, whether the path of something in it could."""
    if not names:
        return bool(pattern) if is_folder else all(part == "**" for part in pattern)
    if not pattern:
        return False
    if pattern[0] == "**":
        return is_folder or matches(names, pattern[1:]) or matches(names[1:], pattern)
    return fnmatch.fnmatchcase(names[0], pattern[0]) and matches(names[1:], pattern[1:], is_folder=is_folder)


def as_text(name: str) -> str:
    """A name or message as Unicode: a byte that is not UTF-8 becomes \\xff."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
