"""The card: its numbers are the files', its metadata survives a round trip, and its examples run."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from PIL import Image
from transformers import DeiTImageProcessor

from classifier import load_predictor
from classifier.errors import ModelError
from classifier.publish import export
from classifier.records import RunRecord
from classifier.reporting import card
from tests.helpers.models import LABELS, edit_config, save_tiny_cnn, save_tiny_timm, save_tiny_vit
from tests.helpers.paths import ROOT
from tests.helpers.pictures import picture
from tests.helpers.records import RUN

EMBEDDED = sorted(config.parent for config in (ROOT / "models").glob("*/config.json"))
UNFILLED = r"(?<!\[)\b(None|nan|undefined)\b|\{[{%]|\n\n\n"


def write(folder: Path, name: str, value: dict) -> None:
    (folder / name).write_text(json.dumps(value))


def evaluation_of(labels: list[str], dataset: str) -> dict:
    """An evaluation.json in which every number is another, so that none can stand in for one that is missing."""
    numbers = iter(np.linspace(0.5123, 0.9876, 3 * len(labels)).tolist())
    per_class = {
        name: {"precision": next(numbers), "recall": next(numbers), "f1": next(numbers), "n": 300 + i}
        for i, name in enumerate(labels)
    }
    matrix = np.diag(np.arange(200, 200 + len(labels)))
    matrix[0, 1], matrix[1, 0] = 41, 17
    measured = {
        "model": "tiny",
        "revision": "local",
        "n_parameters": 28362,
        "accuracy": 0.8765,
        "accuracy_ci95": [0.8611, 0.8903],
    }
    measured |= {"precision": 0.8642, "recall": 0.8531, "f1": 0.8587, "per_class": per_class, "nll": 0.4321}
    measured |= {"confusion_matrix": matrix.tolist()}
    return {"dataset": dataset, "split": "test", "n": 4711, "models": [measured]}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A fine-tuned model with all its records, measured on a Hub dataset."""
    model = save_tiny_vit(tmp_path / "tiny", ood={"threshold": 0.4321}, reduce_to=64)
    write(model, "run.json", RUN)
    write(model, "evaluation.json", evaluation_of(LABELS, "uoft-cs/cifar10") | {"dataset_revision": "0b2714987fa4"})
    return model


def rows(text: str) -> dict[str, list[str]]:
    """The cells of every table's row by its first one."""
    lines = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def blocks(text: str) -> dict[str, str]:
    """The examples, by the library that they are for."""
    found = re.findall(r"```(?:python|js)\n(.*?)```", text, re.DOTALL)
    names = ("gradio_client", "onnxruntime", "timm", "transformers", "@huggingface/transformers")
    return {
        next(n for n in names if re.search(rf"^(import|from) {n}\b|from \"{n}\"", code, re.MULTILINE)): code
        for code in found
    }


def test_metadata_is_what_the_hub_reads_and_survives_a_round_trip(folder):
    written = card.render(folder, "user/cifar10-vit")
    read = ModelCard(str(written))
    assert read.data.to_dict() == written.data.to_dict()
    assert (read.data.library_name, read.data.pipeline_tag, read.data.license) == (
        "transformers",
        "image-classification",
        "apache-2.0",
    )
    assert read.data.base_model == "facebook/deit-tiny-patch16-224" and read.data.metrics[0] == "accuracy"
    first = read.data.eval_results[0]
    assert first == EvalResult(
        task_type="image-classification",
        task_name="Image classification",
        dataset_type="uoft-cs/cifar10",
        dataset_name="cifar10",
        dataset_split="test",
        dataset_revision="0b2714987fa4",
        metric_type="accuracy",
        metric_name="Accuracy",
        metric_value=0.8765,
    )
    assert {result.metric_type: result.metric_value for result in read.data.eval_results} == {
        "accuracy": 0.8765,
        "precision": 0.8642,
        "recall": 0.8531,
        "f1": 0.8587,
    }
    index = read.data.to_dict()["model-index"]
    assert model_index_to_eval_results(index) == ("cifar10-vit", read.data.eval_results)
    assert eval_results_to_model_index("cifar10-vit", read.data.eval_results) == index


def test_photographs_have_a_table_of_their_own(folder):
    assert "On photographs" not in card.render(folder).text
    found = evaluation_of(LABELS, "uoft-cs/cifar10")
    found["models"][0]["photographs"] = [
        {"folder": "tidy", "n": 70, "n_none": 17, "accuracy": 0.9571, "accuracy_ci95": [0.9143, 0.9857]}
        | {"kept": 0.9429, "kept_ci95": [0.8811, 0.9922], "flagged": 0.8824, "flagged_ci95": [0.7059, 1.0]},
        {"folder": "labels_only", "n": 30, "n_none": 0, "accuracy": 0.8, "accuracy_ci95": [0.63, 0.93]},
    ]
    write(folder, "evaluation.json", found)
    text = card.render(folder).text
    assert rows(text)["tidy"] == [
        "70 + 17",
        "95.7% (91.4% to 98.6%)",
        "94.3% (88.1% to 99.2%)",
        "88.2% (70.6% to 100.0%)",
    ]
    assert rows(text)["labels\\_only"] == ["30 + 0", "80.0% (63.0% to 93.0%)", "–", "–"]
    assert "kind than its training images (drawings," in text
    assert "and of 100 photographs as users send them **91.0%** correctly." in text  # 67 of 70 and 24 of 30


def test_folders_are_named_by_their_last_name_and_not_in_the_metadata(folder, monkeypatch):
    written = card.render(folder)
    assert written.data.datasets is None and "/elsewhere" not in str(written) and "my pictures" in written.text
    (folder / "runs/pictures").mkdir(parents=True)
    monkeypatch.chdir(folder)
    write(folder, "evaluation.json", evaluation_of(LABELS, "runs/pictures"))
    measured_on_a_folder = card.render(folder)
    assert (
        measured_on_a_folder.data.eval_results is None and "4,711 test images of pictures" in measured_on_a_folder.text
    )


def test_every_number_is_the_files(folder):
    evaluation = json.loads((folder / "evaluation.json").read_text())
    [measured] = evaluation["models"]
    text = card.render(folder).text
    table = rows(text)
    assert table["accuracy (95% interval)"] == ["87.65% (86.11% to 89.03%)"]
    assert [table[name] for name in ("macro F1", "macro precision", "macro recall")] == [
        ["0.8587"],
        ["0.8642"],
        ["0.8531"],
    ]
    for label, found in measured["per_class"].items():
        assert table[label] == [*(f"{found[name]:.4f}" for name in ("precision", "recall", "f1")), str(found["n"])]
    assert table["`learning_rate`"] == ["0.0005"]
    for said in (
        "Of 4,711 test images",
        "28,362 parameters",
        "below 0.432 ",
        "until its shorter side has 64 pixels",
        "1,234 images of its train split, and 137 held out",
        "3 unreadable files",
        "seed 7",
        "93.75%",
        "temperature of 1.235",
        "13 min on 2 threads of AMD EPYC (AVX512), float32",
        "12,340 images seen, 16 a second; 3.21 PFLOP",
        "1.26 GFLOP an image",
        "airplane taken for automobile (41), automobile taken for airplane (17)",
    ):
        assert said in text, said


def test_a_chain_of_stages_is_told_from_its_start(folder):
    first = RUN | {"settings": RUN["settings"] | {"dataset": "user/first"}}
    second = RUN | {
        "settings": RUN["settings"] | {"dataset": "user/second", "model": None, "init_from": "runs/1"},
        "parent": first,
    }
    write(folder, "run.json", second)
    written = card.render(folder)
    assert written.data.datasets == ["user/first", "user/second"]
    assert written.data.base_model == "facebook/deit-tiny-patch16-224"
    one, two = written.text.index("1. [user/first]"), written.text.index("2. [user/second]")
    assert (
        one
        < written.text.index("Started from [facebook/deit")
        < two
        < written.text.index("Started from the stage before")
    )


def test_what_is_not_known_is_said(folder):
    for name in ("run.json", "evaluation.json"):
        (folder / name).unlink()
    written = card.render(folder)
    assert written.data.eval_results is None and written.data.metrics is None
    assert "not been measured" in written.text and "no run.json" in written.text
    assert not re.search(UNFILLED, written.text)
    assert "confusion_matrix.png" not in written.text and "curves.png" not in written.text


def test_figures_are_linked_where_they_are(folder):
    for name in ("confusion_matrix.png", "curves.png"):
        (folder / name).touch()
    assert "](confusion_matrix.png)" in card.render(folder).text
    assert "](models/vit/confusion_matrix.png)" in card.render(folder, figures="models/vit/").text


def test_labels_can_not_break_the_page(folder):
    labels = ["a|b", "*bold*", "<script>", "[x](y)", "snow_leopard", "two\nlines", "`code`", "# head", "a & b", "ok"]
    edit_config(folder, id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)})
    write(folder, "evaluation.json", evaluation_of(labels, "uoft-cs/cifar10"))
    text = card.render(folder).text
    table = [line for line in text.splitlines() if line.startswith("| ")]
    start = next(i for i, line in enumerate(table) if line.startswith("| label "))
    found = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table[start + 2 :]]
    assert [len(cells) for cells in found] == [5] * len(labels)
    unescaped = [re.sub(r"\\(.)", r"\1", cells[0].strip()) for cells in found]
    assert unescaped == [label.replace("\n", " ") for label in labels]
    assert "<script>" not in text and "[x](y)" not in text


def test_many_labels_are_shortened(folder):
    labels = [f"label {i}" for i in range(120)]
    edit_config(folder, id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)})
    write(folder, "evaluation.json", evaluation_of(labels, "user/birds"))
    text = card.render(folder).text
    assert "label 18, label 19 and 100 more." in text and "| label 59 |" in text and "| label 60 |" not in text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "run.json").write_text("{"), "not valid JSON"),
        (lambda folder: write(folder, "run.json", RUN | {"validation": {"nll": 1}}), r'"validation" has no "accuracy"'),
        (lambda folder: write(folder, "evaluation.json", {"models": [{}]}), r'evaluation.json has no "dataset"'),
    ],
)
def test_a_damaged_record_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises(ModelError, match=message) as error:
        card.write(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value) and not (folder / "README.md").exists()


def save_cropping(folder: Path, **size: int) -> Path:
    """A tiny ViT whose processor resizes first and takes the middle, as DeiT's does."""
    save_tiny_vit(folder)
    DeiTImageProcessor(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


MAKERS = {
    "cnn": save_tiny_cnn,
    "squashed, then cropped": lambda folder: save_cropping(folder, height=41, width=37),
    "shorter side, then cropped": lambda folder: save_cropping(folder, shortest_edge=37),
    "timm": save_tiny_timm,
}


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
def test_the_examples_answer_as_the_predictor_does(maker, tmp_path, monkeypatch, capsys):
    folder = maker(tmp_path / "model")
    export.to_onnx(folder)
    picture(3, (47, 36)).save(tmp_path / "cat.jpg", quality=95)
    expected = load_predictor(folder).probabilities([Image.open(tmp_path / "cat.jpg")])[0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, file: {"user/model": str(folder / file)}[repo])
    examples = blocks(card.render(folder, "user/model").text)
    assert "timm" in examples or maker is not save_tiny_timm

    ran = {}
    exec(examples["onnxruntime"], ran)
    np.testing.assert_allclose(ran["probabilities"], expected, atol=0.02)  # Pillow rounds resized pixels, torch's way
    first = capsys.readouterr().out.split()[0]
    assert first == LABELS[expected.argmax()]

    exec(examples["transformers"].replace("user/model", str(folder)), {})
    answer = eval(capsys.readouterr().out)
    assert answer[0]["label"] == first and answer[0]["score"] == pytest.approx(expected.max(), abs=1e-4)

    compile(examples["gradio_client"], "card", "exec")  # run in test_app.py, where an app is running
    if maker is save_tiny_timm:
        exec(examples["timm"].replace("hf-hub:user/model", f"local-dir:{folder}"), ran)
        np.testing.assert_allclose(ran["logits"].softmax(dim=1)[0], expected, atol=0.02)
        assert isinstance(ran["model"], timm.models.VisionTransformer)


@pytest.mark.parametrize(
    "maker, versions, javascript, size",
    [
        (save_tiny_vit, "4.46 or later:", "pipeline(", "32×32"),
        (save_tiny_cnn, "4.46 or later:", "AutoModel.from_pretrained(", "32×32"),
        (save_tiny_timm, "4.48 or later, and `timm`:", "AutoModel.from_pretrained(", None),  # its crop of 73 is uneven
    ],
)
def test_the_card_says_where_a_model_loads(maker, versions, javascript, size, tmp_path):
    text = card.render(maker(tmp_path / "model"), "user/model").text
    assert f"With `transformers` {versions}" in text
    assert javascript in blocks(text)["@huggingface/transformers"]
    assert re.findall(r"For a picture of (\S+) pixels, they agree\.", text) == ([size] if size else [])


def test_the_card_says_what_is_not_known_of_other_libraries(tmp_path):
    folder = save_tiny_vit(tmp_path / "model")
    edit_config(folder, model_type="regnet", transformers_version="5.1.0")
    assert "With `transformers` 5.1.0 or later (earlier versions were not tried):" in card.render(folder).text
    folder = save_tiny_timm(tmp_path / "timm")
    cfg = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    edit_config(folder, pretrained_cfg=cfg | {"crop_mode": "border"})
    text = card.render(folder).text
    assert "transformers.js can't load this model" in text and "@huggingface" not in text


@pytest.mark.parametrize("folder", EMBEDDED, ids=lambda folder: folder.name)
def test_the_card_of_an_embedded_model_is_complete(folder, tmp_path):
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors", "onnx"))
    card.write(copy, "user/model")
    text = (copy / "README.md").read_text()
    [measured] = json.loads((folder / "evaluation.json").read_text())["models"]
    assert ModelCard(text).data.eval_results[0].metric_value == measured["accuracy"]
    assert set(load_predictor(folder).labels) < rows(text).keys()
    assert all((copy / figure).is_file() for figure in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text))
    assert not re.search(UNFILLED, text) and not re.search(r"/(home|work|tmp|root)/", text)


def test_time_on_an_accelerator_is_told_apart():
    stages = [
        RunRecord.from_json(RUN | {"train_seconds": seconds, "machine": RUN["machine"] | {"accelerator": name}}, Path())
        for seconds, name in ((60, None), (240, "T4"), (120, None), (None, None))
    ]
    assert card.spent(stages[:3]) == "3 min and 4 min on T4"
    assert card.spent(stages) == "" == card.spent([])


@pytest.mark.parametrize("n", [10, 70])
def test_a_label_without_test_images_is_named(folder, n):
    labels = [f"label {i}" for i in range(n)]
    evaluation = evaluation_of(labels, "uoft-cs/cifar10")
    [model] = evaluation["models"]
    for label in labels[3:5]:
        model["per_class"][label] = {"precision": None, "recall": None, "f1": None, "n": 0}
    write(folder, "evaluation.json", evaluation)
    edit_config(folder, id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)})
    found = rows(card.render(folder).text)
    assert f"macro F1 (over {n - 2} labels with images)" in found
    if n == 10:
        assert found["label 3"] == ["–", "–", "–", "no images"]
    assert found["label 0"][-1] == "300"
