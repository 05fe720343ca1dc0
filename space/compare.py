"""The tab Compare: the accuracy and costs of each model, and the labels of all models side by side."""

from collections.abc import Mapping, Sequence
from html import escape

import gradio as gr

from classifier.models.predictor import Predictor
from classifier.runs import RunFolder
from space.components import percent, read_only_table
from space.pictures import Picture
from space.validation import FILE_URL

DISAGREE = "background: rgb(245 158 11 / .15)"  # of pictures on which models disagree; readable in both themes


def table(predictors: Mapping[str, Predictor]) -> gr.Dataframe:
    """A table without rows; its value is `table_value`."""
    n_models = len(predictors)
    return read_only_table(
        table_value([], predictors),
        label="Labels of all models",
        datatype=["html", *["html"] * n_models, "str"],
        column_widths=[80, *[max(150, 820 // n_models)] * n_models, 278],
        elem_id="comparison",
    )


def table_value(pictures: Sequence[Picture], predictors: Mapping[str, Predictor]) -> dict:
    """The labels of all models for each picture that can be read; pictures on which models disagree come first."""
    readable = [picture for picture in pictures if not picture.error]
    ordered = sorted(readable, key=lambda picture: picture.models_agree is not False)
    headers = ["Picture", *predictors, "File"]
    styles = [[DISAGREE if picture.models_agree is False else ""] * len(headers) for picture in ordered]
    return {"headers": headers, "data": [row(picture) for picture in ordered], "metadata": {"styling": styles}}


def row(picture: Picture) -> list[str]:
    """The cells of one picture: HTML of its preview, HTML of each model's label and probability, its name."""
    cells = [f'<img src="{escape(FILE_URL + picture.preview)}" alt="" loading="lazy">']
    for name in picture.top_labels:
        best, doubt = picture.best(name), "?" if picture.is_unknown(name) else ""
        cells.append(f"<b>{escape(best['label'])}{doubt}</b> {percent(best['score'])}")
    return [*cells, picture.name]


def describe_disagreement(pictures: Sequence[Picture]) -> str:
    """A sentence that says on how many pictures the models disagree."""
    readable = [picture for picture in pictures if not picture.error]
    n = sum(picture.models_agree is False for picture in readable)
    return f"The models disagree on {n} of {len(readable)}." if readable else "Classify some pictures to see them here."


def cards(predictors: Mapping[str, Predictor]) -> str:
    """HTML of each model's accuracy, size and latency, those that are known."""
    return f'<div class="cards">{"".join(card(predictor) for predictor in predictors.values())}</div>'


def card(predictor: Predictor) -> str:
    """One of `cards`."""
    facts = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts_of(predictor))
    return f"<section><h2>{escape(predictor.name)}</h2><dl>{facts}</dl></section>"


def facts_of(predictor: Predictor) -> list[tuple[str, str]]:
    """Accuracy, parameters, size and latency of a model, those that are known: (name, HTML) each."""
    facts = []
    if predictor.accuracy is not None and predictor.accuracy_ci95 is not None:
        low, high = predictor.accuracy_ci95
        facts.append(("Test accuracy", f"{predictor.accuracy:.1%} <small>{low:.1%} to {high:.1%}</small>"))
    for measured in predictor.measured.photographs if predictor.measured else ():
        low, high = measured.accuracy_ci95
        accuracy = f"{measured.accuracy:.1%} <small>{low:.1%} to {high:.1%}</small>"
        facts.append((f"{measured.n} {escape(measured.folder)} photographs", accuracy))
    facts.append(("Parameters", f"{predictor.n_parameters / 1e6:.1f} M"))
    if predictor.folder:
        size = sum(file.stat().st_size for file in predictor.folder.glob("model*.safetensors"))
        facts.append(("Weights", f"{size / 1e6:.1f} MB"))
        if timing := RunFolder(predictor.folder).timing:
            milliseconds, machine = timing.model.latency_ms.p50, timing.machine
            where = f"{machine.threads} × {machine.processor}"
            facts.append(("One image", f"{milliseconds:.0f} ms <small>{escape(where)}</small>"))
    return facts
