"""An evaluation.json and a timing.json of a model that was never measured."""

import json
from pathlib import Path

import numpy as np


def evaluation(labels: list[str], *, dataset: str = "things", n: int = 90, **changes) -> dict:
    """evaluation.json of one model; `changes` go into the model's part."""
    per_class = {label: {"precision": 0.9, "recall": 0.8, "f1": 0.85, "n": 9} for label in labels}
    model = {
        "model": "tiny",
        "revision": "local",
        "n_parameters": 28362,
        "accuracy": 0.9,
        "accuracy_ci95": [0.89, 0.91],
    }
    model |= {"precision": 0.9, "recall": 0.8, "f1": 0.85, "per_class": per_class}
    model |= {"confusion_matrix": np.diag([9] * len(labels)).tolist()}
    return {"dataset": dataset, "split": "test", "n": n, "models": [model | changes]}


def write_evaluation(folder: Path, labels: list[str], **changes) -> None:
    """Writes such an evaluation.json into a model's folder."""
    (folder / "evaluation.json").write_text(json.dumps(evaluation(labels, **changes)))


def write_timing(folder: Path, milliseconds: float) -> None:
    """Writes a timing.json into a model's folder."""
    model = {
        "model": "tiny",
        "flops": 12345678,
        "latency_ms": {"p50": milliseconds, "p95": milliseconds},
        "images_per_second": {"1": 81.3},
    }
    machine = {"processor": "Abacus", "threads": 2}
    (folder / "timing.json").write_text(json.dumps({"machine": machine, "models": [model]}))
