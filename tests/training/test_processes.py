"""Training on two processes: what one learns, written once, and a stop and a resume on another number of them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import ViTImageProcessor

import finetune_vit
from classifier.errors import ModelError
from classifier.training.finetune_trainer import keep_step_images
from tests.helpers.models import tiny_vit
from tests.helpers.paths import ROOT
from tests.helpers.pictures import noise, write_images

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    write_images(folder / "pictures", *noise(360))  # a fifth of them is validation: 288 are left, 18 steps of 16
    write_images(folder / "pictures", *noise(4), split="test")
    tiny_vit(num_labels=4).save_pretrained(folder / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "vit")
    return folder


def start(folder: Path, launcher: tuple[str, ...], output_dir: str, *flags: str) -> subprocess.Popen:
    """`train.py` in fp32."""
    words = ["--image_size", "20", "--num_train_epochs", "6", "--no-bf16"]
    return launch(folder, launcher, "train.py", output_dir, *words, *flags)


def start_tuning(folder: Path, launcher: tuple[str, ...], output_dir: str, *flags: str) -> subprocess.Popen:
    """`finetune_vit.py` in fp32: 18 steps an epoch, and nothing random but the order."""
    words = [
        "--model",
        "vit",
        "--validation_fraction",
        "0.2",
        "--num_train_epochs",
        "4",
        "--bf16",
        "false",
        "--crop_scale",
        "1",
    ]
    words += ["--freeze", "none", "--no_mirror", "--learning_rate", "0.003", "--disable_tqdm", "true"]
    return launch(folder, launcher, "finetune_vit.py", output_dir, *words, *flags)


def launch(folder: Path, launcher: tuple[str, ...], script: str, output_dir: str, *flags: str) -> subprocess.Popen:
    """A script on the launcher's processes, or on one, of one thread each."""
    words = ["--dataset", "pictures", "--output_dir", output_dir, *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    return subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / script), *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen) -> str:
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said
    return said


def stop_at_first(process: subprocess.Popen, checkpoint: Path) -> None:
    """Sends SIGTERM once there is a checkpoint, and waits for the end."""
    deadline = time.monotonic() + 600
    while not checkpoint.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_learn_what_one_does(folder):
    finished(start(folder, (), "one"))
    said = finished(start(folder, ACCELERATE, "two"))
    assert said.count("saved in two") == 1 and "2 × cpu" in said  # one process speaks, and writes
    one, two = lines(folder / "one"), lines(folder / "two")
    assert len(one) == len(two) == 6
    for alone, shared in zip(one, two, strict=True):
        assert shared["step"] == alone["step"]
        assert shared["train_loss"] == pytest.approx(
            alone["train_loss"], rel=0.1
        )  # batch norm sees half of a small batch
    assert two[-1]["validation_accuracy"] == one[-1]["validation_accuracy"] == 1
    run = json.loads((folder / "two/run.json").read_text())
    assert run["settings"]["num_processes"] == 2 and load_file(folder / "two/model.safetensors")


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_another_number_of_processes(folder):
    process = start(folder, TORCHRUN, "stopped", "--num_train_epochs", "20")
    stop_at_first(process, folder / "stopped/checkpoint.safetensors")
    done = len(lines(folder / "stopped"))
    assert 1 <= done < 20
    finished(start(folder, (), "stopped", "--num_train_epochs", "20", "--resume_from_checkpoint", "last"))
    assert [line["epoch"] for line in lines(folder / "stopped")] == list(range(1, 21))


@pytest.mark.slow
def test_two_processes_tune_as_one_does(folder):
    finished(start_tuning(folder, (), "tuned1", "--per_device_train_batch_size", "16"))
    said = finished(start_tuning(folder, ACCELERATE, "tuned2", "--per_device_train_batch_size", "8"))
    assert (
        said.count("saved in tuned2") == 1 and said.count("steps of 16 images, 8 of them on each of 2 processes") == 1
    )
    one, two = lines(folder / "tuned1"), lines(folder / "tuned2")
    assert [line["step"] for line in one] == [line["step"] for line in two] == [18, 36, 54, 72]
    for alone, shared in zip(one, two, strict=True):
        for name in ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy"):
            assert shared[name] == pytest.approx(alone[name], rel=1e-4)
    one, two = (json.loads((folder / name / "run.json").read_text()) for name in ("tuned1", "tuned2"))
    assert two["settings"]["num_processes"] == 2 and two["validation"]["accuracy"] == one["validation"]["accuracy"] == 1
    for name in ("images_seen", "train_flops", "recipe"):
        assert two[name] == one[name]
    assert not list((folder / "tuned2").glob("checkpoint-*")) and load_file(folder / "tuned2/model.safetensors")


@pytest.mark.slow
def test_a_stopped_tuning_goes_on_with_another_number_of_processes(folder):
    flags = ("--num_train_epochs", "8", "--per_device_train_batch_size", "8")
    stop_at_first(start_tuning(folder, TORCHRUN, "paused", *flags), folder / "paused/checkpoint-18/trainer_state.json")
    done = len(lines(folder / "paused"))
    assert 1 <= done < 8 and not (folder / "paused/run.json").exists()
    finished(start_tuning(folder, (), "paused", *flags, "--resume_from_checkpoint", "last"))
    assert [line["step"] for line in lines(folder / "paused")] == list(range(18, 145, 18))
    run = json.loads((folder / "paused/run.json").read_text())
    assert run["recipe"]["batch_size"] == 16 and run["images_seen"] == 8 * 288 and run["settings"]["num_processes"] == 1


def test_a_step_keeps_its_images_whatever_the_number_of_parts(tmp_path):
    state = {"stateful_callbacks": {"ProgressTracker": {"attributes": {"step_images": 30}}}}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    args = finetune_vit.Training(output_dir=str(tmp_path), per_device_train_batch_size=8, gradient_accumulation_steps=3)
    keep_step_images(args, tmp_path)
    assert args.per_device_train_batch_size == 10 and not args.auto_find_batch_size
    args.gradient_accumulation_steps = 4
    with pytest.raises(
        ModelError, match="30 images, which 1 processes and 4 gradient_accumulation_steps can't share evenly"
    ):
        keep_step_images(args, tmp_path)
