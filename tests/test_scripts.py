"""The scripts as a user calls them: from any folder, with errors of one line; and the files that they generate."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import SpaceCard

from classifier.reporting import card
from tests.helpers.paths import ROOT


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize("start", ["root", "elsewhere"])
@pytest.mark.parametrize("script", ["train.py", "finetune_vit.py", "evaluate.py"])
def test_help_from_anywhere(script, start, tmp_path):
    """Each script imports all that it needs, evaluate.py the library of its own name."""
    result = command(str(ROOT / script), "--help", cwd=ROOT if start == "root" else tmp_path)
    assert result.returncode == 0, result.stderr
    assert "--dataset" in result.stdout and "--output_dir" in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train.py", "--dataset", "nowhere/at/all"), "nowhere/at/all"),
        (("evaluate.py", "--model", "no/such/folder"), "train.py"),
    ],
)
def test_errors_are_one_line_with_the_next_step(words, message, tmp_path):
    script, *flags = words
    result = command(str(ROOT / script), *flags, cwd=tmp_path)
    assert result.returncode == 2
    [line] = [line for line in result.stderr.splitlines() if line.strip()]
    assert message in line and "Traceback" not in line
    assert not list(tmp_path.iterdir())  # and nothing was left behind


@pytest.mark.parametrize("page", ["README.md", "docs/results.md", "docs/serving.md"])
def test_pages_show_the_figures_of_the_files(page):
    from benchmarks import results

    text = (ROOT / page).read_text()
    assert results.place(text, results.PAGES[page]) == text, "run python -m benchmarks.results"


def test_model_card_is_the_best_embedded_models():
    evaluations = {path.parent: json.loads(path.read_text()) for path in (ROOT / "models").glob("*/evaluation.json")}
    best = max(evaluations, key=lambda folder: evaluations[folder]["models"][0]["accuracy"])
    expected = f"{card.render(best, figures=f'models/{best.name}/')}\n"
    assert (ROOT / "model_card.md").read_text(encoding="utf-8") == expected, "run evaluate.py on it"


def test_front_matter_is_what_a_space_needs():
    space = SpaceCard.load(ROOT / "README.md").data
    pinned = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line)
    assert space.sdk == "gradio" and str(space.sdk_version) == pinned["gradio[mcp]"]
    assert (ROOT / space.app_file).is_file() and space.license == "apache-2.0"
    assert str(space.to_dict()["python_version"]) == "3.11"
    assert space.datasets == ["uoft-cs/cifar10"] and "image-classification" in space.tags
