"""Writes files so that a stopped process leaves the old content or the new, and recognises Git LFS pointers."""

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from classifier.errors import ClassifierError, ModelError, first_sentence

# How a clone without Git LFS begins each of the files that belong to LFS; the second address is that of its beta.
LFS_STARTS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
LFS_ADVICE = "this is a Git LFS pointer in place of the file: run `git lfs pull` in the clone that it comes from"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`, with its suffix; it takes `path`'s place if the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # One name, so that a killed writer leaves one file at most.
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """OSError unless files can be written into the folder, which need not exist yet. Nothing is created."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(existing))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(existing))


def move_files(folders: Mapping[Path, Path], remove: Iterable[Path] = ()) -> None:
    """Moves all files of finished folders to the places where they belong: all of them or, after an error, none.

    Args:
        folders: {a temporary folder: the folder that gets its files, under the same names, in place of older ones}.
        remove: files to delete with the same step, if they exist.

    Raises:
        OSError: a file can't be written, such as on a full disk. Every file is as it was before.
    """
    moves = {
        target.resolve() / file.relative_to(source): file
        for source, target in folders.items()
        for file in sorted(source.rglob("*"))
        if file.is_file()
    }
    copies: dict[Path, Path] = {}
    old: list[Path] = []
    with ExitStack() as undo:  # undone in reverse order, unless all is done
        for target, file in moves.items():
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
            for parent in reversed([path for path in target.parents if not path.exists()]):
                parent.mkdir()
                undo.callback(parent.rmdir)
            copies[target] = target.with_name(f".{target.stem}.part{target.suffix}")  # as `replacing` names it
            undo.callback(copies[target].unlink, missing_ok=True)
            shutil.copyfile(file, copies[target])  # the temporary folder may be on another disk
            with copies[target].open("rb") as copy:
                os.fsync(copy.fileno())
        for target in [*moves, *(path.resolve() for path in remove)]:
            if target.exists():
                old.append(target.with_name(f".{target.name}.old"))
                target.replace(old[-1])
                undo.callback(old[-1].replace, target)
            if target in copies:
                copies[target].replace(target)
                undo.callback(target.unlink)
        undo.pop_all()
    for path in old:
        path.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` in UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Writes `value` to `path` as indented JSON, whole or not at all. NaN is refused with ValueError."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def is_lfs_pointer(start: bytes) -> bool:
    """Whether a file that starts with these bytes (100 are enough) is a Git LFS pointer."""
    return start.startswith(LFS_STARTS)


def check_no_lfs_pointer(path: Path, error: type[ClassifierError]) -> None:
    """Raises `error` if the file is a Git LFS pointer. A path that is no file passes."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        if is_lfs_pointer(file.read(100)):
            raise error(f"{path}: {LFS_ADVICE}")


def read_json(path: Path) -> dict:
    """A JSON file of a model's folder; ModelError where there is none, or it is no JSON."""
    check_no_lfs_pointer(path, ModelError)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"no {path.name} in {path.parent}: is it a model folder? Train one, or name another") from None
    except ValueError as error:  # not UTF-8, or not JSON
        raise ModelError(
            f"{path} is not valid JSON ({first_sentence(error)}): fetch or train the model again"
        ) from error
