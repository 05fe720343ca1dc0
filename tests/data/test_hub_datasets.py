"""Datasets of a real HTTP Hub on loopback: configurations, archives, and what the Hub refuses, by cause."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator

import datasets
import pytest

from tests.helpers.local_hub import LocalHub
from tests.helpers.paths import ROOT
from tests.helpers.pictures import encoded, picture

CONFIGURATIONS = """\
---
configs:
- config_name: pets
  data_files: pets/*.parquet
- config_name: ships
  data_files: ships/*.parquet
---
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[LocalHub]:
    """A Hub with `user/two`, which has two configurations, and `user/zipped`, a zip of class folders."""
    seed = tmp_path_factory.mktemp("seed")
    two = seed / "datasets/user/two"
    for name, labels in (("pets", ["cat", "dog"]), ("ships", ["ferry", "yacht"])):
        (two / name).mkdir(parents=True)
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=labels)})
        rows = {"image": [picture(i, (8, 8)) for i in range(20)], "label": [0, 1] * 10}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(two / name / "train.parquet")
    (two / "README.md").write_text(CONFIGURATIONS)
    (seed / "datasets/user/zipped").mkdir()
    with zipfile.ZipFile(seed / "datasets/user/zipped/pictures.zip", "w") as archive:
        for i in range(20):
            archive.writestr(f"pictures/{'ab'[i % 2]}/{i}.jpg", encoded(picture(i, (8, 8)), "JPEG"))
    with LocalHub(tmp_path_factory.mktemp("hub"), seed=seed) as running:
        yield running


@pytest.fixture
def load(hub, tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """Loads a dataset in a new process, because the Hub's client reads its settings when it is imported."""
    code = (
        "import sys, json; from classifier import errors; from classifier.data.splits import load_splits; "
        "errors.run(lambda: print(json.dumps(load_splits(sys.argv[1]).labels)))"
    )

    def run(dataset: str, token: str | None = None, **settings: str) -> subprocess.CompletedProcess:
        environment = hub.environment(tmp_path / "home", token) | {"PYTHONPATH": str(ROOT)} | settings
        command = [sys.executable, "-c", code, dataset]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    yield run
    hub.faults.clear()


def labels_of(done: subprocess.CompletedProcess) -> list[str]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def line_of(done: subprocess.CompletedProcess) -> str:
    """The error, which is the only line."""
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.strip().splitlines()
    return line


def test_a_configuration_is_chosen_by_its_name(load):
    line = line_of(load("user/two"))
    assert "user/two has several configurations, pets, ships: pass user/two:pets or another" in line
    assert labels_of(load("user/two:ships")) == ["ferry", "yacht"]
    assert labels_of(load("user/two:pets@main")) == ["cat", "dog"]
    line = line_of(load("user/two:cars"))
    assert "user/two has no configuration 'cars', only pets, ships: pass user/two:pets or another" in line


def test_a_zip_of_class_folders_has_to_be_unpacked(load):
    """`datasets` takes the folder that holds the zip for a class too, and fails."""
    done = load("user/zipped")
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert "user/zipped holds an archive, pictures.zip" in line and "unpack it, and pass the folder" in line


@pytest.mark.parametrize(
    ("fault", "advice"),
    [
        (
            {"expired": True},
            "the token is invalid or has expired: log in again with `hf auth login`, or renew HF_TOKEN",
        ),
        ({"status": 429, "retry_after": 3}, "it limits requests: wait 3 s, then try again"),
        ({"status": 429}, "wait a few minutes, then try again"),
        ({"status": 500}, "this is a fault of the Hub: try again later"),
    ],
    ids=["an expired token", "429 with a time", "429", "500"],
)
def test_a_refusal_is_named_by_its_cause(hub, load, fault, advice):
    hub.fail("/api/datasets/user/two", times=99, **fault)
    line = line_of(load("user/two:pets"))
    assert "the Hub did not give user/two" in line and advice in line


@pytest.mark.slow
def test_a_refusal_of_the_files_is_named_by_its_cause(hub, load):
    """Only after the retries of `datasets`, none of which is printed."""
    hub.fail("/resolve/", times=99, status=429, retry_after=3)
    line = line_of(load("user/two:pets"))
    assert "the Hub did not give user/two" in line and "it limits requests: wait 3 s, then try again" in line
