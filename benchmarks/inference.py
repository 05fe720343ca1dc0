"""Compares the speed of a predictor, a compiled predictor, and the model loaded with `transformers` in float32.

    python -m benchmarks.inference models/cnn models/vit

All take decoded images of 32 x 32 pixels and use the saved processor. They take turns, so that other load on the
machine affects all of them. Writes benchmarks/inference.json: images per second, the median over the turns, for single
images and for batches of 64.
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

BATCHES = {1: 40, 64: 5}  # batch size: number of turns


def main() -> None:
    """Writes one row per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="model folders")
    args = parser.parse_args()
    keep_freed_memory()
    rows = [row(folder) for folder in args.folders]
    write_json(Path(__file__).parent / "inference.json", {"rows": rows, "machine": runs.machine()})


def row(folder: Path) -> dict:
    """Images per second of all three, and the largest difference of their logits."""
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
    """Seconds to compute the logits of the images."""
    began = time.perf_counter()
    way(images)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
