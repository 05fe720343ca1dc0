"""Labels for any number of images: the predictor's, whatever the format, the number of processes and of
interruptions.
"""

import csv
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from pyarrow import parquet
from test_predictor import edit_config, encoded, picture, save_tiny_vit
from tqdm import tqdm

from classifier import errors, load_predictor, predict
from classifier.errors import DataError, Stopped

ROOT = Path(__file__).resolve().parent.parent
HEADER = ["index", "file", "status", "known", "label_1", "probability_1", "label_2", "probability_2", "error"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder = save_tiny_vit(tmp_path_factory.mktemp("models") / "tiny")
    _, energies = load_predictor(folder).energies([picture(i, (36, 36)) for i in range(20)], known_at=None)
    edit_config(folder, known_threshold=float(np.median(energies)))
    return folder


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """So that this process computes what its children do, to the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    """`datasets` writes its Arrow files beside the test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(predict, "CHUNK", predict.BATCH_SIZE)


@pytest.fixture
def run(tiny, tmp_path, monkeypatch, capsys):
    """The command, in this process: `run(source, flags…)` gives the bytes of the table; `run.line` is what it
    printed.
    """

    def call(source, *flags, output="predictions.csv", model=tiny) -> bytes:
        words = [source, "--model", model, "--output", tmp_path / output, "--top_k", "2", *flags]
        monkeypatch.setattr(sys, "argv", ["predict", *map(str, words)])
        predict.main()
        call.line = capsys.readouterr().out.strip()
        assert not (tmp_path / f"{output}.parts").exists()
        return (tmp_path / output).read_bytes()

    return call


def pictures(folder: Path, n: int) -> Path:
    """n files of 3 kB, in two folders."""
    for i in range(n):
        path = folder / "ab"[i % 2] / f"{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(i, (36, 36))))
    return folder


def stop_after(monkeypatch, n: int) -> None:
    """Sends SIGTERM when the n-th part has been written, once."""
    write, written = predict.Parts.write, []

    def write_and_stop(*args):
        write(*args)
        written.append(args)
        if len(written) == n:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(predict.Parts, "write", write_and_stop)


def spoil(path: Path) -> None:
    """Makes a file unreadable, in a way that only who reads it can tell."""
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def rows_of(path: Path) -> list[dict]:
    """A table's rows, however they are stored; of CSV all cells are text."""
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def test_rows_are_what_the_predictor_says(tiny, run, tmp_path):
    folder = pictures(tmp_path / "pictures", 40)
    (folder / "a/0005.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("nobody asked")
    (folder / ".hidden.png").write_bytes(b"")
    run(folder, output="predictions.jsonl")
    assert "41 images, 1 of them errors" in run.line and "other files (1)" in run.line
    rows = rows_of(tmp_path / "predictions.jsonl")
    files = sorted(str(path.relative_to(folder)) for path in folder.glob("?/*"))
    assert (
        list(rows[0]) == HEADER
        and [row["file"] for row in rows] == files
        and [row["index"] for row in rows] == list(range(41))
    )
    [bad] = [row for row in rows if row["status"] == "error"]
    assert bad["file"] == "a/0005.jpg" and bad["error"].startswith("not an image") and bad["label_1"] is None
    good, predictor = [row for row in rows if row["status"] == "ok"], load_predictor(tiny)
    probabilities, known = predictor.judge([folder / row["file"] for row in good])
    assert [row["known"] for row in good] == known and set(known) == {True, False}
    for row, expected in zip(good, probabilities, strict=True):
        for rank, entry in enumerate(predictor.top(expected, 2), 1):
            assert row[f"label_{rank}"] == entry["label"] and row[f"probability_{rank}"] == pytest.approx(
                entry["score"], abs=1e-5
            )
    assert not torch.distributed.is_initialized()


def test_the_formats_hold_the_same_whatever_the_names(run, tmp_path):
    names = ["a,b.png", 'say "x".png', "two\nlines.png", "c\rd.png", " spaces .png", "Größe 🐸\u2028.png", "broken.png"]
    (tmp_path / "pictures").mkdir()
    for i, name in enumerate([*names, os.fsdecode(b"\xff.png")]):
        (tmp_path / "pictures" / name).write_bytes(b"no image" if name == "broken.png" else encoded(picture(i)))
    tables = {}
    for suffix in (".csv", ".jsonl", ".parquet"):
        run(tmp_path / "pictures", output=f"predictions{suffix}")
        tables[suffix] = rows_of(tmp_path / f"predictions{suffix}")
    assert tables[".parquet"] == tables[".jsonl"] and list(tables[".parquet"][0]) == HEADER
    as_text = [{name: "" if cell is None else str(cell) for name, cell in row.items()} for row in tables[".jsonl"]]
    assert tables[".csv"] == as_text
    assert {row["file"] for row in tables[".jsonl"]} == {*names, "\\xff.png"}
    assert [row["file"] for row in tables[".jsonl"] if row["status"] == "error"] == ["broken.png"]


def test_a_folder_of_nothing_but_broken_files_is_a_table(run, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(b"")
    assert b"0,a.png,error,,,,,,empty" in run(tmp_path / "pictures")


# --- Going on


@pytest.mark.slow
def test_killed_and_given_again_it_is_the_table_of_an_uninterrupted_run(tiny, run, tmp_path):
    folder = pictures(tmp_path / "pictures", 5 * predict.CHUNK - 10)
    whole = run(folder, output="whole.csv")
    words = [folder, "--model", tiny, "--output", tmp_path / "predictions.csv", "--top_k", "2"]
    parts = tmp_path / "predictions.csv.parts"
    with subprocess.Popen([sys.executable, "-m", "classifier.predict", *map(str, words)], cwd=ROOT) as process:
        while not (parts / "000001.parquet").exists() and process.poll() is None:
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "predictions.csv").exists()
    n_parts = len(list(parts.glob("[0-9]*.parquet")))
    assert 2 <= n_parts < 5
    for path in list(predict.Pictures(str(folder)))[: n_parts * predict.CHUNK]:
        spoil(Path(path.where))  # the rows that are there are not computed again
    assert run(folder) == whole
    assert f"{n_parts * predict.CHUNK:,} were labelled before" in run.line


def test_a_signal_ends_it_after_the_part_in_hand(run, tmp_path, monkeypatch, small_chunks):
    folder = pictures(tmp_path / "pictures", 100)
    whole = run(folder, output="whole.parquet")
    stop_after(monkeypatch, 2)
    with pytest.raises(Stopped, match=r"predictions\.parquet\.parts: go on by the same command"):
        run(folder, output="predictions.parquet")
    assert len(list((tmp_path / "predictions.parquet.parts").glob("[0-9]*.parquet"))) == 2
    assert run(folder, output="predictions.parquet") == whole and "64 were labelled before" in run.line


def change_the_first(folder: Path, parts: Path) -> None:
    (folder / "a/0000.png").write_bytes(encoded(picture(1000, (36, 36))))


def remove_the_first(folder: Path, parts: Path) -> None:
    (folder / "a/0000.png").unlink()


def add_one_at_the_end(folder: Path, parts: Path) -> None:
    (folder / "b/z.png").write_bytes(encoded(picture(1000, (36, 36))))


def damage_a_part(folder: Path, parts: Path) -> None:
    (parts / "000001.parquet").write_bytes(b"PAR1")


@pytest.mark.parametrize(
    ("change", "n_kept"),
    [(change_the_first, 64), (remove_the_first, 0), (add_one_at_the_end, 96), (damage_a_part, 64)],
)
def test_what_changed_in_between_is_labelled_again(run, tmp_path, monkeypatch, small_chunks, change, n_kept):
    folder = pictures(tmp_path / "pictures", 100)
    stop_after(monkeypatch, 3)
    with pytest.raises(Stopped):
        run(folder)
    change(folder, tmp_path / "predictions.csv.parts")
    found = run(folder)
    assert f"{n_kept} were labelled before" in run.line if n_kept else "before" not in run.line
    assert found == run(folder, output="whole.csv")


def test_a_run_goes_on_with_another_number_of_processes(tiny, run, tmp_path, small_chunks):
    folder = pictures(tmp_path / "pictures", 100)
    whole = run(folder, output="whole.csv")
    predictor, source = load_predictor(tiny), predict.Pictures(str(folder))
    predictor.compile()
    settings = source.settings | predict.model_settings(predictor) | {"top_k": 2}
    parts = predict.Parts(tmp_path / "predictions.csv.parts", settings, predict.schema(2))
    with parts.locked(), predict.StopSignal() as stop:
        parts.begin(overwrite=False)
        predict.label(
            predictor, source, parts, set(), k=2, team=predict.Team(rank=1, size=3), stop=stop, bar=tqdm(disable=True)
        )
    assert parts.numbers() == {1}
    assert run(folder) == whole and "32 were labelled before" in run.line


@pytest.mark.slow
def test_two_processes_write_what_one_does(tiny, run, tmp_path):
    folder = pictures(tmp_path / "pictures", 3 * predict.CHUNK - 10)
    whole = run(folder, output="whole.csv")
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "classifier.predict",
    ]
    words = [folder, "--model", tiny, "--output", tmp_path / "predictions.csv", "--top_k", "2"]
    done = subprocess.run([*launch, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "predictions.csv").read_bytes() == whole and not (tmp_path / "predictions.csv.parts").exists()
    [line] = done.stdout.strip().splitlines()
    assert line.startswith("758 images, 0 of them errors") and line.endswith("images/s by 2 processes")
    refused = subprocess.run([*launch, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode != 0 and refused.stderr.count("--overwrite_output") == 1, "told by one process"


# --- Refused


def test_parts_of_another_run_are_refused(tiny, run, tmp_path, monkeypatch, small_chunks):
    folder = pictures(tmp_path / "pictures", 70)
    stop_after(monkeypatch, 1)
    with pytest.raises(Stopped):
        run(folder)
    other = save_tiny_vit(tmp_path / "tiny", seed=1)  # of the same name
    for changed, source, flags, model in [
        ("weights", folder, (), other),
        ("top_k", folder, ("--top_k", "3"), tiny),
        ("source", folder / "a", (), tiny),
    ]:
        with pytest.raises(
            DataError, match=rf"predictions\.csv\.parts holds .*{changed} .* \(now .*--overwrite_output"
        ):
            run(source, *flags, model=model)
    assert len(list((tmp_path / "predictions.csv.parts").glob("[0-9]*.parquet"))) == 1
    begun_anew = run(folder, "--overwrite_output", model=other)
    assert "before" not in run.line and begun_anew == run(folder, output="whole.csv", model=other)


def test_two_runs_of_one_table_at_once_are_refused(run, tmp_path):
    folder = pictures(tmp_path / "pictures", 2)
    parts = predict.Parts(tmp_path / "predictions.csv.parts", {}, predict.schema(2))
    with parts.locked(), pytest.raises(DataError, match=r"another process is writing to .*predictions\.csv\.parts"):
        run(folder)


def test_nothing_that_a_user_made_is_lost(run, tmp_path):
    folder, table = pictures(tmp_path / "pictures", 2), tmp_path / "predictions.csv"
    table.write_text("mine")
    with pytest.raises(DataError, match=r"predictions\.csv exists: .*--overwrite_output"):
        run(folder)
    assert table.read_text() == "mine" and sorted(tmp_path.iterdir()) == [folder, table]
    assert run(folder, "--overwrite_output").count(b"\n") == 3
    parts = predict.Parts(tmp_path / "other.parts", {}, predict.schema(2))
    with parts.locked():
        parts.begin(overwrite=False)
        (parts.folder / "mine.txt").write_text("mine")
        parts.remove()
    assert [path.name for path in parts.folder.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("source", "flags", "message"),
    [
        ("empty", (), r"no images in .*empty: .*\*\*"),
        ("nowhere", (), "no folder .*nowhere"),
        ("pictures/*.tif", (), r"nothing matches .*\*\.tif"),
        ("nowhere/*.png", (), "nothing matches"),
        ("pictures", ("--output", "predictions.txt"), r"\.csv, \.jsonl, \.parquet"),
        ("pictures", ("--output", "empty.csv"), r"empty\.csv is a folder"),
        ("pictures", ("--model", "/no/such/model"), "no model folder /no/such/model: "),
        ("table", ("--output", "table/predictions.csv"), "outside of that folder"),
        ("table", ("--split", "test"), r"no test split, only train, validation: .*--split"),
        ("pictures", ("--output", "pictures/a.png/predictions.csv"), r"a\.png"),
    ],
)
def test_errors_are_one_line_and_leave_nothing_behind(tiny, run, tmp_path, monkeypatch, capsys, source, flags, message):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "empty.csv", "pictures"):
        Path(name).mkdir()
    Path("pictures/a.png").write_bytes(encoded(picture(0)))
    dataset(Path("table"), train=2, validation=2)
    before = sorted(tmp_path.rglob("*"))
    words = [f"{tmp_path}/{source}", "--model", str(tiny), "--output", "predictions.csv", *flags]
    monkeypatch.setattr(sys, "argv", ["predict", *words])
    with pytest.raises(SystemExit) as ended:
        errors.run(predict.main)
    printed = capsys.readouterr()
    [line] = [line for line in printed.err.splitlines() if line.startswith("predict: ")]
    assert ended.value.code == 2 and re.search(message, line) and printed.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_a_pattern_that_the_shell_took_is_told(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["predict", "a.jpg", "b.jpg", "--model", "m", "--output", "o.csv"])
    with pytest.raises(SystemExit) as ended:
        predict.main()
    assert ended.value.code == 2 and "quote the pattern" in capsys.readouterr().err


# --- Sources


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    for name in (
        "a.jpg",
        "b/c.jpg",
        "b/d/e.jpg",
        "b/d/f.txt",
        "b.d/g.JPG",
        "[1]/h.jpg",
        ".i/j.jpg",
        "b/.k.jpg",
        "out.csv.parts/l.jpg",
    ):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "tree"


def files(source: str | Path, *leave_out: Path) -> list[str]:
    return [item.file for item in predict.Pictures(str(source), leave_out)]


def test_a_folder_is_taken_in_the_order_of_its_names(tree):
    assert files(tree, tree / "out.csv.parts") == ["[1]/h.jpg", "a.jpg", "b/c.jpg", "b/d/e.jpg", "b.d/g.JPG"]
    assert files(f"{tree}/") == files(tree)
    assert predict.Pictures(str(tree)).count() == {predict.FILE: 6, predict.OTHER: 1}


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "tree/*.jpg",
            "tree/**/*.jpg",
            "tree/*/*",
            "tree/**",
            "tree/b/**/*",
            "tree/**/d/*.jpg",
            "tree/[[]1]/*",
            "*/b/?.jpg",
        ),
        *("tree/b*/**/[e-h].*", "tree/a.jpg", "{root}/**/*.jpg", "./tree/../tree/*.jpg"),
    ],
)
def test_a_pattern_matches_what_it_does_in_a_shell(tree, pattern):
    pattern = pattern.format(root=tree)
    expected = [path for path in glob.glob(pattern, recursive=True) if Path(path).is_file()]  # noqa: PTH207
    found = files(pattern)
    assert {os.path.normpath(path) for path in found} == {os.path.normpath(path) for path in expected}
    assert len(found) == len(set(found)) and all(Path(path).is_file() for path in found)


def test_links_that_go_round_end(tree):
    before = files(tree)
    (tree / "b/up").symlink_to(tree)
    (tree / "b/d/self").symlink_to("self")
    (tree / "b/d/self.jpg").symlink_to("self.jpg")
    assert set(files(tree)) == {*before, "b/d/self.jpg"}
    assert predict.Pictures(str(tree)).count()[predict.LINK] == 1


def test_it_reads_no_folder_before_it_comes_to_it(tree):
    items = iter(predict.Pictures(str(tree)))
    assert [next(items).file, next(items).file] == ["[1]/h.jpg", "a.jpg"]
    shutil.rmtree(tree / "b")
    error, following = next(items), next(items)
    assert (error.file, error.error) == ("b", "No such file or directory") and following.file == "b.d/g.JPG"


def dataset(folder: Path, **n: int) -> Path:
    """Parquet without labels: n images a split, the second no image and the third missing, where there are so many."""
    folder.mkdir()
    features = datasets.Features({"photo": datasets.Image()})
    for split, rows in n.items():
        cells = [{"bytes": encoded(picture(i)), "path": None} for i in range(rows)]
        cells[1:3] = [{"bytes": b"no image", "path": None}, None][: len(cells[1:3])]
        datasets.Dataset.from_dict({"photo": cells}, features=features).to_parquet(
            folder / f"{split}-00000-of-00001.parquet"
        )
    return folder


@pytest.mark.slow
def test_a_dataset_needs_neither_labels_nor_train(tiny, run, tmp_path, monkeypatch, small_chunks):
    folder = dataset(tmp_path / "table", test=70, validation=3)
    whole = run(folder, output="whole.jsonl")
    rows = rows_of(tmp_path / "whole.jsonl")
    assert [row["file"] for row in rows] == [f"test/{i}" for i in range(70)]
    assert [(row["index"], row["error"][:12]) for row in rows if row["status"] == "error"] == [
        (1, "not an image"),
        (2, "empty"),
    ]
    assert rows[0]["label_1"] == load_predictor(tiny)(picture(0))[0]["label"]
    stop_after(monkeypatch, 1)
    with pytest.raises(Stopped):
        run(folder, output="predictions.jsonl")
    assert run(folder, output="predictions.jsonl") == whole and "32 were labelled before" in run.line
    assert run(folder, "--split", "validation", output="other.csv").count(b"validation/") == 3


@pytest.mark.skipif("HUB_MIRROR" not in os.environ, reason="needs the true data: set HUB_MIRROR")
def test_cifar10_is_a_dataset():
    source = predict.open_source(
        f"{os.environ['HUB_MIRROR']}/datasets/uoft-cs/cifar10", None, None, Path("predictions.csv")
    )
    assert source.count() == {predict.FILE: 10_000} and next(iter(source)).file == "test/0"
