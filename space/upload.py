"""Buttons to choose a folder or use the webcam, which gradio's file component lacks. static/upload.js handles them."""

import gradio as gr

from classifier.images.limits import MAX_BYTES
from space import validation
from space.components import STATIC, module_script


def upload_buttons(reduce_to: int | None) -> gr.HTML:
    """Buttons for a folder and the webcam. Their script also handles pictures that are dropped or pasted on the page.

    Its events are `too_many`, `too_large` and `unreadable` for files that are not sent, and `no_webcam`.

    Args:
        reduce_to: pixels to which the browser reduces the shorter side of large pictures; None to send them unchanged.
    """
    return gr.HTML(
        (STATIC / "upload.html").read_text(encoding="utf-8"),
        js_on_load=module_script("upload", "too_many", "too_large", "unreadable", "no_webcam"),
        max_files=validation.MAX_FILES,
        max_bytes=MAX_BYTES,
        reduce_to=reduce_to or 0,
        elem_id="upload-buttons",
        apply_default_css=False,
    )
