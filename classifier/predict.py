"""Labels any number of images: a folder, a pattern or a dataset in, a table out, a row an image.

    python -m classifier.predict photos --model models/vit --output predictions.csv
    python -m classifier.predict 'photos/**/*.jpg' --model models/vit --output predictions.parquet     # quoted
    python -m classifier.predict uoft-cs/cifar10 --split test --model models/vit --output predictions.jsonl
    torchrun --nproc_per_node 2 -m classifier.predict photos --model models/vit --output predictions.csv

The columns are the app's: index, file, status (ok or error), known, label_1, probability_1, … and error. `file` is the
path within FOLDER, the path as a pattern spells it, or split/row of a dataset; bytes in it that are no UTF-8 are
written \\xff. A file that can't be read is a row with the reason. Memory stays flat, whatever the number of images.

A folder is taken in the order of its names. What is hidden is left out, as are files without an image's suffix and
links to folders, which the last line counts. A folder that holds parquet and no pictures is a dataset, as is any with
--split.

A run that was stopped, or killed, goes on by the same command. Images are cut, in their order, into chunks of 256. The
rows of a chunk are a part, a file in OUTPUT.parts, written whole or not at all, and OUTPUT is put together from all of
them at the end. A part counts only for the model, its threshold and the very files (by position, name, size and date)
that it was made of: where files were changed in between, their chunks are computed again, and where some came or went,
all chunks after them as well.

Several processes, with OUTPUT where all of them see it, share the chunks out among them, and a run may go on with
another number. `accelerate launch` starts them as well, but on CPUs one alone unless told `--multi_gpu`. Whatever their
number, and however often a run was stopped, the table is the same bytes on the same kind of machine with the same
number of threads a process.
"""

import argparse
import csv
import fcntl
import fnmatch
import glob
import hashlib
import json
import os
import re
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import takewhile, tee
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from pyarrow import parquet
from tqdm import tqdm

from classifier import errors
from classifier.cli import positive_int
from classifier.data.sources import IMAGE_SUFFIXES, TABLE_SUFFIXES, TABLES
from classifier.data.splits import load_images
from classifier.errors import DataError, ImageError, ModelError, Stopped
from classifier.evaluation import predictions
from classifier.files import replacing, write_json, write_text
from classifier.images.workers import decode_many
from classifier.models.loading import default_device
from classifier.models.predictor import Picture, Predictor, batched, load_predictor
from classifier.training.runtime import StopSignal

CHUNK = 256  # images a part
BATCH_SIZE = 32  # images a forward pass; CHUNK is a multiple
ROW_GROUP = 64  # parts that are copied into OUTPUT together

FILE, FOLDER, LINK, OTHER = "files", "folders", "links to folders", "other files"

# --- Sources: each iterates over items, in an order that stays -------------------------------------------------------


class Item(NamedTuple):
    """One image, unread."""

    file: str  # as the table names it
    where: str | int  # path, or row
    error: str = ""  # why it can't be read, where that is known beforehand


class Pictures:
    """The files of a folder that have an image's suffix, or all files that a pattern matches.

    Args:
        source: a folder, or a pattern: `*`, `?`, `[…]` within a name, `**` for any number of folders.
        leave_out: files and folders that are not part of it: what this very run writes.

    Raises:
        DataError: there are none.
    """

    def __init__(self, source: str, leave_out: Sequence[Path] = ()):
        self.root, self.pattern, self.prefix, self.leave_out = Path(source), (), "", leave_out
        if not self.root.is_dir():
            parts = self.root.parts
            fixed = list(takewhile(lambda part: not glob.has_magic(part), parts[:-1]))
            self.root, self.pattern = Path(*fixed), parts[len(fixed) :]
            self.prefix = "".join(part if part == "/" else f"{part}/" for part in fixed)
        self.settings = {"source": _text(str(Path(self.root.resolve(), *self.pattern)))}
        if self.root.is_dir():
            _listing(self.root)  # one that may not be read is told at once
        if not self.root.is_dir() or next(iter(self), None) is None:
            raise DataError(
                f"nothing matches {source!r}: check the pattern, in which ** stands for any number of folders"
                if self.pattern
                else f"no images in {source}: check the path, or pass '{source}/**' to take files of any suffix"
            )

    def __iter__(self) -> Iterator[Item]:
        for path, kind, why in self._all():
            if kind == FILE:
                yield Item(_text(self.prefix + path), f"{self.root}/{path}", why)

    def count(self) -> Counter:
        """How many files there are, and how much is passed over, by kind."""
        return Counter(kind for _, kind, _ in self._all())

    def read(self, item: Item) -> Picture:
        """What `pixels` decodes."""
        return item.where

    def stamp(self, item: Item) -> str:
        """Changes when the file does: its size in bytes and its date."""
        try:
            status = Path(item.where).stat()
        except OSError:
            return ""
        return f"{status.st_size} {status.st_mtime_ns}"

    def reason(self, item: Item, error: ImageError) -> str:
        """Why it can't be read, without its name."""
        return item.error or _text(str(error).removeprefix(f"{Path(item.where).name}: "))

    def _all(self) -> Iterator[tuple[str, str, str]]:
        """What `walk` gives, as far as it fits the pattern; without one, a file of another suffix is of kind OTHER."""
        for path, kind, why in walk(self.root, self.pattern or ("**",), self.leave_out):
            is_picture = self.pattern or why or Path(path).suffix.lower() in IMAGE_SUFFIXES
            yield path, OTHER if kind == FILE and not is_picture else kind, why


class Rows:
    """The rows of a dataset's split. Arguments and errors as `data.load_images`."""

    def __init__(self, source: str, split: str | None = None, image_column: str | None = None):
        self.images = load_images(source, split=split, image_column=image_column)
        self.settings = {
            "source": self.images.name,
            "split": self.images.split,
            "image_column": self.images.column,
            "content": self.images.revision,
        }

    def __iter__(self) -> Iterator[Item]:
        return (Item(f"{self.images.split}/{row}", row) for row in range(len(self.images.rows)))

    def count(self) -> Counter:
        """How many rows there are."""
        return Counter({FILE: len(self.images.rows)})

    def read(self, item: Item) -> Picture:
        """What `pixels` decodes; of an empty cell no bytes, which is an error there."""
        cell = self.images.rows[item.where][self.images.column] or {"bytes": None, "path": None}
        return (cell["path"] or b"") if cell["bytes"] is None else cell["bytes"]

    def stamp(self, item: Item) -> str:
        """Nothing: the settings tell the content of all rows."""
        return ""

    def reason(self, item: Item, error: ImageError) -> str:
        """Why it can't be read."""
        return why(error)


def open_source(source: str, split: str | None, image_column: str | None, output: Path) -> Pictures | Rows:
    """A folder, a pattern, or a dataset, of which `split` and `image_column` are. DataError where it can't be used."""
    path, own = Path(source), (output, parts_of(output))
    is_tables = path.is_dir() and _holds_tables(path, own)
    is_pictures = path.is_dir() or glob.has_magic(source) or (path.is_file() and path.suffix.lower() not in TABLES)
    if is_pictures and not is_tables and not split and not image_column:
        return Pictures(source, own)
    if path.is_dir() and path.resolve() in output.resolve().parents:
        raise DataError(f"{output} would be part of the dataset {source}: pass an --output outside of that folder")
    return Rows(source, split, image_column)


def _holds_tables(folder: Path, leave_out: Sequence[Path]) -> bool:
    """Whether there are tables in a folder, and no pictures. The first picture answers that."""
    found = False
    for path, _, _ in walk(folder, ("**",), leave_out):
        suffix = Path(path).suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            return False
        found |= suffix in TABLE_SUFFIXES
    return found


def walk(root: Path, pattern: Sequence[str], leave_out: Iterable[Path] = ()) -> Iterator[tuple[str, str, str]]:
    """(path within `root`, FILE or LINK, why it can't be read or "") of what fits the pattern, in the order of the
    names.

    One folder's names are in memory at a time, and those of the folders above it. What is hidden is left out. A link to
    a folder is not followed, so none leads round in a circle; a folder that can't be listed is a file that can't be
    read.
    """
    leave_out = {path.resolve() for path in leave_out}
    names = {path.name for path in leave_out}
    stack = [("", iter([("", FOLDER)]))]  # (a folder's path with its slash, what is left of its entries)
    while stack:
        parent, entries = stack[-1]
        for name, kind in entries:
            path = parent + name
            if name in names and Path(root, path).resolve() in leave_out:
                continue
            parts = path.split("/") if path else []
            if kind == FOLDER and leads(parts, pattern):
                try:
                    stack.append((f"{path}/" if path else "", iter(_listing(Path(root, path)))))
                except OSError as error:
                    yield path or ".", FILE, error.strerror
                else:
                    break  # into that folder
            elif (kind == FILE and fits(parts, pattern)) or (kind == LINK and leads(parts, pattern)):
                yield path, kind, ""
        else:
            stack.pop()


def _listing(folder: Path) -> list[tuple[str, str]]:
    """(name, kind) of what is in a folder, sorted, without what is hidden."""

    def kind(entry: os.DirEntry) -> str:
        try:
            is_folder = entry.is_dir()
        except OSError:  # a link that leads to itself: decoding it says so
            return FILE
        return FILE if not is_folder else LINK if entry.is_symlink() else FOLDER

    with os.scandir(folder) as entries:
        return sorted((entry.name, kind(entry)) for entry in entries if not entry.name.startswith("."))


def fits(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the names of a path are those of a pattern."""
    if not pattern or not names:
        return not names and all(part == "**" for part in pattern)
    if pattern[0] == "**":
        return fits(names, pattern[1:]) or fits(names[1:], pattern)
    return fnmatch.fnmatchcase(names[0], pattern[0]) and fits(names[1:], pattern[1:])


def leads(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether something in the folder of that path may fit the pattern."""
    if not pattern or not names or pattern[0] == "**":
        return bool(pattern)
    return fnmatch.fnmatchcase(names[0], pattern[0]) and leads(names[1:], pattern[1:])


def why(error: ImageError) -> str:
    """Why bytes are no image, without how many there are."""
    return _text(re.sub(r"^image of [\d,]+ bytes: ", "", str(error)))


def _text(name: str) -> str:
    """A name or message as Unicode: a byte that is no UTF-8 becomes \\xff."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


# --- Images to rows --------------------------------------------------------------------------------------------------

Answer = tuple[np.ndarray, bool | None]  # (C,) probabilities, and whether it looks like one of the labels


def classify(predictor: Predictor, sources: Iterable[Picture]) -> Iterator[Answer | ImageError]:
    """Answers in the order of `sources`, an ImageError in the place of a bad file.

    One batch is decoded while the one before it is computed. A batch holds the same images every time, unlike a
    `Batcher`'s, which takes what waits: in another batch the last digits of an image's probabilities are others.
    """

    def judge(decoded: list[Image.Image | ImageError]) -> list[Answer | ImageError]:
        good = [image for image in decoded if not isinstance(image, ImageError)]
        answers = zip(*predictor.judge(good, BATCH_SIZE), strict=True)
        return [image if isinstance(image, ImageError) else next(answers) for image in decoded]

    pending: deque[Future] = deque()
    with ThreadPoolExecutor(1, "judge") as thread:
        for decoded in batched(decode_many(sources, reduce_to=predictor.reduce_to), BATCH_SIZE):
            pending.append(thread.submit(judge, decoded))
            if len(pending) > 1:
                yield from pending.popleft().result()
        for future in pending:
            yield from future.result()


def schema(k: int) -> pa.Schema:
    """The table's columns, for k labels an image."""
    columns = {"index": pa.int64(), "file": pa.string(), "status": pa.string(), "known": pa.bool_()}
    for rank in range(1, k + 1):
        columns |= {f"label_{rank}": pa.string(), f"probability_{rank}": pa.float64()}
    return pa.schema(columns | {"error": pa.string()})


def cells(predictor: Predictor, answer: Answer | ImageError, k: int, reason: Callable[[ImageError], str]) -> dict:
    """An image's cells, without its index and name. Probabilities have six decimals; `reason` says why there are
    none.
    """
    if isinstance(answer, ImageError):
        return {"status": "error", "error": reason(answer)}
    probabilities, known = answer
    found = {"status": "ok", "known": known, "error": ""}
    for rank, entry in enumerate(predictor.top(probabilities, k), 1):
        found |= {f"label_{rank}": entry["label"], f"probability_{rank}": round(entry["score"], 6)}
    return found


# --- Parts: what a run has done so far -------------------------------------------------------------------------------


def parts_of(output: Path) -> Path:
    """The folder of a table's parts."""
    return output.with_name(f"{output.name}.parts")


class Parts:
    """A folder with the rows of each chunk that was labelled, and settings.json: what they were labelled with.

    Args:
        folder: of the parts.
        settings: what has to be the same for a part to be of use.
        columns: of the rows.
    """

    def __init__(self, folder: Path, settings: dict, columns: pa.Schema):
        self.folder, self.settings, self.columns = folder, settings, columns

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder where there is none; in the block no other process may use it, which is a DataError
        there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a process that is killed lets go of it
            except BlockingIOError:
                raise DataError(f"another process is writing to {self.folder}: wait for it, or stop it") from None
            yield

    def begin(self, *, overwrite: bool) -> None:
        """Goes on with the parts that are there; of other settings they are a DataError, or deleted with
        `overwrite`.
        """
        path = self.folder / "settings.json"
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else self.settings
        if changed := [name for name in self.settings | before if before.get(name) != self.settings.get(name)]:
            if not overwrite:
                was = ", ".join(f"{name} {before.get(name)} (now {self.settings.get(name)})" for name in changed)
                raise DataError(
                    f"{self.folder} holds what a run with {was} has labelled: give the same again, pass another "
                    "--output, "
                    "or --overwrite_output to delete that and begin anew"
                )
            self._delete()
        write_json(path, self.settings)
        for mark in self.folder.glob("*.done"):
            mark.unlink()

    def path(self, number: int) -> Path:
        """Of the part of a chunk."""
        return self.folder / f"{number:06}.parquet"

    def key(self, number: int, files: Iterable[str]) -> str:
        """Tells a chunk's part from all others: 64 hex digits over the settings and the chunk's files."""
        return hashlib.sha256(json.dumps([self.settings, number, *files], sort_keys=True).encode()).hexdigest()

    def numbers(self) -> set[int]:
        """Of the parts that are there, of whatever they were made."""
        return {int(path.stem) for path in self.folder.glob("[0-9]*.parquet")}

    def holds(self, number: int, key: str) -> bool:
        """Whether the part is there, whole, and of that key."""
        try:
            return (parquet.read_schema(self.path(number)).metadata or {}).get(b"key") == key.encode()
        except (OSError, pa.ArrowInvalid):
            return False

    def write(self, number: int, key: str, rows: list[dict]) -> None:
        """Writes a part whole or not at all; DataError on a full disk."""
        with writing(self.path(number)) as temporary:
            parquet.write_table(pa.Table.from_pylist(rows, self.columns.with_metadata({"key": key})), temporary)

    def read(self, number: int) -> pa.Table:
        """The rows of a part."""
        return parquet.read_table(self.path(number)).replace_schema_metadata(None)

    def mark_done(self, rank: int) -> None:
        """Tells the main process that process `rank` has written its parts."""
        write_text(self.folder / f"{rank}.done", "")

    def are_done(self, ranks: Iterable[int]) -> bool:
        """Whether these processes have."""
        return all((self.folder / f"{rank}.done").exists() for rank in ranks)

    def remove(self) -> None:
        """Deletes the folder, unless there is something in it that is not ours."""
        self._delete()
        (self.folder / "lock").unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _delete(self) -> None:
        for path in self.folder.iterdir():
            if re.fullmatch(r"\.?\d+(\.part)?\.(parquet|done)|\.?settings(\.part)?\.json", path.name):
                path.unlink()


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """As `files.replacing`; DataError where the disk is full, or refuses."""
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise DataError(f"can't write {path} ({error}): see to that, then go on by the same command") from error


# --- Parts to a table ------------------------------------------------------------------------------------------------


@contextmanager
def csv_writer(path: Path, columns: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Gives a function that adds rows."""
    with path.open("w", newline="", encoding="utf-8-sig") as file:  # the signature tells spreadsheets that it is UTF-8
        writer = csv.DictWriter(file, columns.names)
        writer.writeheader()
        yield lambda table: writer.writerows(table.to_pylist())


@contextmanager
def jsonl_writer(path: Path, columns: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Gives a function that adds rows."""
    with path.open("w", newline="\n", encoding="utf-8") as file:
        yield lambda table: file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in table.to_pylist())


@contextmanager
def parquet_writer(path: Path, columns: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Gives a function that adds rows."""
    with parquet.ParquetWriter(path, columns) as writer:
        yield writer.write_table


WRITERS = {".csv": csv_writer, ".jsonl": jsonl_writer, ".parquet": parquet_writer}


def assemble(parts: Parts, n: int, output: Path) -> Counter:
    """Writes the table from its n parts, whole or not at all; counts the rows of each status. DataError on a full
    disk.
    """
    statuses = Counter()
    with writing(output) as temporary, WRITERS[output.suffix.lower()](temporary, parts.columns) as write:
        for tables in batched(map(parts.read, range(n)), ROW_GROUP):
            table = pa.concat_tables(tables)
            statuses.update(table["status"].to_pylist())
            write(table)
    return statuses


# --- Processes -------------------------------------------------------------------------------------------------------


class Team(NamedTuple):
    """The processes that share the work, as one of them sees them."""

    rank: int = 0  # this one's; 0 is the main process
    size: int = 1
    device: torch.device | None = None  # this one's, where the launcher chose

    @classmethod
    def join(cls) -> "Team":
        """The processes that a launcher started; alone without one, and then nothing of torch.distributed is
        started.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=default_device().type == "cpu")  # it would look for GPUs alone
        return cls(state.process_index, state.num_processes, state.device)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The block runs in the main process, then in the others; what fails in the main one is told by it alone.

        It ends what torch.distributed is for here: waiting for the slowest process could take longer than its time
        limit.
        """
        if self.size == 1:
            yield
            return
        from accelerate import PartialState
        from accelerate.utils import broadcast_object_list

        went_well = [False]
        if self.rank > 0:
            broadcast_object_list(went_well)
            PartialState().destroy_process_group()
            if not went_well[0]:
                raise SystemExit(2)
            yield
            return
        try:
            yield
            went_well = [True]
        finally:
            broadcast_object_list(went_well)
            PartialState().destroy_process_group()


# --- The command -----------------------------------------------------------------------------------------------------


def label(
    predictor: Predictor,
    source: Pictures | Rows,
    parts: Parts,
    there: set[int],
    *,
    k: int,
    team: Team,
    stop: StopSignal,
    bar: tqdm,
) -> tuple[list[str], int]:
    """Writes the parts that are this process's to write, every `team.size`-th, unless they are there.

    Args:
        predictor: the model.
        source: of the images.
        parts: where the rows go.
        there: numbers of the parts that were there when the run began.
        k: labels an image.
        team: the processes that share the work.
        stop: is asked before each part.
        bar: counts images.

    Returns:
        The keys of all parts in order, and how many images were labelled before.

    Raises:
        Stopped: on SIGINT or SIGTERM, after the part in hand was written.
    """
    keys: list[str] = []
    n_before = 0

    def to_do() -> Iterator[tuple[int, list[Item]]]:
        nonlocal n_before
        for number, items in enumerate(batched(source, CHUNK)):
            keys.append(parts.key(number, (f"{item.file} {source.stamp(item)}" for item in items)))
            if number in there and parts.holds(number, keys[number]):
                n_before += len(items)
                bar.initial, bar.n = n_before, bar.n + len(items)
            elif number % team.size == team.rank:
                yield number, items
            else:
                bar.update(len(items))  # by others, at about the same pace

    chunks, ahead = tee(to_do())
    answers = classify(predictor, (source.read(item) for _, items in ahead for item in items))
    for number, items in chunks:
        stop_if_asked(stop, parts)
        rows = []
        for index, (item, answer) in enumerate(zip(items, answers, strict=False), number * CHUNK):
            found = cells(predictor, answer, k, partial(source.reason, item))
            rows.append({"index": index, "file": item.file} | found)
            bar.update()
        parts.write(number, keys[number], rows)
    return keys, n_before


def stop_if_asked(stop: StopSignal, parts: Parts) -> None:
    """Raises Stopped if a signal came."""
    if stop.caught:
        raise Stopped(f"stopped, and what was labelled is kept in {parts.folder}: go on by the same command")


def parse_args() -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "source",
        nargs="+",
        metavar="SOURCE",
        help="a folder, a quoted pattern, or a dataset: Hub id, id@revision, folder",
    )
    add("--model", required=True, help="a folder, a Hub id, or id@revision")
    add("--output", type=Path, required=True, metavar="FILE", help="the table to write: .csv, .jsonl or .parquet")
    add("--top_k", type=positive_int, default=5, metavar="K", help="labels an image (%(default)s)")
    add("--split", help="of a dataset (test, or the only one)")
    add("--image_column", help="of a dataset (the column whose type is Image)")
    add("--overwrite_output", action="store_true", help="replace a table that is there, and parts of another run")
    args = parser.parse_args()
    if len(args.source) > 1:
        parser.error(
            f"{len(args.source):,} sources, the last one {args.source[-1]}: quote the pattern, or pass a folder"
        )
    [args.source] = args.source
    return args


def check_output(output: Path, *, overwrite: bool) -> None:
    """DataError where the table could not be written, or would take another's place."""
    if output.suffix.lower() not in WRITERS:
        raise DataError(
            f"--output {output} has none of the suffixes {', '.join(WRITERS)}: pass one, it says the format"
        )
    if output.is_dir():
        raise DataError(f"--output {output} is a folder: pass a file in it, such as {output / 'predictions.csv'}")
    if output.exists() and not overwrite:
        raise DataError(f"{output} exists: pass another --output, or --overwrite_output to replace it")


def count_in_background(source: Pictures | Rows, counts: Counter, bar: tqdm) -> threading.Thread:
    """A thread that adds up what `source` holds, for the bar's time left and the last line; work need not wait for
    it.
    """

    def work() -> None:
        with suppress(OSError):  # of a folder that went away, which is told elsewhere
            counts.update(source.count())
        bar.total = counts[FILE]

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def summary(output: Path, statuses: Counter, n_before: int, seconds: float, n_processes: int, counts: Counter) -> str:
    """The last line: how many, how many errors, where, how fast, and what was passed over."""
    n, n_now = statuses.total(), statuses.total() - n_before
    text = f"{n:,} images, {statuses['error']:,} of them errors, in {output}"
    if n_before:
        text += f"; {n_before:,} were labelled before"
    if n_now:
        text += f"; {n_now / seconds:,.1f} images/s" + (f" by {n_processes} processes" if n_processes > 1 else "")
    passed_over = [f"{kind} ({counts[kind]:,})" for kind in (OTHER, LINK) if counts[kind]]
    return text + (f"; passed over: {', '.join(passed_over)}" if passed_over else "")


def model_settings(predictor: Predictor) -> dict:
    """What has to be the same to go on with a model's parts."""
    known = {"known_threshold": predictor.known_threshold, "known_at": predictor.known_at}
    return {
        "model": predictor.name,
        "revision": predictor.revision,
        "weights": predictions.digest(predictor, ""),
    } | known


def main() -> None:
    """Source, model, parts, table."""
    args = parse_args()
    team = Team.join()
    with ExitStack() as held:
        with team.main_first():
            check_output(args.output, overwrite=args.overwrite_output)
            source = open_source(args.source, args.split, args.image_column, args.output)
            predictor = load_predictor(args.model, device=team.device)
            k = min(args.top_k, len(predictor.labels))
            settings = source.settings | model_settings(predictor) | {"top_k": k}
            parts = Parts(parts_of(args.output), settings, schema(k))
            there = parts.numbers()
            if team.rank == 0:
                held.enter_context(parts.locked())
                parts.begin(overwrite=args.overwrite_output)
                if predictor.notice:
                    print(predictor.notice, file=sys.stderr)
        try:
            predictor.compile()
        except ModelError as error:
            print(f"slower, as it is not compiled: {error}", file=sys.stderr)

        start, counts = time.perf_counter(), Counter()
        # The time left is told by the average (smoothing=0), as what was labelled before takes no time.
        with tqdm(unit=" images", smoothing=0, disable=True if team.rank else None) as bar, StopSignal() as stop:
            counting = count_in_background(source, counts, bar)
            keys, n_before = label(predictor, source, parts, there, k=k, team=team, stop=stop, bar=bar)
            if team.rank > 0:
                parts.mark_done(team.rank)
                return
            while not parts.are_done(range(1, team.size)):
                stop_if_asked(stop, parts)
                time.sleep(0.1)
            if (
                team.size > 1
            ):  # the others may have found other files than this process, where some came or went meanwhile
                there, bar = parts.numbers(), tqdm(disable=True)
                keys, _ = label(predictor, source, parts, there, k=k, team=Team(), stop=stop, bar=bar)
        seconds = time.perf_counter() - start
        statuses = assemble(parts, len(keys), args.output)
        parts.remove()
        counting.join()
        print(summary(args.output, statuses, n_before, seconds, team.size, counts))


if __name__ == "__main__":
    errors.run(main)
