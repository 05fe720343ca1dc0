"""What each model is: how it came about, how good it is, where it goes wrong, its card."""

import base64
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
from space.compare import measured

HUB = "https://huggingface.co"
FIGURE = re.compile(r"!\[[^\]]*\]\([^)]*\)")


def describe(predictor: Predictor) -> str:
    """HTML of a model: its kind, what it was made from, its revision, and what was measured."""
    side = processor.size_of(predictor.processor)
    facts = [
        ("Kind", escape(type(predictor.model).__name__)),
        ("Takes, gives", f"{side} × {side} pixels, {len(predictor.labels):,} labels"),
    ]
    if start := start_of(predictor):
        facts.append(("Training", start))
    facts += measured(predictor)
    found = next(iter(predictor.evaluation.get("models", [])), {})
    facts += [
        (words, f"{found[key]:.3f}")
        for key, words in (("f1", "Macro F1"), ("ece", "Calibration error"))
        if key in found
    ]
    if {"dataset", "split", "n"} <= predictor.evaluation.keys():
        evaluation = predictor.evaluation
        facts.append(
            ("Measured on", escape(f"{evaluation['dataset']}, {evaluation['split']}, {evaluation['n']:,} images"))
        )
    facts.append(("Revision", revision(predictor)))
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    return f"<h2>{escape(predictor.name)}</h2><dl>{items}</dl>"


def start_of(predictor: Predictor) -> str | None:
    """HTML of what the first training stage started from; None when run.json doesn't tell."""
    run = card.read(predictor.folder / "run.json") if predictor.folder else {}
    settings = [stage.get("settings", {}) for stage in card.stages_of(run)]
    if not any(settings):
        return None
    base = next((setting["model"] for setting in settings if setting.get("model")), None)
    return f"fine-tuned from {escape(base)}" if base else "from scratch"


def revision(predictor: Predictor) -> str:
    """HTML of the Hub's commit with a link to it, or that it is a local folder."""
    if predictor.revision == "local" or not HUB_ID.fullmatch(predictor.name):
        return "a folder of this app"
    return (
        f'<a href="{HUB}/{escape(predictor.name)}/tree/{escape(predictor.revision)}" target="_blank" rel="noreferrer">'
        f"{escape(predictor.revision[:7])} on the Hub ↗</a>"
    )


def figures(predictor: Predictor) -> str:
    """HTML of the confusion matrix and the reliability diagram, where the evaluation has them. Takes a second."""
    found = next(iter(predictor.evaluation.get("models", [])), {})
    parts = []
    if matrix := found.get("confusion_matrix"):
        wrong = ", ".join(
            f"{pair['n']} {pair['label']} as {pair['predicted']}" for pair in found.get("confused", [])[:3]
        )
        parts.append(
            figure(
                lambda path: plots.save_confusion(path, np.array(matrix), predictor.labels),
                f"Confusion matrix of {predictor.name}. Most often mistaken: {wrong}." if wrong else "Confusion matrix",
            )
        )
    if bins := found.get("reliability"):
        before = (found.get("before_temperature") or {}).get("reliability")
        parts.append(
            figure(
                lambda path: plots.save_reliability(path, {predictor.name: (bins, before)}),
                f"Reliability of {predictor.name}: how often it is right by how sure it says to be.",
            )
        )
    return f'<div class="plots">{"".join(parts)}</div>'


def figure(save: Callable[[Path], None], caption: str) -> str:
    """HTML of a figure that `save` writes, in one piece: no file stays."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.png"
        save(path)
        data = base64.b64encode(path.read_bytes()).decode()
    text = escape(caption)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def card_text(predictor: Predictor) -> str:
    """The model's card as Markdown, without figures; of a Hub model, where to read it."""
    if predictor.revision != "local":
        return f"[{predictor.name} on the Hub]({HUB}/{predictor.name}/blob/{predictor.revision}/README.md)"
    try:
        return FIGURE.sub("", card.render(predictor.folder).text)
    except ModelError:  # records that its scripts didn't write
        return "This model came without a card."


def privacy(minutes: int) -> str:
    """HTML of what is kept for at most `minutes`, and what is logged."""
    return (
        "<h2>Privacy</h2><p>Your pictures, their previews and your downloads are kept on this server so that you can "
        "look at "
        f"them, and are deleted within {minutes} minutes. Nothing is sent elsewhere, and no picture is used for "
        "training. "
        "The log has a line a request: method, endpoint, status, seconds; neither names nor addresses.</p>"
    )
