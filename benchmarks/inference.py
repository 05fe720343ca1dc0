"""Times a predictor, and a compiled one, against the same model as `transformers` loads it, in fp32, on decoded images.

    python -m benchmarks.inference models/cnn models/vit

All prepare pixels (of 32 x 32) by the saved processor. They take turns, so that whatever else the machine does meets
each. Writes benchmarks/inference.json: images a second, the median of the turns, one image at a time and in batches of
64.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from classifier import load_predictor, runs
from classifier.files import write_json
from classifier.training.runtime import keep_freed_memory

BATCHES = {1: 40, 64: 5}  # images at a time: turns


def main() -> None:
    """A row a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="of models")
    args = parser.parse_args()
    keep_freed_memory()
    rows = [row(folder) for folder in args.folders]
    write_json(Path(__file__).parent / "inference.json", {"rows": rows, "machine": runs.machine()})


def row(folder: Path) -> dict:
    """Images a second of both, and by how much their logits differ at most."""
    predictor, compiled = load_predictor(folder), load_predictor(folder)
    began = time.perf_counter()
    compiled.compile()
    compile_s = time.perf_counter() - began
    processor = AutoImageProcessor.from_pretrained(folder)
    plain = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def as_loaded(images: list[Image.Image]) -> np.ndarray:
        return plain(**processor(images, return_tensors="pt")).logits.numpy()

    pixels = np.random.default_rng(0).integers(256, size=(max(BATCHES), 32, 32, 3), dtype=np.uint8)
    images = [Image.fromarray(image) for image in pixels]
    speeds = {}
    for size, turns in BATCHES.items():
        ways = {
            "as_loaded": as_loaded,
            "predictor": lambda batch: predictor.logits(batch, batch_size=len(batch)),
            "compiled": lambda batch: compiled.logits(batch, batch_size=len(batch)),
        }
        seconds = {name: [] for name in ways}
        for _ in range(1 + turns):
            for name, way in ways.items():
                seconds[name].append(timed(way, images[:size]))
        speeds[str(size)] = {name: round(size / statistics.median(each[1:]), 1) for name, each in seconds.items()}
        print(f"{folder}: batches of {size}, images/s: {speeds[str(size)]}", flush=True)
    expected = as_loaded(images)
    difference = max(float(np.abs(expected - each.logits(images)).max()) for each in (predictor, compiled))
    return {
        "model": folder.name,
        "images_per_second": speeds,
        "largest_difference_of_logits": difference,
        "compile_s": round(compile_s, 1),
    }


def timed(way: Callable, images: list[Image.Image]) -> float:
    """Seconds that some images take."""
    began = time.perf_counter()
    way(images)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
