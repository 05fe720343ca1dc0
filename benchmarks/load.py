"""Loads `python app.py` with 1, 8, 32 and 128 clients at once, and checks every reply against the predictor.

    python -m benchmarks.load                       # 10,000 requests, a few minutes on two cores
    python -m benchmarks.load --requests 200 --clients 1 32

A request is what a script sends: the upload of a photograph, the call of /classify, and its answer. One that is told
that the app is busy waits as long as the reply says, and tries again. Before, what 32 clients get from an app that only
gives a file back, and the images a second that the bare predictor decodes, classifies, and looks at twice, to tell if
it knows them. All of
these keep every core busy, and the clients share the machine with the app: a request costs there what it costs in both,
so a row tells which share of that sum's rate was reached. Writes benchmarks/load.json; exit code 1 if a reply was lost
or wrong.
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
PHOTOGRAPHS = 64  # different ones
SAME = 1e-4  # how far a probability may be from the predictor's
TIMEOUT_S = 300.0
ECHOES_AT_ONCE, ECHOES = 32, 400
COMPILED_AFTER_S = 20.0  # the app compiles its models once it is healthy


def photographs() -> list[bytes]:
    """The examples, as JPEG files of 640 pixels, turned and mirrored until there are enough."""
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
    """What became of the requests of some clients."""

    seconds: list[float] = field(default_factory=list)  # of each request, with its waits
    outcomes: Counter = field(default_factory=Counter)  # right, wrong, lost; busy: told to come again


async def ask(client: httpx.AsyncClient, file: bytes, expected: dict[str, float] | None, tally: Tally) -> None:
    """One request, until it is answered; without probabilities to expect, of /echo."""
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
    """Whether an answer of /classify has these probabilities, by label."""
    found = {entry["label"]: entry["confidence"] for entry in label["confidences"]}
    return found.keys() == expected.keys() and all(abs(found[name] - p) < SAME for name, p in expected.items())


async def post(client: httpx.AsyncClient, tally: Tally, path: str, **content) -> object:
    """The JSON that a POST is answered with, once it is no longer told to wait."""
    while True:
        reply = await client.post(path, **content)
        if reply.status_code != 503:
            return reply.raise_for_status().json()
        tally.outcomes["busy"] += 1
        await asyncio.sleep(int(reply.headers["retry-after"]))


async def clients_at_once(url: str, n_clients: int, n_requests: int, files: list[bytes], expected: list[dict]) -> Tally:
    """So many clients, each of which sends the next request when its last one is answered."""
    tally, numbers = Tally(), iter(range(n_requests))
    limits = httpx.Limits(max_connections=2 * n_clients)

    async def work(client: httpx.AsyncClient) -> None:
        for i in numbers:
            await ask(client, files[i % len(files)], expected[i % len(files)], tally)

    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=TIMEOUT_S) as client:
        await asyncio.gather(*[work(client) for _ in range(n_clients)])
    return tally


def rate(classify: Callable[[list[bytes]], object], files: list[bytes]) -> float:
    """Files a second."""
    began = time.perf_counter()
    classify(files)
    return len(files) / (time.perf_counter() - began)


def measure(
    url: str, process: psutil.Process | None, n_clients: int, n_requests: int, files: list, expected: list
) -> dict:
    """A row of the table."""
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
    """A row for each number of clients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000, help="in all (%(default)s)")
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
    print(f"the bare predictor: {bare:.1f} images/s, {judged:.1f} if it looks twice", flush=True)
    with served("nothing") as url:
        echoed = measure(url, None, ECHOES_AT_ONCE, ECHOES, files, [None] * len(files))
    both = 1 / (1 / echoed["requests_per_second"] + 1 / judged)
    print(f"an app that gives files back: {echoed['requests_per_second']:.1f} requests/s; both: {both:.1f}", flush=True)
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
        sys.exit("replies were lost, or wrong")


if __name__ == "__main__":
    main()
