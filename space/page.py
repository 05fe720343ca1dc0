"""The page and its API: components (layout.py), what they do (events.py), and the endpoints (endpoints.py)."""

from collections.abc import Sequence

import gradio as gr

from space import cleanup, endpoints, layout
from space.endpoints import Endpoints
from space.events import PageEvents
from space.pictures import PictureClassifier


def build(classifier: PictureClassifier, notices: Sequence[str] = ()) -> gr.Blocks:
    """Builds the page and the API, which `server.serve` launches.

    Args:
        classifier: the served models.
        notices: lines to show below the header, such as that the Hub can't be reached.
    """
    cached = (cleanup.INTERVAL_S, cleanup.KEEP_S)
    with gr.Blocks(title="Image classifier", analytics_enabled=False, delete_cache=cached) as demo:
        page, api = layout.build(classifier, notices), Endpoints(classifier)
        PageEvents(page, api).connect()
        endpoints.register(api, page)
    return demo
