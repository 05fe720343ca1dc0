"""The page's own components: a gallery, a table that sorts, bars. HTML made in the browser from JSON with escaped text.

gradio's gallery and table would send everything anew with each result that streams in, and can't be walked through with
keys.
"""

import base64
import io
import time
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

import gradio as gr
from PIL import Image

from classifier.images.convert import to_rgb
from space.pictures import Picture
from space.session import Run, Settings, kinds_of

FILE_URL = "gradio_api/file="  # relative: the page may be served below a path
MAX_BARS = 20
THUMBNAIL = 96  # pixels of the shorter side

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
watch('selected', () => { if (props.selected >= 0) chosen = props.selected; mark(); });
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


def gallery() -> gr.HTML:
    """A gallery without pictures; its `value` is `gallery_tiles`, its click tells the index of a row."""
    return gr.HTML(
        [], html_template=GALLERY, js_on_load=GALLERY_JS, selected=-1, elem_id="gallery", apply_default_css=False
    )


def gallery_tiles(pictures: Sequence[Picture], indices: Sequence[int], model: str) -> list[dict]:
    """A tile for each picture: its preview, its best label by `model`, and the probability, or why it can't be read."""
    return [gallery_tile(pictures[index], index, model) for index in indices]


def gallery_tile(picture: Picture, index: int, model: str) -> dict:
    """One of `gallery_tiles`."""
    tile = {"index": index, "kind": "error", "src": "", "name": escape(picture.name)}
    if picture.error:
        return tile | {"label": escape(picture.name), "detail": escape(picture.error)}
    top, is_unknown = picture.tops[model][0], picture.known[model] is False
    return tile | {
        "kind": "unknown" if is_unknown else "",
        "src": escape(FILE_URL + picture.preview),
        "label": escape(top["label"]) + ("?" if is_unknown else ""),
        "detail": percent(top["score"]),
    }


def table() -> gr.Dataframe:
    """A table without rows; its value is `table_value`. The page sorts it, because its own menu has no keys."""
    return gr.Dataframe(
        table_value([], [], Settings("", 1)),
        column_widths=[60, 260, 180, 130, 110, 300, 110],
        interactive=False,
        label="All results",
        show_label=False,
        buttons=[],
        max_height=480,
        elem_id="table",
    )


def table_value(pictures: Sequence[Picture], indices: Sequence[int], settings: Settings) -> dict[str, list]:
    """Headers and rows of some pictures; the first column is the picture's number, from 1."""
    headers = ["No.", "File", "Status", "Label", "Probability", "Next labels", "Models"]
    return {"headers": headers, "data": [table_row(index, pictures[index], settings) for index in indices]}


def table_row(index: int, picture: Picture, settings: Settings) -> list:
    """One row of `table_value`."""
    if picture.error:
        return [index + 1, picture.name, f"error: {picture.error}", "", "", "", ""]
    first, *others = picture.tops[settings.model][: settings.top_k]
    status = "like none of the labels" if picture.known[settings.model] is False else "ok"
    following = ", ".join(f"{entry['label']} {percent(entry['score'])}" for entry in others)
    agreement = {None: "", True: "agree", False: "disagree"}[picture.models_agree]
    return [index + 1, picture.name, status, first["label"], percent(first["score"]), following, agreement]


def count_bars(counts: Sequence[tuple[str, int]]) -> str:
    """HTML of how many pictures have which label, as bars; the 20 most frequent."""
    most = max((n for _, n in counts), default=1)
    left_out = sum(n for _, n in counts[MAX_BARS:])
    rest = f"<p>{left_out} more in {len(counts) - MAX_BARS} other labels</p>" if left_out else ""
    return f'<ul class="bars">{"".join(bar(label, n / most, str(n)) for label, n in counts[:MAX_BARS])}</ul>{rest}'


def bar(label: str, share: float, value: str) -> str:
    """An item of a list of bars, `share` (0 to 1) of the width long."""
    return (
        f'<li><span class="name">{escape(label)}</span><span class="track"><span '
        f'style="width:{share:.1%}"></span></span>'
        f'<span class="value">{value}</span></li>'
    )


def progress_bar(runs: Sequence[Run]) -> str:
    """HTML of a bar like '137 of 200, 3 s left' for all runs of a visit; "" without a run."""
    if not runs:
        return ""
    done, total = sum(run.done for run in runs), sum(run.total for run in runs)
    seconds = time.monotonic() - min(run.began for run in runs)
    left = f", {seconds / done * (total - done):.0f} s left" if done and seconds > 1 else ""
    text = f"{done} of {total}{left}"
    return (
        f'<div role="progressbar" aria-label="Pictures classified" aria-valuemin="0" aria-valuemax="{total}" '
        f'aria-valuenow="{done}" aria-valuetext="{text}"><span style="width:{done / total:.1%}"></span></div>'
        f"<p>{text}</p>"
    )


def summary(pictures: Sequence[Picture], indices: Sequence[int], settings: Settings) -> str:
    """HTML of the number of pictures, of how many are unsure or unknown, and of those that can't be read."""
    if not pictures:
        return ""
    counts = Counter(kind for picture in pictures for kind in kinds_of(picture, settings.model, settings.below))
    texts = {"unsure": "unsure", "disagree": "where the models disagree", "unknown": "like none of the labels"}
    parts = [f"<b>{len(pictures)} {'picture' if len(pictures) == 1 else 'pictures'}</b>"]
    parts += [f"{counts[kind]} {text}" for kind, text in texts.items() if counts[kind]]
    parts += [f"{len(indices)} shown"] if len(indices) < len(pictures) else []
    return f'<p role="status">{" · ".join(parts)}</p>{failures(pictures)}'


def failures(pictures: Sequence[Picture]) -> str:
    """HTML of the files that could not be read, and why; "" if there are none."""
    failed = [picture for picture in pictures if picture.error]
    if not failed:
        return ""
    items = "".join(f"<li><b>{escape(picture.name)}</b>: {escape(picture.error)}</li>" for picture in failed)
    return f'<div class="failures">{len(failed)} of {len(pictures)} could not be read:<ul>{items}</ul></div>'


def percent(share: float) -> str:
    """A probability as people read it: 100% only when it is."""
    return f"{share:.1%}" if share < 0.9995 else f"{int(share * 10_000) / 100:.2f}%" if share < 1 else "100%"


def examples(paths: Sequence[Path]) -> gr.Dataset:
    """Thumbnails of the examples; its value is the index of the one that was clicked.

    The samples are HTML, because the buttons of image samples have no names for screen readers.
    """
    return gr.Dataset(
        components=[gr.HTML(visible=False)],
        samples=[[thumbnail(path)] for path in paths],
        type="index",
        layout="gallery",
        samples_per_page=max(1, len(paths)),
        label="Or try one of these",
        elem_id="examples",
    )


def thumbnail(path: Path) -> str:
    """HTML of a small picture, which holds the picture itself: it shows as soon as the page does."""
    file = io.BytesIO()
    with Image.open(path) as image:
        image.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
        to_rgb(image, reduce_to=THUMBNAIL).save(file, "JPEG", quality=80)
    data, name = base64.b64encode(file.getvalue()).decode(), escape(path.stem.replace("_", " "))
    return f'<img src="data:image/jpeg;base64,{data}" alt="Example: {name}" title="{name}">'
