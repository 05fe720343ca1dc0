"""Times a gallery of large photographs with the app, with each of its parts alone, and with a minimal gradio app.

    python -m benchmarks.gallery                    # 200 photographs of 12 megapixels; 40 for the minimal app

Measures in one run, with gradio_client, from the call to the last result:
    app       python app.py with its default model, /classify_gallery
    parts     upload to an endpoint that does nothing + reduced decoding on all cores + the model alone
    obvious   the minimal app: a gr.Gallery of PIL images, and transformers' pipeline over them, with the same model
    single    one photograph to /classify, and to an endpoint that returns it unchanged
Writes benchmarks/gallery.json.
"""

import argparse
import io
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
import numpy as np
from gradio_client import Client, handle_file
from PIL import Image

from app import EMBEDDED, load_predictors
from benchmarks.startup import healthy, resident_mb, running_app
from classifier import runs
from classifier.files import write_json
from classifier.images.workers import decode_many

ROOT = Path(__file__).resolve().parent.parent
SIZE = 4000, 3000
SINGLES = 20
COMPILED_AFTER_S = 20.0  # the app compiles its models once it is healthy


def photographs(folder: Path, n: int) -> list[Path]:
    """Writes n different JPEG files of about 3 MB: the examples, enlarged, with grain."""
    sources = sorted(path for path in (ROOT / "examples").glob("*") if path.suffix in (".jpg", ".png"))
    rng, made = np.random.default_rng(0), []
    for i in range(n):
        with Image.open(sources[i % len(sources)]) as image:
            image = image.convert("RGB").resize(SIZE, Image.Resampling.BICUBIC)
        if i < len(sources):  # grain is slow to draw: later copies of a source share it and differ in JPEG quality
            grain = rng.normal(0, 6, (SIZE[1], SIZE[0], 1)).astype(np.float32)
            image = Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))
            image.save(folder / f"source {i}.png", compress_level=0)
        else:
            image = Image.open(folder / f"source {i % len(sources)}.png")
        made.append(folder / f"{i}.jpg")
        image.save(made[-1], quality=85 + i // len(sources) % 8)
    return made


def obvious(model: str) -> gr.Interface:
    """The app of a tutorial: PIL images in, a pipeline over them."""
    from transformers import pipeline

    classify = pipeline("image-classification", model=model)

    def run(images: list) -> list:
        return [classify(image) for image, _ in images]

    return gr.Interface(run, gr.Gallery(type="pil"), gr.JSON(), api_name="run")


def nothing() -> gr.Blocks:
    """Two endpoints that only take files: /run returns their number, /echo returns the file."""
    with gr.Blocks() as demo:
        files, file, count = gr.File(file_count="multiple"), gr.File(), gr.Number()
        gr.on([], lambda files: len(files), files, count, api_name="run", preprocess=False)
        gr.on([], lambda file: file["path"], file, file, api_name="echo", preprocess=False, concurrency_limit=32)
    return demo


@contextmanager
def served(what: str, *words: str) -> Iterator[str]:
    """Serves `obvious` or `nothing` in a process of its own; yields the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "benchmarks.gallery", "--serve", what, port, *words]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        while not healthy(f"http://127.0.0.1:{port}", path="/config"):
            if process.poll() is not None:
                raise SystemExit(f"the {what} app ended with code {process.returncode}")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def timed(client: Client, *arguments, api_name: str) -> float:
    """Calls the endpoint and returns the seconds until its result."""
    began = time.perf_counter()
    client.predict(*arguments, api_name=api_name)
    return time.perf_counter() - began


def main() -> None:
    """Measures, prints the results and writes gallery.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=int, default=200, help="photographs for the app (%(default)s)")
    parser.add_argument("--obvious", type=int, default=40, help="photographs for the minimal app (%(default)s)")
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        what, port, *words = args.serve
        return {"obvious": obvious, "nothing": nothing}[what](*words).launch(server_port=int(port))

    found = {"photographs": args.photographs, "pixels": SIZE}
    with tempfile.TemporaryDirectory() as folder:
        paths = photographs(Path(folder), args.photographs)
        found["megabytes"] = round(sum(path.stat().st_size for path in paths) / 1e6)
        files = [handle_file(path) for path in paths]
        single = io.BytesIO()
        Image.open(paths[0]).resize((640, 480)).save(single, "JPEG")
        small = Path(folder) / "small.jpg"
        small.write_bytes(single.getvalue())

        predictor = next(iter(load_predictors()[0].values()))
        predictor.compile()
        began = time.perf_counter()
        images = list(decode_many(paths, reduce_to=predictor.reduce_to))
        found["decode_s"] = round(time.perf_counter() - began, 2)
        predictor.probabilities(images[:32])
        began = time.perf_counter()
        predictor.probabilities(images)
        found["model_s"] = round(time.perf_counter() - began, 2)
        predictor.probabilities(images[:1])
        began = time.perf_counter()
        for image in images[:SINGLES]:
            predictor.probabilities([image])
        found["one_image_model_ms"] = round(1000 * (time.perf_counter() - began) / SINGLES, 1)
        name = predictor.name
        del predictor, images

        with served("nothing") as url:
            client = Client(url, verbose=False)
            timed(client, files[:2], api_name="/run")
            found["upload_s"] = round(timed(client, files, api_name="/run"), 2)
            echoes = [timed(client, handle_file(small), api_name="/echo") for _ in range(SINGLES)]
            found["echo_ms"] = round(1000 * statistics.median(echoes), 1)
        with running_app() as (url, process, _):
            client = Client(url, verbose=False)
            time.sleep(COMPILED_AFTER_S)
            timed(client, files[:2], api_name="/classify_gallery")
            found["app_s"] = round(timed(client, files, api_name="/classify_gallery"), 2)
            found["app_resident_mb"] = round(resident_mb(process))
            answers = [timed(client, handle_file(small), api_name="/classify") for _ in range(SINGLES)]
            found["one_image_ms"] = round(1000 * statistics.median(answers), 1)
        with served("obvious", str(EMBEDDED / name)) as url:
            client = Client(url, verbose=False)
            some = [{"image": file, "caption": None} for file in files[: args.obvious]]
            timed(client, some[:2], api_name="/run")
            found["obvious_s"] = round(timed(client, some, api_name="/run") / len(some) * len(files), 2)

    parts = found["upload_s"] + found["decode_s"] + found["model_s"]
    found |= {
        "model": name,
        "app_over_parts": round(found["app_s"] / parts, 2),
        "obvious_over_app": round(found["obvious_s"] / found["app_s"], 2),
        "one_image_over_echo_and_model": round(
            found["one_image_ms"] / (found["echo_ms"] + found["one_image_model_ms"]), 2
        ),
    }
    print(json.dumps(found, indent=1))
    write_json(Path(__file__).parent / "gallery.json", found | {"machine": runs.machine()})


if __name__ == "__main__":
    main()
