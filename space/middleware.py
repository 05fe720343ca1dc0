"""Refuses requests that gradio would accept although they cost too much or can't be answered.

gradio itself limits the size of an uploaded file (`max_file_size`, 413) and the length of its queue (`max_size`, 503),
serves only files of the upload folder, and never fetches a URL of the internal network. Each method of `RequestLimits`
named `check_…` is a further rule, whose docstring begins with the threat.

A refusal is JSON that gradio's clients raise as an exception with its message. Its status is 422 for wrong arguments,
404 for a route, endpoint or answer that does not exist, 411 or 413 for a body of unknown or too large size, and 503
with Retry-After if the same request can be sent again later.
"""

import logging
import re
import shutil
import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from urllib.parse import urlsplit

import orjson
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from space.gradio_internals import Functions, Sessions
from space.validation import Refused, Uploads, check_call, host_of

MAX_CALL_BYTES = 1_000_000  # of the JSON of a call: 500 files take 200 kB
MAX_MCP_BYTES = 10_000_000  # of a message by MCP, which contains an image as base64
MIN_FREE_BYTES = 1_000_000_000  # on the disk of the uploads, for a request that uploads files
MIN_FREE_BYTES_FOR_CALLS = 500_000_000  # for a call, which writes small files: previews and tables
MAX_UNFETCHED = 64  # calls of a session whose answers were not fetched; gradio_client makes at most 40 at once
MAX_SESSION_ID = 255  # characters
RETRY_AFTER_S = 10
UPLOAD = "/gradio_api/upload"
MCP = "/gradio_api/mcp"
CALL = "/gradio_api/call/"
QUEUE_DATA = "/gradio_api/queue/data"
CALLS = ("/gradio_api/queue/", CALL, "/gradio_api/run/", "/gradio_api/api/")
WORK = (UPLOAD, MCP, *CALLS)
POSTED = (*WORK, "/gradio_api/cancel", "/gradio_api/reset")  # to which the page and gradio's clients send POST requests
UNUSED = (
    "/gradio_api/custom_component/",  # prints its path into the log
    "/gradio_api/deep_link",  # writes the state of a session to the disk, and never deletes it
    "/gradio_api/file=http",  # fetches any URL outside of the internal network for anyone
    "/gradio_api/file/",  # the same
)

log = logging.getLogger("space")


@dataclass
class Activity:
    """What the server and `RequestLimits` tell each other."""

    is_stopping: bool = False  # set by the server: new work is refused with 503, accepted work is finished
    open_requests: int = 0  # requests for work or for its results that are being answered


@dataclass
class RequestLimits:
    """ASGI middleware around gradio that applies the rules, and logs a line for each request."""

    app: ASGIApp
    activity: Activity
    uploads: Path  # the folder of uploads
    functions: Functions  # what can be called
    sessions: Sessions
    on_upload: Callable[[list[str]], None]  # called with the paths of the files of each upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, and logs a line that contains neither file names nor addresses."""
        path = route_path(scope)
        if scope["type"] != "http" or (scope["method"] != "POST" and not path.startswith(CALLS + UNUSED)):
            return await self.app(scope, receive, send)
        began, status = time.perf_counter(), 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status == 503:  # also gradio's own, when its queue is full
                    MutableHeaders(scope=message)["retry-after"] = str(RETRY_AFTER_S)
            await send(message)

        self.activity.open_requests += 1
        try:
            await self.answer(Request(scope, receive), path, send_and_note)
        finally:
            self.activity.open_requests -= 1
            name = "/".join(path.split("/")[2:4]) if path.startswith(POSTED) else "other"  # without the id of a call
            name = re.sub(r"[^\w/]", "?", name[:40], flags=re.ASCII)  # threat: forged lines of the log
            log.info("%s %s %d %.3f s", scope["method"], name, status, time.perf_counter() - began)

    async def answer(self, request: Request, path: str, send: Send) -> None:
        """Refuses a request by the first rule that applies, or lets gradio answer it."""
        receive, is_post, is_get = request.receive, request.method == "POST", request.method == "GET"
        try:
            self.check_route(request, path)
            if is_post:
                self.check_stopping(path)
                self.check_body_size(request, path)
                self.check_folder(path)
                self.check_disk(path)
            elif is_get:
                self.check_answer_exists(request, path)
            if is_post and path.startswith(UPLOAD):
                receive, send = self.with_disk_check(receive, path), self.with_notification(send)
            elif is_post and path.startswith(CALLS):
                body = self.check_arguments(await request.body(), path, own_hosts(request))
                receive = replay(body, receive)
            await self.app(request.scope, receive, send)
        except Refused as refused:
            await refusal(refused)(request.scope, receive, send)
        except ClientDisconnect:  # in the middle of an upload
            return
        finally:
            if is_get and path.startswith(CALL):  # otherwise gradio would keep an empty session for good
                self.sessions.forget(event_id(path))

    def check_route(self, request: Request, path: str) -> None:
        """gradio has routes that neither the page nor its clients use: they read bodies of any size, start ffmpeg, or
        change a waiting call. The comments of UNUSED describe those that GET requests can reach.
        """
        if path.startswith(UNUSED) or (request.method == "POST" and not path.startswith(POSTED)):
            raise Refused("not part of this app", 404)

    def check_stopping(self, path: str) -> None:
        """Work that is accepted while the server stops would be lost."""
        if self.activity.is_stopping and path.startswith(WORK):
            raise Refused(f"the server stops: try again in {RETRY_AFTER_S} s", 503)

    def check_body_size(self, request: Request, path: str) -> None:
        """gradio keeps the body of a request in memory, whatever its size. It writes uploads to the disk instead."""
        if path.startswith(UPLOAD):
            return
        length = request.headers.get("content-length", "")
        most = MAX_MCP_BYTES if path.startswith(MCP) else MAX_CALL_BYTES
        if not length.isdecimal() or "transfer-encoding" in request.headers:
            raise Refused("a body of unknown length: send Content-Length", 411)
        if int(length) > most:
            raise Refused(f"{int(length) / 1e6:,.1f} MB in one request: at most {most / 1e6:,.0f} MB", 413)

    def check_disk(self, path: str) -> None:
        """Uploads can fill the disk faster than they are deleted. The last part of it is left to calls."""
        if path.startswith(WORK):
            least = MIN_FREE_BYTES if path.startswith((UPLOAD, MCP)) else MIN_FREE_BYTES_FOR_CALLS
            check_room(self.uploads, least)

    def check_folder(self, path: str) -> None:
        """gradio answers 500 if it can't write: the folder may belong to another user, or be on a broken disk."""
        if path.startswith(WORK):
            check_uploads(self.uploads)

    def with_disk_check(self, receive: Receive, path: str) -> Receive:
        """A `receive` that applies `check_disk` before each part of an upload, because it may exceed the free space."""

        async def receive_if_room() -> Message:
            self.check_disk(path)
            return await receive()

        return receive_if_room

    def check_answer_exists(self, request: Request, path: str) -> None:
        """gradio logs a traceback and drops the connection if an answer does not exist or was fetched before."""
        session = request.query_params.get("session_hash")
        if (path.startswith(CALL) and event_id(path) not in self.sessions.unfetched_calls()) or (
            path == QUEUE_DATA and session and session not in self.sessions
        ):
            raise Refused("no such call, or its answer was fetched before: call again", 404)

    def check_arguments(self, body: bytes, path: str, hosts: Container[str]) -> bytes:
        """gradio logs a traceback for text that can't be encoded, and for most arguments of a wrong type. It keeps
        session names of any length, and answers until they are fetched. Returns the body for gradio, in which the URLs
        of uploads at one of `hosts` are replaced by paths.
        """
        try:
            content = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise Refused("not JSON in UTF-8") from None
        check_call(path, content, self.functions, Uploads(self.uploads, hosts))
        session = content.get("session_hash") if isinstance(content, dict) else None
        if isinstance(session, str) and len(session) > MAX_SESSION_ID:
            raise Refused(f"session_hash: {len(session):,} characters, at most {MAX_SESSION_ID}")
        if isinstance(session, str) and self.sessions.n_unfetched(session) >= MAX_UNFETCHED:
            raise Refused(f"{MAX_UNFETCHED} answers wait for this session: fetch them first", 503)
        try:
            return orjson.dumps(content)
        except orjson.JSONEncodeError:  # orjson reads 1024 levels and writes 254
            raise Refused("nested too deeply") from None

    def with_notification(self, send: Send) -> Send:
        """A `send` that calls `on_upload` with the paths in gradio's answer to an upload."""
        status, body = 0, b""

        async def send_and_notify(message: Message) -> None:
            nonlocal status, body
            status, body = message.get("status", status), body + message.get("body", b"")
            await send(message)
            if status == 200 and message["type"] == "http.response.body" and not message.get("more_body", False):
                self.on_upload(orjson.loads(body))

        return send_and_notify


def check_uploads(folder: Path) -> None:
    """Raises Refused, with 503, unless files can be written to the folder of uploads."""
    try:
        try_writing(folder)
    except OSError as error:
        log.error("uploads can't be written: %s: set GRADIO_TEMP_DIR to another folder", error)
        raise Refused(
            f"uploads can't be written ({error.strerror}): this has to be repaired on the server", 503
        ) from None


def check_room(folder: Path, least: int = MIN_FREE_BYTES) -> None:
    """Raises Refused, with 503, unless `least` bytes are free on the disk of the folder."""
    if shutil.disk_usage(folder).free < least:
        raise Refused(f"no room for more files at the moment: try again in {RETRY_AFTER_S} s", 503)


def try_writing(folder: Path) -> None:
    """OSError unless a file can be written to the folder, which is made if it is not there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with TemporaryFile(dir=folder):
        pass


def route_path(scope: Scope) -> str:
    """The path of a request without the prefix of a proxy, as Starlette's router matches it."""
    path, prefix = scope.get("path", ""), scope.get("root_path", "")
    return path.removeprefix(prefix) if path.startswith(f"{prefix}/") else path


def own_hosts(request: Request) -> set[str]:
    """The hosts that a request was sent to: by its header Host, by those of proxies, and by GRADIO_ROOT_PATH."""
    lists = [*request.headers.getlist("host"), *request.headers.getlist("x-forwarded-host")]
    names = [name for names in lists for name in names.split(",")]
    return {host_of(name) for name in (*names, urlsplit(request.scope.get("root_path", "")).netloc)}


def event_id(path: str) -> str:
    """The id of the call whose answer is fetched at `path`."""
    return path.rpartition("/")[2]


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that first returns a body that was read already, then the messages that follow it."""
    messages = iter([{"type": "http.request", "body": body}])

    async def receive_again() -> Message:
        return next(messages, None) or await receive()

    return receive_again


def refusal(refused: Refused) -> JSONResponse:
    """The answer to a refused request, in the format whose message the page and gradio_client show."""
    message = str(refused)
    detail = [{"__type__": "validate", "is_valid": False, "parameter_name": "request", "message": message}]
    return JSONResponse({"detail": detail, "error": message}, refused.status)
