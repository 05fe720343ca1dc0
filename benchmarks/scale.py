"""Times `python -m classifier.predict` on one and on two cores, for docs/serving.md.

    python -m benchmarks.scale models/cnn models/vit --photos path/to/photographs --dataset uoft-cs/cifar10

Three ways take turns, so that other load on the machine affects all of them: one process with one thread on one core,
one with two threads on two cores, and two with one thread each, side by side, each on all images. Each labels
photographs and CIFAR-10's test images, both as files. The speed is the sum of the rates that the commands report,
from the first image to the last; the rest of their time counts as start. The speed of listing file names is measured
too. Writes benchmarks/scale.json, from which benchmarks/results.py makes the tables of docs/serving.md.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

from PIL import Image

from classifier import predict
from classifier import runs as record
from classifier.data.unlabelled import Files, Rows
from classifier.errors import DataError, run
from classifier.files import write_json
from classifier.images.limits import SUFFIXES as IMAGE_SUFFIXES

ROOT = Path(__file__).resolve().parent.parent
WAYS = (1, 1), (2, 1), (2, 2)  # (cores, concurrent processes): the cores are divided among the processes


def main() -> None:
    """Measures all ways, prints the results and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("models", nargs="+", type=Path, help="model folders")
    add(
        "--photos",
        type=Path,
        required=True,
        help="folder of photographs, at any depth, repeated as often as needed",
    )
    add("--dataset", default="uoft-cs/cifar10", help="dataset whose test images are written as files (%(default)s)")
    add("--images", type=int, default=4 * predict.CHUNK, help="images of each kind (%(default)s)")
    add("--rounds", type=int, default=3, help="repetitions of all measurements (%(default)s)")
    add("--listed", type=int, default=20_000, help="empty files to list (%(default)s)")
    add("--output", type=Path, default=Path(__file__).parent / "scale.json", help="(benchmarks/scale.json)")
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise DataError("this process may use only one core: start it with two or more")
    with tempfile.TemporaryDirectory() as folder:
        kinds = {
            "photographs": repeat_photographs(args.photos, Path(folder) / "photographs", args.images),
            "small pictures": write_small(args.dataset, Path(folder) / "small pictures", args.images),
        }
        measured = {(model, kind, way): [] for model in args.models for kind in kinds for way in WAYS}
        for turn in range(args.rounds):
            for (model, kind, way), found in measured.items():
                found.append(label(Path(folder) / kind, model, cores[: way[0]], way[1]))
                speed, start = found[-1]
                print(
                    f"round {turn + 1}: {model.name}, {kind}, cores and runs {way}: {speed} images/s, start {start} s"
                )
                sys.stdout.flush()
        listing = [list_files(Path(folder) / f"listed {turn}", args.listed) for turn in range(args.rounds)]
    rows = [
        {
            "model": model.name,
            "kind": kind,
            "cores": way[0],
            "processes": way[1],
            "images_per_second": spread([speed for speed, _ in found]),
            "start_s": spread([start for _, start in found]),
        }
        for (model, kind, way), found in measured.items()
    ]
    about = {"images": args.images, "rounds": args.rounds, "kinds": kinds, "listed": args.listed}
    found = {"rows": rows, "files_listed_per_second": spread(listing), "machine": record.machine()}
    write_json(args.output, about | found)


def repeat_photographs(source: Path, folder: Path, n: int) -> dict:
    """Makes n links to the photographs in `source`, repeated as needed; returns a description of them."""
    photographs = sorted(path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not photographs:
        raise DataError(f"no photographs in {source}: pass another --photos")
    folder.mkdir()
    pixels = []
    for i, path in enumerate(islice(cycle(photographs), n)):
        (folder / f"{i:06}{path.suffix}").symlink_to(path.resolve())
        with Image.open(path) as image:
            pixels.append(image.width * image.height)
    return describe(folder) | {
        "distinct": min(n, len(photographs)),
        "median_megapixels": statistics.median(pixels) / 1e6,
    }


def write_small(dataset: str, folder: Path, n: int) -> dict:
    """Writes the first n test images as files, with the bytes of the dataset; returns a description of them."""
    images = Rows(dataset, split="test")
    if len(images) < n:
        raise DataError(f"{dataset} has {len(images):,} test images: pass a lower --images")
    folder.mkdir()
    pixels = []
    for i in range(n):
        path = folder / f"{i:06}.png"
        path.write_bytes(images.rows[i][images.column]["bytes"])
        with Image.open(path) as image:
            pixels.append(image.width * image.height)
    return describe(folder) | {"distinct": n, "median_megapixels": statistics.median(pixels) / 1e6}


def describe(folder: Path) -> dict:
    """The mean size of the files in a folder, in bytes."""
    return {"bytes_per_image": round(statistics.mean(path.stat().st_size for path in folder.iterdir()))}


def label(folder: Path, model: Path, cores: list[int], at_once: int) -> tuple[float, float]:
    """Runs `at_once` processes; returns their total images per second, and the seconds until a process starts."""
    words = ["-m", "classifier.predict", str(folder), "--model", str(model.resolve())]
    environment = os.environ | {"OMP_NUM_THREADS": str(len(cores) // at_once), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as output:
        began = time.perf_counter()
        runs = [
            subprocess.Popen(
                [sys.executable, *words, "--output", f"{output}/{i}.csv"],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
            )
            for i in range(at_once)
        ]
        lines = [run.communicate()[0] for run in runs]
        seconds = time.perf_counter() - began
    found = [
        re.search(r"^([\d,]+) images, 0 of them errors.* ([\d,.]+) images/s", line, re.MULTILINE) for line in lines
    ]
    if not all(found):
        raise DataError(f"classifier.predict has not labelled every image of {folder}: run it alone to see why")
    told = [tuple(float(number.replace(",", "")) for number in said.groups()) for said in found]
    return round(sum(speed for _, speed in told), 1), round(seconds - max(n / speed for n, speed in told), 1)


def list_files(folder: Path, n: int) -> float:
    """Lists n empty files in a new folder; returns files per second."""
    folder.mkdir()
    for i in range(n):
        (folder / f"{i:08}.jpg").touch()
    began = time.perf_counter()
    Files(str(folder))
    return round(n / (time.perf_counter() - began))


def spread(values: list[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


if __name__ == "__main__":
    run(main)
