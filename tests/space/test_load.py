"""benchmarks.load's short form: the app with the embedded models, under one client and under many."""

import json
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

CLIENTS = [1, 32, 32, 32]  # at the last, whatever so many at once need has been there for hundreds of requests


@pytest.mark.slow
def test_no_reply_is_lost_or_wrong_and_memory_stays_flat(tmp_path):
    output = tmp_path / "load.json"
    command = [sys.executable, "-m", "benchmarks.load", "--requests", "800", "--output", output, "--clients"]
    ran = subprocess.run([*command, *map(str, CLIENTS)], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = json.loads(output.read_text())["rows"]
    assert [row["clients"] for row in rows] == CLIENTS
    assert [row["outcomes"] for row in rows] == [{"right": 200}] * 4  # nobody was told to come again, either
    assert rows[3]["resident_mb"] - rows[2]["resident_mb"] < 30, rows
