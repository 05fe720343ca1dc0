"""What stands between the network and gradio: what costs too much, or names what is not the sender's, is refused here.

Refusals are JSON that gradio's clients turn into an exception with the message, and a script can act on: 422 for what has to
be sent differently, 411 and 413 for what is too large, 503 with Retry-After for what may be sent again later. A tool's call by
MCP that names a URL gets the message as the tool's error, which the model that called it can read.
"""

import json
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_FILES = 500  # a request
MAX_CALL_BYTES = 1_000_000  # of a call's JSON: 500 files are named in 200 kB
MAX_MCP_BYTES = 10_000_000  # of a message by MCP, which holds an image as base64
MAX_UPLOAD_BYTES = 2_000_000_000  # of one request; page and gradio_client send a gallery's files in several
MIN_FREE_BYTES = 1_000_000_000  # on the disk with the uploads, which are deleted after an hour
RETRY_AFTER_S = 10
UPLOAD = "/gradio_api/upload"
MCP = "/gradio_api/mcp"
WORK = (UPLOAD, "/gradio_api/queue/", "/gradio_api/call/", "/gradio_api/run/", "/gradio_api/api/")
SCHEMES = ("http://", "https://")
FETCHED = tuple(f"/gradio_api/{name}{scheme}" for name in ("file=", "file/", "proxy=") for scheme in ("http:", "https:"))
BY_URL = "an image given by URL: download it, then send "

log = logging.getLogger("space")


@dataclass
class State:
    """What `serving` and `Guard` tell each other."""

    stopping: bool = False  # set by serving: new work is refused with 503, what was accepted is answered
    open: int = 0  # requests for work, or for its results, that are being answered


class Guard:
    """ASGI middleware around gradio.

    Args:
        app: gradio's.
        state: shared with whoever wants to stop.
        uploads: a folder on the disk that must keep MIN_FREE_BYTES.
    """

    def __init__(self, app: ASGIApp, state: State, uploads: Path):
        self.app, self.state, self.uploads = app, state, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses, or passes on; then logs a line that holds neither a file's name nor an address."""
        if scope["type"] == "http" and scope["path"].lower().startswith(FETCHED):
            return await refusal(422, f"{BY_URL}the file")(scope, receive, send)
        if scope["type"] != "http" or not (scope["path"].startswith(WORK) or is_message(scope)):
            return await self.app(scope, receive, send)
        began, status = time.perf_counter(), 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status == 503:  # gradio's own, for a full queue, too
                    MutableHeaders(scope=message)["retry-after"] = str(RETRY_AFTER_S)
            await send(message)

        self.state.open += 1
        try:
            await self.answer(scope, receive, observed)
        finally:
            self.state.open -= 1
            what = "/".join(scope["path"].split("/")[2:4])  # not an event's id
            log.info("%s %s %d %.3f s", scope["method"], what, status, time.perf_counter() - began)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses, or lets gradio answer."""
        reply, body = None, b""
        if scope["method"] == "POST":
            is_upload = scope["path"].startswith(UPLOAD)
            most = MAX_UPLOAD_BYTES if is_upload else MAX_MCP_BYTES if is_message(scope) else MAX_CALL_BYTES
            reply = self.refused_unread(most, is_upload, Headers(scope=scope).get("content-length", ""))
            if not reply and not is_upload:
                body = await read(receive)
                reply = refused_message(body, scope["path"]) if is_message(scope) else refused_call(body)
                receive = replay(body, receive)
        await (reply or self.app)(scope, receive, send)

    def refused_unread(self, most: int, is_upload: bool, length: str) -> Response | None:
        """The refusal of a request for work of at most so many bytes, by what is known before its body is read."""
        if self.state.stopping:
            return refusal(503, f"the server stops: try again in {RETRY_AFTER_S} s")
        if not length.isdigit():
            return refusal(411, "the body's length is not told: send Content-Length")
        if int(length) > most:
            return refusal(413, f"{int(length) / 1e6:,.1f} MB in one request: at most {most / 1e6:,.0f} MB, send fewer files")
        if is_upload and shutil.disk_usage(self.uploads).free < MIN_FREE_BYTES:
            return refusal(503, f"no room for more files at the moment: try again in {RETRY_AFTER_S} s")
        return None


def refused_call(body: bytes) -> Response | None:
    """The refusal of a call by what it names; what is no JSON is gradio's to tell."""
    try:
        paths = list(file_paths(json.loads(body)))
    except (ValueError, RecursionError):
        return None
    if any(path.lower().startswith(SCHEMES) for path in paths):
        return refusal(422, f"{BY_URL}the file")
    if len(paths) > MAX_FILES:
        return refusal(422, f"{len(paths):,} files: at most {MAX_FILES} a request")
    return None


def is_message(scope: Scope) -> bool:
    """Whether it is a message by MCP; what MCP asks for otherwise is a stream that stays open, and works on nothing."""
    return scope["method"] == "POST" and scope["path"].startswith(MCP)


def refused_message(body: bytes, path: str) -> Response | None:
    """The refusal of a call of a tool by what it names; gradio makes a file of any string that looks like a URL."""
    try:
        message = json.loads(body)
        named = any(text.strip().lower().startswith(SCHEMES) for text in strings(message))
    except (ValueError, RecursionError):
        return None
    if not named or (isinstance(message, dict) and message.get("method") != "tools/call"):
        return None
    text = f"{BY_URL}its bytes, as data:image/jpeg;base64,…"
    if not isinstance(message, dict) or path.startswith(f"{MCP}/messages"):  # by SSE, an answer to this is not read
        return refusal(422, text)
    result = {"content": [{"type": "text", "text": text}], "isError": True}
    return JSONResponse({"jsonrpc": "2.0", "id": message.get("id"), "result": result})


def strings(content: object) -> Iterator[str]:
    """Every string in a JSON value, save names."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def file_paths(content: object) -> Iterator[str]:
    """The `path` of everything in a JSON value that gradio may take for a file."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(value.get("path"), str):
                yield value["path"]
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


async def read(receive: Receive) -> bytes:
    """A request's body."""
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives `body`, then what comes after it."""
    is_given = False

    async def again() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def refusal(status: int, message: str) -> JSONResponse:
    """An answer that page and gradio_client show as a message."""
    detail = [{"__type__": "validate", "is_valid": False, "parameter_name": "request", "message": message}]
    return JSONResponse({"detail": detail, "error": message}, status)
