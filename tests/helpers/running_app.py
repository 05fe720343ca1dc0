"""The app in a process of its own, as a user starts it."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.helpers.paths import ROOT

THRESHOLD = 6.3  # energy, which some of the pictures below reach by that random model and some do not
STARTED_WITHIN_S = 300  # far more than the 15 s of an idle machine, for tests run beside a training


@contextlib.contextmanager
def running_app(
    models: list[Path | str], folder: Path, settings: dict[str, str] | None = None
) -> Iterator[tuple[str, subprocess.Popen]]:
    """`python app.py` as a user starts it, in another working directory; gives its address and process once it is
    healthy.

    `settings` are more environment variables.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name not in ("PORT", "SPACE_ID")} | {
        "MODELS": ",".join(map(str, models)),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
        "HF_HUB_OFFLINE": "1",
        **(settings or {}),
    }
    with (folder / "app.log").open("w") as log:
        app = subprocess.Popen([sys.executable, ROOT / "app.py"], cwd=folder, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(url, app, folder / "app.log")
        yield url, app
    finally:
        app.kill()
        app.wait()


def wait_until_healthy(url: str, app: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + STARTED_WITHIN_S
    while app.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            status = httpx.get(f"{url}/health").status_code
            if status == 200:
                return
            assert status == 503
        time.sleep(0.1)
    raise AssertionError(f"the app did not start:\n{log.read_text()}")
