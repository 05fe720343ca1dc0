"""The weights that come with the repository: what they say of the examples, and that every way of loading agrees."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from classifier import load_predictor
from classifier.evaluation.evaluate_metrics.classification import Classification
from classifier.images.convert import to_rgb
from classifier.images.workers import decode
from tests.helpers.paths import ROOT

MODELS = sorted(config.parent for config in (ROOT / "models").glob("*/config.json"))
EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir() if path.suffix in {".jpg", ".png"})

pytestmark = pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)


def test_labels_every_example_right(folder):
    found = load_predictor(folder)(EXAMPLES, top_k=1)
    assert {path.name: top[0]["label"] for path, top in zip(EXAMPLES, found, strict=True)} == {
        path.name: path.stem.split("_")[0] for path in EXAMPLES
    }


def test_every_way_of_loading_agrees(folder):
    """Predictor, pipeline, and plain AutoModel with the saved processor, on what the decoder made of the files."""
    predictor = load_predictor(folder)
    images = [decode(path, reduce_to=predictor.reduce_to) for path in EXAMPLES]
    ours = predictor.probabilities(images)
    np.testing.assert_allclose(predictor.probabilities(EXAMPLES), ours, atol=1e-4)

    pipe = pipeline("image-classification", model=str(folder))  # no dtype asked for: config.json's has to be float32
    theirs = np.zeros_like(ours)
    for row, entries in zip(theirs, pipe(images, top_k=len(predictor.labels)), strict=True):
        row[[predictor.labels.index(entry["label"]) for entry in entries]] = [entry["score"] for entry in entries]
    np.testing.assert_allclose(theirs, ours, atol=1e-4)

    model = AutoModelForImageClassification.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")).logits
    np.testing.assert_allclose(logits.softmax(dim=1).numpy(), ours, atol=1e-4)


def test_weights_are_half_precision_and_small(folder):
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} <= {torch.float16, torch.int64}
    assert (folder / "model.safetensors").stat().st_size < 30e6


def test_records_are_complete(folder):
    run = json.loads((folder / "run.json").read_text())
    assert (
        run["command"].split(" --")[0] in {"train.py", "finetune_vit.py"}
        and run["machine"]["processor"]
        and run["commit"]
    )
    evaluation = json.loads((folder / "evaluation.json").read_text())
    [measured] = evaluation["models"]
    assert evaluation["n"] == np.sum(measured["confusion_matrix"])
    assert measured["accuracy"] == pytest.approx(np.trace(measured["confusion_matrix"]) / evaluation["n"])
    low, high = measured["accuracy_ci95"]
    assert low < measured["accuracy"] < high
    assert measured["ece"] < 0.01, "its probabilities are off: calibrate it"


@pytest.mark.slow
def test_evaluation_agrees_with_the_pipeline_and_the_library(folder, tmp_path):
    """evaluate.py on some true test images counts what `transformers.pipeline` and the library `evaluate` count on
    them.
    """
    if "HUB_MIRROR" not in os.environ:
        pytest.skip("needs the true CIFAR-10: set HUB_MIRROR")
    dataset = Path(os.environ["HUB_MIRROR"]) / "datasets/uoft-cs/cifar10"
    flags = ["--dataset", str(dataset), "--output_dir", str(tmp_path), "--max_eval_samples", "200"]
    flags += ["--corrupted_samples", "0", "--ood_samples", "0", "--format"]
    copy = tmp_path / "model"
    copy.mkdir()
    for path in (*folder.glob("*config.json"), folder / "model.safetensors"):
        (copy / path.name).symlink_to(path)
    command = [sys.executable, str(ROOT / "evaluate.py"), "--model", str(copy), *flags]
    subprocess.run(command, check=True, capture_output=True)
    measured = json.loads((tmp_path / "evaluation.json").read_text())

    from evaluate import evaluator  # after classifier.evaluation.evaluate_metrics, which finds the library

    from classifier.data.loaders import image_batches
    from classifier.data.splits import load_splits

    splits = load_splits(str(dataset), splits=("test",), max_eval_samples=200)
    images, labels = next(image_batches("test", splits, 200))
    answers = pipeline("image-classification", model=str(folder))(images, top_k=1)
    right = np.mean([answer[0]["label"] == splits.labels[label] for answer, label in zip(answers, labels, strict=True)])
    assert measured["n"] == 200 and measured["models"][0]["accuracy"] == pytest.approx(right)
    assert isinstance(images[0], Image.Image)

    model = AutoModelForImageClassification.from_pretrained(folder)
    found = evaluator("image-classification").compute(
        model_or_pipeline=model,
        feature_extractor=AutoImageProcessor.from_pretrained(folder),
        data=splits.test.rename_column(splits.image_column, "image"),
        metric=Classification(),
        label_mapping=model.config.label2id,
    )
    assert found["accuracy"] == pytest.approx(right)


def test_scaled_decoding_changes_next_to_nothing(folder):
    """Against 87 photographs decoded whole: 95% of probabilities change by less than 0.03, and of the 70 one label at
    most.

    The other 17 show none of the labels: what a model calls them is a toss-up.
    """
    photos = sorted((Path(os.environ.get("HUB_MIRROR", "")).parent / "photos").glob("*/*.jpg"))
    if "HUB_MIRROR" not in os.environ or not photos:
        pytest.skip("needs photographs: a folder `photos` beside HUB_MIRROR")
    predictor = load_predictor(folder)
    assert predictor.reduce_to
    shrunk = predictor.probabilities(photos)
    whole = predictor.probabilities([to_rgb(decode(photo), reduce_to=predictor.reduce_to) for photo in photos])
    of_labels = np.array([photo.parent.name in predictor.labels for photo in photos])
    assert of_labels.sum() == 70
    assert (shrunk.argmax(axis=1) != whole.argmax(axis=1))[of_labels].sum() <= 1
    assert np.quantile(np.abs(shrunk - whole), 0.95) < 0.03
