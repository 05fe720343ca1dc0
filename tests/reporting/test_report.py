"""The report: its numbers come from the files, all three formats open, and missing results are left out."""

import io
import json
import re
from pathlib import Path

import datasets
import numpy as np
import pypdfium2
import pytest
from PIL import Image
from pptx import Presentation
from pptx.util import Pt

from classifier import load_predictor
from classifier.data.splits import Splits
from classifier.errors import ModelError
from classifier.records import CorruptedAccuracy
from classifier.reporting import architecture, figures, report, slides
from classifier.reporting.blocks import CommandBlock, Section
from classifier.reporting.results import read_results
from classifier.reporting.sections import comparison, performance
from tests.helpers.models import LABELS, save_tiny_cnn
from tests.helpers.records import RUN

ROOT = Path(__file__).resolve().parents[2]
MANY = [f"class {i}, with a name of some length" for i in range(100)]
HISTORY = [
    {
        "epoch": i,
        "train_loss": 1 / i,
        "validation_loss": 2 / i,
        "train_accuracy": 0.5123 + i / 9,
        "validation_accuracy": 0.4711,
    }
    for i in (1, 2, 3)
]


def measured(name: str, labels: list[str], seed: int, accuracy: float) -> dict:
    """A model's entry in evaluation.json; nearly all numbers are different."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.3, 0.99, (len(labels), 3))
    matrix = rng.integers(0, 30, (len(labels), len(labels)))
    bins = {"count": [0, 3, 97], "confidence": [0.0, 0.5, 0.9], "accuracy": [0.0, 0.4, float(rng.uniform())]}
    calibration = {
        "nll": float(rng.uniform()),
        "brier": float(rng.uniform()),
        "ece": float(rng.uniform()),
        "reliability": bins,
    }
    found = {"model": name, "revision": "local", "n_parameters": 4321, "accuracy": accuracy}
    found |= {
        "accuracy_ci95": [accuracy - 0.0123, accuracy + 0.0117],
        "precision": 0.8642,
        "recall": 0.8531,
        "f1": 0.8587,
    }
    found["per_class"] = {
        label: {"precision": p, "recall": r, "f1": f, "n": 7 + i}
        for i, (label, (p, r, f)) in enumerate(zip(labels, scores.tolist(), strict=True))
    }
    found |= {"weighted": {"precision": 0.8111, "recall": 0.8222, "f1": 0.8333}, "confusion_matrix": matrix.tolist()}
    found |= {
        "top_k_accuracy": {"2": 0.9321},
        "temperature": 1.234,
        "before_temperature": dict(calibration),
    } | calibration
    found["mistakes"] = [{"image": 1, "label": labels[0], "predicted": labels[1], "probability": 0.987}]
    found["confused"] = [{"label": labels[0], "predicted": labels[1], "n": 29}]
    found["ood"] = {"energy": {"blobs": {"auroc": 0.912, "fpr95": 0.34}}}
    found["corrupted"] = {
        "n": 50,
        "clean": 0.8517,
        "accuracy": {"shift": [0.81, 0.7, 0.6123], "fog": [0.8, 0.79, 0.7777]},
    }
    found["photographs"] = [
        {"folder": "tidy", "n": 70, "n_none": 17, "accuracy": 0.9571, "accuracy_ci95": [0.9143, 0.9857]}
        | {"kept": 0.9429, "kept_ci95": [0.88, 0.99], "flagged": 0.8824, "flagged_ci95": [0.7, 1.0]}
    ]
    return found


def compared(a: str, b: str, difference: float, low: float, high: float) -> dict:
    found = {
        "models": [a, b],
        "difference": difference,
        "difference_ci95": [low, high],
        "p_value": 0.0123,
        "agreement": 0.7654,
    }
    return found | {"only_a_right": 17, "only_b_right": 5}


def timed(name: str, milliseconds: float) -> dict:
    latency = {"p50": milliseconds, "p95": 2 * milliseconds}
    return {
        "model": name,
        "flops": 12345678,
        "latency_ms": latency,
        "images_per_second": {"1": 33.1},
        "peak_megabytes": None,
    }


def lay_out(folder: Path, names: list[str], labels: list[str] = LABELS, *, comparisons=(), times=(), **changes) -> dict:
    """Writes an output_dir and model folders with all records; `changes` apply to each model's evaluation."""
    predictors = {}
    for name in names:
        model = save_tiny_cnn(folder / name)
        (model / "run.json").write_text(json.dumps(RUN))
        (model / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in HISTORY))
        predictors[str(model)] = load_predictor(model)
    models = [measured(name, labels, i, 0.8765 - 0.01 * i) | changes for i, name in enumerate(names)]
    head = {"dataset": "things", "dataset_revision": None, "split": "test", "n": 4711, "models": models}
    together = {"comparisons": list(comparisons), "average": None}
    (folder / "out").mkdir()
    (folder / "out" / "evaluation.json").write_text(json.dumps(head | together))
    if times:
        each = [timed(name, ms) for name, ms in zip(names, times, strict=True)]
        (folder / "out" / "timing.json").write_text(json.dumps({"machine": RUN["machine"], "models": each}))
    return predictors


def numbers(value: object) -> set[float]:
    """All numbers in a JSON value and their negatives, as a difference can be stated in both directions."""
    if isinstance(value, dict | list):
        return set().union(*map(numbers, value.values() if isinstance(value, dict) else value))
    return {value, -value} if isinstance(value, int | float) else set()


def splits_of(labels: list[str]) -> Splits:
    rng = np.random.default_rng(0)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=labels)})
    pictures = [Image.fromarray(rng.integers(256, size=(20, 24, 3), dtype=np.uint8)) for _ in range(2 * len(labels))]
    indices = np.tile(np.arange(len(labels)), 2)
    rows = datasets.Dataset.from_dict({"img": pictures, "label": indices}, features=features)
    class_indices = {"train": indices, "test": indices}
    return Splits(rows, None, rows, "img", "label", labels, "things", None, class_indices)


def check_slides(path: Path) -> Presentation:
    """Opens the slides; every shape is inside its slide and no text is smaller than 10 points."""
    deck = Presentation(str(path))
    for slide in deck.slides:
        for shape in slide.shapes:
            assert shape.left >= 0 and shape.top >= 0
            assert shape.left + shape.width <= deck.slide_width and shape.top + shape.height <= deck.slide_height
            if shape.has_text_frame:
                sizes = [paragraph.font.size for paragraph in shape.text_frame.paragraphs]
                assert all(size is None or size >= Pt(10) for size in sizes)
    return deck


def test_every_number_comes_from_a_file(tmp_path):
    comparisons = [compared("one", "two", 0.01, 0.0051, 0.0162)]
    predictors = lay_out(tmp_path, ["one", "two"], comparisons=comparisons, times=(3.5, 1.5))
    report.write(tmp_path / "out", predictors, formats=["md"])
    text = (tmp_path / "out" / "report.md").read_text()
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    known = numbers([evaluation, RUN, HISTORY])
    known |= {float(np.mean(list(each["corrupted"]["accuracy"].values()))) for each in evaluation["models"]}
    found = re.findall(r"[\d.]+%", text.replace("95% ", "").replace("95%.", "").replace("95% of", ""))
    assert len(found) > 10 and set(found) <= {f"{value:.2%}" for value in known}
    assert set(re.findall(r"[+-]\d+\.\d\d\b", text)) <= {f"{100 * value:+.2f}" for value in known}
    for picture in re.findall(r"\]\((.*?)\)", text):
        assert (tmp_path / "out" / picture).stat().st_size and (tmp_path / "out" / picture).with_suffix(".svg").exists()
    assert not re.search(r"\b(None|nan)\b", text)


@pytest.mark.parametrize(
    ("interval", "times", "sentence"),
    [
        (
            (0.0051, 0.0162),
            (3.5, 1.5),
            "one is recommended: its accuracy is significantly higher than that of any other model.",
        ),
        (
            (-0.0051, 0.0162),
            (3.5, 1.5),
            "two is recommended: its accuracy does not differ significantly from that of one",
        ),
        ((-0.0051, 0.0162), (1.5, 3.5), "one is recommended: it has the highest accuracy"),
        ((-0.0051, 0.0162), (), "one is recommended: it has the highest accuracy"),
    ],
)
def test_the_choice_follows_from_interval_and_cost(tmp_path, interval, times, sentence):
    low, high = interval
    reverse = [compared("two", "one", -0.01, -high, -low)]
    predictors = lay_out(tmp_path, ["one", "two"], comparisons=reverse, times=times)
    choice = comparison.choose(read_results(tmp_path / "out", predictors))
    assert choice.reasons[0].startswith(sentence) and choice.model.name == sentence[:3]
    assert ("lowest latency" if times else "fewest parameters") in choice.reasons[0] or low > 0
    assert any("includes 0." in reason for reason in choice.reasons) == (low < 0)


def test_same_files_give_same_bytes_that_open(tmp_path):
    comparisons = [compared("one", "two", 0.01, -0.0051, 0.0162)]
    predictors = lay_out(tmp_path, ["one", "two"], comparisons=comparisons, times=(3.5, 1.5))
    out = tmp_path / "out"

    def written() -> dict[str, bytes]:
        report.write(
            out,
            predictors,
            splits_of(LABELS),
            heat_map=lambda _, image: image.rotate(90),
            command="evaluate.py --model one",
        )
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    first = written()
    second = written()
    assert [name for name in first if first[name] != second[name]] == []
    assert {"report.md", "report.pdf", "slides.pptx", "figures/samples.svg", "figures/mistakes_one.png"} <= first.keys()

    pdf = pypdfium2.PdfDocument(io.BytesIO(first["report.pdf"]))
    assert len(pdf) >= 3 and all("".join(page.get_textpage().get_text_range().split()) for page in pdf)
    fonts = {
        (obj.get_font().get_base_name(), obj.get_font().is_embedded) for page in pdf for obj in page.get_objects([1])
    }
    assert fonts and all(embedded for _, embedded in fonts)

    deck = check_slides(out / "slides.pptx")
    assert 8 <= len(deck.slides) <= 14


def test_many_classes_and_hostile_names(tmp_path):
    labels = ['a "b" #x $y$ \\ | *c*', *MANY[1:]]
    predictors = lay_out(tmp_path, ["one"], labels)
    counts = {"train": list(range(50, 150)), "validation": [9] * 100}
    run = RUN | {"data": {"images": 9950, "counts": counts, "labels": labels}}
    (tmp_path / "one" / "run.json").write_text(json.dumps(run))
    report.write(tmp_path / "out", predictors)
    pdf = pypdfium2.PdfDocument(tmp_path / "out" / "report.pdf")
    boxes = [each.get_bounds() for page in pdf for each in page.get_objects([1, 3])]  # text and images
    assert min(bottom for _, bottom, *_ in boxes) > 20 and max(top for *_, top in boxes) < 842 - 20  # points, of A4
    text = (tmp_path / "out" / "report.md").read_text()
    assert "16 of 100" in text and "is recommended" not in text
    assert "| one | class 0" not in text and "| class 1, with a name of some length | 29 |" in text  # confusions
    assert not (tmp_path / "out" / "figures" / "confusion.png").exists()  # 100 classes would not be readable
    check_slides(tmp_path / "out" / "slides.pptx")


def test_without_optional_parts(tmp_path):
    predictors = lay_out(
        tmp_path, ["one"], corrupted=None, ood=None, photographs=[], temperature=None, before_temperature=None
    )
    [folder] = predictors
    for name in ("run.json", "metrics.jsonl"):
        (Path(folder) / name).unlink()
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    for key in ("weighted", "top_k_accuracy", "nll", "brier", "ece", "reliability", "mistakes", "confused"):
        del evaluation["models"][0][key]
    del evaluation["comparisons"], evaluation["average"]
    (tmp_path / "out" / "evaluation.json").write_text(json.dumps(evaluation))
    report.write(tmp_path / "out", predictors)
    text = (tmp_path / "out" / "report.md").read_text()
    titles = re.findall("^## (.*)", text, re.MULTILINE)
    assert titles == [
        "Summary",
        "Results",
        "Confused classes",
        "Classes",
        "Cost",
        "Data and preprocessing",
        "Architecture",
    ]
    check_slides(tmp_path / "out" / "slides.pptx")


def test_transfer_is_compared_with_scratch(tmp_path):
    comparisons = [compared("one", "two", 0.01, 0.0051, 0.0162)]
    predictors = lay_out(tmp_path, ["one", "two"], comparisons=comparisons)
    run = json.loads((tmp_path / "two" / "run.json").read_text())
    del run["settings"]["model"]
    (tmp_path / "two" / "run.json").write_text(json.dumps(run | {"train_seconds": 2 * RUN["train_seconds"]}))
    report.write(tmp_path / "out", predictors, formats=["md"])
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Fine-tuning one took 13 min, training two from scratch 25 min." in text
    gpu = RUN["machine"] | {"accelerator": "NVIDIA H200"}
    (tmp_path / "one" / "run.json").write_text(json.dumps(RUN | {"machine": gpu}))
    report.write(tmp_path / "out", predictors, formats=["md"])
    text = (tmp_path / "out" / "report.md").read_text()
    assert (
        "one took 13 min on NVIDIA H200, training two from scratch 25 min; the machines differ, so compare the compute"
        in text
    )
    assert "/elsewhere" not in text


def test_findings_follow_from_the_numbers(tmp_path):
    predictors = lay_out(tmp_path, ["one", "two"], times=(8.0, 2.0))
    path = tmp_path / "out" / "evaluation.json"
    evaluation = json.loads(path.read_text())
    evaluation["models"][1]["corrupted"] = {
        "n": 50,
        "clean": 0.84,
        "accuracy": {"shift": [0.9, 0.6], "fog": [1.0, 0.7]},
    }
    evaluation["models"][1]["ood"] = {"energy": {"blobs": {"auroc": 0.95, "fpr95": 0.2}}}
    path.write_text(json.dumps(evaluation))
    report.write(tmp_path / "out", predictors, formats=["md"])
    text = (tmp_path / "out" / "report.md").read_text()
    summary = text.split("\n## ")[1]
    mean = (0.81 + 0.7 + 0.6123 + 0.8 + 0.79 + 0.7777) / 6
    assert f"two has the highest mean accuracy (80.00%) and one the lowest ({mean:.2%})" in text
    assert f"is +{100 * (0.8 - mean):.2f} percentage points; on the same images without corruption it is -1.17." in text
    assert "two detects images that show none of the classes (out-of-distribution, OOD) best" in summary
    assert "(AUROC) of 0.950" in summary
    assert "two is the fastest: it takes 0.25 times as long as one and is 1.00 percentage points less" in summary
    assert f"All models confuse {' with '.join(sorted(LABELS[:2]))}." in summary


def test_corruptions_that_were_trained_on_are_told_apart_by_hand():
    """Trained with noise and blur: of the four, only fog is unseen, with a mean of 0.6."""
    recipes = [{"noise": 0.1}, {"degraded": 0.5, "noise": 0.0}]
    assert performance.seen_corruptions(recipes[:1]) == ("noise",) and performance.seen_corruptions([{}]) == ()
    seen = performance.seen_corruptions(recipes)
    accuracy = {"shot_noise": [0.9, 0.9], "zoom_blur": [0.9, 0.9], "fog": [0.7, 0.5], "contrast": [1.0, 1.0]}
    result = CorruptedAccuracy(n=50, clean=0.9, accuracy=accuracy, mean_ci95=(0.7, 0.9))
    text = performance.describe_seen("one", seen, result)
    assert text.startswith("one saw noise, blur and low contrast in training.") and text.endswith("accuracy is 60.00%.")
    assert performance.mean_cell(result) == "85.00% (70.00% to 90.00%)"


def test_the_summary_has_the_score_that_the_app_uses(tmp_path):
    """And not the best of all, which was chosen by its figures on the same images."""
    found = {"energy": {"blobs": {"auroc": 0.912, "fpr95": 0.34}}, "vim": {"blobs": {"auroc": 0.95, "fpr95": 0.2}}}
    predictors = lay_out(tmp_path, ["one"], ood=found)
    report.write(tmp_path / "out", predictors, formats=["md"])
    text = (tmp_path / "out" / "report.md").read_text()
    assert "(AUROC) of 0.912" in text.split("\n## ")[1] and "The highest is 0.950, by ViM." in text
    assert "Of 70 photographs as users send them, one labels 95.71% correctly." in text.split("\n## ")[1]


def empty_part(page: pypdfium2.PdfPage) -> float:
    """The height of the largest gap between things on a page, relative to the height of its text area."""
    pixels = np.asarray(page.render(scale=1).to_pil().convert("L"))  # (842, 595), a pixel per point
    rows = np.flatnonzero((pixels[51:785] < 200).any(axis=1))  # without the margins and the page number
    return np.diff(rows, prepend=0, append=785 - 51).max() / (785 - 51)


def test_committed_report_is_compact():
    pdf = pypdfium2.PdfDocument(ROOT / "report" / "report.pdf")
    first = " ".join(pdf[0].get_textpage().get_text_range().split())
    recommendation = re.search(r"^- \*\*(.*)\*\*$", (ROOT / "report" / "report.md").read_text(), re.MULTILINE)[1]
    assert recommendation.endswith("significantly higher than that of any other model.") and recommendation in first
    assert len(pdf) <= 9 and (ROOT / "report" / "report.pdf").stat().st_size < 2e6
    assert max(empty_part(pdf[i]) for i in range(len(pdf) - 1)) < 1 / 3


@pytest.mark.parametrize(
    ("n_models", "labels"),
    [(1, LABELS), (2, [f"{i} 漢字の長い名前" for i in range(10)]), (4, LABELS)],
    ids=["one-model-2-classes", "two-models-10-classes", "four-models-2-classes"],
)
@pytest.mark.filterwarnings("ignore:Glyph")  # a machine without a Japanese font
def test_pages_are_filled_for_other_models_and_classes(tmp_path, n_models, labels):
    predictors = lay_out(tmp_path, ["one", "two", "three", "a model with quite a long name"][:n_models], labels)
    report.write(tmp_path / "out", predictors, splits_of(labels), heat_map=lambda _, image: image, formats=["pdf"])
    pdf = pypdfium2.PdfDocument(tmp_path / "out" / "report.pdf")
    assert max(empty_part(pdf[i]) for i in range(len(pdf) - 1)) < 0.4
    assert (tmp_path / "out" / "figures" / "confusion.png").exists() == (len(labels) <= 10)


def test_commands_include_the_averaging_of_weights(tmp_path):
    predictors = lay_out(tmp_path, ["one"])
    measured = {"model_sha256": "0" * 64, "accuracy": 0.9, "nll": 0.3, "taken": True}
    averaged = {
        "command": "-m classifier.average runs/two --stages runs/one --output_dir runs/mean",
        "commit": "f00d+",
        "models": [measured | {"model": "two"}, measured | {"model": "one"}],
    }
    (tmp_path / "one" / "run.json").write_text(json.dumps(RUN | {"averaged": averaged}))
    report.write(tmp_path / "out", predictors, formats=["md"])
    text = (tmp_path / "out" / "report.md").read_text()
    commands = text.split("## Reproduction")[1]
    assert f"git checkout f00d\npython {averaged['command']}\n```" in commands
    assert "The code differed from the commit below in the training or averaging of stage 1 of one." in commands
    assert "| weights | mean of two and one |" in text


def test_epochs_are_those_that_a_run_took(tmp_path):
    """By --max_steps it ended after 0.42 of an epoch, whatever --num_train_epochs says."""
    predictors = lay_out(tmp_path, ["one"])
    stopped = {"settings": RUN["settings"] | {"num_train_epochs": 6, "max_steps": 320}}
    (tmp_path / "one" / "run.json").write_text(json.dumps(RUN | stopped | {"recipe": {"sizes": [[0.41775, 224]]}}))
    report.write(tmp_path / "out", predictors, formats=["md"])
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| epochs | 0.418 |" in text and "| epochs by image size | 0.418 at 224 |" in text


def test_a_slide_counts_the_commands_that_do_not_fit(tmp_path):
    first, commands = Section("Summary", []), CommandBlock([f"python train.py --seed {i}" for i in range(99)])
    slides.write(tmp_path / "a.pptx", "title", "", [first, Section("Again", [], [], [commands])], tmp_path, report.DATE)
    *_, slide = check_slides(tmp_path / "a.pptx").slides
    *lines, last = slide.shapes[-1].text_frame.text.split("\n")
    assert 20 < len(lines) < 40 and lines == commands.lines[: len(lines)]
    assert last == f"# {99 - len(lines)} more lines are in the report"


def test_layers_sum_up_to_the_model(tmp_path):
    predictor = load_predictor(save_tiny_cnn(tmp_path / "one"))
    layers = architecture.trace(predictor)
    assert sum(layer.n_parameters for layer in layers) == predictor.n_parameters
    assert [layer.kind for layer in layers][0 :: len(layers) - 1] == ["Conv2d", "Linear"]
    assert layers[-1].shape == (len(predictor.labels),)


def test_errors_say_what_to_do(tmp_path):
    with pytest.raises(ModelError, match="run evaluate"):
        report.write(tmp_path, {})
    with pytest.raises(ModelError, match="no format html: choose from md, pdf, pptx"):
        report.write(tmp_path, {}, formats=["html"])


def test_labels_with_dollar_signs_are_drawn_literally(tmp_path):
    """matplotlib would take the text between two dollar signs for a formula."""
    for labels in (["$5-$10", "a$5_$"], ["$\\frac$", "$x_1$"]):
        figures.save_confusion(tmp_path / "dollars", np.array([[3, 1], [2, 4]]), labels)
        svg = (tmp_path / "dollars.svg").read_text()
        assert all(f"<!-- {label} -->" in svg for label in labels)


@pytest.mark.parametrize("names", [["one"], ["one", "two"]], ids=["a model", "two models"])
def test_a_class_without_test_images_is_named(tmp_path, names):
    predictors = lay_out(tmp_path, names)
    path = tmp_path / "out" / "evaluation.json"
    evaluation = json.loads(path.read_text())
    for model in evaluation["models"]:
        model["per_class"][LABELS[1]] = {"precision": None, "recall": None, "f1": None, "n": 0}
        model["confusion_matrix"][1] = [0] * len(LABELS)
    path.write_text(json.dumps(evaluation))
    report.write(tmp_path / "out", predictors)
    text = (tmp_path / "out" / "report.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    [row] = [row for row in rows if row[-1].startswith("no images")]
    assert row[1:4] == ["–", "–", "–"] and len(rows) > len(LABELS)
    assert f"No test image is of {LABELS[1]}: macro values are means over the other {len(LABELS) - 1} classes." in text
    check_slides(tmp_path / "out" / "slides.pptx")
    plain = figures.rows_of(np.array(evaluation["models"][0]["confusion_matrix"]), LABELS)
    assert plain == [f"{label} (no images)" if i == 1 else label for i, label in enumerate(LABELS)]
