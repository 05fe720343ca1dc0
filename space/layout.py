"""The page: drop pictures, see what the models make of them. Layout, and what a click does; the work is done
elsewhere.
"""

import base64
import functools
import io
import time
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from classifier.images.convert import to_rgb
from classifier.images.workers import MAX_BYTES, decode
from classifier.models.predictor import Predictor
from space import about, cleanup, compare, components, validation
from space import detail as look
from space import upload as intake
from space.endpoints import TOP_K, Endpoints, as_messages, uploads, write_csv
from space.prefetch import Prefetcher
from space.session import KINDS, Row, Settings, Visit, classify_all, counts, picked, table, write_json

EXAMPLES = sorted(
    path
    for path in (Path(__file__).resolve().parent.parent / "examples").glob("*")
    if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"}
)
RUNS = 4  # of pages that are worked on; each holds some images in memory
MOST = (
    2000  # pictures on a page, four times as many as come at once: each takes memory for as long as the visit is kept
)
AT_ONCE = 32  # calls of /classify that are worked on: they decode, and share batches
TELL_EVERY_S = 0.5  # between two states of a page that classifies
UNSURE = 80  # percent: below, a picture counts as unsure until the visitor says otherwise


def build(predictors: dict[str, Predictor], ahead: Prefetcher, notices: Sequence[str] = ()) -> gr.Blocks:
    """The page and the API over `predictors`, the first of them the default. `serving.serve` launches it.

    `notices` are lines for the visitor, such as that the Hub can't be reached.
    """
    api = Endpoints(predictors, ahead)
    default = next(iter(predictors))
    labels = list(dict.fromkeys(label for predictor in predictors.values() for label in predictor.labels))
    examples = [path for path in EXAMPLES if path.stem.rpartition("_")[0] in labels]
    minutes = (cleanup.KEEP_S + cleanup.INTERVAL_S) // 60

    with gr.Blocks(
        title="Image classifier", analytics_enabled=False, delete_cache=(cleanup.INTERVAL_S, cleanup.KEEP_S)
    ) as demo:
        visit = gr.State(Visit())
        header = gr.HTML(describe(predictors[default]), elem_id="header")
        gr.HTML("<br>".join(map(escape, notices)), visible=bool(notices), elem_id="models-notice")
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Classify"):
                with gr.Row(elem_id="top"):
                    with gr.Column(scale=3, min_width=300, elem_id="picker"):
                        files = gr.File(label="Pictures", file_count="multiple", height=170, elem_id="files")
                        ways = intake.ways(predictor.reduce_to for predictor in predictors.values())
                    with gr.Column(scale=3, min_width=300, elem_id="working"):
                        progress = gr.HTML(elem_id="progress")
                        stop = gr.Button("Stop", variant="stop", elem_id="stop")
                    with gr.Column(scale=2, min_width=280):
                        model = gr.Dropdown(list(predictors), value=default, label="Model", filterable=False)
                        most = min(10, api.max_top_k)
                        top_k = gr.Slider(1, most, value=min(TOP_K, most), step=1, label="Labels shown", buttons=[])
                with gr.Column(visible=False, elem_id="results") as results:
                    with gr.Row(elem_id="toolbar"):
                        summary = gr.HTML(elem_id="summary", min_width=280, scale=4)
                        clear = gr.Button("Clear", size="md", min_width=100, scale=0)
                    with gr.Row(visible=False, elem_id="filters") as several:
                        kind = gr.Radio(
                            [(words, key) for key, words in KINDS.items()],
                            value="all",
                            label="Show",
                            scale=5,
                            min_width=340,
                        )
                        below = gr.Slider(1, 100, value=UNSURE, step=1, label="Unsure below, %", buttons=[], scale=2)
                        label = gr.Dropdown(
                            [("All labels", ""), *labels], value="", label="Label", scale=2, min_width=160
                        )
                    with gr.Row(elem_id="answer"):
                        with gr.Column(scale=3, min_width=300):
                            gallery = components.gallery()
                        with gr.Column(scale=2, min_width=300):
                            detail = gr.HTML(elem_id="detail", apply_default_css=False)
                    with gr.Accordion("Pictures of each label", open=True, elem_id="counts"):
                        plot = gr.HTML(elem_id="plot", apply_default_css=False)
                    with gr.Accordion("All results as a table", open=False, elem_id="details"):
                        grid = components.table()
                    with gr.Row(elem_id="takeaway"):
                        as_csv = gr.DownloadButton("Download CSV", min_width=140, elem_id="csv")
                        as_json = gr.DownloadButton("Download JSON", min_width=140, elem_id="json")
                with gr.Column(visible=bool(examples), elem_id="try"):
                    gr.HTML("<p>Or try one of these</p>")
                    thumbnails = gr.HTML(
                        thumbs(examples), js_on_load=THUMBS_JS, elem_id="examples", apply_default_css=False
                    )
            with gr.Tab("Compare", visible=len(predictors) > 1):
                gr.HTML(compare.cards(predictors), elem_id="cards", apply_default_css=False)
                comparison = compare.table(predictors)
            with gr.Tab("About") as about_tab:
                plots, cards = [], []
                for predictor in predictors.values():
                    gr.HTML(about.describe(predictor), elem_classes="about", apply_default_css=False)
                    plots.append(gr.HTML(elem_classes="about", apply_default_css=False))
                    with gr.Accordion(f"Card of {predictor.name}", open=False):
                        cards.append(gr.Markdown(header_links=False))
                gr.HTML(about.privacy(minutes), elem_classes="about")
        gr.HTML(f"Your pictures are deleted from the server within {minutes} minutes.", elem_id="footer")

        filters, unfiltered = [model, top_k, kind, below, label], ["all", UNSURE, ""]
        shown = [gallery, summary, grid, as_csv, as_json]
        everything = [results, several, detail, plot, comparison, *shown]

        def checked(model: Any, top_k: Any, kind: Any, below: Any, label: Any) -> Settings:
            """What the page is set to. Raises gr.Error for what it can't be set to: a script may say anything."""
            model, top_k = api.predictor(model).name, api.checked_top_k(top_k)
            if (
                kind not in KINDS
                or label not in ("", *labels)
                or type(below) not in (int, float)
                or not 0 < below <= 100
            ):
                raise gr.Error("not what Show, Label or Unsure below can be", print_exception=False)
            return Settings(model, top_k, kind, below / 100, label)

        def drawn(visit: Visit) -> list:
            """New values of `everything`."""
            assert visit.settings is not None  # the events that draw set it first
            rows, model = visit.rows, visit.settings.model
            return [
                gr.Column(visible=bool(rows)),
                gr.Row(visible=len(rows) > 1),
                in_depth(visit),
                components.count_bars(counts(rows, model)),
                compare.cells(rows, predictors),
                *drawn_rows(visit),
            ]

        def drawn_rows(visit: Visit) -> list:
            """New values of `shown`."""
            rows, chosen, settings = visit.rows, visit.chosen, visit.settings
            assert settings is not None  # the events that draw set it first
            model, top_k, below = settings.model, settings.top_k, settings.below
            indices = picked(rows, model, settings.label or None, settings.kind, below)
            records = table(rows, indices, model, top_k)
            n = f"{len(indices)} {'row' if len(indices) == 1 else 'rows'}"
            return [
                gr.HTML(components.gallery_cells(rows, indices, model), chosen=-1 if chosen is None else chosen),
                components.summary(rows, indices, model, below),
                components.table_cells(rows, indices, model, top_k),
                gr.DownloadButton(f"Download CSV ({n})", value=write_csv(records)),
                gr.DownloadButton(f"Download JSON ({n})", value=write_json(records)),
            ]

        def as_of_now(draw: Callable[[Visit], list], visit: Visit) -> list:
            """What `draw` gives. Again, if the page was set or cleared, or a run ended meanwhile: that may be shown
            before.
            """
            rows, ended, settings = visit.rows, visit.ended, visit.settings
            values = draw(visit)
            is_so = visit.rows is rows and visit.ended == ended and visit.settings == settings
            return values if is_so else as_of_now(draw, visit)

        def in_depth(visit: Visit) -> str:
            """The chosen picture's bars, without what takes time."""
            row, settings = visit.picture, visit.settings
            return look.describe(row, settings.model, settings.top_k) if row and settings else ""

        def show(visit: Visit, *values) -> list:
            """New values of `everything`, as the page is set."""
            visit.settings = checked(*values)
            visit.choose()
            return as_of_now(drawn, visit)

        def filtered(visit: Visit, *values) -> list:
            """New values of `shown`, as the page is set."""
            visit.settings = checked(*values)
            return as_of_now(drawn_rows, visit)

        def add(new: Sequence[tuple[str, str]], visit: Visit, *values) -> Iterator[dict]:
            """Classifies, and tells how far it is; the last of the yields is all that `drawn` gives."""
            rows, stopped = visit.rows, visit.stopped
            since, began, told = len(rows), time.monotonic(), 0.0
            full = gr.Error(f"{MOST:,} pictures at most are on the page: clear it first", print_exception=False)
            if not new:
                raise gr.Error("no files: choose at least one picture", print_exception=False)
            if since + len(new) > MOST:
                raise full
            visit.settings = visit.settings or checked(*values)
            yield {progress: components.progress_bar(0, len(new), 0)}
            with as_messages():
                for done, row in enumerate(classify_all(api.batchers, new), start=1):
                    if visit.stopped != stopped:
                        break  # and not return: gradio shows what was yielded last once more
                    if len(rows) >= MOST:  # with what came beside
                        raise full
                    rows.append(row)
                    seconds = time.monotonic() - began
                    if seconds - told > TELL_EVERY_S or not told:
                        told, now = seconds, visit.settings
                        indices = picked(rows, now.model, now.label or None, now.kind, now.below)
                        yield {
                            progress: components.progress_bar(done, len(new), seconds),
                            results: gr.Column(visible=True),
                            gallery: components.gallery_cells(rows, indices, now.model),
                        }
            visit.ended += 1
            if visit.rows is rows:  # and not cleared
                visit.choose(since)
            yield {progress: "", **dict(zip(everything, as_of_now(drawn, visit), strict=True))}

        def in_pictures(visit: Visit) -> Iterator[str]:
            """The chosen picture's bars, and as soon as they are there what each model saw and where it looked."""
            yield in_depth(visit)
            row, figures = visit.picture, {}
            if row and not row.figures:
                with as_messages():
                    for name in row.tops:
                        if visit.picture is not row:  # the other is told of by an event of its own
                            break
                        image = decode(row.path, reduce_to=predictors[name].reduce_to)
                        with api.turn:
                            figures[name] = look.look(predictors[name], row, image)
                    else:
                        row.figures.update(figures)
            yield in_depth(visit)  # always, as of now: gradio shows what was yielded last once more

        def choose(event: gr.EventData, visit: Visit) -> str:
            index, at = intake.told(event, "index", int), intake.told(event, "at", int, float)
            if index in range(len(visit.rows)) and at >= visit.clicked:  # they may arrive in another order
                visit.chosen, visit.clicked = index, at
            return in_depth(visit)

        def upload(uploaded, visit, *values):
            run = add(uploads(uploaded), visit, *values)
            yield {**next(run), files: None}  # and at no other time: what comes next may have arrived by then
            yield from run

        def try_example(event: gr.EventData, visit, *values):
            index = intake.told(event, "index", int)
            yield from add([(str(path), path.name) for path in examples[index : index + 1]], visit, *values)

        def refuse(event: gr.EventData, visit: Visit, *values) -> list:
            """Names the pictures that the browser does not send; those beside them may be on their way."""
            rows, names = visit.rows, intake.told(event, "names", list)
            reason = f"more than {MAX_BYTES / 1e6:.0f} MB"
            rows += [
                Row(str(name)[: validation.MAX_NAME], "", error=reason) for name in names[: max(0, MOST - len(rows))]
            ]
            return show(visit, *values)

        def halt(visit: Visit, *values) -> list:
            visit.stopped += 1
            return ["", *show(visit, *values)]

        def forget(visit: Visit, model, top_k, *_) -> list:
            visit.rows, visit.chosen = [], None
            return [*halt(visit, model, top_k, *unfiltered), *unfiltered]

        def change_model(visit: Visit, *values) -> list:
            return [*show(visit, *values), describe(api.predictor(values[0]))]

        def set_below(visit: Visit, model, top_k, below, label) -> list:
            return ["unsure", *filtered(visit, model, top_k, "unsure", below, label)]

        @functools.cache
        def cards_and_plots() -> list[str]:
            with as_messages():
                each = predictors.values()
                return [*map(about.figures, each), *map(about.card_text, each)]

        # gradio leaves out ("once") an event that comes while the same one is answered, unless told otherwise. What
        # tells of itself is answered each time; of what only asks how things are the last is enough, but gradio repeats
        # the first.
        asks: dict[str, Any] = {
            "api_visibility": "private",
            "show_progress": "hidden",
            "preprocess": False,
            "trigger_mode": "always_last",
        }
        tells = asks | {"trigger_mode": "multiple"}
        adds: dict[str, Any] = {
            "api_visibility": "private",
            "show_progress_on": files,
            "preprocess": False,
            "trigger_mode": "multiple",
        }
        adds |= {"concurrency_limit": RUNS, "concurrency_id": "pages"}
        state = [visit, *filters]
        for run in (
            uploaded := files.upload(upload, [files, *state], [files, progress, *everything], **adds),
            thumbnails.click(try_example, state, [progress, *everything], **adds),
        ):
            run.success(in_pictures, visit, detail, **asks)
            run.failure(lambda *state: ["", *show(*state)], state, [progress, *everything], **asks)
        uploaded.failure(lambda: None, None, files, **asks)
        stop.click(halt, state, [progress, *everything], **tells).then(in_pictures, visit, detail, **asks)
        clear.click(forget, state, [progress, *everything, kind, below, label], **tells)
        model.input(change_model, state, [*everything, header], **asks).then(in_pictures, visit, detail, **asks)
        # And not release, which keys don't cause
        top_k.input(show, state, everything, **asks).then(in_pictures, visit, detail, **asks)
        gr.on([kind.input, label.input], filtered, state, shown, **asks)
        below.input(set_below, [visit, model, top_k, below, label], [kind, *shown], **asks)
        for pictures in (gallery, grid):
            pictures.click(choose, visit, detail, concurrency_limit=1, **tells).then(in_pictures, visit, detail, **asks)
        ways.crowd(intake.warn_crowd, None, None, **tells)
        ways.blind(intake.warn_blind, None, None, **tells)
        ways.unread(intake.warn_unread, None, None, **tells)
        ways.refused(refuse, state, everything, **tells)
        about_tab.select(cards_and_plots, None, [*plots, *cards], api_visibility="private")

        with gr.Row(visible=False):  # what only the API takes and gives
            image = gr.File(label="image")
            answer = gr.Label(label="label")
            facts = gr.JSON(label="about")
            gallery_rows = gr.Dataframe(label="table")
            csv_file = gr.File(label="CSV")
            each_model = [gr.Label(label=name) for name in predictors]
        gr.on(
            [],
            api.classify,
            [image, model, top_k],
            [answer, facts],
            api_name="classify",
            preprocess=False,
            concurrency_limit=AT_ONCE,
            concurrency_id="pictures",
        )
        gr.on(
            [],
            api.classify_gallery,
            [files, model, top_k],
            [gallery_rows, csv_file],
            api_name="classify_gallery",
            preprocess=False,
        )
        gr.on(
            [],
            api.compare,
            [image, top_k],
            each_model,
            api_name="compare",
            preprocess=False,
            concurrency_limit=AT_ONCE,
            concurrency_id="pictures",
        )
        gr.api(api.models, api_name="models", queue=False)
    return demo


def describe(predictor: Predictor) -> str:
    """The page's head as HTML: what it does, the model, and how good it is, from its evaluation."""
    labels = ", ".join(predictor.labels) if len(predictor.labels) <= 20 else f"one of {len(predictor.labels):,} labels"
    facts = [f"<b>{escape(predictor.name)}</b>"]
    if predictor.accuracy is not None and predictor.accuracy_ci95 is not None:
        low, high = predictor.accuracy_ci95
        facts.append(f"<span>Test accuracy {predictor.accuracy:.1%} ({low:.1%} to {high:.1%})</span>")
    facts.append(f"<span>{predictor.n_parameters / 1e6:.1f} M parameters</span>")
    if predictor.revision != "local":
        facts.append(f"<span>commit {escape(predictor.revision[:7])}</span>")
    facts.append('<a href="?view=api">API ↗</a>')
    return (
        f"<h1>Image classifier</h1><p>What does your picture show: {escape(labels)}?</p>"
        f'<div class="facts">{"".join(facts)}</div>'
    )


THUMBS_JS = """
element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (!button || event.detail > 1) return;  // a double click is one
  document.inTurn(() => trigger('click', {index: Number(button.dataset.index)}));
});
"""
THUMB = 96  # pixels of the shorter side


def thumbs(paths: Sequence[Path]) -> str:
    """HTML of buttons with small pictures, in one piece: they show with the page."""
    items = []
    for index, path in enumerate(paths):
        file = io.BytesIO()
        with Image.open(path) as image:
            image.draft("RGB", (2 * THUMB, 2 * THUMB))
            to_rgb(image, reduce_to=THUMB).save(file, "JPEG", quality=80)
        data = base64.b64encode(file.getvalue()).decode()
        name = escape(path.stem.replace("_", " "))
        items.append(
            f'<li><button type="button" data-index="{index}" title="{name}">'
            f'<img src="data:image/jpeg;base64,{data}" alt="Example: {name}"></button></li>'
        )
    return f"<ul>{''.join(items)}</ul>"
