"""Parts of the page: the gallery, the table of results, bars, progress, the summary, and the examples.

Texts from users become HTML only after `escape`; gallery.js and gr.Dataframe show them as text.
"""

import base64
import io
import time
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from classifier.images.convert import to_rgb
from space.pictures import Picture
from space.session import Run, Settings, kinds_of
from space.validation import FILE_URL

STATIC = Path(__file__).parent / "static"
MAX_BARS = 20
THUMBNAIL = 96  # pixels of the shorter side


def module_script(name: str, *events: str) -> str:
    """`js_on_load` of a component whose behaviour is the function `mount` of static/`name`.js.

    Args:
        name: of the module, without its suffix.
        events: names of the events that the module triggers. gradio offers a listener for each name that is quoted in
            the script, so they are listed in a comment.
    """
    mount = "module => module.mount({element, props, trigger, watch})"
    return f"{import_module(name)}.then({mount}); // triggers {', '.join(map(repr, events))}"


def module_call(name: str, function: str) -> str:
    """`js` of an event that calls a function of static/`name`.js without arguments."""
    return f"() => {import_module(name)}.then(module => module.{function}())"


def import_module(name: str) -> str:
    """JavaScript that loads static/`name`.js, by a URL relative to the page's, which may be served below a path."""
    return f"import(new URL('page/{name}.js', document.baseURI))"


def gallery() -> gr.HTML:
    """A gallery without pictures, drawn by static/gallery.js.

    Its `value` is `gallery_tiles`, and `selected` the index of the marked picture, -1 for none. Its event `click` has
    the `index` of the picture and the time `at`, in milliseconds of the page's clock.

    gr.Gallery is not used: while 500 results stream in, it shows the last one after 24 s (this one after 10 s), has 500
    tab stops (this one has 1), and cuts the probability off on a phone.
    """
    return gr.HTML(
        [],
        html_template='<div class="tiles"><ul class="cells"></ul></div>',
        js_on_load=module_script("gallery", "click"),
        selected=-1,
        elem_id="gallery",
        apply_default_css=False,
    )


def gallery_tiles(pictures: Sequence[Picture], indices: Sequence[int], model: str) -> list[dict]:
    """A tile for each picture: its preview, its best label by `model`, and the probability, or why it can't be read."""
    return [gallery_tile(pictures[index], index, model) for index in indices]


def gallery_tile(picture: Picture, index: int, model: str) -> dict:
    """One of `gallery_tiles`."""
    tile = {"index": index, "kind": "error", "src": "", "name": picture.name}
    if picture.error:
        return tile | {"label": picture.name, "detail": picture.error}
    best, is_unknown = picture.best(model), picture.is_unknown(model)
    return tile | {
        "kind": "unknown" if is_unknown else "",
        "src": FILE_URL + picture.preview,
        "label": best["label"] + ("?" if is_unknown else ""),
        "detail": percent(best["score"]),
    }


def table() -> gr.Dataframe:
    """A table without rows; its value is `table_value`.

    "Sort by" sorts it: the menu that gr.Dataframe has for that can't be used by keyboard.
    """
    widths = [60, 130, 110, 260, 180, 300, 110]
    value = table_value([], [], Settings("", 1))
    return read_only_table(value, label="All results", column_widths=widths, elem_id="table")


def read_only_table(value: dict, **options: Any) -> gr.Dataframe:
    """A table that is as high as its rows, up to 480 pixels, and has no tool bar. Its label is for screen readers."""
    return gr.Dataframe(value, interactive=False, show_label=False, buttons=[], max_height=480, **options)


def table_value(pictures: Sequence[Picture], indices: Sequence[int], settings: Settings) -> dict[str, list]:
    """Headers and rows of some pictures; the first column is the picture's number, from 1."""
    headers = ["No.", "Label", "Probability", "File", "Status", "Next labels", "Models"]
    return {"headers": headers, "data": [table_row(index, pictures[index], settings) for index in indices]}


def table_row(index: int, picture: Picture, settings: Settings) -> list:
    """One row of `table_value`."""
    if picture.error:
        return [index + 1, "", "", picture.name, f"error: {picture.error}", "", ""]
    first, *others = picture.top_labels[settings.model][: settings.top_k]
    status = "like none of the labels" if picture.is_unknown(settings.model) else "ok"
    following = ", ".join(f"{entry['label']} {percent(entry['score'])}" for entry in others)
    agreement = {None: "", True: "agree", False: "disagree"}[picture.models_agree]
    return [index + 1, first["label"], percent(first["score"]), picture.name, status, following, agreement]


def count_bars(counts: Sequence[tuple[str, int]]) -> str:
    """HTML of bars with the number of pictures of each label, for the `MAX_BARS` most frequent labels."""
    most = max((n for _, n in counts), default=1)
    left_out = sum(n for _, n in counts[MAX_BARS:])
    rest = f"<p>{left_out} more in {len(counts) - MAX_BARS} other labels</p>" if left_out else ""
    return f'<ul class="bars">{"".join(bar(label, n / most, str(n)) for label, n in counts[:MAX_BARS])}</ul>{rest}'


def bar(label: str, share: float, value: str) -> str:
    """HTML of one item of a list of bars; `share` (0 to 1) is the part of the width that the bar fills.

    The page does not use gr.Label, because that rounds to whole percents: of the five best labels of the examples by
    the included models, it shows 334 of 450 as 0%.
    """
    return (
        f'<li><span class="name">{escape(label)}</span><span class="track"><span '
        f'style="width:{share:.1%}"></span></span>'
        f'<span class="value">{value}</span></li>'
    )


def progress_bar(runs: Sequence[Run]) -> str:
    """HTML of one bar for all runs of a visit, with a text such as '137 of 200, 3 s left'; "" without a run."""
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
    """HTML of how many pictures there are, are unsure, disagreed on or unknown, and of the unreadable ones."""
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
    """A probability (0 to 1) in percent, with one decimal; only 1 itself becomes 100%."""
    return f"{share:.1%}" if share < 0.9995 else f"{int(share * 10_000) / 100:.2f}%" if share < 1 else "100%"


def examples(paths: Sequence[Path]) -> gr.Dataset:
    """Thumbnails of the examples; its value is the index of the one that was clicked.

    The samples are HTML, because gradio's image samples are buttons without a name for screen readers.
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
    """HTML of a small picture as a data URI, which the browser shows without a further request."""
    file = io.BytesIO()
    with Image.open(path) as image:
        image.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
        to_rgb(image, reduce_to=THUMBNAIL).save(file, "JPEG", quality=80)
    data, name = base64.b64encode(file.getvalue()).decode(), escape(path.stem.replace("_", " "))
    return f'<img src="data:image/jpeg;base64,{data}" alt="Example: {name}" title="{name}">'
