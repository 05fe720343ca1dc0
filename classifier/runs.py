"""The folder of a run: which files it has, the only code that opens its records, and the record of the run at hand.

    folder = RunFolder("runs/cnn")
    folder.run.validation.accuracy        # run.json
    folder.evaluation.model.accuracy      # evaluation.json, after evaluate.py
    [stage.command for stage in folder.stages]

Weights lie in a folder with run.json (what the run was) and, after evaluate.py, evaluation.json (what was measured on
test) and timing.json (how fast it was). A file that lacks a key is a ModelError that names the file and the key.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from classifier.errors import ModelError
from classifier.files import read_json
from classifier.records import Evaluation, Exports, Machine, RunRecord, Timing

PACKAGES = ("torch", "torchvision", "transformers", "datasets", "timm", "numpy", "pillow")

T = TypeVar("T", Evaluation, Timing)


class RunFile(NamedTuple):
    """A file, or a pattern of files, in a run's folder."""

    pattern: str  # relative to the folder
    stale: bool = False  # deleted before another training in the same folder, as it describes the old weights
    pulled: bool = False  # fetched from the Hub for inference; what is pulled is pushed too
    pushed: bool = True  # part of a repository on the Hub
    replaced: bool = True  # deleted from the repository when the folder that is pushed has no such file


FILES = (
    RunFile("config.json", stale=True, pulled=True),
    RunFile("model*.safetensors", pulled=True),
    RunFile("model.safetensors.index.json", pulled=True),
    RunFile("preprocessor_config.json", stale=True, pulled=True),
    RunFile("processor_config.json", stale=True, pulled=True),  # which transformers 5 reads first, if there is one
    RunFile("evaluation.json", stale=True, pulled=True),
    RunFile("timing.json", stale=True, pulled=True),
    RunFile("run.json", stale=True, pulled=True),
    RunFile("metrics.jsonl", stale=True),
    RunFile("confusion_matrix.png", stale=True),
    RunFile("cnn.py"),
    RunFile("onnx/*.onnx", stale=True),
    RunFile("onnx/exports.json", stale=True),
    RunFile("README.md", stale=True, replaced=False),
    RunFile("*.png", replaced=False),
)
STALE = tuple(file.pattern for file in FILES if file.stale)
PULLED = [file.pattern for file in FILES if file.pulled]
PUSHED = [file.pattern for file in FILES if file.pushed]
REPLACED = [file.pattern for file in FILES if file.pushed and file.replaced]


# --- The folder ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunFolder:
    """A model's folder and the records in it. Each access reads the file.

    Attributes:
        path: of the folder; a string is converted.

    Raises:
        ModelError: a record is not valid JSON, or lacks a key. The message names file and key.
    """

    path: Path

    def __post_init__(self):
        object.__setattr__(self, "path", Path(self.path))

    @property
    def is_finished(self) -> bool:
        """Whether a training run ended here: it writes run.json last."""
        return (self.path / "run.json").is_file()

    @property
    def run(self) -> RunRecord | None:
        """run.json; None where there is none."""
        return RunRecord.read(self.path / "run.json") if self.is_finished else None

    @property
    def stages(self) -> list[RunRecord]:
        """The runs that the weights came from, the first one first; [] without run.json."""
        run = self.run
        return run.stages if run else []

    @property
    def evaluation(self) -> Evaluation | None:
        """evaluation.json, with exactly one model; None where there is none, or another program's of that name."""
        path = self.path / "evaluation.json"
        value = read_json(path) if path.is_file() else {}
        if not isinstance(value, dict) or "models" not in value:
            return None
        return _of_one_model(Evaluation.from_json(value, path), path)

    @property
    def timing(self) -> Timing | None:
        """timing.json, with exactly one model; None where there is none."""
        path = self.path / "timing.json"
        return _of_one_model(Timing.read(path), path) if path.is_file() else None

    @property
    def exports(self) -> Exports | None:
        """onnx/exports.json, None if there is no such file."""
        path = self.path / "onnx" / "exports.json"
        return Exports.read(path) if path.is_file() else None

    @property
    def history(self) -> list[dict]:
        """The lines of metrics.jsonl, one an epoch; [] where there is no such file."""
        path = self.path / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []

    def finished_run(self) -> RunRecord:
        """run.json; ModelError where there is none."""
        run = self.run
        if run is None:
            raise ModelError(f"no run.json in {self.path}: give a folder that train.py or finetune_vit.py has finished")
        return run

    def as_parent(self) -> RunRecord:
        """run.json with the digest of the weights, as the record of a run that starts from them keeps it."""
        return replace(self.finished_run(), model_sha256=sha256(self.path / "model.safetensors"))

    def write_run(self, record: RunRecord) -> None:
        """Writes run.json, which says that the run is finished."""
        record.write(self.path / "run.json")

    def write_evaluation(self, evaluation: Evaluation, timing: Timing) -> None:
        """Writes evaluation.json and timing.json."""
        evaluation.write(self.path / "evaluation.json")
        timing.write(self.path / "timing.json")

    def remove_stale(self) -> None:
        """Deletes the files that describe weights which are about to be replaced."""
        for pattern in STALE:
            for path in self.path.glob(pattern):
                path.unlink()


def _of_one_model(record: T, path: Path) -> T:
    """The record, if it is of one model."""
    if len(record.models) != 1:
        raise ModelError(f'{path}: "models" has {len(record.models)} entries instead of one: {record.remedy}')
    return record


# --- What runs here --------------------------------------------------------------------------------------------------


def machine() -> dict:
    """Processor, threads and accelerator that figures of this process were measured on."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text(encoding="utf-8").splitlines()
            if line[:10] == "model name"
        ]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "python": platform.python_version(),
    }


def commit() -> str | None:
    """The commit of the code that runs, with `+` if files differ from it; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    tracked = [*git, "ls-files", "--error-unmatch", Path(__file__).name]  # fails for a package installed in a checkout
    try:
        subprocess.run(tracked, capture_output=True, check=True)
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def command() -> str:
    """The command that runs, as it was given."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def command_to_resume(argv: list[str]) -> str:
    """The command `argv` as it has to be given to go on with the run that it started."""
    words = [word for word in from_the_start(argv) if word != "--overwrite_output_dir"]
    return shlex.join([*words, "--resume_from_checkpoint", "last"])


def from_the_start(argv: list[str]) -> list[str]:
    """The command `argv` without the checkpoint that it goes on from."""
    words = [word for word in argv if not word.startswith("--resume_from_checkpoint=")]
    if "--resume_from_checkpoint" in words:
        at = words.index("--resume_from_checkpoint")
        del words[at : at + 2]
    return words


def describe(settings: dict, parent: RunRecord | None = None) -> dict:
    """The fields of a `RunRecord` that are known when the run starts: `RunRecord(**describe(...), data=..., ...)`.

    Args:
        settings: the command's flags as they were in force.
        parent: record of the weights that this run starts from, by `RunFolder.as_parent`; None for others.
    """
    return {
        "command": command(),
        "settings": {name: os.fspath(v) if isinstance(v, Path) else v for name, v in settings.items()},
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": Machine(**machine()),
        "parent": parent,
    }


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
