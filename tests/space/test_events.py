"""Each event handler of the page, called without a browser or a server."""

import csv
import json
from pathlib import Path

import gradio as gr
import pytest

from classifier import load_predictor
from space import events, layout
from space.endpoints import Endpoints
from space.events import PageEvents
from space.pictures import Picture, PictureClassifier
from space.session import Run, Settings, Visit
from tests.helpers.models import save_tiny_vit
from tests.helpers.pictures import encoded, picture
from tests.helpers.running_app import THRESHOLD

CONTROLS = {"model": "first", "top_k": 5, "kind": "all", "below": 80, "label": "", "order": "added"}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> PictureClassifier:
    """Two random models; `first` has an out-of-distribution threshold."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_vit(folder / "first", ood={"threshold": THRESHOLD})
    save_tiny_vit(folder / "second", seed=1)
    return PictureClassifier({name: load_predictor(folder / name) for name in ("first", "second")})


@pytest.fixture
def page(classifier, tmp_path, monkeypatch) -> PageEvents:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    with gr.Blocks():
        return PageEvents(layout.build(classifier), Endpoints(classifier))


@pytest.fixture
def files(tmp_path) -> list[dict]:
    """Three uploads as gradio describes them; the second one is broken."""
    contents = [encoded(picture(0)), b"no image", encoded(picture(2))]
    for i, content in enumerate(contents):
        (tmp_path / f"{i}.png").write_bytes(content)
    return [{"path": str(tmp_path / f"{i}.png"), "orig_name": f"IMG_{i}.png"} for i in range(len(contents))]


def event(**data: object) -> gr.EventData:
    """An event as the browser sends it."""
    return gr.EventData(None, data)


def two_pictures(visit: Visit) -> Visit:
    """Adds a picture that both models call cat, and one that they disagree about."""
    for first, second, score in (("cat", "cat", 0.9), ("dog", "cat", 0.6)):
        top_labels = {"first": [{"label": first, "score": score}], "second": [{"label": second, "score": 0.9}]}
        visit.pictures.append(Picture("a.png", top_labels=top_labels, known={"first": True, "second": None}))
    return visit


def test_upload_classifies_the_files_and_selects_the_first(page, classifier, files):
    visit = Visit()
    first, *_, last = page.upload(visit=visit, files=files, **CONTROLS)
    assert first[page.page.files] is None and "0 of 3" in first[page.page.progress]
    assert last[page.page.progress] == "" and page.page.files not in last
    assert [picture.name for picture in visit.pictures] == ["IMG_0.png", "IMG_1.png", "IMG_2.png"]
    for name, predictor in classifier.predictors.items():
        expected = predictor(files[0]["path"], top_k=10)
        assert [entry["label"] for entry in visit.pictures[0].top_labels[name]] == [
            entry["label"] for entry in expected
        ]
        scores = [entry["score"] for entry in visit.pictures[0].top_labels[name]]
        assert scores == pytest.approx([entry["score"] for entry in expected], abs=1e-4)
    assert visit.pictures[1].error and not visit.pictures[1].top_labels
    assert visit.selected == 0 and visit.runs == []
    assert "1 of 3 could not be read" in last[page.page.summary]


def test_upload_needs_files(page):
    with pytest.raises(gr.Error, match="no files"):
        next(page.upload(visit=Visit(), files=None, **CONTROLS))


def test_a_page_that_would_be_too_full_is_refused(page, files, monkeypatch):
    monkeypatch.setattr(events, "MAX_PICTURES", 2)
    visit = Visit()
    with pytest.raises(gr.Error, match="2 pictures at most"):
        list(page.upload(visit=visit, files=files, **CONTROLS))
    assert visit.pictures == []


def test_an_example_is_classified_under_its_name(page):
    visit = Visit()
    *_, last = page.classify_example(example=1, visit=visit, **CONTROLS)
    assert [picture.name for picture in visit.pictures] == [page.page.example_paths[1].name]
    assert last[page.page.results] and visit.selected == 0


def test_an_example_that_is_clicked_during_an_upload_is_selected(page, files):
    visit = Visit()
    upload = page.upload(visit=visit, files=files, **CONTROLS)
    example = page.classify_example(example=1, visit=visit, **CONTROLS)
    next(upload)
    next(example)  # both have begun, and have no picture yet
    list(upload)
    list(example)
    assert visit.picture and visit.picture.name == page.page.example_paths[1].name


@pytest.mark.parametrize("index", [-1, 1000, None, True, "1"])
def test_an_example_that_does_not_exist_is_refused(page, index):
    with pytest.raises(gr.Error, match="no files"):
        next(page.classify_example(example=index, visit=Visit(), **CONTROLS))


def test_stop_keeps_what_is_classified_and_ends_the_run(page, files):
    visit = Visit()
    run = page.upload(visit=visit, files=files, **CONTROLS)
    next(run)
    next(run)  # after the first picture
    update = page.stop(visit=visit, **CONTROLS)
    assert update[page.page.progress] == ""
    list(run)
    assert len(visit.pictures) == 1 and visit.selected == 0


def test_a_model_that_is_not_given_is_the_default(page):
    update = page.change_model(visit=Visit(), **CONTROLS | {"model": None})
    assert "<b>first</b>" in update[page.page.header]


def test_clear_during_a_run_leaves_an_empty_page(page, files):
    visit = Visit()
    run = page.upload(visit=visit, files=files, **CONTROLS)
    next(run)
    next(run)
    update = page.clear(visit=visit, **CONTROLS | {"kind": "error", "label": "cat"})
    filters = (page.page.kind, page.page.below, page.page.label, page.page.order)
    assert [update[component] for component in filters] == ["all", 80, "", "added"]
    *_, last = run
    assert visit.pictures == [] and visit.picture is None and visit.settings.label == ""
    assert last[page.page.detail] == ""


def test_a_run_ends_with_the_settings_that_were_changed_meanwhile(page, files):
    visit = Visit()
    run = page.upload(visit=visit, files=files[:1], **CONTROLS)
    next(run)
    update = page.change_model(visit=visit, **CONTROLS | {"model": "second"})
    assert "<b>second</b>" in update[page.page.header]
    *_, last = run
    top = visit.pictures[0].top_labels["second"][0]["label"]
    assert top in str(last[page.page.gallery].value) and visit.settings.model == "second"


@pytest.mark.parametrize("change", [lambda visit: visit.set(Settings("second", 3)), lambda visit: visit.select(1)])
def test_values_are_computed_again_if_the_visit_changed_meanwhile(page, change):
    visit, drawn = two_pictures(Visit()), []
    visit.set(Settings("first", 5))

    def draw(visit: Visit) -> dict:
        drawn.append((visit.settings, visit.selected))
        if len(drawn) == 1:  # another event changes the visit while this one draws
            change(visit)
        return {"drawn": drawn[-1]}

    assert page._draw(visit, draw) == {"drawn": (visit.settings, visit.selected)}
    assert len(drawn) == 2 and drawn[0] != drawn[1]


def test_show_uses_the_number_of_labels(page, files):
    visit = Visit()
    list(page.upload(visit=visit, files=files[:1], **CONTROLS))
    update = page.show(visit=visit, **CONTROLS | {"top_k": 2})
    header, *_ = csv.reader(Path(update[page.page.csv].value["path"]).read_text("utf-8-sig").splitlines())
    assert header[5:] == ["label_1", "probability_1", "label_2", "probability_2", "error"]


def test_filters_choose_what_is_shown_and_downloaded(page):
    visit = two_pictures(Visit())
    update = page.filter(visit=visit, **CONTROLS | {"kind": "disagree"})
    rows = json.loads(Path(update[page.page.json].value["path"]).read_text())
    assert [(row["index"], row["label_1"], row["models_agree"]) for row in rows] == [(1, "dog", False)]
    update = page.filter(visit=visit, **CONTROLS | {"label": "cat"})
    rows = json.loads(Path(update[page.page.json].value["path"]).read_text())
    assert [row["index"] for row in rows] == [0]


def test_a_new_limit_shows_the_unsure_pictures(page):
    visit = two_pictures(Visit())
    update = page.filter_unsure(visit=visit, **CONTROLS | {"below": 70})
    assert update[page.page.kind] == "unsure"
    rows = json.loads(Path(update[page.page.json].value["path"]).read_text())
    assert [row["index"] for row in rows] == [1]


@pytest.mark.parametrize(
    "made_up",
    [
        {"model": "third"},
        {"top_k": 11},
        {"kind": "none"},
        {"label": "unicorn"},
        {"below": 0},
        {"below": True},
        {"below": "80"},
        {"order": "size"},
        {"kind": ["all"]},
    ],
)
def test_settings_that_no_page_sends_are_refused(page, made_up):
    with pytest.raises(gr.Error):
        page.show(visit=Visit(), **CONTROLS | made_up)


def test_select_shows_the_picture_of_the_newest_click(page):
    visit = two_pictures(Visit())
    visit.set(Settings("first", 5))
    update = page.select_tile(event(index=1, at=20.0), visit=visit)
    assert visit.selected == 1 and "dog" in update[page.page.detail]
    page.select_tile(event(index=0, at=10.0), visit=visit)  # arrives late
    assert visit.selected == 1
    page.select_tile(event(index=7, at=30.0), visit=visit)  # no such picture
    assert visit.selected == 1


@pytest.mark.parametrize("data", [{}, {"index": "1", "at": 1.0}, {"index": True, "at": 1.0}, {"index": 1, "at": None}])
def test_events_that_no_page_sends_are_refused(page, data):
    with pytest.raises(gr.Error, match="of the event has to be of type"):
        page.select_tile(event(**data), visit=two_pictures(Visit()))


def test_a_row_of_the_table_selects_the_picture_with_its_number(page):
    visit = two_pictures(Visit())
    visit.set(Settings("first", 5))
    update = page.select_row(event(index=[0, 3], row_value=[2, "a.png", "ok"]), visit=visit)
    assert visit.selected == 1 and "dog" in update[page.page.detail]
    for made_up in ([], [0], [3], ["1"], [True]):
        page.select_row(event(row_value=made_up), visit=visit)
        assert visit.selected == 1


def test_pictures_are_sorted(page):
    visit = two_pictures(Visit())
    update = page.filter(visit=visit, **CONTROLS | {"order": "unsure"})
    assert [row[0] for row in update[page.page.table]["data"]] == [2, 1]


def test_explain_adds_a_figure_of_each_model_once(page, files):
    visit = Visit()
    list(page.upload(visit=visit, files=files[:1], **CONTROLS))
    bars, explained = page.explain(visit=visit)
    assert "What first saw" not in bars[page.page.detail]
    for name in ("first", "second"):
        assert f"What {name} saw" in explained[page.page.detail]
    again, _ = page.explain(visit=visit)
    assert again == explained  # without computing them a second time


def test_explain_stops_for_a_picture_that_is_selected_meanwhile(page, files):
    visit = Visit()
    list(page.upload(visit=visit, files=[files[0], files[2]], **CONTROLS))
    explaining = page.explain(visit=visit)
    next(explaining)
    visit.selected = 1
    list(explaining)
    assert visit.pictures[0].figures == {}


def test_files_that_are_too_large_are_listed(page):
    visit = Visit()
    update = page.add_too_large(event(names=["clip.mov", "film.mov"]), visit=visit, **CONTROLS)
    assert [picture.error for picture in visit.pictures] == ["more than 30 MB"] * 2
    assert "clip.mov" in update[page.page.summary]


def test_warnings_name_what_happened(page):
    for warn, data, message in (
        (page.warn_too_many, {"count": 503}, "503 files: the first 500 are taken."),
        (page.warn_no_webcam, {"reason": "<b>denied</b>"}, "The webcam can't be used: &lt;b&gt;denied&lt;/b&gt;"),
        (page.warn_unreadable, {"name": "/a", "count": 3}, "/a can't be read, nor can 2 more"),
    ):
        with pytest.warns(UserWarning, match=message):
            warn(event(**data))


def test_the_models_are_described(page, classifier):
    update = page.describe_models()
    assert len(update) == 2 * len(classifier.predictors) == 2 * len(page.page.models)


def test_progress_adds_up_the_runs_of_a_visit(page, files):
    visit = Visit()
    visit.runs.append(Run(total=60, done=20))
    first, *_ = page.upload(visit=visit, files=files, **CONTROLS)
    assert "20 of 63" in first[page.page.progress]
