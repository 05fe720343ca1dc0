"""Launches the page: address and port, limits, `/health`, warm-up, and a stop that answers all accepted requests."""

import ctypes
import errno
import io
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles

from classifier.errors import ClassifierError, ModelError
from classifier.images.limits import MAX_BYTES
from classifier.models.predictor import Predictor
from space import cleanup, gradio_internals, theme
from space.components import STATIC
from space.middleware import Activity, RequestLimits, check_room, check_uploads, log, try_writing
from space.pictures import PictureClassifier
from space.validation import Refused

MAX_WAITING = 256  # requests in gradio's queue; further ones are refused
CONCURRENCY = 2  # galleries that are classified at the same time; more would keep more images in memory
MAX_SESSIONS = 1000  # whose state is kept: 0.1 MB each, and 8 kB for each picture on the page
LARGE_BATCH = 8  # images; a model that gets batches of this size is worth compiling
KEEP_ALIVE_S = 75  # of an idle connection: longer than clients (httpx: 5 s) and load balancers (60 s) reuse one
STOP_WITHIN_S = 25.0  # hosts kill a process 30 s after SIGTERM


def serve(demo: gr.Blocks, classifier: PictureClassifier) -> None:
    """Serves `demo` until SIGTERM or Ctrl-C. Then refuses new requests, finishes the accepted ones, and closes.

    Listens at GRADIO_SERVER_NAME, by default 0.0.0.0 on a host that sets PORT or SPACE_ID and 127.0.0.1 elsewhere, on
    port PORT, GRADIO_SERVER_PORT or 7860. `GET /health` answers 503 until each model has classified an image, and while
    uploads can't be written, else 200.

    Raises:
        ClassifierError: the page can't listen there, or uploads can't be written.
    """
    limit_heaps()
    ready, stop = threading.Event(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    log.setLevel(logging.INFO)
    demo.queue(max_size=MAX_WAITING, default_concurrency_limit=CONCURRENCY, api_open=False)
    activity, sessions = Activity(), gradio_internals.Sessions(demo)
    launch(demo, classifier, activity, sessions, ready)
    cleanup.start(demo, classifier.images, sessions)
    warm_up(classifier.predictors)
    ready.set()
    compile_models(classifier.predictors, stop)  # the first visitors are answered by the models as they are
    activity.is_stopping = True
    deadline = time.monotonic() + STOP_WITHIN_S
    while time.monotonic() < deadline and (activity.open_requests or any(sessions.unfetched_calls())):
        time.sleep(0.05)
    demo.close()
    classifier.images.close()


def launch(
    demo: gr.Blocks,
    classifier: PictureClassifier,
    activity: Activity,
    sessions: gradio_internals.Sessions,
    ready: threading.Event,
) -> None:
    """Starts the web server, with its limits, in a thread of its own."""
    host, port = address()
    uploads = gradio_internals.upload_folder()
    try:
        try_writing(uploads)
    except OSError as error:
        raise ClassifierError(
            f"can't write uploads to {uploads} ({error.strerror}): set GRADIO_TEMP_DIR to another folder"
        ) from None
    gradio_internals.refuse_form_fields()
    gradio_internals.serve_lists_of_files_by_mcp()
    limits = Middleware(
        RequestLimits,
        activity=activity,
        uploads=uploads,
        functions=gradio_internals.functions(demo),
        sessions=sessions,
        on_upload=classifier.images.prefetch,
    )
    demo.launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,  # a Node server in front would cost start-up time and memory
        max_file_size=MAX_BYTES,
        theme=theme.THEME,
        css_paths=[STATIC / "page.css"],
        run_history=False,
        mcp_server=True,
        footer_links=["api", "settings"],
        app_kwargs={"routes": routes(ready, uploads), "middleware": [limits]},
        state_session_capacity=MAX_SESSIONS,
        prevent_thread_lock=True,
    )
    gradio_internals.keep_connections_open(demo, KEEP_ALIVE_S)


def address() -> tuple[str, int]:
    """Host and port to listen on, as `serve` describes.

    Raises:
        ClassifierError: the port is no number or is in use, or this computer does not have the address.
    """
    is_hosted = "PORT" in os.environ or "SPACE_ID" in os.environ
    host = os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0" if is_hosted else "127.0.0.1")
    variable = "PORT" if os.environ.get("PORT") else "GRADIO_SERVER_PORT"
    port = os.environ.get(variable) or "7860"
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ClassifierError(f"{variable} is {port!r}: it has to be a number from 1 to 65535, such as 7860")
    for name in dict.fromkeys(["127.0.0.1", host]):  # gradio needs the port at the first one too
        try:
            socket.create_server((name, int(port)), family=socket.AF_INET6 if ":" in name else socket.AF_INET).close()
        except OSError as error:
            if error.errno is None or error.errno < 0 or error.errno == errno.EADDRNOTAVAIL:  # below 0: of the resolver
                step = "set GRADIO_SERVER_NAME to a name or an address of this computer"
            else:
                step = f"{os.strerror(error.errno)}: set {variable} to another port, such as 7861"
            raise ClassifierError(f"can't listen at {name}:{port}: {step}") from None
    return host, int(port)


def routes(ready: threading.Event, uploads: Path) -> list[Route]:
    """`/health`, 200 once `ready` is set and while uploads are accepted, and `/page/…`, the files of static/."""

    def health(_: Request) -> PlainTextResponse:
        if not ready.is_set():
            return PlainTextResponse("starting", status_code=503)
        try:
            check_uploads(uploads)
            check_room(uploads)
        except Refused as refused:
            return PlainTextResponse(str(refused), status_code=503)
        return PlainTextResponse("ok")

    files = StaticFiles(directory=STATIC)

    async def static_file(request: Request) -> Response:  # a Mount fails behind a proxy that removes its prefix
        response = await files.get_response(request.path_params["path"], request.scope)
        response.headers["cache-control"] = "no-cache"  # browsers ask whether it changed, as with a new version
        return response

    return [Route("/health", health), Route("/page/{path:path}", static_file)]


def warm_up(predictors: Mapping[str, Predictor]) -> None:
    """Classifies a grey image with each model, so that the first visitor does not wait for anything to start."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "grey").save(file, "PNG")
    for predictor in predictors.values():
        predictor([file.getvalue()])


def compile_models(predictors: Mapping[str, Predictor], stop: threading.Event) -> None:
    """Compiles the first model, then each other one as soon as it gets a large batch. Returns when `stop` is set.

    Each compiled model takes 0.1 GB. A model that can't be compiled is served as it is, and the log says so.
    """
    waiting = list(predictors.values())
    wanted = waiting[:1]
    while not stop.is_set():
        for predictor in wanted:
            waiting.remove(predictor)
            try:
                predictor.compile()
            except ModelError as error:
                log.warning("%s", error)
            else:
                log.info("%s is compiled", predictor.name)
        stop.wait(1.0 if waiting else None)
        wanted = [predictor for predictor in waiting if predictor.most_at_once >= LARGE_BATCH]


def limit_heaps() -> None:
    """Limits glibc to two heaps instead of one per thread, because a heap keeps memory that its thread has freed."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "mallopt"):
        m_arena_max = -8
        libc.mallopt(m_arena_max, 2)
