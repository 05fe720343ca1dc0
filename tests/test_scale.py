"""docs/cluster.py labels what classifier.bulk does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import parquet
from test_bulk import pictures
from test_predictor import save_tiny_vit

from classifier import bulk

ROOT = Path(__file__).resolve().parent.parent


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
    run("-m", "classifier.bulk", "--output", tmp_path / "rows.parquet")
    under_ray = {str(Path(row["file"]).relative_to(folder)): row for row in parquet.read_table(tmp_path / "rows").to_pylist()}
    rows = {row["file"]: row for row in parquet.read_table(tmp_path / "rows.parquet").to_pylist()}
    assert under_ray.keys() == rows.keys() and len(rows) == 71
    for file, row in rows.items():
        found = under_ray[file]
        assert list(found) == bulk.schema(2).names[1:]
        for name in ("status", "known", "label_1", "label_2", "error"):
            assert found[name] == row[name]
        for name in ("probability_1", "probability_2"):
            assert found[name] == (row[name] and pytest.approx(row[name], abs=2e-6))  # another batch, other last digits
