"""Power cuts and full disks, real ones: nothing that a user made is lost, and one line says what to do."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from classifier import predict
from classifier.errors import DataError
from classifier.files import write_json
from classifier.training.checkpoint import CHECKPOINT
from tests.helpers.models import save_tiny_vit
from tests.helpers.paths import ROOT
from tests.helpers.pictures import encoded, picture, write_pictures
from tests.helpers.running_app import running_app
from tests.helpers.training import saved_weights, training_command, wait_for_epochs


@pytest.fixture
def small_disk(tmp_path, request) -> Iterator[Path]:
    """A file system of `request.param` MB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={request.param}m", "tmpfs", disk], capture_output=True)
    if made.returncode:
        pytest.skip("may not mount a file system: run as root to try a full disk")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Takes up a file system but for `leave` bytes, also while a run writes to it."""
    ballast = disk / "ballast"
    for _ in range(100):
        free = os.statvfs(disk)
        with ballast.open("wb") as file, suppress(OSError):  # less is free than a moment ago
            os.posix_fallocate(file.fileno(), 0, max(1, free.f_bavail * free.f_frsize - leave))
            return ballast
    raise OSError(f"could not fill {disk}")


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path):
    path = tmp_path / "run.json"
    code = (
        "import os, signal; from pathlib import Path; from classifier.files import replacing\n"
        f"with replacing(Path({str(path)!r})) as new:\n"
        "    new.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    path.write_text("whole")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -signal.SIGKILL
    assert path.read_text() == "whole"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2  # however often it happens, one leftover


@pytest.mark.slow
@pytest.mark.parametrize("small_disk", [200], indirect=True)
def test_a_disk_that_fills_up_in_training_costs_no_epoch_that_was_saved(colours_dir, small_disk, tmp_path):
    epochs = ("--num_train_epochs", "30")  # so that it is not over before the disk is full
    subprocess.run(training_command(colours_dir, tmp_path / "whole", *epochs), check=True, capture_output=True)
    output_dir = small_disk / "run"
    command = training_command(colours_dir, output_dir, *epochs)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_for_epochs(process, output_dir, 2)
        ballast = fill(small_disk, leave=4096)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and "Traceback" not in errors
    line = errors.strip().splitlines()[-1]
    assert "No space left" in line and ("--resume_from_checkpoint last" in line or "free space" in line)
    assert (output_dir / CHECKPOINT).exists()
    ballast.unlink()
    subprocess.run([*command, "--resume_from_checkpoint", "last"], check=True, capture_output=True)
    resumed, whole = saved_weights(output_dir), saved_weights(tmp_path / "whole")
    assert all((resumed[name] == whole[name]).all() for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize("small_disk", [200], indirect=True)
def test_a_disk_that_is_full_in_evaluation_leaves_the_earlier_one(colours_dir, small_disk, tmp_path):
    subprocess.run(
        training_command(colours_dir, small_disk / "run", "--num_train_epochs", "1"), check=True, capture_output=True
    )
    words = ["--dataset", colours_dir, "--model", small_disk / "run", "--output_dir", tmp_path / "report"]
    words += ["--format", "md"]
    words += ["--corrupted_samples", "0", "--ood_samples", "0"]
    command = [sys.executable, ROOT / "evaluate.py", *map(str, words)]
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before = (small_disk / "run/evaluation.json").read_bytes()
    ballast = fill(small_disk, leave=0)
    full = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert full.returncode == 2 and "Traceback" not in full.stderr and "No space left" in full.stderr
    assert (small_disk / "run/evaluation.json").read_bytes() == before
    ballast.unlink()
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0


@pytest.mark.parametrize("small_disk", [8], indirect=True)
@pytest.mark.slow
def test_a_disk_that_fills_up_in_labelling_costs_no_part(run_predict, small_disk, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "CHUNK", predict.BATCH_SIZE)
    images = write_pictures(tmp_path / "pictures", 100)
    whole = run_predict(images, output="whole.csv")

    def write_and_fill(path, rows):
        write_json(path, rows)
        if path.name.startswith("000001-") and not (small_disk / "ballast").exists():
            fill(small_disk, leave=0)

    monkeypatch.setattr(predict, "write_json", write_and_fill)
    with pytest.raises(DataError, match=r"can't write .*000002-\w+\.json .*No space left.*the same command"):
        run_predict(images, output="disk/predictions.csv")
    (small_disk / "ballast").unlink()
    monkeypatch.setattr(predict, "write_json", write_json)
    assert run_predict(images, output="disk/predictions.csv") == whole and "64 were labelled before" in run_predict.line


@pytest.mark.parametrize("small_disk", [1100], indirect=True)
def test_uploads_stop_before_the_disk_is_full_and_go_on_when_it_is_not(small_disk, tmp_path):
    model = save_tiny_vit(tmp_path / "tiny")
    uploads = {"GRADIO_TEMP_DIR": str(small_disk / "uploads")}
    with running_app([model], tmp_path, uploads) as (url, _):

        def upload() -> httpx.Response:
            return httpx.post(f"{url}/gradio_api/upload", files={"files": ("a.png", encoded(picture(0)))})

        [path] = upload().json()
        ballast = fill(small_disk, leave=900_000_000)
        refused = upload()
        assert refused.status_code == 503 and refused.headers["retry-after"] and "no room" in refused.json()["error"]
        call = f"{url}/gradio_api/call/classify"  # what is there already is still classified
        wanted = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, None, 1]}
        event = httpx.post(call, json=wanted).json()
        assert "event: complete" in httpx.get(f"{call}/{event['event_id']}").text
        ballast.unlink()
        ballast = fill(small_disk, leave=400_000_000)  # but calls write files too
        assert httpx.post(call, json=wanted).status_code == 503
        ballast.unlink()
        assert upload().status_code == 200
        ballast = fill(small_disk, leave=1_010_000_000)  # enough to begin with
        large = [("files", (f"{i}.png", os.urandom(20_000_000))) for i in range(3)]
        cut = httpx.post(f"{url}/gradio_api/upload", files=large, timeout=60)
        assert cut.status_code == 503 and "no room" in cut.json()["error"]
        assert os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize > 980_000_000
        assert "Traceback" not in (tmp_path / "app.log").read_text()
