"""The page: drop images, see what a model makes of them. Layout, and what a click does; the work is in classify.py."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import gradio as gr

from classifier.predictor import Predictor
from space.classify import TOP_K, Endpoints, Result, as_messages, classify_files, table, uploads, write_csv

EXAMPLES = sorted(
    path
    for path in (Path(__file__).resolve().parent.parent / "examples").glob("*")
    if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"}
)
UPLOADS_KEPT_S = 3600
AT_ONCE = 32  # calls of /classify that are worked on: they decode, and share batches


def build(predictors: dict[str, Predictor], notices: Sequence[str] = ()) -> gr.Blocks:
    """The page and the API over `predictors`, the first of them the default. `serving.serve` launches it.

    `notices` are lines for the visitor, such as that the Hub can't be reached.
    """
    api = Endpoints(predictors)
    default = next(iter(predictors))
    gr.set_static_paths(EXAMPLES)  # served from where they are, not copied

    with gr.Blocks(title="CIFAR-10 classifier", analytics_enabled=False, delete_cache=(600, UPLOADS_KEPT_S)) as demo:
        header = gr.HTML(describe(predictors[default]), elem_id="header")
        gr.HTML("<br>".join(map(escape, notices)), visible=bool(notices), elem_id="models-notice")
        with gr.Row(equal_height=True):
            files = gr.File(label="Images", file_count="multiple", height=180, scale=3, min_width=300, elem_id="files")
            with gr.Column(scale=2, min_width=280):
                model = gr.Dropdown(list(predictors), value=default, label="Model", filterable=False)
                most = min(10, api.max_top_k)
                top_k = gr.Slider(1, most, value=min(TOP_K, most), step=1, label="Labels shown", buttons=[])
        notice = gr.HTML(visible=False, elem_id="notice")
        with gr.Row(visible=False, equal_height=True) as answer:
            gallery = gr.Gallery(
                show_label=False,
                height=440,
                object_fit="cover",
                interactive=False,
                buttons=["fullscreen"],
                scale=3,
                min_width=300,
                elem_id="gallery",
            )
            label = gr.Label(label="Probabilities", scale=2, min_width=280, elem_id="label")
        with gr.Row(visible=False) as actions:
            download = gr.DownloadButton("Download CSV", min_width=120)
            clear = gr.Button("Clear", min_width=120)
        with gr.Accordion("All results as a table", open=False, visible=False) as details:
            rows = gr.Dataframe(interactive=False, max_height=360, show_label=False, elem_id="table")
        gr.HTML("Or try one of these", visible=bool(EXAMPLES), elem_id="try")
        thumbnails = gr.Gallery(
            [(str(path), path.stem) for path in EXAMPLES],  # the caption, which is not shown, is what screen readers say
            show_label=False,
            object_fit="cover",
            allow_preview=False,
            interactive=False,
            buttons=[],
            visible=bool(EXAMPLES),
            elem_id="examples",
        )
        gr.HTML(f"Your images are deleted from the server within {UPLOADS_KEPT_S // 60 + 10} minutes.", elem_id="footer")

        results = gr.State([])  # list[Result], every image of this visit
        chosen = gr.State(0)  # index in results of the image whose probabilities are shown
        shown = [results, chosen, notice, answer, gallery, label, actions, details, rows, download]

        def show(predictor: Predictor, found: list[Result], index: int, top_k: int) -> list:
            """New values of `shown`."""
            top_k = api.checked_top_k(top_k)
            readable = [i for i, result in enumerate(found) if not result.error]
            if readable and index not in readable:
                index = readable[0]
            cells = table(predictor, found, top_k)
            return [
                found,
                index,
                gr.HTML(failures(found), visible=len(readable) < len(found)),
                gr.Row(visible=bool(readable)),
                gr.Gallery(
                    [(found[i].preview, caption(predictor, found[i])) for i in readable],
                    selected_index=0 if len(readable) == 1 else None,
                ),
                probabilities(predictor, found[index], top_k) if readable else gr.Label(None),
                gr.Row(visible=bool(found)),
                gr.Accordion(visible=bool(found)),
                cells,
                write_csv(cells),
            ]

        def classified(predictor: Predictor, files: list[tuple[str, str]], progress: gr.Progress) -> list[Result]:
            results = []
            for result in classify_files(api.batchers[predictor.name], files, previews=True):
                results.append(result)
                progress((len(results), len(files)), desc="images classified")
            return results

        def add(new: list[tuple[str, str]], found: list[Result], model: str, top_k: int, progress: gr.Progress) -> list:
            predictor = api.predictor(model)
            with as_messages():
                found = found + classified(predictor, new, progress)
            first = next((i for i in range(len(found) - len(new), len(found)) if not found[i].error), 0)
            return show(predictor, found, first, top_k)

        def upload(files, found, model, top_k, progress=gr.Progress()):  # noqa: B008  how gradio hands it over
            return [None, *add(uploads(files), found, model, top_k, progress)]

        def try_example(event: gr.SelectData, found, model, top_k, progress=gr.Progress()):  # noqa: B008
            path = EXAMPLES[event.index]
            return add([(str(path), path.name)], found, model, top_k, progress)

        def change_model(found, index, model, top_k, progress=gr.Progress()):  # noqa: B008
            predictor = api.predictor(model)
            if not found:
                return [describe(predictor), *[gr.skip()] * len(shown)]
            with as_messages():
                found = classified(predictor, [(result.path, result.name) for result in found], progress)
            return [describe(predictor), *show(predictor, found, index, top_k)]

        def change_top_k(found, index, model, top_k):
            if not found:
                return [gr.skip()] * 3
            predictor, top_k = api.predictor(model), api.checked_top_k(top_k)
            cells = table(predictor, found, top_k)
            return [
                gr.skip() if found[index].error else probabilities(predictor, found[index], top_k),
                cells,
                write_csv(cells),
            ]

        def choose(event: gr.SelectData, found, model, top_k):
            index = [i for i, result in enumerate(found) if not result.error][event.index]
            return index, probabilities(api.predictor(model), found[index], api.checked_top_k(top_k))

        page_only = {"api_visibility": "private"}
        files.upload(
            upload,
            [files, results, model, top_k],
            [files, *shown],
            preprocess=False,
            show_progress_on=files,
            **page_only,
        )
        thumbnails.select(try_example, [results, model, top_k], shown, show_progress_on=thumbnails, **page_only)
        model.input(change_model, [results, chosen, model, top_k], [header, *shown], show_progress_on=gallery, **page_only)
        top_k.input(  # not release, which keys don't cause
            change_top_k,
            [results, chosen, model, top_k],
            [label, rows, download],
            trigger_mode="always_last",
            show_progress="hidden",
            **page_only,
        )
        gallery.select(choose, [results, model, top_k], [chosen, label], show_progress="hidden", **page_only)
        clear.click(
            lambda model, top_k: show(api.predictor(model), [], 0, top_k),
            [model, top_k],
            shown,
            show_progress="hidden",
            **page_only,
        )

        with gr.Row(visible=False):  # what only the API takes and gives
            image = gr.File(label="image")
            about = gr.JSON(label="about")
            csv_file = gr.File(label="CSV")
        gr.on(
            [],
            api.classify,
            [image, model, top_k],
            [label, about],
            api_name="classify",
            preprocess=False,
            concurrency_limit=AT_ONCE,
        )
        gr.on(
            [],
            api.classify_gallery,
            [files, model, top_k],
            [rows, csv_file],
            api_name="classify_gallery",
            preprocess=False,
        )
        gr.api(api.models, api_name="models", queue=False)
    return demo


def describe(predictor: Predictor) -> str:
    """The page's head as HTML: what it does, the model, and how good it is, from its evaluation."""
    labels = ", ".join(predictor.labels) if len(predictor.labels) <= 20 else f"{len(predictor.labels):,} labels"
    facts = [f"<b>{escape(predictor.name)}</b>"]
    if predictor.accuracy is not None and predictor.accuracy_ci95 is not None:
        low, high = predictor.accuracy_ci95
        facts.append(f"<span>Test accuracy {predictor.accuracy:.1%} ({low:.1%} to {high:.1%})</span>")
    facts.append(f"<span>{predictor.n_parameters / 1e6:.1f} M parameters</span>")
    if predictor.revision != "local":
        facts.append(f"<span>commit {escape(predictor.revision[:7])}</span>")
    facts.append('<a href="?view=api">API ↗</a>')
    return (
        f"<h1>CIFAR-10 classifier</h1><p>Which of these does your picture show: {escape(labels)}?</p>"
        f'<div class="facts">{"".join(facts)}</div>'
    )


def caption(predictor: Predictor, result: Result) -> str:
    """The top label and its probability, with a question mark when the image looks like none of the labels."""
    [top] = predictor.top(result.probabilities, 1)
    doubt = "?" if predictor.is_known(result.probabilities) is False else ""
    return f"{top['label']}{doubt} {top['score']:.0%}"


def probabilities(predictor: Predictor, result: Result, top_k: int) -> gr.Label:
    """The big label of one image."""
    doubt = " · looks like none of the labels" if predictor.is_known(result.probabilities) is False else ""
    top = predictor.top(result.probabilities, top_k)
    return gr.Label({entry["label"]: entry["score"] for entry in top}, label=result.name + doubt)


def failures(results: list[Result]) -> str:
    """HTML that names the files that could not be read, and why."""
    failed = [result for result in results if result.error]
    items = "".join(f"<li><b>{escape(result.name)}</b>: {escape(result.error)}</li>" for result in failed)
    return f"{len(failed)} of {len(results)} could not be read, the others are below:<ul>{items}</ul>"
