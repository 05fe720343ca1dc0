"""A visit: which pictures pass the filters, what is counted, and the tables to download."""

import json
from pathlib import Path

import pytest

from space import session
from space.pictures import Picture
from space.session import Settings, Visit


def made(first: str, score: float, second: str, known: bool = True) -> Picture:
    """A picture whose best label is `first` by model a, and `second` by model b."""
    top_labels = {"a": [{"label": first, "score": score}], "b": [{"label": second, "score": 0.9}]}
    return Picture("x.jpg", top_labels=top_labels, known={"a": known, "b": None})


PICTURES = [
    made("cat", 0.9, "cat"),
    made("cat", 0.5, "dog"),
    made("dog", 0.95, "dog", known=False),
    Picture("y.jpg", error="?"),
]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("all", [0, 1, 2, 3]), ("unsure", [1]), ("disagree", [1]), ("unknown", [2]), ("error", [3])],
)
def test_pictures_are_filtered_by_kind(kind, expected):
    assert session.shown_indices(PICTURES, Settings("a", 5, kind)) == expected


def test_pictures_are_filtered_by_label():
    assert session.shown_indices(PICTURES, Settings("a", 5, label="cat")) == [0, 1]


@pytest.mark.parametrize(
    ("order", "expected"),
    [("added", [0, 1, 2, 3]), ("unsure", [1, 0, 2, 3]), ("label", [0, 1, 2, 3]), ("name", [0, 1, 2, 3])],
)
def test_pictures_are_sorted_and_unreadable_ones_come_last(order, expected):
    assert session.shown_indices(PICTURES, Settings("a", 5, order=order)) == expected
    first = [PICTURES[3], PICTURES[2], PICTURES[1]]
    assert session.shown_indices(first, Settings("a", 5, order=order))[-1] == (2 if order == "added" else 0)


def test_labels_are_counted():
    assert session.label_counts(PICTURES, "a") == [("cat", 2), ("dog", 1)]


def test_a_table_has_the_columns_of_the_api_and_whether_models_agree(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    table = session.result_table(PICTURES, [1, 3], "a", 5)
    assert table["headers"] == ["index", "file", "status", "known", "models_agree", "label_1", "probability_1", "error"]
    assert table["data"] == [
        [1, "x.jpg", "ok", True, False, "cat", 0.5, ""],
        [3, "y.jpg", "error", None, None, None, None, "?"],
    ]
    first, second = json.loads(Path(session.write_json(table)).read_text(encoding="utf-8"))
    assert first["label_1"] == "cat" and second["error"] == "?"
    header, *_ = Path(session.write_csv(table)).read_text(encoding="utf-8-sig").splitlines()
    assert header == ",".join(table["headers"])


def test_the_first_readable_picture_of_a_run_is_selected_unless_one_of_it_is_already():
    visit = Visit(pictures=[PICTURES[3], PICTURES[0]])
    visit.select_first()
    assert visit.selected == 1
    visit.pictures += [PICTURES[3], PICTURES[1], PICTURES[2]]
    visit.select_first(since=2)
    assert visit.selected == 3
    visit.selected = 4
    visit.select_first(since=2)
    assert visit.selected == 4
    assert Visit(pictures=[PICTURES[3]]).picture is None
