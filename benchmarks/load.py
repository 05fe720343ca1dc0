"""Sends requests to `python app.py` from 1, 8, 32 and 128 concurrent clients, and checks each reply.

    python -m benchmarks.load                       # 10,000 requests, a few minutes on two cores
    python -m benchmarks.load --requests 200 --clients 1 32

A request uploads a photograph, calls /classify and waits for the answer, which has to equal the predictor's. If the app
is busy, the client waits for the time in the reply's Retry-After header and tries again. For comparison, the rate of 32
clients of an app that only returns the file is measured, and the images per second that the predictor alone decodes and
classifies, with the out-of-distribution check (`predict_with_ood`). All of these use every core, and the clients run on
the same machine as the app. A request then costs the sum of both, so each row has the share of that combined rate.
Writes benchmarks/load.json. The exit code is 1 if a reply was lost or wrong.
"""

import argparse
import asyncio
import io
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil
from PIL import Image

from app import load_predictors
from benchmarks.gallery import served
from benchmarks.startup import resident_mb, running_app
from classifier import runs
from classifier.files import write_json

ROOT = Path(__file__).resolve().parent.parent
PHOTOGRAPHS = 64  # number of different photographs
SAME = 1e-4  # largest allowed difference between a probability and the predictor's
TIMEOUT_S = 300.0
ECHOES_AT_ONCE, ECHOES = 32, 400
REUSED_WITHIN_S = 1.0  # of a connection, less than the 5 s after which a server such as /echo's closes an idle one
COMPILED_AFTER_S = 20.0  # the app compiles its models once it is healthy


def photographs() -> list[bytes]:
    """The examples as JPEG files of 640 x 480 pixels, repeated with rotations until there are enough."""
    paths = sorted(path for path in (ROOT / "examples").glob("*") if path.suffix in (".jpg", ".png"))
    made = []
    for i in range(PHOTOGRAPHS):
        with Image.open(paths[i % len(paths)]) as image:
            image = image.convert("RGB").resize((640, 480)).rotate(90 * (i // len(paths)))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=90)
        made.append(file.getvalue())
    return made


@dataclass
class Tally:
    """Outcomes and durations of requests."""

    seconds: list[float] = field(default_factory=list)  # of each request, including waits
    outcomes: Counter = field(default_factory=Counter)  # right, wrong, lost; busy: replies 503


async def ask(client: httpx.AsyncClient, file: bytes, expected: dict[str, float] | None, tally: Tally) -> None:
    """Sends one request and waits for its answer: to /classify, or to /echo if `expected` is None."""
    began = time.perf_counter()
    try:
        [path] = await post(client, tally, "/gradio_api/upload", files={"files": ("a.jpg", file, "image/jpeg")})
        image = {"path": path, "meta": {"_type": "gradio.FileData"}}
        call = f"/gradio_api/call/{'classify' if expected else 'echo'}"
        content = {"data": [image, None, len(expected)] if expected else [image]}
        event = (await post(client, tally, call, json=content))["event_id"]
        text = (await client.get(f"{call}/{event}")).text
        answer, *_ = json.loads(text.rpartition("event: complete\ndata: ")[2])
        is_right = agrees(answer, expected) if expected else answer["path"] == path
        tally.outcomes["right" if is_right else "wrong"] += 1
    except (httpx.HTTPError, ValueError) as error:
        tally.outcomes["lost"] += 1
        print(f"lost: {type(error).__name__} {error}"[:200], flush=True)
    tally.seconds.append(time.perf_counter() - began)


def agrees(label: dict, expected: dict[str, float]) -> bool:
    """Whether an answer of /classify has the expected probability of each label."""
    found = {entry["label"]: entry["confidence"] for entry in label["confidences"]}
    return found.keys() == expected.keys() and all(abs(found[name] - p) < SAME for name, p in expected.items())


async def post(client: httpx.AsyncClient, tally: Tally, path: str, **content) -> object:
    """Sends a POST until the reply is not 503; returns its JSON."""
    while True:
        reply = await client.post(path, **content)
        if reply.status_code != 503:
            return reply.raise_for_status().json()
        tally.outcomes["busy"] += 1
        await asyncio.sleep(int(reply.headers["retry-after"]))


async def clients_at_once(url: str, n_clients: int, n_requests: int, files: list[bytes], expected: list[dict]) -> Tally:
    """Runs the clients; each sends its next request when the last one is answered."""
    tally, numbers = Tally(), iter(range(n_requests))
    limits = httpx.Limits(max_connections=2 * n_clients, keepalive_expiry=REUSED_WITHIN_S)

    async def work(client: httpx.AsyncClient) -> None:
        for i in numbers:
            await ask(client, files[i % len(files)], expected[i % len(files)], tally)

    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=TIMEOUT_S) as client:
        await asyncio.gather(*[work(client) for _ in range(n_clients)])
    return tally


def rate(classify: Callable[[list[bytes]], object], files: list[bytes]) -> float:
    """Files per second."""
    began = time.perf_counter()
    classify(files)
    return len(files) / (time.perf_counter() - began)


def measure(
    url: str, process: psutil.Process | None, n_clients: int, n_requests: int, files: list, expected: list
) -> dict:
    """Measures one number of clients; returns a row of load.json."""
    began = time.perf_counter()
    tally = asyncio.run(clients_at_once(url, n_clients, n_requests, files, expected))
    seconds = time.perf_counter() - began
    p50, p99 = np.percentile(tally.seconds, [50, 99])
    return {
        "clients": n_clients,
        "requests": n_requests,
        "outcomes": dict(sorted(tally.outcomes.items())),
        "requests_per_second": round(n_requests / seconds, 1),
        "latency_s": {"p50": round(p50, 3), "p99": round(p99, 3), "max": round(max(tally.seconds), 3)},
        "resident_mb": process and round(resident_mb(process)),
    }


def main() -> None:
    """Measures each number of clients, prints the rows and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000, help="total number of requests (%(default)s)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128], help="at once (%(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "load.json", help="(benchmarks/load.json)"
    )
    args = parser.parse_args()
    files = photographs()
    predictor = next(iter(load_predictors()[0].values()))
    predictor.compile()
    expected = [dict(zip(predictor.labels, map(float, row), strict=True)) for row in predictor.probabilities(files)]
    bare, judged = rate(predictor.probabilities, files), rate(predictor.predict_with_ood, files)
    del predictor
    print(f"the predictor alone: {bare:.1f} images/s, {judged:.1f} with the out-of-distribution check", flush=True)
    with served("nothing") as url:
        echoed = measure(url, None, ECHOES_AT_ONCE, ECHOES, files, [None] * len(files))
    both = 1 / (1 / echoed["requests_per_second"] + 1 / judged)
    print(f"an app that returns files: {echoed['requests_per_second']:.1f} requests/s; both: {both:.1f}", flush=True)
    rows = []
    with running_app() as (url, process, _):
        time.sleep(COMPILED_AFTER_S)
        for n_clients in args.clients:
            row = measure(url, process, n_clients, args.requests // len(args.clients), files, expected)
            rows.append(row | {"share_of_both": round(row["requests_per_second"] / both, 2)})
            print(json.dumps(rows[-1]), flush=True)
    bare_rates = {"bare_images_per_second": round(bare, 1), "judged_images_per_second": round(judged, 1)}
    write_json(args.output, bare_rates | {"echo": echoed, "rows": rows, "machine": runs.machine()})
    if any(row["outcomes"].get("right") != row["requests"] for row in [echoed, *rows]):
        sys.exit("replies were lost or wrong")


if __name__ == "__main__":
    main()
