"""The components of the page and their arrangement. events.py has what they do."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import gradio as gr

from classifier.models.predictor import Predictor
from space import about, cleanup, compare, components, upload
from space.pictures import PictureClassifier
from space.session import KINDS, ORDERS, Visit

EXAMPLES = sorted(
    path
    for path in (Path(__file__).resolve().parent.parent / "examples").glob("*")
    if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"}
)
TOP_K = 5  # labels shown at first
MAX_TOP_K = 10  # labels shown at most, and labels of each model that are kept of a picture
UNSURE_BELOW = 80  # percent at first: a picture whose best label has less is unsure


@dataclass(frozen=True)
class Components:
    """The components of the page that events read or change, and the files of the examples."""

    visit: gr.State
    header: gr.HTML
    files: gr.File
    upload_buttons: gr.HTML  # a folder, the clipboard, the webcam
    progress: gr.HTML
    stop: gr.Button
    model: gr.Dropdown
    top_k: gr.Slider
    results: gr.Column  # everything that is hidden until there are pictures
    answer: gr.Row  # gallery and detail view
    summary: gr.HTML
    clear: gr.Button
    filters: gr.Row
    kind: gr.Radio
    below: gr.Slider
    label: gr.Dropdown
    order: gr.Dropdown
    gallery: gr.HTML
    detail: gr.HTML
    counts: gr.HTML
    table: gr.Dataframe
    csv: gr.DownloadButton
    json: gr.DownloadButton
    examples: gr.Dataset
    example_paths: Sequence[Path]
    disagreement: gr.HTML
    comparison: gr.Dataframe
    about_tab: gr.Tab
    models: Sequence[tuple[gr.HTML, gr.Markdown]]  # figures and card of each model


def build(classifier: PictureClassifier, notices: Sequence[str] = ()) -> Components:
    """Creates the components in the current gr.Blocks.

    Args:
        classifier: the served models.
        notices: lines to show below the header, such as that the Hub can't be reached.
    """
    predictors = classifier.predictors
    minutes = cleanup.DELETED_WITHIN_S // 60
    max_top_k = min(MAX_TOP_K, max(len(predictor.labels) for predictor in predictors.values()))
    example_paths = [path for path in EXAMPLES if path.stem.rpartition("_")[0] in classifier.labels]

    visit = gr.State(Visit())
    header = gr.HTML(describe_model(predictors[classifier.default]), elem_id="header")
    gr.HTML("<br>".join(map(escape, notices)), visible=bool(notices), elem_id="models-notice")
    with gr.Tabs(elem_id="tabs"):
        with gr.Tab("Classify"):
            with gr.Row(elem_id="top"):
                with gr.Column(scale=3, min_width=300, elem_id="picker"):
                    files = gr.File(label="Pictures", file_count="multiple", height=170, elem_id="files")
                    upload_buttons = upload.upload_buttons(classifier.images.reduce_to)
                with gr.Column(scale=3, min_width=300, elem_id="working"):
                    progress = gr.HTML(elem_id="progress")
                    stop = gr.Button("Stop", variant="stop", elem_id="stop")
                with gr.Column(scale=2, min_width=280):
                    model = gr.Dropdown(list(predictors), value=classifier.default, label="Model", filterable=False)
                    top_k = gr.Slider(
                        1, max_top_k, value=min(TOP_K, max_top_k), step=1, label="Labels shown", buttons=[]
                    )
            with gr.Column(visible=False, elem_id="results") as results:
                with gr.Row(elem_id="toolbar"):
                    summary = gr.HTML(elem_id="summary", min_width=280, scale=4)
                    clear = gr.Button("Clear", size="md", min_width=100, scale=0)
                with gr.Row(visible=False, elem_id="filters") as filters:
                    kinds = [(text, key) for key, text in KINDS.items()]
                    kind = gr.Radio(kinds, value="all", label="Show", scale=6, min_width=340)
                    below = gr.Slider(
                        1, 100, value=UNSURE_BELOW, step=1, label="Unsure below, %", buttons=[], scale=2, min_width=190
                    )
                    labels = [("All labels", ""), *((label, label) for label in classifier.labels)]
                    label = gr.Dropdown(labels, value="", label="Label", scale=2, min_width=140)
                    orders = [(text, key) for key, text in ORDERS.items()]
                    order = gr.Dropdown(
                        orders, value="added", label="Sort by", filterable=False, scale=2, min_width=150
                    )
                with gr.Row(elem_id="answer") as answer:
                    with gr.Column(scale=3, min_width=300):
                        gallery = components.gallery()
                        with gr.Accordion("Pictures of each label", open=True, elem_id="counts"):
                            counts = gr.HTML(elem_id="plot", apply_default_css=False)
                    with gr.Column(scale=2, min_width=300):
                        detail = gr.HTML(elem_id="detail", apply_default_css=False)
                with gr.Accordion("All results as a table", open=False, elem_id="details"):
                    table = components.table()
                with gr.Row(elem_id="takeaway"):
                    csv = gr.DownloadButton("Download CSV", min_width=140, elem_id="csv")
                    json = gr.DownloadButton("Download JSON", min_width=140, elem_id="json")
            with gr.Column(visible=bool(example_paths), elem_id="try"):
                examples = components.examples(example_paths)
        with gr.Tab("Compare", visible=len(predictors) > 1):
            gr.HTML(compare.cards(predictors), elem_id="cards", apply_default_css=False)
            disagreement = gr.HTML(compare.describe_disagreement([]), elem_id="disagreement")
            comparison = compare.table(predictors)
        with gr.Tab("About") as about_tab:
            models = []
            for predictor in predictors.values():
                gr.HTML(about.describe(predictor), elem_classes="about", apply_default_css=False)
                figures = gr.HTML(elem_classes="about", apply_default_css=False)
                with gr.Accordion(f"Card of {predictor.name}", open=False):
                    models.append((figures, gr.Markdown(header_links=False)))
            gr.HTML(about.privacy(minutes), elem_classes="about")
    gr.HTML(f"Your pictures are deleted from the server within {minutes} minutes.", elem_id="footer")
    return Components(
        visit=visit,
        header=header,
        files=files,
        upload_buttons=upload_buttons,
        progress=progress,
        stop=stop,
        model=model,
        top_k=top_k,
        results=results,
        answer=answer,
        summary=summary,
        clear=clear,
        filters=filters,
        kind=kind,
        below=below,
        label=label,
        order=order,
        gallery=gallery,
        detail=detail,
        counts=counts,
        table=table,
        csv=csv,
        json=json,
        examples=examples,
        example_paths=example_paths,
        disagreement=disagreement,
        comparison=comparison,
        about_tab=about_tab,
        models=models,
    )


def describe_model(predictor: Predictor) -> str:
    """HTML of the header: the page's purpose, the model's name and size, and its accuracy if it was evaluated.

    STATIC_SITE is the address of a site that classifies in the browser, to which the header links if it is set.
    """
    labels = ", ".join(predictor.labels) if len(predictor.labels) <= 20 else f"one of {len(predictor.labels):,} labels"
    facts = [f"<b>{escape(predictor.name)}</b>"]
    if predictor.accuracy is not None and predictor.accuracy_ci95 is not None:
        low, high = predictor.accuracy_ci95
        facts.append(f"<span>Test accuracy {predictor.accuracy:.1%} ({low:.1%} to {high:.1%})</span>")
    if predictor.measured and (accuracy := predictor.measured.accuracy_on_photographs) is not None:
        facts.append(f"<span>{accuracy:.1%} of {predictor.measured.n_photographs:,} photographs</span>")
    facts.append(f"<span>{predictor.n_parameters / 1e6:.1f} M parameters</span>")
    if predictor.revision != "local":
        facts.append(f"<span>commit {escape(predictor.revision[:7])}</span>")
    facts.append('<a href="?view=api">API ↗</a>')
    if site := os.environ.get("STATIC_SITE"):
        facts.append(f'<a href="{escape(site)}" target="_blank">Classify on this device ↗</a>')
    return (
        f"<h1>Image classifier</h1><p>What does your picture show: {escape(labels)}?</p>"
        f'<div class="facts">{"".join(facts)}</div>'
    )
