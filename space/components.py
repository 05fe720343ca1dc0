"""The page's own components: a gallery, a table that sorts, bars. HTML made in the browser from JSON with escaped text.

gradio's gallery and table would send everything anew with each result that streams in, and can't be walked through with
keys.
"""

from collections.abc import Sequence
from html import escape

import gradio as gr

from space.session import Row, agree, kinds

URL = "gradio_api/file="  # relative: the page may be served below a path
MOST_BARS = 20

GALLERY = """
<ul class="cells">${value.map(cell => `<li><button type="button" class="cell ${cell.kind}" data-index="${cell.index}"
  aria-pressed="false" tabindex="-1" title="${cell.name}">${cell.src
    ? `<img src="${cell.src}" alt="" loading="lazy">` : `<span class="broken" aria-hidden="true">✕</span>`}
  <span class="said"><b>${cell.label}</b> <span>${cell.detail}</span></span><span class="sr">, ${cell.name}</span>
  </button></li>`
).join('')}</ul>
"""
# One cell is reached by Tab, the others by arrows from there. A click tells Python which picture it was, and when.
GALLERY_JS = """
let chosen = 0;
const buttons = () => [...element.querySelectorAll('button[data-index]')];
const mark = () => {
  const all = buttons();
  const entry = all.find(button => Number(button.dataset.index) === chosen) || all[0];
  all.forEach(button => {
    button.setAttribute('aria-pressed', Number(button.dataset.index) === chosen);
    button.tabIndex = button === entry ? 0 : -1;
  });
};
watch('chosen', () => { if (props.chosen >= 0) chosen = props.chosen; mark(); });
watch('value', mark);  // by itself, as it streams in: what was clicked meanwhile stays marked
document.addEventListener('chosen', event => { chosen = event.detail; mark(); });  // in the table
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-index]');
  if (!button) return;
  chosen = Number(button.dataset.index);
  mark();
  trigger('click', {index: chosen, at: event.timeStamp});
});
element.addEventListener('keydown', event => {
  const all = buttons(), at = all.indexOf(document.activeElement);
  const columns = all.filter(button => button.offsetTop === all[0].offsetTop).length;
  const step = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -at, End: all.length - 1 -
  at}; const to = all[at + step[event.key]]; if (at < 0 || !to) return; event.preventDefault(); all[at].tabIndex = -1;
  to.tabIndex = 0; to.focus();
});
mark();
"""

TABLE = """
<table><caption class="sr">All results; a column's button sorts by it</caption><thead><tr>${value.headers.map((header,
i) =>
  `<th scope="col" data-column="${i}"><button type="button">${header}<span
  aria-hidden="true"></span></button></th>`).join('')}
</tr></thead><tbody>${value.rows.map(row => `<tr data-index="${row.index}">${row.cells.map((cell, i) =>
  `<td data-value="${cell.value}">${i ? cell.text : `<button type="button" class="open">${cell.text}</button>`}</td>`
).join('')}</tr>`).join('')}</tbody></table>
"""
TABLE_JS = """
let column = null, sign = 1;
const sort = () => {
  element.querySelectorAll('th').forEach((th, i) => th.setAttribute(
    'aria-sort', i !== column ? 'none' : sign > 0 ? 'ascending' : 'descending'));
  if (column === null) return;
  const key = row => row.cells[column].dataset.value;
  const body = element.querySelector('tbody');
  const order = (a, b) => sign * key(a).localeCompare(key(b), undefined, {numeric: true});
  [...body.rows].sort(order).forEach(row => body.append(row));
};
watch('value', sort);
element.addEventListener('click', event => {
  const th = event.target.closest('th'), row = event.target.closest('tr[data-index]');
  if (th) {
    const i = Number(th.dataset.column);
    [column, sign] = [i, i === column ? -sign : 1];
    sort();
  } else if (row && event.target.closest('button')) {
    const index = Number(row.dataset.index);
    document.dispatchEvent(new CustomEvent('chosen', {detail: index}));
    trigger('click', {index, at: event.timeStamp});
    document.querySelector('#detail').scrollIntoView({block: 'nearest', behavior: 'smooth'});
  }
});
sort();
"""


def gallery() -> gr.HTML:
    """A gallery without pictures; its `value` is `gallery_cells`, its click tells the index of a row."""
    return gr.HTML(
        [], html_template=GALLERY, js_on_load=GALLERY_JS, chosen=-1, elem_id="gallery", apply_default_css=False
    )


def gallery_cells(rows: Sequence[Row], indices: Sequence[int], model: str) -> list[dict]:
    """A cell a picture: its preview, the top label by `model` and its probability, or why it can't be read."""
    return [cell(rows[index], index, model) for index in indices]


def cell(row: Row, index: int, model: str) -> dict:
    """One of `gallery_cells`."""
    if row.error:
        return {
            "index": index,
            "kind": "error",
            "src": "",
            "name": escape(row.name),
            "label": escape(row.name),
            "detail": escape(row.error),
        }
    top = row.tops[model][0]
    doubt = row.known[model] is False
    return {
        "index": index,
        "kind": "unknown" if doubt else "",
        "src": escape(URL + row.preview),
        "name": escape(row.name),
        "label": escape(top["label"]) + ("?" if doubt else ""),
        "detail": percent(top["score"]),
    }


def table() -> gr.HTML:
    """A table without rows; its `value` is `table_cells`, its click tells the index of a row."""
    return gr.HTML(
        table_cells([], [], "", 1), html_template=TABLE, js_on_load=TABLE_JS, elem_id="table", apply_default_css=False
    )


def table_cells(rows: Sequence[Row], indices: Sequence[int], model: str, top_k: int) -> dict[str, list]:
    """Headers and cells (what is shown, what is sorted by) of some rows."""
    headers = ["File", "Status", "Label", "Probability", *(["Next"] if top_k > 1 else []), "Models"]
    return {"headers": headers, "rows": [{"index": i, "cells": table_row(rows[i], model, top_k)} for i in indices]}


def table_row(row: Row, model: str, top_k: int) -> list[dict]:
    """One row of `table_cells`."""
    if row.error:
        texts = [row.name, f"error: {row.error}", "", "", *([""] if top_k > 1 else []), ""]
        return [{"text": escape(text), "value": escape(text)} for text in texts]
    first, *others = row.tops[model][:top_k]
    looks = "like none of the labels" if row.known[model] is False else "ok"
    texts = [row.name, looks, first["label"], percent(first["score"])]
    if top_k > 1:
        texts.append(", ".join(f"{entry['label']} {percent(entry['score'])}" for entry in others))
    texts.append({None: "", True: "agree", False: "disagree"}[agree(row)])
    cells = [{"text": escape(text), "value": escape(text)} for text in texts]
    cells[3]["value"] = f"{first['score']:.6f}"
    return cells


def count_bars(counts: Sequence[tuple[str, int]]) -> str:
    """HTML of how many pictures have which label, as bars; the 20 most frequent."""
    most = max((n for _, n in counts), default=1)
    left_out = sum(n for _, n in counts[MOST_BARS:])
    rest = f"<p>{left_out} more in {len(counts) - MOST_BARS} other labels</p>" if left_out else ""
    return f'<ul class="bars">{"".join(bar(label, n / most, str(n)) for label, n in counts[:MOST_BARS])}</ul>{rest}'


def bar(label: str, share: float, value: str) -> str:
    """An item of a list of bars, `share` (0 to 1) of the width long."""
    return (
        f'<li><span class="name">{escape(label)}</span><span class="track"><span '
        f'style="width:{share:.1%}"></span></span>'
        f'<span class="value">{value}</span></li>'
    )


def progress_bar(done: int, total: int, seconds: float) -> str:
    """HTML of a bar like '137 of 200, 3 s left', `seconds` after the start."""
    left = f", {seconds / done * (total - done):.0f} s left" if done and seconds > 1 else ""
    text = f"{done} of {total}{left}"
    return (
        f'<div role="progressbar" aria-label="Pictures classified" aria-valuemin="0" aria-valuemax="{total}" '
        f'aria-valuenow="{done}" aria-valuetext="{text}"><span '
        f'style="width:{done / total:.1%}"></span></div><p>{text}</p>'
    )


def summary(rows: Sequence[Row], indices: Sequence[int], model: str, below: float) -> str:
    """HTML that says how many pictures there are, and of which kinds, and names those that can't be read."""
    if not rows:
        return ""
    found = [kinds(row, model, below) for row in rows]
    said = {
        "unsure": "unsure",
        "disagree": "where the models disagree",
        "unknown": "like none of the labels",
    }
    parts = [f"<b>{len(rows)} {'picture' if len(rows) == 1 else 'pictures'}</b>"]
    parts += [f"{n} {words}" for kind, words in said.items() if (n := sum(kind in kinds for kinds in found))]
    parts += [f"{len(indices)} shown"] if len(indices) < len(rows) else []
    return f'<p role="status">{" · ".join(parts)}</p>{failures(rows)}'


def failures(rows: Sequence[Row]) -> str:
    """HTML that names the files that could not be read, and why; "" when there are none."""
    failed = [row for row in rows if row.error]
    if not failed:
        return ""
    items = "".join(f"<li><b>{escape(row.name)}</b>: {escape(row.error)}</li>" for row in failed)
    return f'<div class="failures">{len(failed)} of {len(rows)} could not be read:<ul>{items}</ul></div>'


def percent(share: float) -> str:
    """A probability as people read it: 100% only when it is."""
    return f"{share:.1%}" if share < 0.9995 else f"{int(share * 10_000) / 100:.2f}%" if share < 1 else "100%"
