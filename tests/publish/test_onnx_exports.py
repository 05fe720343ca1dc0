"""ONNX files of several precisions, of a CNN that was trained here, and of a ViT."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from classifier import load_predictor
from classifier.errors import ModelError
from classifier.publish import onnx_exports
from classifier.records import Exports
from classifier.reporting import card
from classifier.runs import RunFolder
from tests.helpers.models import save_tiny_vit
from tests.helpers.paths import ROOT
from tests.helpers.pictures import noise, picture, write_images
from tests.helpers.training import training_command


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A CNN that tells noise in four colours apart."""
    dataset = write_images(tmp_path_factory.mktemp("data"), *noise(160))
    write_images(dataset, *noise(80, seed=1), split="validation")
    output_dir = tmp_path_factory.mktemp("runs") / "cnn"
    subprocess.run(training_command(dataset, output_dir), check=True, capture_output=True)
    return output_dir


def run_onnx(file: Path, pixel_values: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"pixel_values": pixel_values})[0]


def test_each_precision_is_written_and_measured(folder):
    command = [sys.executable, "-m", "classifier.publish", "onnx", folder, "--precision", "fp32", "fp16", "int8"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found = RunFolder(folder).exports
    assert found.n == 80 and [each.precision for each in found.exports] == ["fp32", "fp16", "int8"]
    assert found.accuracy == RunFolder(folder).run.validation.accuracy
    whole, half, eighth = found.exports
    assert whole.n_bytes > half.n_bytes > eighth.n_bytes
    assert whole.max_difference < 1e-3 and half.changed == 0
    predictor = load_predictor(folder)
    pixels = predictor.pixel_values([picture(i, (32, 32)) for i in range(4)]).numpy()
    exact = run_onnx(folder / "onnx/model.onnx", pixels)
    assert run_onnx(folder / "onnx/model_fp16.onnx", pixels) == pytest.approx(exact, abs=0.05)
    assert len(ran.stdout.splitlines()) == 4
    text = card.render(folder).text
    assert "## ONNX files" in text and "`onnx/model_int8.onnx`" in text


def test_float16_weights_are_the_rounded_ones(folder, tmp_path):
    onnx_exports.halve_weights(folder / "onnx/model.onnx", tmp_path / "half.onnx")
    before, after = onnx.load(folder / "onnx/model.onnx"), onnx.load(tmp_path / "half.onnx")
    onnx.checker.check_model(after, full_check=True)
    weights = {each.name: onnx.numpy_helper.to_array(each) for each in before.graph.initializer}
    halves = [each for each in after.graph.initializer if each.name.endswith("_float16")]
    assert halves and all(weights[each.name.removesuffix("_float16")].size >= onnx_exports.SMALL for each in halves)
    for each in halves:
        array = onnx.numpy_helper.to_array(each)
        assert array.dtype == np.float16
        assert np.array_equal(array, weights[each.name.removesuffix("_float16")].astype(np.float16))


def test_a_vit_is_quantized_without_training_images(tmp_path):
    predictor = load_predictor(save_tiny_vit(tmp_path / "tiny"))
    (tmp_path / "onnx").mkdir()
    onnx_exports.write_precisions(tmp_path, predictor, ["int8"], splits=None)
    assert [path.name for path in (tmp_path / "onnx").iterdir()] == ["model_int8.onnx"]
    images = [picture(i) for i in range(4)]
    pixels = predictor.pixel_values(images).numpy()
    assert run_onnx(tmp_path / "onnx/model_int8.onnx", pixels) == pytest.approx(predictor.logits(images), abs=0.5)


def test_an_export_that_loses_too_much_is_refused_and_nothing_is_written(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_exports, "MAX_LOSS", -1.0)  # so that no export is good enough
    before = (folder / "onnx/exports.json").read_bytes()
    with pytest.raises(ModelError, match=r"int8 labels .* so leave this one out"):
        onnx_exports.write_exports(folder, ["int8"])
    assert (folder / "onnx/exports.json").read_bytes() == before
    assert Exports.from_json(json.loads(before), folder).n == 80
