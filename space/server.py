"""Launching the page: where it listens, its bounds, `/health`, and a stop after which nothing accepted is
unanswered.
"""

import ctypes
import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path

import gradio as gr
from gradio.utils import get_upload_folder
from PIL import Image
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from classifier.errors import ClassifierError, ModelError
from classifier.images.workers import MAX_BYTES
from classifier.models.predictor import Predictor
from space import cleanup, theme, validation
from space.components import STATIC
from space.middleware import RequestLimits, State, log
from space.pictures import PictureClassifier

MAX_WAITING = 256  # requests in the queue; one more is told that it is full
CONCURRENCY = 2  # galleries at a time: more would only hold more images in memory
SESSIONS = 1000  # visits that are kept, and calls whose answer nobody fetched; 0.1 MB each, and 8 kB a picture
QUEUES = 20 * SESSIONS  # of messages for a visit or a call; an empty one takes 1 kB
MANY = 8  # images that a model gets at once: then it is worth to be compiled
STOP_WITHIN_S = 25.0  # for what was accepted; hosts kill after 30


def serve(demo: gr.Blocks, classifier: PictureClassifier) -> None:
    """Serves `demo` until SIGTERM or Ctrl-C, then answers what was accepted, refuses what comes, and closes it.

    Listens at GRADIO_SERVER_NAME, by default 0.0.0.0 on a host that sets PORT or SPACE_ID and 127.0.0.1 elsewhere; at
    port PORT, GRADIO_SERVER_PORT or 7860. `GET /health` answers 503 until each model has classified an image, then 200.
    """
    few_arenas()
    ready, stop = threading.Event(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    def health(_: Request) -> PlainTextResponse:
        return PlainTextResponse("ok") if ready.is_set() else PlainTextResponse("starting", status_code=503)

    text = os.environ.get("PORT") or os.environ.get("GRADIO_SERVER_PORT") or "7860"
    if not text.isdigit():
        raise ClassifierError(f"PORT is {text!r}: it has to be a number, such as 7860")
    hosted = "PORT" in os.environ or "SPACE_ID" in os.environ
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    log.setLevel(logging.INFO)
    demo.queue(max_size=MAX_WAITING, default_concurrency_limit=CONCURRENCY, api_open=False)
    state, uploads, functions, answers = State(), Path(get_upload_folder()), validation.functions(demo), Answers(demo)
    uploads.mkdir(parents=True, exist_ok=True)
    demo.launch(
        server_name=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0" if hosted else "127.0.0.1"),
        server_port=int(text),
        share=False,
        ssr_mode=False,  # a Node server in front would cost start-up time and memory
        max_file_size=MAX_BYTES,
        theme=theme.THEME,
        css_paths=[STATIC / "page.css"],
        run_history=False,
        mcp_server=True,
        footer_links=["api", "settings"],
        app_kwargs={
            "routes": [Route("/health", health), Mount("/page", StaticFiles(directory=STATIC))],
            "middleware": [
                Middleware(
                    RequestLimits,
                    state=state,
                    uploads=uploads,
                    functions=functions,
                    answers=answers,
                    arrived=classifier.images.prefetch,
                )
            ],
        },
        state_session_capacity=SESSIONS,
        prevent_thread_lock=True,
    )
    cleanup.start(uploads, classifier.images, answers)
    warm_up(classifier.predictors)
    ready.set()
    compile_all(classifier.predictors, stop)  # while the first visitors are answered by the models as they are
    state.stopping = True
    deadline = time.monotonic() + STOP_WITHIN_S
    while time.monotonic() < deadline and (state.open or answers.wait()):
        time.sleep(0.05)
    demo.close()
    classifier.images.close()


class Answers:
    """What gradio holds for a call by name: it would keep a session of each, until there are too many."""

    def __init__(self, demo: gr.Blocks):
        self.demo = demo
        self._held: set[str] = set()
        # The oldest goes when one more comes, be it at work: gradio has room for 2000
        demo._queue.pending_messages_per_session.max_size = QUEUES

    def has_visit(self, visit: str) -> bool:
        """Whether a visit, or a call that came with none, is known."""
        return visit in self.demo._queue.pending_messages_per_session

    def has_call(self, call: str) -> bool:
        """Whether a call is known whose answer was not fetched yet."""
        pending = list(self.demo._queue.pending_event_ids_session.values())
        return (
            call in self.demo._queue.event_ids_to_events
            or self.has_visit(call)
            or any(call in each for each in pending)
        )

    def wait(self) -> bool:
        """Whether any is still to be fetched. Of a visit whose page was closed none is."""
        return any(
            calls and self.has_visit(visit) for visit, calls in list(self.demo._queue.pending_event_ids_session.items())
        )

    def unfetched(self, visit: str) -> int:
        """Calls of a visit whose answer was not fetched yet."""
        return len(self.demo._queue.pending_event_ids_session.get(visit, ()))

    def forget(self, visit: str) -> None:
        """Lets go of a visit, or of the session of a call that came with none of its own."""
        self.demo.state_holder.session_data.pop(visit, None)
        self.demo.state_holder.time_last_used.pop(visit, None)
        self.demo._queue.pending_messages_per_session.pop(visit, None)
        self.demo._queue.pending_event_ids_session.pop(visit, None)

    def forget_idle(self, seconds: float) -> None:
        """Lets go of all visits and calls of which nothing was heard for so long; gradio keeps a `gr.State` for
        good.
        """
        before = datetime.now() - timedelta(seconds=seconds)
        for visit, used in list(self.demo.state_holder.time_last_used.items()):
            if used < before:
                self.forget(visit)
        queue = self.demo._queue
        held = {*list(queue.pending_event_ids_session), *list(queue.pending_messages_per_session)}
        held -= {event.session_hash for event in list(queue.event_ids_to_events.values())}
        held -= {*list(self.demo.state_holder.time_last_used)}  # what is left gradio let go of, but not of its answers
        for visit in held & self._held:  # the last time too: it did not begin just now
            self.forget(visit)
        self._held = held


def warm_up(predictors: Mapping[str, Predictor]) -> None:
    """Classifies a grey image with each model, so that the first visitor waits for nothing to be started."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "grey").save(file, "PNG")
    for predictor in predictors.values():
        predictor([file.getvalue()])


def compile_all(predictors: Mapping[str, Predictor], stop: threading.Event) -> None:
    """Makes the first model fast, and until told to stop each other one that is given many images: it takes 0.1 GB a
    model.

    One that can't be compiled is served as it is, and the log says so.
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
        wanted = [predictor for predictor in waiting if predictor.most_at_once >= MANY]


def few_arenas() -> None:
    """Tells glibc, where it is glibc, to have two heaps, not one a thread: what a thread frees would stay with its
    own.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "mallopt"):
        m_arena_max = -8
        libc.mallopt(m_arena_max, 2)
