"""Times the installation of requirements.txt into a new virtual environment, and measures its size.

    python -m benchmarks.install

Nothing is read from pip's cache. Writes benchmarks/install.json, from which benchmarks/results.py makes a sentence of
README.md.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from classifier import runs
from classifier.files import write_json

ROOT = Path(__file__).resolve().parent.parent
CUDA = ("nvidia", "triton")  # packages that torch installs on Linux for NVIDIA GPUs


def folder_size(folder: Path) -> int:
    """The bytes of all files in a folder; links are not followed."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def main() -> None:
    """Creates the environment, installs, measures, deletes it."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder)
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        pip = [environment / "bin/python", "-m", "pip", "install", "--quiet", "--no-cache-dir"]
        subprocess.run([*pip, "-r", ROOT / "requirements.txt"], check=True)
        seconds = time.perf_counter() - began
        [packages] = environment.glob("lib/python*/site-packages")
        cuda = sum(folder_size(packages / name) for name in CUDA)
        found = {"seconds": seconds, "bytes": folder_size(environment), "cuda_bytes": cuda, "machine": runs.machine()}
    write_json(Path(__file__).with_suffix(".json"), found)


if __name__ == "__main__":
    main()
