"""run.json: what a run was, beside its weights."""

import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

# What a run and its evaluation leave in a folder, and would speak of other weights once it is trained anew
STALE = (
    "config.json",
    "run.json",
    "evaluation.json",
    "timing.json",
    "confusion_matrix.png",
    "metrics.jsonl",
    "README.md",
)
STALE += ("onnx/model.onnx",)
PACKAGES = ("torch", "torchvision", "transformers", "datasets", "timm", "numpy", "pillow")


def machine() -> dict:
    """Processor, threads and accelerator that figures of this process were measured on."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line[:10] == "model name"
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
    try:
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


def describe(settings: dict, parent: dict | None = None) -> dict:
    """The part of run.json that every script writes, as things are when it starts; the caller adds its results.

    Args:
        settings: the command's flags as they were in force.
        parent: run.json of the weights that this run started from, if any: the chain of stages.
    """
    return {
        "command": command(),
        "settings": {name: os.fspath(v) if isinstance(v, Path) else v for name, v in settings.items()},
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": machine(),
        "parent": parent,
    }


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
