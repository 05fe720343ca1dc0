"""Fixtures that several test modules use. Tests that run beside others, by pytest-xdist, leave them a core."""

import os
import sys
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the commands that tests start

import numpy as np
import pytest
from PIL import Image

from classifier import load_predictor, predict
from tests.helpers.models import edit_config, save_tiny_vit
from tests.helpers.pictures import colours, picture


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Prints how a process of pytest-xdist died: -9 is SIGKILL, -11 a crash of native code, -15 SIGTERM."""
    if error:
        print(f"\n{node.gateway.id} ended with exit status {node.gateway._io.popen.wait(timeout=30)}", flush=True)


@pytest.fixture(scope="module")
def colours_dir(tmp_path_factory) -> Path:
    """An image folder of 240 pictures whose colour tells the class."""
    root = tmp_path_factory.mktemp("pictures")
    images, labels = colours(240)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = root / f"colour{label}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return root


@pytest.fixture(scope="module")
def tiny_vit(tmp_path_factory) -> Path:
    """A random ViT that takes some of the generated pictures for known, and some not.

    Its score is the mean of those of a picture and of a small copy, so whatever tells `known` has to make that copy.
    """
    folder = save_tiny_vit(tmp_path_factory.mktemp("models") / "tiny")
    _, scores = load_predictor(folder).logits_and_scores([picture(i, (36, 36)) for i in range(20)], resize_to=16)
    edit_config(folder, ood={"threshold": float(np.median(scores)), "resize_to": 16})
    return folder


@pytest.fixture
def run_predict(tiny_vit, tmp_path, monkeypatch, capsys):
    """The command classifier.predict in this process.

    `run_predict(source, flags…)` gives the bytes of the table; `run_predict.line` is what the command printed.
    """

    def call(source, *flags, output="predictions.csv", written=None, model=tiny_vit) -> bytes:
        words = [source, "--model", model, "--output", tmp_path / output, "--top_k", "2", *flags]
        monkeypatch.setattr(sys, "argv", ["predict", *map(str, words)])
        predict.main()
        call.line = capsys.readouterr().out.strip()
        written = tmp_path / (written or output)  # a shard's name is its own
        assert not written.with_name(f"{written.name}.parts").exists()
        return written.read_bytes()

    return call
