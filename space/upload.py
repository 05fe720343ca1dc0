"""More ways to choose pictures than gradio's file component has; what they do is in static/upload.js."""

import gradio as gr

from classifier.images.workers import MAX_BYTES
from space import validation
from space.components import STATIC, module_script


def upload_buttons(reduce_to: int | None) -> gr.HTML:
    """Buttons for a folder and the webcam. Dropped and pasted pictures take the same way to the file component.

    Its events: `too_many` files were chosen; some are `too_large`; some of the dropped ones are `unreadable`; there is
    `no_webcam`.

    Args:
        reduce_to: pixels to which the browser reduces the shorter side of large pictures; None to send them as they
            are.
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
