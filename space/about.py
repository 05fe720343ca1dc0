"""The description of each model: its origin, its metrics, figures of its mistakes, and its card."""

import base64
import functools
import re
import tempfile
from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np

from classifier.errors import ModelError
from classifier.hub import HUB_ID
from classifier.models import processor
from classifier.models.predictor import Predictor
from classifier.reporting import card
from classifier.reporting import figures as plots
from classifier.runs import RunFolder
from space.compare import facts_of

HUB = "https://huggingface.co"
WITHOUT_CARD = "This model came without a card."
FIGURE = re.compile(r"!\[[^\]]*\]\([^)]*\)")


def describe(predictor: Predictor) -> str:
    """HTML of a model: its class, what it was trained from, its revision and its metrics."""
    side = processor.size_of(predictor.processor)
    facts = [
        ("Kind", escape(type(predictor.model).__name__)),
        ("Takes, gives", f"{side} × {side} pixels, {len(predictor.labels):,} labels"),
    ]
    if start := start_of(predictor):
        facts.append(("Training", start))
    facts += facts_of(predictor)
    if evaluation := predictor.evaluation:
        facts.append(("Macro F1", f"{evaluation.model.f1:.3f}"))
        if evaluation.model.ece is not None:
            facts.append(("Calibration error", f"{evaluation.model.ece:.3f}"))
        facts.append(("Measured on", escape(f"{evaluation.dataset}, {evaluation.split}, {evaluation.n:,} images")))
    facts.append(("Revision", revision(predictor)))
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    return f"<h2>{escape(predictor.name)}</h2><dl>{items}</dl>"


def start_of(predictor: Predictor) -> str | None:
    """HTML that says whether the model was fine-tuned and from what, by its run.json; None without one."""
    stages = RunFolder(predictor.folder).stages if predictor.folder else []
    if not stages:
        return None
    base = next((stage.start for stage in stages if stage.start), None)
    return f"fine-tuned from {escape(base)}" if base else "from scratch"


def revision(predictor: Predictor) -> str:
    """HTML of a link to the model's commit on the Hub, or a text for a local folder."""
    if predictor.revision == "local" or not HUB_ID.fullmatch(predictor.name):
        return "a folder of this app"
    return (
        f'<a href="{HUB}/{escape(predictor.name)}/tree/{escape(predictor.revision)}" target="_blank" rel="noreferrer">'
        f"{escape(predictor.revision[:7])} on the Hub ↗</a>"
    )


@functools.cache
def figures(predictor: Predictor) -> str:
    """HTML of the confusion matrix and the reliability diagram, those that the evaluation has. Takes a second."""
    measured = predictor.measured
    if measured is None:
        return '<div class="plots"></div>'
    wrong = ", ".join(f"{pair.n} {pair.label} as {pair.predicted}" for pair in measured.confused[:3])
    matrix = np.array(measured.confusion_matrix)
    parts = [
        figure(
            lambda path: plots.save_confusion(path, matrix, predictor.labels),
            f"Confusion matrix of {predictor.name}. Most often mistaken: {wrong}." if wrong else "Confusion matrix",
        )
    ]
    if measured.reliability:
        bins, before = measured.reliability.to_json(), measured.before_temperature
        both = (bins, before.reliability.to_json() if before else None)
        parts.append(
            figure(
                lambda path: plots.save_reliability(path, {predictor.name: both}),
                f"Reliability of {predictor.name}: accuracy by confidence.",
            )
        )
    return f'<div class="plots">{"".join(parts)}</div>'


def figure(save: Callable[[Path], None], caption: str) -> str:
    """HTML of a figure that `save` writes, as a data URI; the file is deleted."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.png"
        save(path)
        data = base64.b64encode(path.read_bytes()).decode()
    text = escape(caption)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def card_text(predictor: Predictor) -> str:
    """The model's card as Markdown, without figures; for a Hub model, a link to it."""
    if predictor.revision != "local":
        return f"[{predictor.name} on the Hub]({HUB}/{predictor.name}/blob/{predictor.revision}/README.md)"
    if predictor.folder is None:
        return WITHOUT_CARD
    try:
        return FIGURE.sub("", card.render(predictor.folder).text)
    except ModelError:  # records of another program
        return WITHOUT_CARD


def privacy(minutes: int) -> str:
    """HTML that says which data are kept for at most `minutes`, and what is logged."""
    return (
        "<h2>Privacy</h2><p>Your pictures, their previews and your downloads are kept on this server so that you can "
        f"look at them, and are deleted within {minutes} minutes. Nothing is sent elsewhere, and no picture is used "
        "for training. The server's log has one line per request, with its method, endpoint, status and duration. It "
        "contains no file names and no addresses.</p>"
    )
