"""Predicts the labels of any number of images: a folder, a pattern or a dataset in, a table with a row per image out.

    python -m classifier.predict photos --model models/vit --output predictions.csv
    python -m classifier.predict 'photos/**/*.jpg' --model models/vit --output predictions.parquet     # quoted
    python -m classifier.predict uoft-cs/cifar10 --split test --model models/vit --output predictions.jsonl
    python -m classifier.predict photos --model models/vit --output predictions.csv --shard 2/4        # a quarter
    python -m classifier.predict photos --model models/vit --output predictions.csv --engine ray       # a Ray cluster

The columns are those of the page (classifier/table.py). `file` is the path within a folder, the path as a pattern
spells it, or split/row of a dataset; bytes of it that are not UTF-8 are written as \\xff. An image that can't be read
is a row with the reason. Images are streamed, so memory holds the names of all but the pixels of few.

A folder is read in the order of its names. Hidden files are left out, as are files without the suffix of an image and
links to folders, which the last line counts. A folder of parquet files without images is a dataset, as is any source
with --split.

The same command continues a run that was stopped or killed. Images are divided, in order, into chunks of 256. The rows
of each chunk are written to a file in OUTPUT.parts, and at the end all of them to OUTPUT. Such a part is used only
with the model, settings and files (name, size and date) that it was computed from: chunks with changed files are
computed again, as are all chunks after a file that was added or removed.

--shard I/N takes the I-th of N ranges of consecutive chunks, so that N machines can share the images without knowing
of each other. Shard 2/4 of predictions.csv is written to predictions-00002-of-00004.csv. `index` counts from the start
of the source; the rows of all shards in order are the table of the whole.
"""

import argparse
import hashlib
import json
import logging
import pickle
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import tee
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet
from tqdm import tqdm

from classifier import errors
from classifier.cli import positive_int
from classifier.data.unlabelled import Files, Item, Rows, as_text, open_source
from classifier.errors import ClassifierError, DataError, ImageError, ModelError, Stopped
from classifier.evaluation import predictions
from classifier.files import replacing, write_json
from classifier.images.folders import describe_left_out
from classifier.images.workers import WORKERS, Decoder, ImageFile
from classifier.models.predictor import Predictor, batched, load_predictor
from classifier.table import column_names, result_row, write_csv_rows
from classifier.training.runtime import StopSignal

CHUNK = 256  # images per part
BATCH_SIZE = 32  # images per forward pass; CHUNK is a multiple, so a batch is the same whatever was computed before
ROW_GROUP = 64 * CHUNK  # rows that are copied to OUTPUT together
SUFFIXES = (".csv", ".jsonl", ".parquet")  # of OUTPUT

Prediction = tuple[np.ndarray, bool | None]  # (C,) probabilities, and whether it looks like one of the labels


class Chunk(NamedTuple):
    """Consecutive images, and the file with their rows."""

    start: int  # index of the first image
    items: list[Item]
    part: Path


# --- Images to rows --------------------------------------------------------------------------------------------------


def label(
    chunks: Iterable[Chunk], predictor: Predictor, decoder: Decoder, read: Callable[[Item], ImageFile], k: int
) -> Iterator[tuple[Chunk, Iterator[dict]]]:
    """Each chunk with its rows of `k` labels, in order. The rows have to be taken before the next chunk is.

    Chunks are read some images ahead. `read` gives what to decode for an item.
    """

    def to_row(index: int, item: Item, result: Prediction | ImageError) -> dict:
        if isinstance(result, ImageError):
            reason = str(result).removeprefix(f"{Path(str(item.where)).name}: ")
            reason = re.sub(r"^image of [\d,]+ bytes: ", "", reason)
            return result_row(index, item.file, error=item.error or as_text(reason))
        probabilities, known = result
        return result_row(index, item.file, predictor.top(probabilities, k), known)

    chunks, ahead = tee(chunks)
    results = predict_images((read(item) for chunk in ahead for item in chunk.items), predictor, decoder)
    for chunk in chunks:
        yield chunk, map(to_row, range(chunk.start, chunk.start + len(chunk.items)), chunk.items, results)


def predict_images(
    images: Iterable[ImageFile], predictor: Predictor, decoder: Decoder
) -> Iterator[Prediction | ImageError]:
    """Results in order. One batch is decoded while the batch before it is computed.

    A batch always holds the same images, because the last digits of a probability depend on the whole batch.
    """
    decoded = decoder.decode_many(images, reduce_to=predictor.reduce_to, look_ahead=BATCH_SIZE)
    for batch in batched(decoded, BATCH_SIZE):
        good = [image for image in batch if not isinstance(image, ImageError)]
        results = zip(*predictor.predict_with_ood(good, BATCH_SIZE), strict=True)
        yield from (image if isinstance(image, ImageError) else next(results) for image in batch)


def compile_or_warn(predictor: Predictor) -> None:
    """Compiles the model, or says why it will be slower."""
    try:
        predictor.compile()
    except ModelError as error:
        print(f"slower, because the model is not compiled: {error}", file=sys.stderr)


def make_decoder() -> Decoder:
    """A worker process for each thread that the model may use."""
    return Decoder(workers=max(WORKERS, torch.get_num_threads()))


class RayLabeller:
    """A process of Ray, which loads the model once and then labels chunks. Arguments as `label`."""

    def __init__(self, model: str, read: Callable[[Item], ImageFile], k: int):
        self.predictor, self.decoder, self.read, self.k = load_predictor(model), make_decoder(), read, k
        compile_or_warn(self.predictor)

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        """{"chunk"} -> {"chunk", "rows"}, pickled, as names may hold bytes that Arrow refuses."""
        [(_, rows)] = label([pickle.loads(row["chunk"])], self.predictor, self.decoder, self.read, self.k)
        return row | {"rows": pickle.dumps(list(rows))}


def label_on_ray(
    chunks: Iterable[Chunk], model: str, read: Callable[[Item], ImageFile], k: int
) -> Iterator[tuple[Chunk, Iterator[dict]]]:
    """Chunks with their rows, in any order, by a process per GPU, or per core, of a Ray cluster."""
    import ray

    ray.init(logging_level=logging.WARNING)  # joins the cluster that the command was submitted to, or starts one here
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    pickled = [{"chunk": pickle.dumps(chunk)} for chunk in chunks]
    if not pickled:
        return
    cores, gpus = (int(ray.cluster_resources().get(name, 0)) for name in ("CPU", "GPU"))
    labelled = ray.data.from_items(pickled, override_num_blocks=len(pickled)).map(
        cast(Any, RayLabeller),  # Ray's types know functions only
        fn_constructor_args=(str(Path(model).resolve()) if Path(model).is_dir() else model, read, k),
        compute=ray.data.ActorPoolStrategy(size=min(gpus or cores, len(pickled))),
        num_cpus=max(1, cores // gpus) if gpus else 1,  # Ray sets the number of threads to it
        num_gpus=min(1, gpus),
    )
    for row in labelled.iter_rows():
        yield pickle.loads(row["chunk"]), iter(pickle.loads(row["rows"]))


# --- Rows to parts to a table ----------------------------------------------------------------------------------------


def starts_of(shard: tuple[int, int], n_images: int) -> range:
    """Indices of the first image of each chunk of a shard (I, N); it stops after the last image."""
    (i, n), n_chunks = shard, -(-n_images // CHUNK)
    return range(n_chunks * (i - 1) // n * CHUNK, min(n_chunks * i // n * CHUNK, n_images), CHUNK)


def chunks_of(source: Files | Rows, starts: range, settings: dict, folder: Path) -> Iterator[Chunk]:
    """The chunks that begin there. The name of a part in `folder` depends on all that its rows depend on."""
    for start in starts:
        items = source.items(start, start + CHUNK)
        key = hashlib.sha256(json.dumps([settings, items], sort_keys=True).encode()).hexdigest()[:32]
        yield Chunk(start, items, folder / f"{start // CHUNK:06}-{key}.json")


def unfinished(chunks: Iterable[Chunk], parts: list[Path], bar: tqdm) -> Iterator[Chunk]:
    """The chunks without a part; the bar starts with the images of the others. Adds the paths of all to `parts`."""
    for chunk in chunks:
        parts.append(chunk.part)
        if chunk.part.exists():
            bar.initial += len(chunk.items)
            bar.update(len(chunk.items))
        else:
            yield chunk


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes a DataError of what the operating system refuses, such as a full disk."""
    try:
        yield
    except OSError as error:
        raise DataError(f"can't write {path} ({error}): correct that, then continue by the same command") from error


def read_parts(parts: Iterable[Path], statuses: Counter) -> Iterator[dict]:
    """The rows of some parts. Counts each status."""
    for part in parts:
        try:
            rows = json.loads(part.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{part} is damaged ({error}): delete it, then continue by the same command") from error
        statuses.update(row["status"] for row in rows)
        yield from rows


def write_table(path: Path, names: list[str], rows: Iterator[dict]) -> None:
    """Writes rows in the format of the file's suffix; cells that a row does not have are empty."""
    rows = ({name: row.get(name) for name in names} for row in rows)
    if path.suffix.lower() == ".csv":
        write_csv_rows(path, names, (row.values() for row in rows))
    elif path.suffix.lower() == ".jsonl":
        with path.open("w", newline="\n", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    else:
        types = {"index": pa.int64(), "known": pa.bool_(), "probability": pa.float64()}
        schema = pa.schema([(name, types.get(name.split("_")[0], pa.string())) for name in names])
        with parquet.ParquetWriter(path, schema) as writer:
            for group in batched(rows, ROW_GROUP):
                writer.write_table(pa.Table.from_pylist(group, schema))


# --- The command -----------------------------------------------------------------------------------------------------


def shard(text: str) -> tuple[int, int]:
    """I/N as (I, N)."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text} is not I/N with I from 1 to N, such as 1/4")
    return int(match[1]), int(match[2])


def parse_args() -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "source",
        nargs="+",
        metavar="SOURCE",
        help="a folder, a quoted pattern, or a dataset: Hub id, id:configuration, id@revision, folder",
    )
    add("--model", required=True, help="a folder, a Hub id, or id@revision")
    add("--output", type=Path, required=True, metavar="FILE", help="the table to write: .csv, .jsonl or .parquet")
    add("--top_k", type=positive_int, default=5, metavar="K", help="labels per image (%(default)s)")
    add("--split", help="of a dataset (test, or the only one)")
    add("--image_column", help="of a dataset (the column whose type is Image)")
    add(
        "--shard",
        type=shard,
        default=(1, 1),
        metavar="I/N",
        help="only the I-th of N parts of the images (all of them)",
    )
    add("--engine", choices=["local", "ray"], default="local", help="this process, or a Ray cluster (%(default)s)")
    add("--overwrite_output", action="store_true", help="replace a table that exists")
    args = parser.parse_args()
    if len(args.source) > 1:
        parser.error(
            f"{len(args.source):,} sources, the last one {args.source[-1]}: quote the pattern, or pass a folder"
        )
    [args.source] = args.source
    return args


def check_args(args: argparse.Namespace) -> None:
    """DataError if the table can't be written, or would replace another; ClassifierError if Ray is not installed."""
    if args.output.suffix.lower() not in SUFFIXES:
        raise DataError(f"--output {args.output} does not end in {', '.join(SUFFIXES)}: pass a file that does")
    if args.output.is_dir():
        raise DataError(
            f"--output {args.output} is a folder: pass a file in it, such as {args.output / 'predictions.csv'}"
        )
    if args.output.exists() and not args.overwrite_output:
        raise DataError(f"{args.output} exists: pass another --output, or --overwrite_output to replace it")
    if args.engine == "ray":
        try:
            import ray.data  # noqa: F401  optional, and slow to import
        except ImportError as error:
            raise ClassifierError(f"--engine ray needs Ray ({error}): pip install 'ray[data]'") from error


def summary(output: Path, statuses: Counter, n_before: int, seconds: float, source: Files | Rows) -> str:
    """The last line: how many images and errors, where, how fast, and what was left out."""
    n_images = statuses.total()
    text = f"{n_images:,} images, {statuses['error']:,} of them errors, in {output}"
    if n_before:
        text += f"; {n_before:,} were labelled before"
    if n_images > n_before:
        text += f"; {(n_images - n_before) / seconds:,.1f} images/s"
    links = f"{source.n_links:,} links to folders not followed" if source.n_links else ""
    return "; ".join(filter(None, (text, describe_left_out(source.left_out), links)))


def main() -> None:
    """Source, model, rows, table."""
    args = parse_args()
    if args.shard[1] > 1:
        args.output = args.output.with_stem("{}-{:05}-of-{:05}".format(args.output.stem, *args.shard))
    check_args(args)
    folder = args.output.with_name(f"{args.output.name}.parts")
    source = open_source(args.source, args.split, args.image_column, [args.output.resolve(), folder.resolve()])
    predictor = load_predictor(args.model)
    if predictor.notice:
        print(predictor.notice, file=sys.stderr)
    k = min(args.top_k, len(predictor.labels))
    settings = source.settings | {"weights": predictions.digest(predictor, ""), "top_k": k}
    settings |= {"ood_threshold": predictor.ood_threshold, "ood_resize_to": predictor.ood_resize_to}
    settings |= {"ood_score": predictor.ood_score}
    starts = starts_of(args.shard, len(source))
    parts: list[Path] = []
    statuses: Counter[str] = Counter()
    chunks = chunks_of(source, starts, settings, folder)
    if args.engine == "local":
        compile_or_warn(predictor)

    begin = time.perf_counter()
    # The time left is computed from the average speed (smoothing=0), as the parts that exist take no time.
    bar = tqdm(total=starts.stop - starts.start, unit=" images", smoothing=0)
    with bar, make_decoder() as decoder, StopSignal() as stop:
        todo = unfinished(chunks, parts, bar)
        if args.engine == "ray":
            labelled = label_on_ray(todo, args.model, source.read, k)
        else:
            labelled = label(todo, predictor, decoder, source.read, k)
        for chunk, rows in labelled:
            if stop.caught:
                raise Stopped(f"stopped: finished images are kept in {folder}, continue by the same command")
            finished = []
            for row in rows:
                finished.append(row)
                bar.update()
            with writing(chunk.part):
                write_json(chunk.part, finished)
    seconds = time.perf_counter() - begin
    with writing(args.output), replacing(args.output) as temporary:
        write_table(temporary, column_names(k), read_parts(parts, statuses))
    for part in folder.glob("*.json"):
        part.unlink()
    with suppress(OSError):  # something else is in it
        folder.rmdir()
    print(summary(args.output, statuses, bar.initial, seconds, source))


def cli() -> None:
    """The command classifier-predict: `main`, with an error of the user in one line."""
    errors.run(main)


if __name__ == "__main__":
    from classifier.predict import cli  # by the name under which Ray's processes find what they are sent

    cli()
