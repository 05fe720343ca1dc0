"""The wheel, installed into an environment of its own and used from a folder without the checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir() if path.suffix in {".jpg", ".png"})


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the sources, as a build leaves files beside them."""
    source = tmp_path_factory.mktemp("source")
    for package in ("classifier", "space"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip"]
    run(*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", source / "dist", cwd=source)
    [file] = (source / "dist").iterdir()
    return file


@pytest.fixture(scope="module")
def scripts(wheel, tmp_path_factory) -> Path:
    """The folder of commands of a virtual environment with the wheel, and with the dependencies of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python"]
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    Path(paths["purelib"], "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return Path(paths["scripts"])


@pytest.mark.slow
def test_the_wheel_holds_all_files_of_the_packages(wheel):
    """Templates, scripts of the page and py.typed included."""
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in ("classifier", "space")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name} == expected


@pytest.mark.slow
def test_the_wheel_classifies_without_the_checkout(scripts, tmp_path):
    code = (
        "import json, sys; import classifier; from classifier import load_predictor; "
        "found = load_predictor(sys.argv[1])(sys.argv[2:], top_k=1); "
        "print(json.dumps([classifier.__file__, [top[0]['label'] for top in found]]))"
    )
    file, labels = json.loads(run(scripts / "python", "-c", code, ROOT / "models/cnn", *EXAMPLES, cwd=tmp_path))
    assert Path(file).is_relative_to(scripts.parent)
    assert labels == [path.stem.partition("_")[0] for path in EXAMPLES]


@pytest.mark.slow
def test_the_wheel_leaves_the_library_evaluate_alone(scripts, tmp_path):
    code = "import evaluate; from classifier.evaluation.evaluate_metrics.classification import Classification; "
    code += "print(evaluate.__version__, Classification().name)"
    assert run(scripts / "python", "-c", code, cwd=tmp_path).split() == [version("evaluate"), "classification"]


@pytest.mark.slow
@pytest.mark.parametrize("command", PROJECT["scripts"])
def test_each_command_starts(command, scripts, tmp_path):
    assert run(scripts / command, "--help", cwd=tmp_path).startswith("usage: ")
