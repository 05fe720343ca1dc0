"""The commands and the code in README.md, CONTRIBUTING.md and docs/ work as they are written there.

Each block of commands is run by bash in a copy of the repository, in the order of the pages, with small stand-ins for
data and models: the folders that `workspace` makes, and a Hub on loopback. ADDED and REPLACED are all that differs from
the pages. A block may need what the blocks before it made. A command that NOT_RUN names is not run. Flags have to be
accepted by the script's own parser, whether the command is run or not. Everything that NOT_RUN does not name is run, so
a new command that does not work fails here.
"""

import argparse
import doctest
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.helpers.local_hub import LocalHub
from tests.helpers.models import LABELS, save_tiny_vit
from tests.helpers.paths import ROOT
from tests.helpers.running_app import running_app

PAGES = ["README.md", *(f"docs/{name}.md" for name in ("training", "datasets", "api", "serving", "troubleshooting"))]
PAGES += ["docs/development.md", "docs/results.md", "CONTRIBUTING.md"]

# Flags that are added to the commands of a script, so that each takes seconds and can be given again.
ADDED = {
    "train.py": "--num_train_epochs 1 --overwrite_output_dir",
    "finetune_vit.py": "--num_train_epochs 1 --overwrite_output_dir",
    "evaluate.py": "--corrupted_samples 0 --ood_samples 0 --format",
    "classifier.predict": "--overwrite_output",
}
# Texts that are replaced in all blocks.
REPLACED = {
    "--resume_from_checkpoint last": "",  # the run before is complete; tests/training resume runs that were stopped
}
# How the commands start that are run. `test_commands_run` is slow, so it may be left out.
RUN = ("python ", "torchrun ", "hf download ", "curl ", "cat ", "export ", "(head ", "url=", "path=", "file=", "call=")
# Commands that are not run, by how they start, and why.
NOT_RUN = {
    "python3 -m venv": "an environment of gigabytes; .ci/run makes one in the same way",
    "source .venv/bin/activate": "see python3 -m venv",
    "pip install": "needs the network; .ci/run installs the same files",
    ".venv-serve/bin/pip install": "needs the network; .ci/run installs the same file",
    ".venv-serve/bin/python serve.py": "serves until it is stopped; tests/publish/test_serve.py starts it",
    "python app.py": "serves until it is stopped; the tests in tests/space start it, and so do `page` and `app` here",
    "npm ci": "needs the network; .ci/run gives the same command",
    "python -m classifier.publish static": "needs npm's packages; tests/publish/ has tests of it",
    "python -m http.server": "serves until it is stopped; tests/publish/test_static_site.py serves a site",
    "hf auth login": "asks for a token; the Hub of these tests gets it by HF_TOKEN",
    "accelerate launch": "starts a process per GPU; tests/training/test_processes.py starts several on the CPU",
    "ray job submit": "needs a cluster; tests/test_predict.py uses Ray on this machine",
    "pre-commit install": "changes the clone that it is run in; its hooks are the checks that .ci/run makes",
    "python -m pytest": "is what runs this test",
    "bash .ci/run": "is what runs this test",
    "python -m tests.helpers.local_hub": "serves until it is stopped; tests/helpers/test_local_hub.py starts it",
    "ruff": "run by .ci/run",
    "mypy": "run by .ci/run",
    "lint-imports": "run by .ci/run",
    "deptry": "run by .ci/run",
    "npm": "run by .ci/run",
    "python -m benchmarks.": "measures for minutes or hours on an idle machine, and overwrites the figures",
}
# Pages whose commands would train for hours. Other pages run the same scripts.
PARSED_ONLY = ["docs/results.md"]
# Code that is not run, by a text in it, and why.
CODE_NOT_RUN = {"127.0.0.1:8000": "needs a server in an environment of its own; tests/publish/test_serve.py"}


@pytest.fixture(scope="module", autouse=True)
def variables() -> Iterator[None]:
    """The variables that commands of the pages expect, as a queue of tasks or a user sets them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"TASK": "2", "TASKS": "4", "SHARED": "/shared", "INDEX": "index", "tuned": "a b"}.items():
            patch.setenv(name, value)
        yield


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """All blocks in one of the languages, in the order of PAGES."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            if match[1] in languages:
                found.append(Block(page, text[: match.start()].count("\n") + 1, match[1], match[2]))
    return found


def commands(block: Block) -> list[str]:
    """The commands of a block, one each, without comments."""
    text = block.text.replace("\\\n", " ")
    if block.language == "console":
        text = "".join(line.removeprefix("$ ") for line in text.splitlines(keepends=True) if line.startswith("$ "))
    lines = [re.sub(r"(^|\s+)# .*", "", line).strip() for line in text.splitlines()]
    return [command.strip() for line in lines if line for command in line.split(" && ")]


def without_settings(command: str) -> str:
    """A command without what stands before it, such as MODELS="a,b"."""
    return re.sub(r'^([A-Z_]+=("[^"]*"|[^\s$]*) )+', "", command)


def reason_not_to_run(command: str) -> str | None:
    bare = without_settings(command)
    return next((reason for start, reason in NOT_RUN.items() if bare.startswith(start)), None)


def script_of(command: str) -> tuple[str, list[str]] | None:
    """A script or module of this repository and the flags that a command gives it; None for other commands."""
    words = shlex.split(os.path.expandvars(command))
    if "pytest" in words:
        return None
    for position, word in enumerate(words):
        if word.endswith(".py") or re.match(r"(classifier|benchmarks|tests\.helpers)\.", word):
            return word, words[position + 1 :]
    return None


@pytest.mark.parametrize("block", blocks("bash", "console"), ids=str)
def test_every_command_is_run_or_has_a_reason(block):
    if block.page not in PARSED_ONLY:
        for command in commands(block):
            known = without_settings(command).startswith(RUN) or reason_not_to_run(command)
            assert known, f"{command}: add its start to RUN, or to NOT_RUN with the reason"


class Parsed(BaseException):
    """Ends a script when its flags are parsed. Not an Exception, so that no script catches it."""


@pytest.mark.parametrize("block", blocks("bash", "console"), ids=str)
def test_flags_are_those_of_the_scripts(block, monkeypatch):
    """Each command names a script that exists and flags that it has."""
    parse = argparse.ArgumentParser.parse_known_args

    def parse_and_stop(parser, *args, **kwargs):
        _, unknown = parse(parser, *args, **kwargs)
        assert not unknown, f"{parser.prog} has no {unknown}"
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_and_stop)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for command in commands(block):
        found = script_of(command)
        if not found or found[0] == "serve.py":  # it can't be imported here: its environment is another
            continue
        script, flags = found
        if script == "app.py":
            assert not flags
            continue
        path = ROOT / (script if script.endswith(".py") else script.replace(".", "/"))
        path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        assert "ArgumentParser(" in path.read_text(encoding="utf-8")  # or the line below would run all of it
        monkeypatch.setattr(sys, "argv", [script, *flags])
        with pytest.raises(Parsed):
            runpy.run_path(str(path), run_name="__main__")


def write_images(folder: Path, labels: list[str], n: int) -> None:
    """n pictures of 32×32 pixels for each label, in folders of that name."""
    rng = np.random.default_rng(0)
    for label, colour in zip(labels, rng.integers(40, 216, (len(labels), 3)), strict=True):
        (folder / label).mkdir(parents=True)
        for i in range(n):
            pixels = np.clip(rng.normal(colour, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A copy of the repository with the files that the pages name, where commands can't overwrite anything of ours."""
    folder = tmp_path_factory.mktemp("docs") / "repository"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(lambda name: (ROOT / name).is_file(), listed.splitlines()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    write_images(folder / "pictures", ["cat", "dog"], 300)
    write_images(folder / "animals", ["cane", "gatto"], 300)
    write_images(folder / "photographs", ["cat", "none"], 5)
    write_images(folder / "my_photographs", ["dog", "none"], 5)
    (folder / "names.json").write_text('{"cane": "dog", "gatto": "cat"}')
    rows = [f"{path.relative_to(folder)},{path.parent.name}" for path in (folder / "pictures").rglob("*.png")]
    (folder / "pictures.csv").write_text("\n".join(["file,label", *rows]))
    shutil.copytree(ROOT / "examples", folder / "photos")
    shutil.copy(ROOT / "examples/cat_1.jpg", folder / "cat.jpg")
    shutil.copy(ROOT / "examples/ship_1.png", folder / "ship.png")
    return folder


@pytest.fixture(scope="module")
def environment(workspace, tmp_path_factory) -> Iterator[dict[str, str]]:
    """The settings of commands: this Python, and a Hub that has small stand-ins of what the pages name."""
    seed = tmp_path_factory.mktemp("seed")
    write_images(seed / "images", LABELS, 66)
    dataset = datasets.load_dataset("imagefolder", data_dir=str(seed / "images"), split="train")
    dataset = dataset.rename_column("image", "img").train_test_split(60, seed=0, stratify_by_column="label")
    for split, rows in dataset.items():
        rows.to_parquet(seed / f"datasets/uoft-cs/cifar10/data/{split}.parquet")
    for i, name in enumerate(("facebook/deit-tiny-patch16-224", "google/mobilenet_v2_1.0_224")):
        save_tiny_vit(seed / "models" / name, seed=i)
    shutil.copytree(ROOT / "models/cnn", seed / "models/user/cifar10-cnn")
    with LocalHub(tmp_path_factory.mktemp("hub"), seed=seed) as hub:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        yield hub.environment(tmp_path_factory.mktemp("home")) | {
            "PATH": path,
            "PYTHONPATH": str(workspace),
        }


@pytest.fixture(scope="module")
def app(workspace, tmp_path_factory) -> Iterator[str]:
    """The address of the page with the embedded models, which the pages suppose at port 7860."""
    with running_app([workspace / "models/vit", workspace / "models/cnn"], tmp_path_factory.mktemp("app")) as (url, _):
        yield url


def run(script: str, workspace: Path, environment: dict[str, str], *words: str) -> str:
    """What a script prints; the test fails where the script does."""
    done = subprocess.run([*words, script], cwd=workspace, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def shortened(command: str) -> str:
    """A command with the flags of ADDED."""
    for text, other in REPLACED.items():
        command = command.replace(text, other)
    script = script_of(command) if "python" in command or "torchrun" in command else None
    return f"{command} {ADDED[script[0]]}" if script and script[0] in ADDED else command


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for block in blocks("bash") if block.page not in PARSED_ONLY], ids=str)
def test_commands_run(block, workspace, environment, request):
    lines = [shortened(command) for command in commands(block) if not reason_not_to_run(command)]
    script = "\n".join(lines)
    if "127.0.0.1:7860" in script:
        script = script.replace("http://127.0.0.1:7860", request.getfixturevalue("app"))
    if lines:
        printed = run(script, workspace, environment, "bash", "-euo", "pipefail", "-c")
        assert "event: error" not in printed  # how the API answers a call that fails, with status 200


@pytest.mark.parametrize("block", blocks("console"), ids=str)
def test_commands_print_what_is_shown(block, workspace, environment):
    """`...` stands for any text, as in doctest."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        printed = run(command, workspace, environment, "bash", "-c").replace("\ufeff", "").replace("\r\n", "\n")
        assert doctest.OutputChecker().check_output(shown, printed, doctest.ELLIPSIS), f"{command}\n{printed}"


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_code_runs(block, workspace, environment, request, tmp_path):
    """Examples with `>>>` also have to print what is shown."""
    if any(text in block.text for text in CODE_NOT_RUN):
        return
    text = block.text
    if "127.0.0.1:7860" in text:
        text = text.replace("http://127.0.0.1:7860", request.getfixturevalue("app"))
    file = tmp_path / ("example.txt" if ">>>" in text else "example.py")
    file.write_text(text)
    how = ["-m", "doctest", "-o", "ELLIPSIS"] if ">>>" in text else []
    run(str(file), workspace, environment, sys.executable, *how)


def test_links_lead_to_files_and_headings():
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
            name, _, heading = target.partition("#")
            path = (ROOT / page).parent / name if name else ROOT / page
            assert path.exists(), f"{page} links to {target}"
            if heading:
                headings = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings]
                assert heading in slugs, f"{page} links to {target}"


def test_readme_is_short():
    """130 lines, with the settings of the Space."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130
