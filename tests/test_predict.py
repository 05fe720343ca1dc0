"""`classifier.predict` gives the predictor's labels, in any format, however often interrupted, and in shards."""

import csv
import glob
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from classifier import errors, load_predictor, predict
from classifier.data.unlabelled import Files, open_source
from classifier.errors import DataError, Stopped
from classifier.files import write_json
from tests.helpers.models import save_tiny_vit
from tests.helpers.paths import ROOT
from tests.helpers.pictures import encoded, picture, write_pictures

HEADER = ["index", "file", "status", "known", "label_1", "probability_1", "label_2", "probability_2", "error"]


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


def stop_after(monkeypatch, n: int) -> None:
    """Sends SIGTERM when the n-th part has been written, once."""
    written = []

    def write_and_stop(*args):
        write_json(*args)
        written.append(args)
        if len(written) == n:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(predict, "write_json", write_and_stop)


def skip_without_ray() -> None:
    """Does not import it: that would load its C++ libraries into this process, beside torch's and OpenVINO's."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("pip install 'ray[data]' to test --engine ray")


def parts_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.json"))


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


def test_rows_are_what_the_predictor_says(tiny_vit, run_predict, tmp_path):
    folder = write_pictures(tmp_path / "pictures", 40)
    (folder / "a/0005.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("nobody asked")
    (folder / ".hidden.png").write_bytes(b"")
    run_predict(folder, output="predictions.jsonl")
    assert "41 images, 1 of them errors" in run_predict.line and run_predict.line.endswith("; 1 file left out: 1 .txt")
    rows = rows_of(tmp_path / "predictions.jsonl")
    files = sorted(str(path.relative_to(folder)) for path in folder.glob("?/*"))
    assert (
        list(rows[0]) == HEADER
        and [row["file"] for row in rows] == files
        and [row["index"] for row in rows] == list(range(41))
    )
    [bad] = [row for row in rows if row["status"] == "error"]
    assert bad["file"] == "a/0005.jpg" and bad["error"].startswith("not an image") and bad["label_1"] is None
    good, predictor = [row for row in rows if row["status"] == "ok"], load_predictor(tiny_vit)
    probabilities, known = predictor.predict_with_ood([folder / row["file"] for row in good])
    assert [row["known"] for row in good] == known and set(known) == {True, False}
    for row, expected in zip(good, probabilities, strict=True):
        for rank, entry in enumerate(predictor.top(expected, 2), 1):
            assert row[f"label_{rank}"] == entry["label"] and row[f"probability_{rank}"] == pytest.approx(
                entry["score"], abs=1e-5
            )
    assert not torch.distributed.is_initialized()


def test_the_formats_hold_the_same_whatever_the_names(run_predict, tmp_path):
    names = ["a,b.png", 'say "x".png', "two\nlines.png", "c\rd.png", " spaces .png", "Größe 🐸\u2028.png", "broken.png"]
    (tmp_path / "pictures").mkdir()
    for i, name in enumerate([*names, os.fsdecode(b"\xff.png")]):
        (tmp_path / "pictures" / name).write_bytes(b"no image" if name == "broken.png" else encoded(picture(i)))
    tables = {}
    for suffix in (".csv", ".jsonl", ".parquet"):
        run_predict(tmp_path / "pictures", output=f"predictions{suffix}")
        tables[suffix] = rows_of(tmp_path / f"predictions{suffix}")
    assert tables[".parquet"] == tables[".jsonl"] and list(tables[".parquet"][0]) == HEADER
    as_text = [{name: "" if cell is None else str(cell) for name, cell in row.items()} for row in tables[".jsonl"]]
    assert tables[".csv"] == as_text
    assert {row["file"] for row in tables[".jsonl"]} == {*names, "\\xff.png"}
    assert [row["file"] for row in tables[".jsonl"] if row["status"] == "error"] == ["broken.png"]


def test_a_folder_of_nothing_but_broken_files_is_a_table(run_predict, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(b"")
    assert b"0,a.png,error,,,,,,empty" in run_predict(tmp_path / "pictures")


def words(source: Path, model: Path, output: Path, *flags: str) -> list[str]:
    flags = ("--model", model, "--output", output, "--top_k", "2", *flags)
    return [sys.executable, "-m", "classifier.predict", *map(str, (source, *flags))]


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [("local", "local"), ("ray", "ray")])
def test_a_killed_run_is_continued_to_the_same_bytes(tiny_vit, run_predict, tmp_path, first, second):
    if "ray" in (first, second):
        skip_without_ray()
    folder = write_pictures(tmp_path / "pictures", 8 * predict.CHUNK - 10)
    (folder / "b/broken.jpg").write_bytes(b"no image")
    whole = run_predict(folder, output="whole.csv")
    output, parts = tmp_path / "predictions.csv", tmp_path / "predictions.csv.parts"
    with subprocess.Popen(words(folder, tiny_vit, output, "--engine", first), cwd=ROOT) as process:
        while not parts_in(parts) and process.poll() is None:
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -signal.SIGKILL and not output.exists()
    finished = parts_in(parts)
    assert 1 <= len(finished) < 8
    items = Files(str(folder)).items(0, 8 * predict.CHUNK)
    for part in finished:
        start = int(part.name[:6]) * predict.CHUNK
        for item in items[start : start + predict.CHUNK]:
            spoil(Path(item.where))  # so that a row that is computed again differs
    command = words(folder, tiny_vit, output, "--engine", second)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == whole and not parts.exists()
    assert done.stdout.startswith("2,039 images, 1 of them errors")
    assert f"; {len(finished) * predict.CHUNK:,} were labelled before;" in done.stdout


def test_a_signal_stops_it_after_the_current_part(run_predict, tmp_path, monkeypatch, small_chunks):
    folder = write_pictures(tmp_path / "pictures", 100)
    whole = run_predict(folder, output="whole.parquet")
    stop_after(monkeypatch, 2)
    with pytest.raises(Stopped, match=r"predictions\.parquet\.parts, continue by the same command"):
        run_predict(folder, output="predictions.parquet")
    assert len(parts_in(tmp_path / "predictions.parquet.parts")) == 2
    assert run_predict(folder, output="predictions.parquet") == whole and "64 were labelled before" in run_predict.line


def change_the_first(folder: Path) -> None:
    (folder / "a/0000.png").write_bytes(encoded(picture(1000, (36, 36))))


def remove_the_first(folder: Path) -> None:
    (folder / "a/0000.png").unlink()


def add_one_at_the_end(folder: Path) -> None:
    (folder / "b/z.png").write_bytes(encoded(picture(1000, (36, 36))))


@pytest.mark.parametrize(
    ("change", "n_kept"),
    [(change_the_first, 64), (remove_the_first, 0), (add_one_at_the_end, 96)],
)
def test_what_changed_in_between_is_labelled_again(run_predict, tmp_path, monkeypatch, small_chunks, change, n_kept):
    folder = write_pictures(tmp_path / "pictures", 100)
    stop_after(monkeypatch, 3)
    with pytest.raises(Stopped):
        run_predict(folder)
    change(folder)
    found = run_predict(folder)
    assert f"{n_kept} were labelled before" in run_predict.line if n_kept else "before" not in run_predict.line
    assert found == run_predict(folder, output="whole.csv")


def test_parts_of_another_model_or_setting_are_not_used(tiny_vit, run_predict, tmp_path, monkeypatch, small_chunks):
    folder, parts = write_pictures(tmp_path / "pictures", 70), tmp_path / "predictions.csv.parts"
    other = save_tiny_vit(tmp_path / "tiny", seed=1)  # of the same name
    stricter = save_tiny_vit(tmp_path / "stricter/tiny", ood={"threshold": 1e9})
    for model, flags in [(other, ()), (stricter, ()), (tiny_vit, ("--top_k", "3"))]:
        stop_after(monkeypatch, 1)
        with pytest.raises(Stopped):
            run_predict(folder)
        assert len(parts_in(parts)) == 1
        found = run_predict(folder, *flags, model=model)
        assert "before" not in run_predict.line
        assert found == run_predict(folder, *flags, output="whole.csv", model=model)
        for name in ("predictions.csv", "whole.csv"):
            (tmp_path / name).unlink()


def test_a_damaged_part_is_named(run_predict, tmp_path, monkeypatch, small_chunks):
    folder = write_pictures(tmp_path / "pictures", 40)
    stop_after(monkeypatch, 1)
    with pytest.raises(Stopped):
        run_predict(folder)
    [part] = parts_in(tmp_path / "predictions.csv.parts")
    part.write_bytes(b"[{")
    with pytest.raises(DataError, match=rf"{part.name} is damaged .*: delete it"):
        run_predict(folder)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_shards_in_order_are_the_whole(run_predict, tmp_path, small_chunks, suffix):
    folder = write_pictures(tmp_path / "pictures", 150)  # 5 chunks
    (folder / "a/0005.jpg").write_bytes(b"no image")
    whole = run_predict(folder, output=f"whole{suffix}")
    names = []
    for i in (1, 2, 3):
        names.append(f"rows-0000{i}-of-00003{suffix}")
        run_predict(folder, "--shard", f"{i}/3", output=f"rows{suffix}", written=names[-1])
    shards = [(tmp_path / name).read_bytes() for name in names]
    assert "55 images, 0 of them errors" in run_predict.line
    if suffix == ".csv":
        assert whole == shards[0] + b"".join(shard.split(b"\n", 1)[1] for shard in shards[1:])
    else:
        tables = [parquet.read_table(tmp_path / name) for name in names]
        assert pa.concat_tables(tables) == parquet.read_table(tmp_path / "whole.parquet")


def test_more_shards_than_chunks_are_empty_tables(run_predict, tmp_path):
    folder = write_pictures(tmp_path / "pictures", 3)
    for i, n_rows in [(1, 0), (2, 3)]:
        run_predict(folder, "--shard", f"{i}/2", output="rows.csv", written=f"rows-0000{i}-of-00002.csv")
        assert len(rows_of(tmp_path / f"rows-0000{i}-of-00002.csv")) == n_rows


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2"])
def test_what_is_no_shard_is_refused(monkeypatch, capsys, text):
    monkeypatch.setattr(sys, "argv", ["predict", "a", "--model", "m", "--output", "o.csv", f"--shard={text}"])
    with pytest.raises(SystemExit):
        predict.main()
    assert f"{text} is not I/N" in capsys.readouterr().err


def test_ray_that_is_not_installed_is_an_error_of_one_line(tiny_vit, tmp_path):
    (tmp_path / "ray.py").write_text("raise ImportError('No module named ray')")
    done = subprocess.run(
        words(tmp_path, tiny_vit, tmp_path / "rows.csv", "--engine", "ray"),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "pip install 'ray[data]'" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "dataset"])
def test_ray_writes_what_one_process_does(tiny_vit, run_predict, tmp_path, kind):
    skip_without_ray()
    if kind == "folder":
        source = write_pictures(tmp_path / "pictures", 2 * predict.CHUNK + 10)
        (source / "a" / os.fsdecode(b"\xff.png")).write_bytes(encoded(picture(0)))
        (source / "b/broken.jpg").write_bytes(b"no image")
        (source / "notes.txt").write_text("nobody asked")
    else:
        source = dataset(tmp_path / "table", test=300)
    whole = run_predict(source, output="whole.jsonl")
    command = words(source, tiny_vit, tmp_path / "ray.jsonl", "--engine", "ray")
    environment = os.environ | {"HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ray.jsonl").read_bytes() == whole
    assert done.stdout.split(", in ")[0] == run_predict.line.split(", in ")[0]


def test_nothing_that_a_user_made_is_lost(tiny_vit, run_predict, tmp_path, monkeypatch):
    folder, table = write_pictures(tmp_path / "pictures", 2), tmp_path / "predictions.csv"
    table.write_text("mine")
    with pytest.raises(DataError, match=r"predictions\.csv exists: .*--overwrite_output"):
        run_predict(folder)
    assert table.read_text() == "mine" and sorted(tmp_path.iterdir()) == [folder, table]
    assert run_predict(folder, "--overwrite_output").count(b"\n") == 3
    note = tmp_path / "other.csv.parts/mine.txt"
    note.parent.mkdir()
    note.write_text("mine")
    monkeypatch.setattr(sys, "argv", ["predict", *words(folder, tiny_vit, tmp_path / "other.csv")[3:]])
    predict.main()
    assert list(note.parent.iterdir()) == [note]


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
def test_errors_are_one_line_and_leave_nothing_behind(
    tiny_vit, run_predict, tmp_path, monkeypatch, capsys, source, flags, message
):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "empty.csv", "pictures"):
        Path(name).mkdir()
    Path("pictures/a.png").write_bytes(encoded(picture(0)))
    dataset(Path("table"), train=2, validation=2)
    before = sorted(tmp_path.rglob("*"))
    words = [f"{tmp_path}/{source}", "--model", str(tiny_vit), "--output", "predictions.csv", *flags]
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
    return [item.file for item in Files(str(source), leave_out).items(0, 100)]


def test_a_folder_is_taken_in_the_order_of_its_names(tree):
    assert files(tree, tree / "out.csv.parts") == ["[1]/h.jpg", "a.jpg", "b/c.jpg", "b/d/e.jpg", "b.d/g.JPG"]
    assert files(f"{tree}/") == files(tree)
    assert Files(str(tree)).left_out == {"empty": 1} and Files(str(tree)).n_links == 0


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
    assert Files(str(tree)).n_links == 1
    assert set(files("tree/**/*.jpg")) == {f"tree/{file}" for file in files(tree) if file.endswith(".jpg")}


def test_a_folder_that_can_not_be_listed_is_named(tree, run_predict, tmp_path, monkeypatch):
    scandir = os.scandir

    def refuse(folder):
        if folder == f"{tree}/b":
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)  # as root, every folder can be listed
    assert files(tree, tree / "out.csv.parts") == ["[1]/h.jpg", "a.jpg", "b", "b.d/g.JPG"]
    run_predict(tree)
    [row] = [row for row in rows_of(tmp_path / "predictions.csv") if row["file"] == "b"]
    assert row["status"] == "error" and row["error"] == "Permission denied"
    assert files("tree/[ac]*") == ["tree/a.jpg"], "a folder that the pattern does not need is no error"


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
def test_a_dataset_needs_neither_labels_nor_train(tiny_vit, run_predict, tmp_path, monkeypatch, small_chunks):
    folder = dataset(tmp_path / "table", test=70, validation=3)
    whole = run_predict(folder, output="whole.jsonl")
    rows = rows_of(tmp_path / "whole.jsonl")
    assert [row["file"] for row in rows] == [f"test/{i}" for i in range(70)]
    assert [(row["index"], row["error"][:12]) for row in rows if row["status"] == "error"] == [
        (1, "not an image"),
        (2, "empty"),
    ]
    assert rows[0]["label_1"] == load_predictor(tiny_vit)(picture(0))[0]["label"]
    stop_after(monkeypatch, 1)
    with pytest.raises(Stopped):
        run_predict(folder, output="predictions.jsonl")
    assert run_predict(folder, output="predictions.jsonl") == whole and "32 were labelled before" in run_predict.line
    assert run_predict(folder, "--split", "validation", output="other.csv").count(b"validation/") == 3


@pytest.mark.skipif("HUB_MIRROR" not in os.environ, reason="needs the true data: set HUB_MIRROR")
def test_cifar10_is_a_dataset():
    source = open_source(f"{os.environ['HUB_MIRROR']}/datasets/uoft-cs/cifar10")
    assert len(source) == 10_000 and source.items(0, 1)[0].file == "test/0"
