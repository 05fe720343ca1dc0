"""The command train.py in a process of its own."""

import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.helpers.paths import ROOT


def training_command(folder: Path, output_dir: Path, *flags: str) -> list[str]:
    return [
        sys.executable,
        str(ROOT / "train.py"),
        *("--dataset", str(folder), "--output_dir", str(output_dir), "--image_size", "16", "--num_train_epochs", "6"),
        *flags,
    ]


def saved_weights(output_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(output_dir / "model.safetensors")


def wait_for_epochs(process: subprocess.Popen, output_dir: Path, n: int) -> None:
    metrics = output_dir / "metrics.jsonl"
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= n):
        assert process.poll() is None, "ended before it could be stopped"
        time.sleep(0.02)
