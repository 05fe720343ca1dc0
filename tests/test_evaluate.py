"""evaluate.py on models whose answers are known: orders of labels and images, runs that go on, what it says of bad
input.
"""

import importlib.util
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from classifier import load_predictor
from classifier.data.splits import load_splits
from classifier.errors import DataError, ModelError
from classifier.evaluation import evaluate_model, predictions
from classifier.records import DataRecord, Machine, RunRecord
from classifier.runs import RunFolder
from tests.helpers.models import LABELS, save_tiny_cnn, save_tiny_vit
from tests.helpers.paths import ROOT
from tests.helpers.records import RUN

spec = importlib.util.spec_from_file_location("evaluate_script", ROOT / "evaluate.py")  # `evaluate` is a library's name
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


def run(monkeypatch, *words) -> None:
    """The command with these words, in this process."""
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, words)])
    script.main()


def measured(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """An image folder of noise: 6 test images and 3 training images a class."""
    folder, rng = tmp_path_factory.mktemp("data") / "pictures", np.random.default_rng(0)
    for split, n in (("train", 3), ("test", 6)):
        for label in LABELS:
            (folder / split / label).mkdir(parents=True)
            for i in range(n):
                image = Image.fromarray(rng.integers(256, size=(32, 32, 3), dtype=np.uint8))
                image.save(folder / split / label / f"{i}.png")
    return folder


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    """A cache of its own, so that nothing is found there by chance."""
    monkeypatch.setattr(predictions, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def reordered(source: Path, folder: Path, order: list[int]) -> Path:
    """The same model with its labels in another order."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name][order].contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(i): LABELS[c] for i, c in enumerate(order)}
    config["label2id"] = {LABELS[c]: i for i, c in enumerate(order)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_labels_in_another_order_are_mapped_by_name_and_a_second_run_finds_all(pictures, tmp_path, cache, monkeypatch):
    one = save_tiny_vit(tmp_path / "one")
    two = reordered(one, tmp_path / "two", [3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    flags = ["--model", one, two, "--dataset", pictures, "--corrupted_samples", 20, "--format", "md"]
    run(monkeypatch, *flags, "--output_dir", tmp_path / "report")
    found = measured(tmp_path / "report")
    first, second = found["models"]
    assert first.pop("model") == "one" and second.pop("model") == "two"
    assert second["nll"] == pytest.approx(first["nll"], rel=1e-6)
    assert (
        second["confusion_matrix"] == first["confusion_matrix"]
        and np.sum(first["confusion_matrix"]) == found["n"] == 60
    )
    assert second["per_class"] == first["per_class"] and second["corrupted"] == first["corrupted"]
    assert len(first["corrupted"]["accuracy"]) == 15 and len(first["ood"]) == 9
    assert "are not the published files" in (tmp_path / "report/report.md").read_text()
    [both] = found["comparisons"]
    assert both["difference"] == 0 and both["agreement"] == 1 and both["p_value"] == 1
    assert found["average"]["accuracy"] == first["accuracy"]
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "evaluation.json",
        "timing.json",
        "report.md",
        "figures",
    }
    assert (one / "README.md").exists() and measured(one)["models"][0]["accuracy"] == first["accuracy"]

    cached = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    run(monkeypatch, *flags, "--output_dir", tmp_path / "again")
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == cached  # nothing went through a model again
    assert (tmp_path / "again/evaluation.json").read_bytes() == (tmp_path / "report/evaluation.json").read_bytes()
    shutil.rmtree(cache)
    run(monkeypatch, *flags, "--output_dir", tmp_path / "again")
    assert (tmp_path / "again/evaluation.json").read_bytes() == (tmp_path / "report/evaluation.json").read_bytes()


def test_the_order_of_images_changes_nothing(pictures, tmp_path):
    splits = load_splits(str(pictures), splits=("test",))
    found = evaluate_model.predictions_of(load_predictor(save_tiny_vit(tmp_path / "tiny")), "test", splits)
    order = np.random.default_rng(0).permutation(len(found.labels))
    shuffled = replace(found, **{name: values[order] for name, values in vars(found).items()})
    summary, other = (evaluate_model.summarize(each, splits.labels, 1.5) for each in (found, shuffled))
    assert [order[mistake.image] for mistake in other["mistakes"]] == [each.image for each in summary["mistakes"]]
    for each in (summary, other):
        each["mistakes"] = [replace(mistake, image=0) for mistake in each["mistakes"]]
    for name, value in summary.items():
        if isinstance(value, float):
            assert other[name] == pytest.approx(value, rel=1e-12), name
    exact = (
        "accuracy",
        "accuracy_ci95",
        "f1_ci95",
        "per_class",
        "confusion_matrix",
        "top_k_accuracy",
        "mistakes",
        "confused",
    )
    assert {name: other[name] for name in exact} == {name: summary[name] for name in exact}


def test_what_a_temperature_did_is_told_also_of_averaged_views(pictures, tmp_path):
    """With the temperature taken out of the head, the model gives the logits that are said to be those before."""
    folder = save_tiny_cnn(tmp_path / "cnn")
    predictor, splits = load_predictor(folder), load_splits(str(pictures), splits=("train", "test"))
    with torch.no_grad():
        predictor.model.head.weight *= 200  # sure, so that views disagree
    found = evaluate_model.predictions_of(predictor, "test", splits)
    assert found.views.shape == (len(found.labels), 2, len(LABELS))
    assert np.abs(found.views[:, 0] - found.views[:, 1]).max() > 0.1
    with torch.no_grad():
        predictor.model.head.weight *= 0.5
    before = evaluate_model.predictions_of(predictor, "test", splits).logits
    np.testing.assert_allclose(evaluate_model.without_temperature(found, 0.5), before, atol=1e-4)
    assert np.abs(0.5 * found.logits - before).max() > 1e-3, "the mean of divided ones is not the divided mean"


def test_a_quick_look_is_close_and_is_not_the_models_result(pictures, tmp_path, cache, monkeypatch):
    folder, words = (
        save_tiny_cnn(tmp_path / "cnn"),
        ("--dataset", pictures, "--corrupted_samples", 0, "--ood_samples", 0),
    )
    run(monkeypatch, "--model", folder, *words, "--format", "md", "--bf16", "--output_dir", tmp_path / "quick")
    assert not (folder / "evaluation.json").exists()
    assert "in bfloat16" in (tmp_path / "quick" / "report.md").read_text()
    run(monkeypatch, "--model", folder, *words, "--format", "--output_dir", tmp_path / "whole")
    quick, whole = measured(tmp_path / "quick"), measured(tmp_path / "whole")
    assert quick.pop("bf16") and "bf16" not in whole
    losses = [found["models"][0]["nll"] for found in (quick, whole)]
    assert losses[0] != losses[1], "one was read from the other's cache"
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    assert measured(folder)["models"] == whole["models"]


def test_outputs_are_found_again_whatever_the_threshold(pictures, tmp_path, cache):
    predictor = load_predictor(save_tiny_vit(tmp_path / "tiny"))
    splits = load_splits(str(pictures), splits=("train", "test"))
    evaluate_model.predictions_of(predictor, "test", splits)
    predictor.model.config.ood = {"threshold": 3.0}
    evaluate_model.predictions_of(predictor, "test", splits)
    assert len(list(cache.iterdir())) == 1
    predictor.model.config.hidden_dropout_prob = 0.5
    evaluate_model.predictions_of(predictor, "test", splits)
    assert len(list(cache.iterdir())) == 2


def test_a_cut_that_has_changed_since_is_told(pictures, tmp_path, monkeypatch, capsys):
    """Of a dataset without a test split: a model may know what it is tested on now."""
    dataset = tmp_path / "pictures"
    shutil.copytree(pictures / "train", dataset)
    folder = save_tiny_vit(tmp_path / "tiny")
    words = ["--model", folder, "--dataset", dataset, "--corrupted_samples", 0, "--ood_samples", 0, "--format"]
    cut = load_splits(str(dataset), splits=("test",)).test_cut
    for known, is_told in ((cut, False), ("another", True)):
        run_record = RunRecord(
            command="train.py",
            settings={"dataset": str(dataset)},
            versions={},
            machine=Machine(processor="Abacus", threads=1),
            data=DataRecord(images=30, test_cut=known),
        )
        RunFolder(folder).write_run(run_record)
        script.warn_of_another_cut(str(folder), str(dataset), load_splits(str(dataset), splits=("test",)))
        assert ("was trained when other images were cut for test" in capsys.readouterr().out) is is_told
    (folder / "run.json").unlink()
    run(monkeypatch, *words, "--output_dir", tmp_path / "report")
    assert "cut for test" not in capsys.readouterr().out


def test_anothers_card_is_left_alone(pictures, tmp_path, monkeypatch):
    """A model that was not trained here comes with a card of its own."""
    folder = save_tiny_vit(tmp_path / "tiny")
    (folder / "README.md").write_text("mine")
    words = ["--dataset", pictures, "--corrupted_samples", 0, "--ood_samples", 0, "--format"]
    run(monkeypatch, "--model", folder, *words, "--output_dir", tmp_path / "report")
    assert (folder / "README.md").read_text() == "mine" and (folder / "evaluation.json").exists()


def test_labels_that_differ_are_told_apart(pictures, tmp_path, monkeypatch):
    model = save_tiny_vit(tmp_path / "tiny")
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config.replace('"cat"', '"lynx"'))
    with pytest.raises(DataError, match="only the model has lynx; only the data has cat"):
        run(monkeypatch, "--model", model, "--dataset", pictures, "--output_dir", tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_an_unreadable_image_is_named_or_counted(pictures, tmp_path, capsys, monkeypatch):
    broken = shutil.copytree(pictures, tmp_path / "broken")
    for path in (broken / "test/cat/0.png", *(broken / "test/dog").iterdir()):
        path.write_bytes(b"no picture")
    model = save_tiny_vit(tmp_path / "tiny")
    flags = [
        "--model",
        model,
        "--dataset",
        broken,
        "--output_dir",
        tmp_path / "report",
        "--corrupted_samples",
        0,
        "--format",
    ]
    with pytest.raises(DataError, match=r"cat/0\.png"):
        run(monkeypatch, *flags)
    run(monkeypatch, *flags, "--skip_unreadable")
    said = capsys.readouterr().out
    assert "53 images, without 7 unreadable files" in said and "no test image is of dog" in said
    [result] = measured(tmp_path / "report")["models"]
    assert result["per_class"]["dog"] == {"precision": None, "recall": None, "f1": None, "n": 0}
    present = [scores for label, scores in result["per_class"].items() if label != "dog"]
    assert len(present) == 9
    for metric in ("precision", "recall", "f1"):
        assert result[metric] == pytest.approx(sum(scores[metric] for scores in present) / 9)
        low, high = result[f"{metric}_ci95"]
        assert low <= result[metric] <= high, "the interval is over the same classes"
        weighted = sum(scores[metric] * scores["n"] for scores in present) / 53
        assert result["weighted"][metric] == pytest.approx(weighted)
    assert len(result["confusion_matrix"]) == 10 and result["confusion_matrix"][5] == [0] * 10


def test_logits_that_are_no_numbers_are_an_error(pictures, tmp_path, monkeypatch):
    model = save_tiny_vit(tmp_path / "tiny")
    weights = load_file(model / "model.safetensors")
    weights["classifier.bias"][2] = float("nan")
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="NaN"):
        run(monkeypatch, "--model", model, "--dataset", pictures, "--output_dir", tmp_path / "report")


OLD = {"do_resize": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@pytest.mark.parametrize(
    ("processor", "text"),
    [
        ({"feature_extractor_type": "ViTFeatureExtractor", "size": 32, "resample": 2}, "squashed to 32×32"),
        ({"image_processor_type": "ViTImageProcessor", "size": [32, 32]}, "squashed to 32×32"),
        ({"image_processor_type": "ViTImageProcessor", "size": 32, "resample": None}, "squashed to 32×32"),
        (
            {"feature_extractor_type": "DeiTFeatureExtractor", "size": 36, "crop_size": 32, "do_center_crop": True},
            "the middle 32×32 pixels",
        ),
    ],
    ids=["size is a number", "size is a list", "no resample", "crop_size is a number"],
)
def test_processor_files_of_old_versions(processor, text, pictures, tmp_path, monkeypatch):
    folder = save_tiny_vit(tmp_path / "old")
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | OLD))
    quick = ("--corrupted_samples", 0, "--ood_samples", 0, "--format", "md")
    run(monkeypatch, "--model", folder, "--dataset", pictures, *quick, "--output_dir", tmp_path / "report")
    page = (folder / "README.md").read_text()
    assert f"The network gets a picture {text}" in page or f"The network gets {text}" in page
    assert "Image.Resampling.BI" in page  # the example without torch has the default of the processor's class


def test_a_processor_that_does_not_fit_is_named_in_one_line(pictures, tmp_path, monkeypatch):
    folder = save_tiny_vit(tmp_path / "other")
    (folder / "preprocessor_config.json").write_text("{}")  # transformers takes the default, which is 224
    with pytest.raises(ModelError, match=r"image processor of other does not fit .*224\*224.*preprocessor_config"):
        run(monkeypatch, "--model", folder, "--dataset", pictures, "--output_dir", tmp_path / "report")


def contents(*folders: Path) -> dict[Path, bytes | None]:
    """{path: its bytes, or None for a folder} of everything in the folders."""
    return {p: p.read_bytes() if p.is_file() else None for folder in folders for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("blocked", ["out/report.md", "out/figures/confusion.svg", "model/README.md"])
def test_a_late_file_that_cant_be_written_leaves_every_file_as_it_was(pictures, tmp_path, monkeypatch, blocked):
    """A folder has the name of a file that is written late."""
    model, out = save_tiny_vit(tmp_path / "model"), tmp_path / "out"
    (tmp_path / blocked).mkdir(parents=True)
    out.mkdir(exist_ok=True)
    for folder in (model, out):
        (folder / "timing.json").write_text("of an earlier run")
    (model / "run.json").write_text(json.dumps(RUN))
    before = contents(model, out)
    flags = ["--dataset", pictures, "--corrupted_samples", 0, "--ood_samples", 0, "--format", "md"]
    with pytest.raises(IsADirectoryError, match=Path(blocked).name):
        run(monkeypatch, "--model", model, *flags, "--output_dir", out)
    assert contents(model, out) == before
