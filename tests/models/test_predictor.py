"""A predictor agrees with `transformers.pipeline`, names what is wrong with a model or a file, and compiles."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageClassification,
    ViTModel,
    pipeline,
)

from classifier import load_predictor
from classifier.errors import HubError, ImageError, ModelError
from classifier.images.workers import decode
from classifier.models import backbone, openvino, processor
from classifier.models.loading import update_ood
from classifier.models.predictor import batched
from classifier.reporting import card
from classifier.runs import PULLED
from tests.helpers.evaluations import write_evaluation
from tests.helpers.models import BACKBONES, LABELS, edit_config, save_tiny_vit
from tests.helpers.paths import ROOT
from tests.helpers.pictures import LFS_POINTER, encoded, picture


def assert_like_pipeline(folder: Path, images: list[Image.Image]) -> None:
    expected = pipeline("image-classification", model=str(folder), dtype=torch.float32)(images, top_k=10)
    for ours, theirs in zip(load_predictor(folder)(images, top_k=10), expected, strict=True):
        assert [entry["score"] for entry in ours] == pytest.approx([entry["score"] for entry in theirs], abs=1e-4)
        scores = {entry["label"]: entry["score"] for entry in theirs}
        assert all(entry["score"] == pytest.approx(scores.get(entry["label"], 0), abs=1e-4) for entry in ours)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return save_tiny_vit(tmp_path_factory.mktemp("models") / "tiny")


def test_agrees_with_the_pipeline(tiny):
    assert_like_pipeline(tiny, [picture(0), picture(1, (32, 32)), picture(2, (50, 301))])


VIT = {"image_processor_type": "ViTImageProcessor"}
CLIP = {"feature_extractor_type": "CLIPFeatureExtractor", "do_center_crop": True}
CONVNEXT = {"image_processor_type": "ConvNextImageProcessor", "size": 32}
NORMALIZE = {"do_resize": True, "do_normalize": True, "image_mean": [0.4] * 3, "image_std": [0.2] * 3}
OLD_PROCESSORS = {
    "a number": VIT | {"size": 32},
    "a list": VIT | {"size": [32, 32]},
    "a feature extractor": {"feature_extractor_type": "ViTFeatureExtractor", "size": 32, "resample": 2},
    "no class": {"size": 32},
    "a crop that is a number": CLIP | {"size": {"shortest_edge": 36}, "crop_size": 32, "resample": 3},
    "both are numbers": CLIP | {"size": 36, "crop_size": 32},
    "ConvNeXt": CONVNEXT | {"crop_pct": 0.8},
    "a fast class": {"image_processor_type": "DeiTImageProcessorFast", "size": 36, "crop_size": 32},
    "one mean": VIT | {"size": 32, "image_mean": 0.4, "image_std": 0.2},
    "not rescaled": VIT | {"size": 32, "do_rescale": None, "rescale_factor": None},
    "a name": VIT | {"size": 32, "resample": "bicubic"},
}


@pytest.mark.parametrize("settings", OLD_PROCESSORS.values(), ids=OLD_PROCESSORS)
def test_agrees_with_the_pipeline_for_processor_files_of_old_versions(tiny, tmp_path, settings):
    folder = shutil.copytree(tiny, tmp_path / "old")
    (folder / "preprocessor_config.json").write_text(json.dumps(NORMALIZE | settings))
    assert_like_pipeline(folder, [picture(0), picture(1, (32, 32)), picture(2, (50, 301))])
    loaded = load_predictor(folder).processor
    assert processor.size_of(loaded) == 32
    crop_pct = 0.8 if "crop_pct" in settings else 32 / 36 if "crop_size" in settings else 1
    assert processor.crop_pct_of(loaded) == pytest.approx(crop_pct)
    np.testing.assert_allclose(processor.mean_std(loaded), [[0.4] * 3, [0.2] * 3], atol=1e-6)
    bicubic = {"CLIPImageProcessor", "ConvNextImageProcessor", "DeiTImageProcessor"}  # by default
    assert processor.is_bicubic(loaded) is (settings.get("resample") == "bicubic" or type(loaded).__name__ in bicubic)
    assert "The network gets " in str(card.render(folder))


@pytest.mark.parametrize(
    ("null", "value"),
    [
        (VIT | {"size": 32, "resample": None}, VIT | {"size": 32, "resample": 2}),
        (VIT | {"size": 32, "image_std": None}, VIT | {"size": 32, "image_std": [0.5] * 3}),
        (CONVNEXT | {"crop_pct": None}, CONVNEXT | {"crop_pct": 0.875}),
        (VIT | {"size": 32, "resample": None, "do_rescale": None}, VIT | {"size": 32, "do_rescale": False}),
        (VIT | {"size": 32, "resample": "PILImageResampling.BICUBIC"}, VIT | {"size": 32, "resample": 3}),
        (VIT | {"size": 32, "resample": 3.0}, VIT | {"size": 32, "resample": 3}),
    ],
    ids=["resample", "image_std", "crop_pct", "a switch is off", "the name of an enum", "a float"],
)
def test_a_processor_file_that_the_pipeline_refuses_means_the_default(tiny, tmp_path, null, value):
    """transformers of that time wrote such files; today's pipeline raises an error."""
    folder = shutil.copytree(tiny, tmp_path / "old")
    found = []
    for settings in (null, value):
        (folder / "preprocessor_config.json").write_text(json.dumps(NORMALIZE | settings))
        found.append(load_predictor(folder).probabilities([picture(0), picture(1, (32, 32))]))
    np.testing.assert_array_equal(*found)


def test_settings_in_processor_config_are_used_first(tiny, tmp_path):
    """As transformers 5 saves the processor of a model of images and text."""
    folder = shutil.copytree(tiny, tmp_path / "new")
    settings = NORMALIZE | CLIP | {"size": {"shortest_edge": 36}, "crop_size": 32}
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    (folder / "preprocessor_config.json").unlink()
    assert_like_pipeline(folder, [picture(0), picture(2, (50, 301))])
    text = str(card.render(folder))
    assert "the middle 32×32 pixels" in text and "processor_config.json" in PULLED
    assert "transformers.js" not in text.partition("## Intended use")[0] or "can't load this model" in text


@pytest.mark.skipif("HUB_MIRROR" not in os.environ, reason="needs pre-trained weights: set HUB_MIRROR")
@pytest.mark.parametrize("name", BACKBONES)
def test_agrees_with_the_pipeline_for_real_weights(name):
    assert_like_pipeline(
        Path(os.environ["HUB_MIRROR"]) / "models" / name, [picture(0, (320, 240)), picture(1, (32, 32))]
    )


@pytest.mark.parametrize("folder", ["cnn", "vit", "mobilenet"])
def test_agrees_with_the_pipeline_for_the_embedded_models(folder):
    if not (ROOT / "models" / folder).exists():
        pytest.skip(f"models/{folder} is not here yet")
    assert_like_pipeline(ROOT / "models" / folder, [picture(0, (320, 240)), picture(1, (32, 32))])


def test_answers_one_image_and_many_in_the_pipelines_form(tiny, tmp_path):
    predictor, image = load_predictor(tiny), picture()
    (tmp_path / "a.png").write_bytes(encoded(image))
    one = predictor(image, top_k=3)
    assert len(one) == 3 and set(one[0]) == {"label", "score"} and one[0]["score"] >= one[1]["score"]
    for same in predictor([tmp_path / "a.png", encoded(image), image, str(tmp_path / "a.png")], top_k=3):
        assert [entry["label"] for entry in same] == [entry["label"] for entry in one]
        assert [entry["score"] for entry in same] == pytest.approx([entry["score"] for entry in one], abs=1e-6)
    everything = predictor(image, top_k=99)
    assert len(everything) == 10 and sum(entry["score"] for entry in everything) == pytest.approx(1)
    assert predictor([]) == []


def test_batches_change_nothing(tiny):
    predictor, images = load_predictor(tiny), [picture(i) for i in range(5)]
    probabilities = predictor.probabilities(images, batch_size=2)
    assert probabilities.shape == (5, 10) and probabilities.dtype == np.float32
    assert probabilities == pytest.approx(predictor.probabilities(images), abs=1e-6)
    logits = predictor.logits(images)
    assert np.exp(logits) / np.exp(logits).sum(1, keepdims=True) == pytest.approx(probabilities, abs=1e-6)


def test_weights_stored_in_fp16_compute_in_fp32(tmp_path):
    half = load_predictor(save_tiny_vit(tmp_path / "half", dtype=torch.float16))
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.float32}
    whole = load_predictor(save_tiny_vit(tmp_path / "whole"))
    assert half.probabilities([picture()]) == pytest.approx(whole.probabilities([picture()]), abs=2e-2)


def test_tells_what_it_is(tmp_path):
    folder = save_tiny_vit(tmp_path / "tiny", ood={"threshold": 0.5}, reduce_to=16)
    write_evaluation(folder, LABELS, accuracy=0.9, accuracy_ci95=[0.89, 0.91])
    predictor = load_predictor(folder)
    assert (predictor.name, predictor.revision, predictor.labels) == ("tiny", "local", LABELS)
    assert predictor.n_parameters == sum(p.numel() for p in predictor.model.parameters())
    assert (predictor.measured.model, predictor.accuracy, predictor.accuracy_ci95) == ("tiny", 0.9, [0.89, 0.91])
    assert (predictor.ood_threshold, predictor.reduce_to) == (0.5, 16)


def test_what_it_knows_has_an_energy_of_the_threshold_at_least(tmp_path):
    images = [picture(i, (32, 32)) for i in range(8)]
    free = load_predictor(save_tiny_vit(tmp_path / "tiny"))
    energies = np.log(np.exp(free.logits(images).astype(np.float64)).sum(axis=1))
    predictor = load_predictor(save_tiny_vit(tmp_path / "tiny", ood={"threshold": float(np.median(energies))}))
    probabilities, known = predictor.predict_with_ood(images)
    assert known == [energy >= np.median(energies) for energy in energies] and sum(known) == 4
    assert probabilities == pytest.approx(free.probabilities(images), abs=1e-6)
    assert free.predict_with_ood(images)[1] == [None] * 8


@pytest.mark.parametrize(
    ("score", "by_hand"),
    [
        ("max_probability", lambda p: p.max(axis=1)),
        ("gen", lambda p: -((p * (1 - p)) ** 0.1).sum(axis=1)),
    ],
)
def test_the_score_is_the_one_that_the_model_names(score, by_hand, tmp_path):
    images = [picture(i, (32, 32)) for i in range(9)]
    scores = by_hand(load_predictor(save_tiny_vit(tmp_path / "tiny")).probabilities(images).astype(np.float64))
    threshold = float(np.sort(scores)[4:6].mean())  # between two of them
    predictor = load_predictor(save_tiny_vit(tmp_path / "tiny", ood={"threshold": threshold, "score": score}))
    assert predictor.predict_with_ood(images)[1] == [each >= threshold for each in scores]


def test_an_unknown_score_is_told(tmp_path):
    folder = save_tiny_vit(tmp_path / "tiny", ood={"threshold": 1.0, "score": "odin"})
    with pytest.raises(ModelError, match="unknown out-of-distribution score 'odin': choose from energy, gen, max_"):
        load_predictor(folder)


def test_ood_settings_of_older_models_are_read_and_replaced(tmp_path):
    old = {"known_threshold": 0.5, "known_at": 16}
    predictor = load_predictor(save_tiny_vit(tmp_path / "tiny", **old))
    assert (predictor.ood_threshold, predictor.ood_resize_to) == (0.5, 16)
    update_ood(predictor.model.config, threshold=0.25)
    config = predictor.model.config.to_dict()
    assert config["ood"] == {"threshold": 0.25, "resize_to": 16, "score": "energy"} and not old.keys() & config.keys()


def test_a_large_image_is_looked_at_small_as_well(tiny):
    predictor = load_predictor(tiny)
    large, small = picture(0, (300, 200)), picture(1, (3, 3))
    squashed = large.resize((3, 3), Image.Resampling.LANCZOS)
    [of_large, of_small, of_squashed] = predictor.logits_and_scores([large, small, squashed], None)[1]
    logits, scores = predictor.logits_and_scores([large, small], 3)
    assert scores == pytest.approx([(of_large + of_squashed) / 2, of_small], abs=1e-5)
    assert abs(of_large - of_squashed) > 0.01, "the two have to differ for this test to mean anything"
    assert logits == pytest.approx(predictor.logits([large, small]), abs=1e-5)


def test_says_nothing_about_what_was_not_measured(tiny):
    predictor = load_predictor(tiny)
    assert (predictor.evaluation, predictor.accuracy, predictor.accuracy_ci95) == (None, None, None)
    assert predictor.predict_with_ood([picture()])[1] == [None] and predictor.reduce_to is None


def test_a_file_is_reduced_first_when_the_model_asks_for_it(tmp_path):
    predictor = load_predictor(save_tiny_vit(tmp_path / "tiny", reduce_to=16))
    file = encoded(picture(0, (400, 300)))
    reduced = decode(file, reduce_to=16)
    assert predictor.probabilities([file]) == pytest.approx(predictor.probabilities([reduced]), abs=1e-6)
    assert predictor.probabilities([file]) != pytest.approx(predictor.probabilities([decode(file)]), abs=1e-6)


def test_an_unreadable_file_is_named(tiny, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        load_predictor(tiny)([picture(), tmp_path / "broken.jpg"])


def test_a_non_finite_output_is_an_error(tiny):
    predictor = load_predictor(tiny)
    with torch.no_grad():
        predictor.model.classifier.bias[3] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        predictor(picture())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def remote_code(folder: Path) -> None:
    """An architecture that only code beside the weights knows."""
    (folder / "evil.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"}
    edit_config(folder, model_type="evil", architectures=["Model"], auto_map=auto_map)


def with_processor(settings: dict) -> Callable[[Path], object]:
    return lambda folder: (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def without_classifier(folder: Path) -> None:
    ViTModel.from_pretrained(folder).save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda folder: truncate(folder / "model.safetensors"), "damaged"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "damaged"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "preprocessor_config.json"),
        (with_processor(CONVNEXT | {"size": {"height": 32, "width": 32}}), "no usable image processor .* correct the"),
        (with_processor(VIT | {"size": 32, "do_center_crop": True, "crop_size": {"shortest_edge": 32}}), "no usable"),
        (with_processor(VIT | {"size": {"longest_edge": 32}}), "no usable image processor .*'shortest_edge'"),
        (with_processor(VIT | {"size": 32, "resample": "spline"}), "resample is spline, which is no filter of Pillow"),
        (lambda folder: (folder / "model.safetensors").write_text(LFS_POINTER), "model.safetensors: this is a Git LFS"),
        (lambda folder: (folder / "config.json").write_text(LFS_POINTER), "config.json: this is a Git LFS pointer"),
        (
            lambda folder: (folder / "preprocessor_config.json").write_text(LFS_POINTER),
            "preprocessor_config.json: this is a Git LFS pointer .* run `git lfs pull`",
        ),
        (lambda folder: edit_config(folder, model_type="vit9"), "vit9"),
        (lambda folder: edit_config(folder, model_type="gpt2"), "can't load"),
        (lambda folder: edit_config(folder, id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1}), "don't fit"),
        (without_classifier, "classifier"),
        (remote_code, "can't load"),
    ],
)
def test_a_damaged_folder_is_named_in_one_line(tmp_path, damage, message):
    folder = save_tiny_vit(tmp_path / "damaged")
    damage(folder)
    with pytest.raises(ModelError, match=message) as error:
        load_predictor(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    assert not (folder / "ran").exists(), "code from the model's folder was run"


@pytest.mark.parametrize("name", ["runs/no such", "no-such", "./no/such/folder"])
def test_a_folder_that_is_not_there(name):
    with pytest.raises(ModelError, match="no model folder"):
        load_predictor(name)


def test_a_hub_model_that_does_not_come(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="user/no-such-model@main") as error:
        load_predictor("user/no-such-model@main")
    assert "\n" not in str(error.value)


def test_batches_are_taken_only_as_needed():
    taken = []
    numbers = (taken.append(i) or i for i in range(5))
    batches = batched(numbers, 2)
    assert next(batches) == [0, 1] and taken == [0, 1]
    assert list(batches) == [[2, 3], [4]]


def test_made_fast_for_inference_a_model_gives_the_same(tmp_path):
    """Its operations are counted as before, and gradients, which heat maps need, still flow."""
    folder = save_tiny_vit(tmp_path / "tiny")
    made, plain = load_predictor(folder).model, AutoModelForImageClassification.from_pretrained(folder).eval()
    pixel_values = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(made.device)
    with torch.inference_mode():
        expected = plain.to(made.device)(pixel_values).logits
        torch.testing.assert_close(made(pixel_values).logits, expected, atol=1e-5, rtol=1e-5)
    patches, layer = (
        16 * 192 * 32,
        4 * 17 * 32 * 32 + 2 * 17 * 32 * 64 + 2 * 17 * 17 * 32,
    )  # multiplications, of 17 tokens
    flops = 2 * (patches + 2 * layer + 32 * 10)
    assert backbone.forward_flops(made, 32) == backbone.forward_flops(plain, 32) == flops
    pixel_values.requires_grad_()
    made(pixel_values).logits.sum().backward()
    assert pixel_values.grad.abs().max() > 0


def test_compiled_it_gives_the_same_for_any_number_of_images(tmp_path):
    folder = save_tiny_vit(tmp_path / "tiny")
    compiled, plain = load_predictor(folder), load_predictor(folder)
    compiled.compile()
    images = [picture(i) for i in range(5)]
    for n in (1, 5, 2):
        np.testing.assert_allclose(compiled.logits(images[:n]), plain.logits(images[:n]), atol=1e-5)
    with ThreadPoolExecutor(4) as threads:
        rows = list(threads.map(lambda image: compiled.logits([image])[0], images))
    np.testing.assert_allclose(rows, plain.logits(images), atol=1e-5)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
def test_compiling_reports_nothing_to_the_makers_of_the_compiler(tmp_path):
    """OpenVINO's reports would write an id for the user into their home, and go to Google Analytics."""
    folder, home = save_tiny_vit(tmp_path / "tiny"), tmp_path / "home"
    home.mkdir()
    code = f"from classifier import load_predictor; load_predictor({str(folder)!r}).compile()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=os.environ | {"HOME": str(home)})
    assert not (home / "intel").exists()


def test_compiled_it_leaves_the_choice_of_a_core_to_the_system(tmp_path):
    """A process that binds its threads takes the same cores as the next one, which then get half each."""
    compiled = load_predictor(save_tiny_vit(tmp_path / "tiny"))
    compiled.compile()
    pixel_values, seen = torch.zeros(64, 3, 32, 32), set()
    with ThreadPoolExecutor(1) as thread:
        computing = [thread.submit(compiled.forward, pixel_values) for _ in range(50)]
        while not computing[-1].done():
            for task in Path("/proc/self/task").iterdir():
                with suppress(ProcessLookupError):  # it may have ended meanwhile
                    seen.add(frozenset(os.sched_getaffinity(int(task.name))))
    assert seen == {frozenset(os.sched_getaffinity(0))}


def test_an_architecture_that_compiles_to_something_else_is_refused(tmp_path):
    class Untraceable(torch.nn.Module):
        def forward(self, pixel_values):
            return SimpleNamespace(logits=torch.from_numpy(pixel_values.numpy().mean(axis=(2, 3))))

    with pytest.raises(ModelError, match=r"Untraceable compiled by OpenVINO gives other logits: use it uncompiled"):
        openvino.compile_model(Untraceable(), 32)  # tracing takes what NumPy made for a constant
