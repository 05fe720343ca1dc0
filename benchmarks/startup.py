"""Measures the time from the start of `python app.py` to its first answer over HTTP, and its memory after that.

    python -m benchmarks.startup [--runs 5]

Writes benchmarks/startup.json.
"""

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL

import httpx
import psutil
from gradio_client import Client, handle_file

from classifier import runs as record
from classifier.files import write_json

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def running_app() -> Iterator[tuple[str, psutil.Process, float]]:
    """Starts `python app.py` with the embedded models; yields address, process and start time once it is healthy."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    environment = {name: value for name, value in os.environ.items() if name not in ("PORT", "SPACE_ID", "MODELS")}
    environment |= {"GRADIO_SERVER_PORT": url.rpartition(":")[2], "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    app = subprocess.Popen([sys.executable, ROOT / "app.py"], env=environment, stdout=DEVNULL, stderr=DEVNULL)
    try:
        while not healthy(url):
            if app.poll() is not None:
                raise SystemExit(f"app.py ended with code {app.returncode} before it was healthy: run it alone")
            time.sleep(0.05)
        yield url, psutil.Process(app.pid), began
    finally:
        app.kill()
        app.wait()


def healthy(url: str, path: str = "/health") -> bool:
    """Whether a GET of the path is answered with status 200."""
    try:
        return httpx.get(url + path).status_code == 200
    except httpx.TransportError:
        return False


def resident_mb(process: psutil.Process) -> float:
    """Resident MB of the app and its decode workers."""
    return sum(p.memory_info().rss for p in [process, *process.children(recursive=True)]) / 2**20


def measure(picture: Path) -> dict[str, float]:
    """Measures one start: seconds to the first answer, seconds to stop after SIGTERM, resident MB."""
    with running_app() as (url, process, began):
        Client(url, verbose=False).predict(handle_file(picture), api_name="/classify")
        answered = time.perf_counter() - began
        memory = resident_mb(process)
        process.send_signal(signal.SIGTERM)
        began = time.perf_counter()
        process.wait()
        return {"first_answer_s": answered, "stop_s": time.perf_counter() - began, "resident_mb": memory}


def main() -> None:
    """Measures several starts; writes median, minimum and maximum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="starts, after one that is not counted (%(default)s)")
    args = parser.parse_args()
    picture = sorted((ROOT / "examples").glob("*.jpg"))[0]
    runs = [measure(picture) for _ in range(args.runs + 1)][1:]
    found = {
        name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
        for name in runs[0]
        for values in [[round(run[name], 2) for run in runs]]
    }
    write_json(Path(__file__).parent / "startup.json", found | {"runs": args.runs, "machine": record.machine()})
    print(found)


if __name__ == "__main__":
    main()
