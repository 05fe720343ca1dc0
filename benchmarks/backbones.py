"""Compares fine-tuned backbones: training time, accuracy, size and latency.

    python -m benchmarks.backbones runs/vit runs/vit-probe runs/mobilenet runs/mobilenet-probe

Takes folders that finetune_vit.py wrote and evaluate.py measured, times each model on single images, and writes
benchmarks/backbones.json, from which benchmarks/results.py makes the table of docs/results.md.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from PIL import Image

from classifier import load_predictor, runs
from classifier.files import write_json

WARM_UP, TIMED = 10, 100  # calls
RUN_FILES = ("run.json", "evaluation.json", "config.json", "model.safetensors")


def main() -> None:
    """Writes and prints one row per folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="finished and evaluated runs of finetune_vit.py")
    args = parser.parse_args()
    for folder in args.folders:
        if missing := [name for name in RUN_FILES if not (folder / name).exists()]:
            parser.error(f"no {missing[0]} in {folder}: finish it with finetune_vit.py, then evaluate.py")
    rows = [row(folder) for folder in args.folders]
    write_json(Path(__file__).parent / "backbones.json", {"rows": rows, "machine": runs.machine()})
    for found in rows:
        print(
            f"{found['backbone']} ({found['trained']}): {found['test_accuracy']:.2%}, "
            f"{found['latency_ms']['median']} ms"
        )


def row(folder: Path) -> dict:
    """The results in the folder's records, and the latency, which is measured now."""
    run, measured = runs.RunFolder(folder).finished_run(), runs.RunFolder(folder).evaluation.model
    return {
        "backbone": run.stages[0].start,
        "trained": "head" if run.settings["freeze"] == "backbone" else "all",
        "image_size": run.recipe["image_size"],
        "stages": [
            {
                "train_seconds": stage.train_seconds,
                "images_seen": stage.images_seen,
                "machine": stage.machine.to_json(),
            }
            for stage in run.stages
        ],
        "averaged": run.averaged is not None,
        "validation_accuracy": run.validation.accuracy,
        "validation_images": sum(run.data.counts["validation"]),
        "test_accuracy": measured.accuracy,
        "test_accuracy_ci95": measured.accuracy_ci95,
        "f1": measured.f1,
        "n_parameters": measured.n_parameters,
        "megabytes": round((folder / "model.safetensors").stat().st_size / 1e6, 1),
        "latency_ms": latency(folder),
        "seed": run.settings["seed"],
    }


def latency(folder: Path) -> dict[str, float]:
    """Milliseconds from a decoded 32-pixel image to its logits, one at a time, compiled: median and 95th percentile."""
    predictor = load_predictor(folder)
    predictor.compile()
    images = np.random.default_rng(0).integers(0, 256, (WARM_UP + TIMED, 32, 32, 3), dtype=np.uint8)
    seconds = []
    for image in images:
        began = time.perf_counter()
        predictor.logits([Image.fromarray(image)])
        seconds.append(time.perf_counter() - began)
    timed = sorted(1000 * second for second in seconds[WARM_UP:])
    return {"median": round(statistics.median(timed), 1), "p95": round(timed[int(0.95 * TIMED)], 1)}


if __name__ == "__main__":
    main()
