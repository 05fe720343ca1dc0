"""What the page's components show: progress, numbers, and texts from users, which never become markup."""

import time

import gradio as gr
import pytest

from classifier import load_predictor
from space import compare, components, detail, layout, page
from space.pictures import Picture, PictureClassifier
from space.session import Run, Settings
from tests.helpers.evaluations import write_evaluation
from tests.helpers.models import LABELS, save_tiny_vit


def test_progress_adds_up_runs_and_estimates_the_time_left():
    began = time.monotonic() - 6.5
    runs = [Run(total=150, done=130, began=began), Run(total=50, done=7, began=began + 3)]
    assert "<p>137 of 200, 3 s left</p>" in components.progress_bar(runs)
    assert "<p>0 of 200</p>" in components.progress_bar([Run(total=200)])
    assert components.progress_bar([]) == ""


@pytest.mark.parametrize(("share", "text"), [(0.98766, "98.8%"), (0.99996, "99.99%"), (1.0, "100%"), (0.0004, "0.0%")])
def test_only_certainty_is_100_percent(share, text):
    assert components.percent(share) == text


def test_the_table_has_a_row_for_each_picture():
    top_labels = {
        "a": [{"label": "cat", "score": 0.5}, {"label": "dog", "score": 0.3}],
        "b": [{"label": "cat", "score": 1}],
    }
    pictures = [
        Picture("x.jpg", top_labels=top_labels, known={"a": False, "b": None}),
        Picture("y.jpg", error="not an image"),
    ]
    table = components.table_value(pictures, [1, 0], Settings("a", 5))
    assert table["data"] == [
        [2, "", "", "y.jpg", "error: not an image", "", ""],
        [1, "cat", "50.0%", "x.jpg", "like none of the labels", "dog 30.0%", "agree"],
    ]


def test_the_comparison_shows_disagreements_first():
    def made(name: str, first: str, second: str) -> Picture:
        top_labels = {"a": [{"label": first, "score": 0.5}], "b": [{"label": second, "score": 0.75}]}
        return Picture(name, preview="p.jpg", top_labels=top_labels, known={"a": True, "b": False})

    pictures = [made("x.jpg", "cat", "cat"), made("y.jpg", "cat", "dog"), Picture("z.jpg", error="?")]
    assert compare.describe_disagreement(pictures) == "The models disagree on 1 of 2."
    table = compare.table_value(pictures, {"a": None, "b": None})
    assert [row[1:] for row in table["data"]] == [
        ["<b>cat</b> 50.0%", "<b>dog?</b> 75.0%", "y.jpg"],
        ["<b>cat</b> 50.0%", "<b>cat?</b> 75.0%", "x.jpg"],
    ]
    assert table["metadata"]["styling"] == [[compare.DISAGREE] * 4, [""] * 4]


def test_the_header_links_to_a_static_site_if_there_is_one(tmp_path, monkeypatch):
    predictor = load_predictor(save_tiny_vit(tmp_path / "model"))
    assert "on this device" not in layout.describe_model(predictor)
    monkeypatch.setenv("STATIC_SITE", "https://example.org/?a=1&b=2")
    header = layout.describe_model(predictor)
    assert '<a href="https://example.org/?a=1&amp;b=2" target="_blank">Classify on this device ↗</a>' in header


def test_accuracy_on_photographs_stands_beside_that_on_test(tmp_path):
    """By hand: 30 of 40 and 60 of 60 are 90 of 100."""
    folder = save_tiny_vit(tmp_path / "model")
    tidy = {"folder": "tidy", "n": 60, "n_none": 0, "accuracy": 1.0, "accuracy_ci95": [1.0, 1.0]}
    untidy = {"folder": "untidy", "n": 40, "n_none": 9, "accuracy": 0.75, "accuracy_ci95": [0.6, 0.875]}
    write_evaluation(folder, LABELS, photographs=[tidy, untidy])
    predictor = load_predictor(folder)
    assert "<span>90.0% of 100 photographs</span>" in layout.describe_model(predictor)
    facts = dict(compare.facts_of(predictor))
    assert facts["40 untidy photographs"] == "75.0% <small>60.0% to 87.5%</small>" and "60 tidy photographs" in facts


def test_names_with_markup_are_shown_as_they_are():
    name = "<img src=x onerror=alert(1)>"
    picture = Picture(name, top_labels={"a": [{"label": name, "score": 0.5}]}, known={"a": None})
    shown = [
        detail.describe(picture, "a", 5),
        components.count_bars([(name, 1)]),
        components.failures([Picture(name, error=name)]),
        compare.table_value([picture], {"a": None})["data"][0][1],  # its last cell is text, not HTML
    ]
    assert all("<img" not in html for html in shown)


def test_a_page_of_other_labels(tmp_path):
    predictor = load_predictor(save_tiny_vit(tmp_path / "tiny"))
    predictor.labels = [f"a rather long name of a species, {i}" for i in range(1000)]
    blocks = page.build(PictureClassifier({"tiny": predictor}))
    assert isinstance(blocks, gr.Blocks)
    by_id = {
        component["props"].get("elem_id"): component["props"] for component in blocks.get_config_file()["components"]
    }
    assert by_id["try"]["visible"] is False, "the examples have CIFAR-10's labels"
    assert "1,000 labels" in by_id["header"]["value"] and "species" not in by_id["header"]["value"]
