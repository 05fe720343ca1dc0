"""docs/scale.md: what it says of the code is so, and its page of code labels what classifier.predict does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import parquet
from test_predict import pictures
from test_predictor import save_tiny_vit

from benchmarks import results
from classifier import predict
from classifier.images.workers import WORKERS

ROOT = Path(__file__).resolve().parent.parent


def test_the_page_says_what_the_code_does():
    page = (ROOT / "docs/scale.md").read_text()
    assert f"chunks of {predict.CHUNK} images" in page
    assert f"decodes in {WORKERS} workers" in page and f"{WORKERS / 0.05:.0f} where l is 50 ms" in page
    assert f"p is ${results.PRICE:.2f}" in page


def test_the_tables_are_worked_out_from_the_file(tmp_path, monkeypatch):
    """One process labels 10 images a second and starts in 8 s; 100 million on 200 such take 50,000 s."""

    def row(cores: int, processes: int, speed: float) -> dict:
        speeds = {"median": speed, "min": speed - 1, "max": speed + 1}
        start = {"median": 8.0, "min": 7.0, "max": 9.0}
        about = {"model": "vit", "kind": "photographs", "cores": cores, "processes": processes}
        return about | {"images_per_second": speeds, "start_s": start}

    found = {"rows": [row(1, 1, 10.5), row(2, 1, 15.0), row(2, 2, 20.0)], "rounds": 3, "images": 1024}
    kind = {"bytes_per_image": 100_000, "distinct": 87, "median_megapixels": 0.5}
    machine = {"processor": "X", "instructions": "AVX2", "threads": 2, "accelerator": None}
    listed = {"median": 100_000, "min": 1, "max": 2}
    found |= {"kinds": {"photographs": kind}, "files_listed_per_second": listed, "machine": machine}
    (tmp_path / "scale.json").write_text(json.dumps(found))
    monkeypatch.setattr(results, "__file__", str(tmp_path / "results.py"))
    text = results.render_scale()
    assert (
        "| photographs, 100.0 kB | `models/vit` | 10.5 (9.5 to 11.5) | 15.0 (14.0 to 16.0) | 20.0 (19.0 to 21.0) | 8 "
        "s |" in text
    )
    hours = 100e6 / 200 / 10 / 3600
    shard = (
        6_000  # √(100e6 × 8 × 10 / 200) = 6,325: each process starts 79 times, 632 s, and waits 632 s for the last one
    )
    told = f"{hours:.1f} | {200 * hours:,.0f} | ${200 * hours * 0.04:,.0f} | 10 TB | 2 MB/s | {shard:,} images | 3% |"
    assert told in text and f"{100e6 / 1e5 / 3600:.1f} hours for that" in text


def test_the_same_rows_under_ray(tmp_path):
    pytest.importorskip("ray", reason="pip install 'ray[data]' in an environment of its own to run it")
    model, folder = save_tiny_vit(tmp_path / "tiny"), pictures(tmp_path / "pictures", 70)
    (folder / "b/broken.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("nobody asked")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}

    def run(*words: str | Path) -> None:
        command = [sys.executable, *map(str, words), str(folder), "--model", str(model), "--top_k", "2"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    run("docs/cluster.py", "--output", tmp_path / "rows")
    run("-m", "classifier.predict", "--output", tmp_path / "rows.parquet")
    under_ray = {
        str(Path(row["file"]).relative_to(folder)): row for row in parquet.read_table(tmp_path / "rows").to_pylist()
    }
    rows = {row["file"]: row for row in parquet.read_table(tmp_path / "rows.parquet").to_pylist()}
    assert under_ray.keys() == rows.keys() and len(rows) == 71
    for file, row in rows.items():
        found = under_ray[file]
        assert list(found) == predict.schema(2).names[1:]
        for name in ("status", "known", "label_1", "label_2", "error"):
            assert found[name] == row[name]
        for name in ("probability_1", "probability_2"):
            assert found[name] == (row[name] and pytest.approx(row[name], abs=2e-6))  # another batch, other last digits
