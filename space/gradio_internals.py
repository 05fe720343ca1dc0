"""Uses of gradio's undocumented parts, in one place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder


def upload_folder() -> Path:
    """The folder in which gradio stores uploads, and from which it serves files."""
    return Path(get_upload_folder())


def hide_from_mcp(function: Callable) -> Callable:
    """Decorator of an endpoint that is no MCP tool: gradio's schema of a list of files is not valid for MCP."""
    vars(function)["_mcp_type"] = "none"
    return function


def event_data(event: gr.EventData) -> dict[str, Any]:
    """What the browser sent with an event."""
    return event._data if isinstance(event._data, dict) else {}
