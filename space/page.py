"""The page: drop pictures, see what the models make of them. Layout, and what a click does; the work is done elsewhere."""

import base64
import functools
import io
import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import gradio as gr
from PIL import Image

from classifier import pixels
from classifier.predictor import Predictor
from space import about, cells, compare, intake, look, sweep
from space.ahead import Ahead
from space.classify import TOP_K, Endpoints, as_messages, uploads, write_csv
from space.rows import KINDS, Row, Visit, classify_all, counts, picked, table, write_json

EXAMPLES = sorted(
    path
    for path in (Path(__file__).resolve().parent.parent / "examples").glob("*")
    if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"}
)
RUNS = 4  # of pages that are worked on; each holds some images in memory
MOST = 2000  # pictures on a page, four times as many as come at once: each takes memory for as long as the visit is kept
AT_ONCE = 32  # calls of /classify that are worked on: they decode, and share batches
TELL_EVERY_S = 0.5  # between two states of a page that classifies
UNSURE = 80  # percent: below, a picture counts as unsure until the visitor says otherwise


def build(predictors: dict[str, Predictor], ahead: Ahead, notices: Sequence[str] = ()) -> gr.Blocks:
    """The page and the API over `predictors`, the first of them the default. `serving.serve` launches it.

    `notices` are lines for the visitor, such as that the Hub can't be reached.
    """
    api = Endpoints(predictors, ahead)
    default = next(iter(predictors))
    labels = list(dict.fromkeys(label for predictor in predictors.values() for label in predictor.labels))
    examples = [path for path in EXAMPLES if path.stem.rpartition("_")[0] in labels]
    minutes = (sweep.KEPT_S + sweep.EVERY_S) // 60

    with gr.Blocks(title="Image classifier", analytics_enabled=False, delete_cache=(sweep.EVERY_S, sweep.KEPT_S)) as demo:
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
                            [(words, key) for key, words in KINDS.items()], value="all", label="Show", scale=5, min_width=340
                        )
                        below = gr.Slider(1, 100, value=UNSURE, step=1, label="Unsure below, %", buttons=[], scale=2)
                        label = gr.Dropdown([("All labels", ""), *labels], value="", label="Label", scale=2, min_width=160)
                    with gr.Row(elem_id="answer"):
                        with gr.Column(scale=3, min_width=300):
                            gallery = cells.gallery()
                        with gr.Column(scale=2, min_width=300):
                            detail = gr.HTML(elem_id="detail", apply_default_css=False)
                    with gr.Accordion("Pictures of each label", open=True, elem_id="counts"):
                        plot = gr.HTML(elem_id="plot", apply_default_css=False)
                    with gr.Accordion("All results as a table", open=False, elem_id="details"):
                        grid = cells.table()
                    with gr.Row(elem_id="takeaway"):
                        as_csv = gr.DownloadButton("Download CSV", min_width=140, elem_id="csv")
                        as_json = gr.DownloadButton("Download JSON", min_width=140, elem_id="json")
                with gr.Column(visible=bool(examples), elem_id="try"):
                    gr.HTML("<p>Or try one of these</p>")
                    thumbnails = gr.HTML(thumbs(examples), js_on_load=THUMBS_JS, elem_id="examples", apply_default_css=False)
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
        everything = [files, progress, results, several, detail, plot, comparison, *shown]

        def filtered(visit: Visit, model: str, top_k: int, kind: str, below: float, label: str) -> list:
            """New values of `shown`."""
            predictor, top_k = api.predictor(model), api.checked_top_k(top_k)
            indices = picked(visit.rows, predictor.name, label or None, kind, below / 100)
            rows = table(visit.rows, indices, predictor.name, top_k)
            n = f"{len(indices)} {'row' if len(indices) == 1 else 'rows'}"
            return [
                gr.HTML(
                    cells.gallery_cells(visit.rows, indices, predictor.name),
                    chosen=-1 if visit.chosen is None else visit.chosen,
                ),
                cells.summary(visit.rows, indices, predictor.name, below / 100),
                cells.table_cells(visit.rows, indices, predictor.name, top_k),
                gr.DownloadButton(f"Download CSV ({n})", value=write_csv(rows)),
                gr.DownloadButton(f"Download JSON ({n})", value=write_json(rows)),
            ]

        def show(visit: Visit, *values) -> list:
            """New values of `everything`, of a visit that waits for nothing."""
            visit.choose()
            return [
                None,
                "",
                gr.Column(visible=bool(visit.rows)),
                gr.Row(visible=len(visit.rows) > 1),
                in_depth(visit, *values[:2]),
                cells.count_bars(counts(visit.rows, api.predictor(values[0]).name)),
                compare.cells(visit.rows, predictors),
                *filtered(visit, *values),
            ]

        def in_depth(visit: Visit, model: str, top_k: int) -> str:
            """The chosen picture's bars, without what takes time."""
            if visit.chosen is None:
                return ""
            return look.describe(visit.rows[visit.chosen], api.predictor(model).name, api.checked_top_k(top_k))

        def add(new: Sequence[tuple[str, str]], visit: Visit, *values) -> Iterator[dict]:
            """Classifies, and tells how far it is; the last of the yields is what `show` gives."""
            if len(visit.rows) + len(new) > MOST:
                raise gr.Error(f"{MOST:,} pictures at most are on the page: clear it first", print_exception=False)
            stopped, since, began, told = visit.stopped, len(visit.rows), time.monotonic(), 0.0
            yield {files: None, progress: cells.progress_bar(0, len(new), 0)}
            with as_messages():
                for done, row in enumerate(classify_all(api.batchers, new), start=1):
                    if visit.stopped != stopped:
                        break  # and not return: gradio shows what was yielded last once more
                    visit.rows.append(row)
                    seconds = time.monotonic() - began
                    if seconds - told > TELL_EVERY_S or not told:
                        told = seconds
                        yield {
                            progress: cells.progress_bar(done, len(new), seconds),
                            results: gr.Column(visible=True),
                            gallery: cells.gallery_cells(visit.rows, range(len(visit.rows)), api.predictor(values[0]).name),
                        }
            visit.choose(since)
            yield dict(zip(everything, show(visit, *values), strict=True))

        def in_pictures(visit: Visit, model: str, top_k: int) -> Iterator[str]:
            """The chosen picture's bars, and as soon as they are there what each model saw and where it looked."""
            visit.shown = model, top_k
            yield in_depth(visit, *visit.shown)
            if visit.chosen is not None and not visit.rows[visit.chosen].figures:
                row, figures = visit.rows[visit.chosen], {}
                with as_messages():
                    for name in row.tops:
                        image = pixels.decode(row.path, reduce_to=predictors[name].reduce_to)
                        with api.turn:
                            figures[name] = look.look(predictors[name], row, image)
                row.figures.update(figures)
            yield in_depth(visit, *visit.shown)  # which may be another picture's, or another model's, by now

        def choose(event: gr.EventData, visit: Visit, model: str, top_k: int) -> Iterator[str]:
            if event.index in range(len(visit.rows)):
                visit.chosen = event.index
            yield from in_pictures(visit, model, top_k)

        def upload(files, visit, *values):
            yield from add(uploads(files), visit, *values)

        def try_example(event: gr.EventData, visit, *values):
            path = examples[event.index]
            yield from add([(str(path), path.name)], visit, *values)

        def refuse(event: gr.EventData, visit: Visit, *values) -> dict:
            """Names the pictures that the browser does not send; those beside them may be on their way."""
            reason = f"more than {pixels.MAX_BYTES / 1e6:.0f} MB"
            visit.rows += [Row(str(name), "", error=reason) for name in event.names[: MOST - len(visit.rows)]]
            changed = dict(zip(everything, show(visit, *values), strict=True))
            del changed[files], changed[progress]
            return changed

        def halt(visit: Visit, *values) -> list:
            visit.stopped += 1
            return show(visit, *values)

        def forget(visit: Visit, *values) -> list:
            visit.rows = []  # and not emptied: who shows them just now goes on with the old ones
            visit.chosen = None
            model, top_k, *_ = values
            return [*halt(visit, model, top_k, *unfiltered), *unfiltered]

        def change_model(visit: Visit, *values) -> list:
            return [describe(api.predictor(values[0])), *show(visit, *values)]

        @functools.cache
        def drawn() -> list[str]:
            with as_messages():
                each = predictors.values()
                return [*map(about.figures, each), *map(about.card_text, each)]

        page_only = {"api_visibility": "private", "show_progress": "hidden"}
        state = [visit, *filters]
        waits = {"api_visibility": "private", "show_progress_on": files}
        waits |= {"concurrency_limit": RUNS, "concurrency_id": "pages"}
        every = {"preprocess": False, "trigger_mode": "multiple"}  # or an upload that ends beside another would be left out
        for run in (
            files.upload(upload, [files, *state], everything, **every, **waits),
            thumbnails.click(try_example, state, everything, **waits),
        ):
            run.success(in_pictures, [visit, model, top_k], detail, **page_only)
            run.failure(show, state, everything, **page_only)
        stop.click(halt, state, everything, **page_only).then(in_pictures, [visit, model, top_k], detail, **page_only)
        clear.click(forget, state, [*everything, kind, below, label], **page_only)
        model.input(change_model, state, [header, *everything], **page_only).then(
            in_pictures, [visit, model, top_k], detail, **page_only
        )
        top_k.input(show, state, everything, trigger_mode="always_last", **page_only).then(  # not release: keys don't cause it
            in_pictures, [visit, model, top_k], detail, trigger_mode="always_last", **page_only
        )
        gr.on([kind.input, label.input], filtered, state, shown, trigger_mode="always_last", **page_only)
        below.input(
            lambda visit, model, top_k, below, label: ["unsure", *filtered(visit, model, top_k, "unsure", below, label)],
            [visit, model, top_k, below, label],
            [kind, *shown],
            trigger_mode="always_last",
            **page_only,
        )
        for pictures in (gallery, grid):
            pictures.click(choose, [visit, model, top_k], detail, trigger_mode="always_last", **page_only)
        ways.crowd(intake.warn_crowd, None, None, **page_only)
        ways.blind(intake.warn_blind, None, None, **page_only)
        ways.refused(refuse, state, everything, **page_only)
        about_tab.select(drawn, None, [*plots, *cards], api_visibility="private")

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
element.addEventListener('click', async event => {
  const button = event.target.closest('button');
  if (!button) return;
  while (document.querySelector('#progress [role=progressbar]')) await new Promise(done => setTimeout(done, 200));
  trigger('click', {index: Number(button.dataset.index)});
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
            pixels.to_rgb(image, reduce_to=THUMB).save(file, "JPEG", quality=80)
        data = base64.b64encode(file.getvalue()).decode()
        name = escape(path.stem.replace("_", " "))
        items.append(
            f'<li><button type="button" data-index="{index}" title="{name}">'
            f'<img src="data:image/jpeg;base64,{data}" alt="Example: {name}"></button></li>'
        )
    return f"<ul>{''.join(items)}</ul>"
