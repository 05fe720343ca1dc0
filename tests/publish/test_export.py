"""Folders ready to be published: ONNX with the same logits, code beside the weights, and parity in another process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, TimmWrapperImageProcessor

from classifier import load_predictor
from classifier.errors import ModelError
from classifier.models import cnn
from classifier.publish import export
from tests.helpers.models import LABELS, edit_config, save_tiny_cnn, save_tiny_swin, save_tiny_timm, save_tiny_vit
from tests.helpers.paths import ROOT
from tests.helpers.pictures import picture

# A process that cannot import this project loads the folder that it is given in each of the ways that transformers has.
LOAD_ANYWHERE = """
import sys
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, pipeline

folder = sys.argv[1]
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
classify = pipeline("image-classification", model=folder, trust_remote_code=True, device="cpu")
assert config.model_type == "cifar_cnn" and model.config.num_labels == 10 and processor.size.height == 32
assert classify(sys.argv[2])[0]["label"] == "frog", classify(sys.argv[2])
assert "classifier" not in sys.modules
"""
IMAGES = [picture(i, (32, 32)) for i in range(4)] + [picture(4, (90, 61))]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Complete folders of both kinds. Tests that change one make a copy."""
    folder = tmp_path_factory.mktemp("models")
    found = {"vit": save_tiny_vit(folder / "vit"), "cnn": save_tiny_cnn(folder / "cnn")}
    for model in found.values():
        export.complete(model)
    return found


@pytest.fixture
def copy_of(models, tmp_path):
    return lambda name: shutil.copytree(models[name], tmp_path / name)


@pytest.mark.parametrize("name", ["vit", "cnn"])
def test_onnx_gives_the_logits_of_the_weights_for_any_batch_size(models, name):
    file = models[name] / "onnx/model.onnx"
    onnx.checker.check_model(onnx.load(file), full_check=True)
    session = onnxruntime.InferenceSession(file)
    [given], [gives] = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape, given.type) == ("pixel_values", ["batch", 3, 32, 32], "tensor(float)")
    assert (gives.name, gives.shape) == ("logits", ["batch", len(LABELS)])
    pixel_values = AutoImageProcessor.from_pretrained(models[name])(IMAGES, return_tensors="pt")["pixel_values"].numpy()
    for n in (1, 2, 5):
        [logits] = session.run(None, {"pixel_values": pixel_values[:n]})
        np.testing.assert_allclose(logits, load_predictor(models[name]).logits(IMAGES[:n]), atol=1e-3)


def test_onnx_is_one_file_without_local_paths(models):
    for folder in models.values():
        assert [path.name for path in (folder / "onnx").iterdir()] == ["model.onnx"]
        content = (folder / "onnx/model.onnx").read_bytes()
        assert not any(
            word in content for word in (b".py", str(Path(cnn.__file__).parent).encode(), sys.prefix.encode())
        )


def test_a_model_that_torch_cant_export_goes_without_onnx(models, tmp_path, capsys):
    folder = save_tiny_swin(tmp_path / "swin")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    export.complete(folder)
    said = capsys.readouterr().err
    assert said == (
        "swin goes without onnx/model.onnx: torch.onnx can't export SwinForImageClassification (Failed to decompose "
        "the FX graph for ONNX compatibility); for a model with an ONNX file, use another architecture\n"
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "onnx").mkdir()  # a file that is there is checked
    shutil.copy(models["vit"] / "onnx/model.onnx", folder / "onnx")
    with pytest.raises(ModelError, match=r"onnxruntime can't compute the ONNX file of swin .*belongs to another model"):
        export.complete(folder)


def test_onnx_of_other_weights_is_refused_with_the_difference(copy_of):
    folder = copy_of("vit")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][3] += 0.25
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"differ by 0\.25 "):
        export.check_onnx(folder / "onnx/model.onnx", load_predictor(folder))
    assert export.to_onnx(folder) <= 1e-3  # and exported anew it is right again
    assert export.check_onnx(folder / "onnx/model.onnx", load_predictor(folder)) <= 1e-3


def test_completing_leaves_weights_and_processor_as_they_are(models, copy_of):
    """Also for a folder without code, such as one that an older version saved."""
    folder = copy_of("cnn")
    (folder / "cnn.py").unlink()
    shutil.rmtree(folder / "onnx")
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]
    (folder / "config.json").write_text(json.dumps(config))
    export.complete(folder)
    names = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    assert names == {path.relative_to(models["cnn"]) for path in models["cnn"].rglob("*") if path.is_file()}
    for name in names - {Path("config.json")}:
        assert (folder / name).read_bytes() == (models["cnn"] / name).read_bytes()
    assert json.loads((folder / "config.json").read_text()) == json.loads((models["cnn"] / "config.json").read_text())


def test_a_timm_model_gets_a_processor_file_that_says_the_same(tmp_path):
    """transformers.js needs the file. transformers 4 takes its arguments from there, 5 from config.json."""
    folder = save_tiny_timm(tmp_path / "timm")
    before = AutoImageProcessor.from_pretrained(folder)
    export.complete(folder)
    saved = json.loads((folder / "preprocessor_config.json").read_text())
    after = AutoImageProcessor.from_pretrained(folder)
    for processor in (after, TimmWrapperImageProcessor.from_dict(saved)):
        assert type(processor) is type(before) and processor.data_config == before.data_config
    assert export.prove_parity(folder, IMAGES) <= 1e-4

    assert (saved["size"], saved["crop_size"]) == ({"shortest_edge": 73}, {"height": 64, "width": 64})
    pixels = np.asarray(picture(3, (73, 73)))[4:68, 4:68]
    pixels = (pixels * saved["rescale_factor"] - saved["image_mean"]) / saved["image_std"]
    [expected] = after([picture(3, (73, 73))])["pixel_values"].numpy()
    np.testing.assert_allclose(pixels.transpose(2, 0, 1), expected, atol=1e-5)


def test_a_crop_that_the_processor_file_has_no_word_for_stays_in_config_json(tmp_path):
    folder = save_tiny_timm(tmp_path / "timm")
    config = json.loads((folder / "config.json").read_text())
    edit_config(folder, pretrained_cfg=config["pretrained_cfg"] | {"crop_mode": "border"})
    export.complete(folder)
    assert not (folder / "preprocessor_config.json").exists()


def test_only_a_model_of_our_own_brings_code(models):
    assert (models["cnn"] / "cnn.py").read_bytes() == Path(cnn.__file__).read_bytes()
    assert not (models["vit"] / "cnn.py").exists()
    assert "auto_map" not in json.loads((models["vit"] / "config.json").read_text())


def test_the_embedded_model_has_todays_code():
    """models/cnn/cnn.py is a generated copy: after a change of classifier/models/cnn.py, copy that file there."""
    config = json.loads((ROOT / "models/cnn/config.json").read_text())
    assert config["auto_map"] == export.AUTO_MAP
    assert (ROOT / "models/cnn/cnn.py").read_bytes() == Path(cnn.__file__).read_bytes()


@pytest.mark.parametrize("start", ["from the repository", "from a copy elsewhere"])
def test_the_embedded_model_loads_without_this_project(start, tmp_path):
    copied = shutil.copytree(ROOT / "models/cnn", tmp_path / "a model") if "copy" in start else None
    folder, cwd = (str(copied), tmp_path) if copied else ("models/cnn", ROOT)
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    environment["HF_HUB_OFFLINE"] = "1"
    image = ROOT / "examples/frog_1.png"
    # -I: neither the working directory nor PYTHONPATH is searched for modules
    command = [sys.executable, "-I", "-c", LOAD_ANYWHERE, folder, str(image)]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_code_beside_the_weights_is_not_run_where_this_project_is_at_hand(copy_of):
    """The class registered by this project is used, whatever trust_remote_code is, and without a question."""
    folder = copy_of("cnn")
    (folder / "cnn.py").write_text("raise SystemExit('was run')")
    assert type(load_predictor(folder).model) is cnn.CifarCnnForImageClassification
    for trust in (None, True, False):
        assert type(AutoConfig.from_pretrained(folder, trust_remote_code=trust)) is cnn.CifarCnnConfig
        model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=trust)
        assert type(model) is cnn.CifarCnnForImageClassification


def test_a_process_without_this_project_gets_the_same_probabilities(copy_of, tmp_path, monkeypatch):
    """Also if two labels have the same name, and if PYTHONPATH leads to a package of this name."""
    folder = copy_of("cnn")
    edit_config(folder, id2label=dict(enumerate([*LABELS[:-1], LABELS[0]])))
    (tmp_path / "classifier").mkdir()
    (tmp_path / "classifier/__init__.py").write_text("raise SystemExit('this project was at hand')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert export.prove_parity(folder, IMAGES) <= 1e-4


def test_computing_in_half_precision_is_noticed(copy_of):
    """What happens to float16 weights whose config.json does not say float32."""
    folder = copy_of("vit")
    edit_config(folder, dtype="float16")
    with pytest.raises(ModelError, match=r"differ by 0\.0\d+ .*dtype"):
        export.prove_parity(folder, IMAGES)


def test_a_folder_that_does_not_load_elsewhere_is_noticed(copy_of):
    """What happens to a scratch CNN that was saved without its code, and not completed."""
    folder = copy_of("cnn")
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="cifar_cnn") as error:
        export.prove_parity(folder, IMAGES[:1])
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def other_code(folder: Path) -> None:
    (folder / "cnn.py").write_bytes(Path(cnn.__file__).read_bytes() + b"\nopen('ran', 'w')\n")


def other_module(folder: Path) -> None:
    (folder / "evil.py").write_text("open('ran', 'w')")
    edit_config(folder, auto_map={auto: ref.replace("cnn.", "evil.") for auto, ref in export.AUTO_MAP.items()})


def other_processor(folder: Path) -> None:
    (folder / "evil.py").write_text("open('ran', 'w')")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoImageProcessor": "evil.Processor"}}))


def other_nested_processor(folder: Path) -> None:
    (folder / "evil.py").write_text("open('ran', 'w')")
    nested = {"image_processor": {"auto_map": {"AutoImageProcessor": "evil.Processor"}}}
    (folder / "processor_config.json").write_text(json.dumps(nested))


@pytest.mark.parametrize(
    "change",
    [other_code, other_module, other_processor, other_nested_processor, lambda folder: (folder / "cnn.py").unlink()],
)
def test_code_that_is_not_ours_is_not_run(copy_of, change):
    folder = copy_of("cnn")
    change(folder)
    with pytest.raises(ModelError, match=r"not this project's cnn\.py"):
        export.prove_parity(folder, IMAGES)


def test_a_folder_that_is_no_model_stays_as_it_is(tmp_path):
    for call in (export.complete, export.to_onnx, lambda folder: export.prove_parity(folder, IMAGES)):
        with pytest.raises(ModelError, match=r"no config\.json"):
            call(tmp_path)
    assert not list(tmp_path.iterdir())
