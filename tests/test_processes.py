"""train.py on two processes: what one learns, written once, and a stop and a resume on another number of them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_finetune import noise, write_images

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = ("-m", "torch.distributed.run", "--nproc_per_node", "2")  # as `accelerate launch` does on GPUs; on CPUs it starts one


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    write_images(folder / "pictures", *noise(400))
    return folder


def start(folder: Path, n: int, output_dir: str, *flags: str) -> subprocess.Popen:
    """`train.py` in fp32 on n processes of one thread."""
    words = ["--dataset", "pictures", "--image_size", "20", "--num_train_epochs", "6", "--no-bf16", "--output_dir", output_dir]
    launch = LAUNCH if n == 2 else ()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    return subprocess.Popen(
        [sys.executable, *launch, str(ROOT / "train.py"), *words, *flags],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen) -> str:
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    return said


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_learn_what_one_does(folder):
    finished(start(folder, 1, "one"))
    said = finished(start(folder, 2, "two"))
    assert said.count("saved in two") == 1 and "2 × cpu" in said  # one process speaks, and writes
    one, two = lines(folder / "one"), lines(folder / "two")
    assert len(one) == len(two) == 6
    for alone, shared in zip(one, two, strict=True):
        assert shared["step"] == alone["step"]
        assert shared["train_loss"] == pytest.approx(alone["train_loss"], rel=0.1)  # batch norm sees half of a small batch
    assert two[-1]["validation_accuracy"] == one[-1]["validation_accuracy"] == 1
    run = json.loads((folder / "two/run.json").read_text())
    assert run["settings"]["num_processes"] == 2 and load_file(folder / "two/model.safetensors")


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_another_number_of_processes(folder):
    process = start(folder, 2, "stopped", "--num_train_epochs", "20")
    deadline = time.monotonic() + 120
    while not (folder / "stopped/checkpoint.safetensors").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    done = len(lines(folder / "stopped"))
    assert 1 <= done < 20
    finished(start(folder, 1, "stopped", "--num_train_epochs", "20", "--resume_from_checkpoint", "last"))
    assert [line["epoch"] for line in lines(folder / "stopped")] == list(range(1, 21))
