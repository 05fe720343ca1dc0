"""All models side by side on the same pictures, where they disagree first, with what each one is worth and costs."""

from collections.abc import Mapping, Sequence
from html import escape

import gradio as gr

from classifier.models.predictor import Predictor
from classifier.runs import RunFolder
from space.components import URL, percent
from space.session import Row, agree

ROWS = """
<p role="status">${value.text}</p>
<div class="scroll" tabindex="0" role="region" aria-label="Labels of all models"><table>
<caption class="sr">Labels of all models, disagreements first</caption>
<thead><tr><th scope="col">Picture</th>${value.models.map(model => `<th
scope="col">${model}</th>`).join('')}</tr></thead> <tbody>${value.rows.map(row => `<tr class="${row.kind}"><th
scope="row"><div> <img src="${row.src}" alt="" loading="lazy"><span>${row.name}</span></div></th>${row.said.map(said =>
  `<td><b>${said.label}</b> <span>${said.detail}</span></td>`).join('')}</tr>`).join('')}</tbody></table></div>
"""


def table(predictors: Mapping[str, Predictor]) -> gr.HTML:
    """A table without rows; its `value` is `cells`."""
    return gr.HTML(
        cells([], predictors), html_template=ROWS, js_on_load=None, elem_id="comparison", apply_default_css=False
    )


def cells(rows: Sequence[Row], predictors: Mapping[str, Predictor]) -> dict:
    """What each model says of each picture that can be read, those first where models disagree."""
    readable = [row for row in rows if not row.error]
    ordered = sorted(readable, key=lambda row: agree(row) is not False)
    n = sum(agree(row) is False for row in readable)
    text = f"The models disagree on {n} of {len(readable)}." if readable else "Classify some pictures to see them here."
    return {
        "text": text,
        "models": [escape(name) for name in predictors] if readable else [],
        "rows": [
            {
                "kind": "disagree" if agree(row) is False else "",
                "src": escape(URL + row.preview),
                "name": escape(row.name),
                "said": [
                    {
                        "label": escape(top[0]["label"]) + ("?" if row.known[name] is False else ""),
                        "detail": percent(top[0]["score"]),
                    }
                    for name, top in row.tops.items()
                ],
            }
            for row in ordered
        ],
    }


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
    facts.append(("Parameters", f"{predictor.n_parameters / 1e6:.1f} M"))
    if predictor.folder:
        size = sum(file.stat().st_size for file in predictor.folder.glob("model*.safetensors"))
        facts.append(("Weights", f"{size / 1e6:.1f} MB"))
        if timing := RunFolder(predictor.folder).timing:
            milliseconds, machine = timing.model.latency_ms.p50, timing.machine
            where = f"{machine.threads} × {machine.processor}"
            facts.append(("One image", f"{milliseconds:.0f} ms <small>{escape(where)}</small>"))
    return facts
