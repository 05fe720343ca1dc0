"""Launches the page: address and port, limits, `/health`, warm-up, and a stop that answers all accepted requests."""

import ctypes
import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles

from classifier.errors import ClassifierError, ModelError
from classifier.images.workers import MAX_BYTES
from classifier.models.predictor import Predictor
from space import cleanup, gradio_internals, theme
from space.components import STATIC
from space.middleware import Activity, RequestLimits, log
from space.pictures import PictureClassifier

MAX_WAITING = 256  # requests in gradio's queue; further ones are refused
CONCURRENCY = 2  # galleries that are classified at the same time; more would keep more images in memory
MAX_SESSIONS = 1000  # that keep a state: 0.1 MB each, and 8 kB for each picture on the page
LARGE_BATCH = 8  # images at once; a model that gets so many is worth compiling
STOP_WITHIN_S = 25.0  # hosts kill a process 30 s after SIGTERM


def serve(demo: gr.Blocks, classifier: PictureClassifier) -> None:
    """Serves `demo` until SIGTERM or Ctrl-C. Then refuses new requests, finishes the accepted ones, and closes.

    Listens at GRADIO_SERVER_NAME, by default 0.0.0.0 on a host that sets PORT or SPACE_ID and 127.0.0.1 elsewhere, on
    port PORT, GRADIO_SERVER_PORT or 7860. `GET /health` answers 503 until each model has classified an image, then 200.

    Raises:
        ClassifierError: PORT is not a number.
    """
    limit_heaps()
    ready, stop = threading.Event(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    def health(_: Request) -> PlainTextResponse:
        return PlainTextResponse("ok") if ready.is_set() else PlainTextResponse("starting", status_code=503)

    files = StaticFiles(directory=STATIC)

    async def static_file(request: Request) -> Response:  # a Mount fails behind a proxy that removes its prefix
        response = await files.get_response(request.path_params["path"], request.scope)
        response.headers["cache-control"] = "no-cache"  # browsers ask whether it changed, as with a new version
        return response

    port = os.environ.get("PORT") or os.environ.get("GRADIO_SERVER_PORT") or "7860"
    if not port.isdigit():
        raise ClassifierError(f"PORT is {port!r}: it has to be a number, such as 7860")
    hosted = "PORT" in os.environ or "SPACE_ID" in os.environ
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    log.setLevel(logging.INFO)
    demo.queue(max_size=MAX_WAITING, default_concurrency_limit=CONCURRENCY, api_open=False)
    gradio_internals.refuse_form_fields()
    activity, uploads, sessions = Activity(), gradio_internals.upload_folder(), gradio_internals.Sessions(demo)
    uploads.mkdir(parents=True, exist_ok=True)
    limits = Middleware(
        RequestLimits,
        activity=activity,
        uploads=uploads,
        functions=gradio_internals.functions(demo),
        sessions=sessions,
        on_upload=classifier.images.prefetch,
    )
    demo.launch(
        server_name=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0" if hosted else "127.0.0.1"),
        server_port=int(port),
        share=False,
        ssr_mode=False,  # a Node server in front would cost start-up time and memory
        max_file_size=MAX_BYTES,
        theme=theme.THEME,
        css_paths=[STATIC / "page.css"],
        run_history=False,
        mcp_server=True,
        footer_links=["api", "settings"],
        app_kwargs={
            "routes": [Route("/health", health), Route("/page/{path:path}", static_file)],
            "middleware": [limits],
        },
        state_session_capacity=MAX_SESSIONS,
        prevent_thread_lock=True,
    )
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


def warm_up(predictors: Mapping[str, Predictor]) -> None:
    """Classifies a grey image with each model, so that the first visitor does not wait for anything to start."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "grey").save(file, "PNG")
    for predictor in predictors.values():
        predictor([file.getvalue()])


def compile_models(predictors: Mapping[str, Predictor], stop: threading.Event) -> None:
    """Compiles the first model, then until `stop` each other model that gets large batches: each takes 0.1 GB.

    A model that can't be compiled is served as it is, and the log says so.
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
    """Lets glibc use two heaps instead of one a thread: a heap keeps the memory that its thread has freed."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "mallopt"):
        m_arena_max = -8
        libc.mallopt(m_arena_max, 2)
