"""What stands between the network and gradio: what costs too much, or names what is not the sender's, is refused here.

Refusals are JSON that gradio's clients turn into an exception with the message, and a script can act on: 422 for what
has to be sent differently, 404 for what is not there, 411 and 413 for what is too large, 503 with Retry-After for what
may be sent again later. A tool's call by MCP that names a URL gets the message as the tool's error, which the model
that calls it can read.
"""

import json
import logging
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gradio.server_messages import UnexpectedErrorMessage
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from space.validation import BY_URL, SCHEMES, Fault, Functions, check, strings

MAX_CALL_BYTES = 1_000_000  # of a call's JSON: 500 files are named in 200 kB
MAX_MCP_BYTES = 10_000_000  # of a message by MCP, which holds an image as base64
MAX_UPLOAD_BYTES = 2_000_000_000  # of one request; page and gradio_client send a gallery's files in several
MIN_FREE_BYTES = 1_000_000_000  # on the disk with the uploads, which are deleted after an hour
MIN_FREE_FOR_CALLS = 500_000_000  # what was uploaded is still classified for a while: that writes previews and tables
MAX_UNFETCHED = 256  # calls of a visit: gradio keeps their answers until they are fetched
MAX_UNFETCHED_PAGE = 32  # of these, with calls of the page's own functions, whose answers tell of all its pictures
RETRY_AFTER_S = 10
UPLOAD = "/gradio_api/upload"
MCP = "/gradio_api/mcp"
CALL = "/gradio_api/call/"
DATA = "/gradio_api/queue/data"
CALLS = ("/gradio_api/queue/", CALL, "/gradio_api/run/", "/gradio_api/api/")
WORK = (UPLOAD, *CALLS)
POSTED = (*WORK, MCP, "/gradio_api/cancel", "/gradio_api/reset")  # what page and clients send to; gradio has more
# What has no use here: one prints what it is asked for into the log, the other writes what a visit shows to the disk,
# for good.
UNUSED = ("/gradio_api/custom_component/", "/gradio_api/deep_link")
FETCHED = tuple(
    f"/gradio_api/{name}{scheme}" for name in ("file=", "file/", "proxy=") for scheme in ("http:", "https:")
)

log = logging.getLogger("space")


@dataclass
class State:
    """What `server` and `RequestLimits` tell each other."""

    stopping: bool = False  # set by server.py: new work is refused with 503, what was accepted is answered
    open: int = 0  # requests for work, or for its results, that are being answered


class Answers(Protocol):
    """The answers that wait to be fetched, of a visit or of one call by its number."""

    def has_visit(self, visit: str) -> bool:
        """Whether a visit is known."""

    def has_call(self, call: str) -> bool:
        """Whether a call is known whose answer was not fetched yet."""

    def unfetched(self, visit: str) -> int:
        """Calls of a visit whose answer was not fetched yet."""

    def forget(self, call: str) -> None:
        """Lets go of what is kept for a call."""


class NoRoom(Exception):
    """The disk is too full to go on with an upload."""


class RequestLimits:
    """ASGI middleware around gradio.

    Args:
        app: gradio's.
        state: shared with whoever wants to stop.
        uploads: a folder on the disk that must keep MIN_FREE_BYTES.
        functions: what can be called.
        answers: gradio's.
        arrived: called with the paths of the files that an upload brought.
    """

    def __init__(
        self,
        app: ASGIApp,
        state: State,
        uploads: Path,
        functions: Functions,
        answers: Answers,
        arrived: Callable[[list[str]], None],
    ):
        self.app, self.state, self.uploads, self.functions, self.answers = app, state, uploads, functions, answers
        self.arrived = arrived

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses, or passes on; then logs a line that holds neither a file's name nor an address."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if scope["path"].lower().startswith(FETCHED):
            return await refusal(422, f"{BY_URL}the file")(scope, receive, send)
        if scope["path"].startswith(UNUSED) or (scope["method"] == "POST" and not scope["path"].startswith(POSTED)):
            return await refusal(404, "not part of this app")(scope, receive, send)
        if scope["method"] != "POST" and not scope["path"].startswith(WORK):
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
            what = re.sub(r"[^\w/]", "?", "/".join(scope["path"].split("/")[2:4]), flags=re.ASCII)  # not an event's id
            log.info("%s %s %d %.3f s", scope["method"], what[:40], status, time.perf_counter() - began)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses, or lets gradio answer."""
        reply = None
        if scope["method"] == "POST":
            most = MAX_UPLOAD_BYTES if is_upload(scope) else MAX_MCP_BYTES if is_message(scope) else MAX_CALL_BYTES
            reply = self.refused_unread(scope, most)
            if is_upload(scope):
                receive, send = self.with_room(receive), self.telling(send)
            elif not reply:
                body = await read(receive)
                reply = (
                    refused_message(body, scope["path"])
                    if is_message(scope)
                    else self.refused_call(body, scope["path"])
                )
                receive = replay(body, receive)
        elif scope["method"] == "GET":
            reply = self.refused_answer(scope)
        try:
            await (reply or self.app)(scope, receive, send)
        except NoRoom:
            await no_room()(scope, receive, send)
        except ClientDisconnect:  # in the middle of an upload
            return
        finally:
            if scope["method"] == "GET" and scope["path"].startswith(CALL):
                self.answers.forget(called(scope))

    def refused_unread(self, scope: Scope, most: int) -> Response | None:
        """The refusal of a request of at most so many bytes, by what is known before its body is read."""
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        if self.state.stopping and scope["path"].startswith((*WORK, MCP)):
            return refusal(503, f"the server stops: try again in {RETRY_AFTER_S} s")
        if not length.isdecimal() or "transfer-encoding" in headers:
            return refusal(411, "the body's length is not told: send Content-Length")
        if int(length) > most:
            return refusal(
                413, f"{int(length) / 1e6:,.1f} MB in one request: at most {most / 1e6:,.0f} MB, send fewer files"
            )
        least = MIN_FREE_BYTES if is_upload(scope) or is_message(scope) else MIN_FREE_FOR_CALLS
        if scope["path"].startswith((*WORK, MCP)) and not self.has_room(least):
            return no_room()
        return None

    def refused_call(self, body: bytes, path: str) -> Response | None:
        """The refusal of a call by what is in it; what is no JSON is gradio's to tell."""
        if not path.startswith(CALLS):
            return None
        try:
            content = json.loads(body)
            function = check(path, content, self.functions, self.uploads)
            visit = content.get("session_hash") if isinstance(content, dict) else None
            most = MAX_UNFETCHED if function is None or function.is_public else MAX_UNFETCHED_PAGE
            if isinstance(visit, str) and self.answers.unfetched(visit) >= most:
                raise Fault(f"{most} answers wait for this visit: fetch them first", 503)
        except Fault as fault:
            return refusal(fault.status, str(fault))
        except (ValueError, RecursionError):
            return None
        return None

    def refused_answer(self, scope: Scope) -> Response | None:
        """The refusal to give an answer that is not there: gradio would begin, and end in a trace."""
        if scope["path"].startswith(CALL) and not self.answers.has_call(called(scope)):
            return refusal(404, "no such call, or its answer was fetched before: call again")
        visit = QueryParams(scope["query_string"]).get("session_hash")
        if scope["path"] == DATA and visit and not self.answers.has_visit(visit):
            unknown = UnexpectedErrorMessage(message="404: Not Found", session_not_found=True).model_dump_json()
            return Response(f"data: {unknown}\n\n", media_type="text/event-stream")  # as gradio begins
        return None

    def has_room(self, least: int = MIN_FREE_BYTES) -> bool:
        """Whether there are so many free bytes where uploads go; by default, whether there is room for more of them."""
        return shutil.disk_usage(self.uploads).free >= least

    def with_room(self, receive: Receive) -> Receive:
        """A `receive` that raises NoRoom once the disk is too full for what comes; the sweep takes what is there by
        then.
        """

        async def receive_with_room() -> Message:
            if not self.has_room():
                raise NoRoom
            return await receive()

        return receive_with_room

    def telling(self, send: Send) -> Send:
        """A `send` that tells `arrived` of the files that gradio lists when it took an upload."""
        status, body = 0, b""

        async def send_and_tell(message: Message) -> None:
            nonlocal status, body
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                body += message.get("body", b"")
            await send(message)
            if status == 200 and message["type"] == "http.response.body" and not message.get("more_body", False):
                self.arrived(json.loads(body))

        return send_and_tell


def called(scope: Scope) -> str:
    """The number of the call whose answer is asked for."""
    return scope["path"].rpartition("/")[2]


def is_upload(scope: Scope) -> bool:
    """Whether files are sent."""
    return scope["method"] == "POST" and scope["path"].startswith(UPLOAD)


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


def no_room() -> JSONResponse:
    """The refusal of an upload, or of a call, for which the disk is too full."""
    return refusal(503, f"no room for more files at the moment: try again in {RETRY_AFTER_S} s")


def refusal(status: int, message: str) -> JSONResponse:
    """An answer that page and gradio_client show as a message."""
    detail = [{"__type__": "validate", "is_valid": False, "parameter_name": "request", "message": message}]
    return JSONResponse({"detail": detail, "error": message}, status)
