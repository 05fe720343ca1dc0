"""Cost of a prediction on this machine: operations, latency, throughput and memory."""

import ctypes
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from classifier.models import backbone, processor
from classifier.models.predictor import Predictor
from classifier.records import Latency, ModelTiming

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
WARM_UP, SINGLE, BATCHES, BATCH = 10, 100, 5, 64


def measure(predictor: Predictor) -> ModelTiming:
    """Times a model on random, already decoded images of the size of its input: 100 one at a time, and batches of 64.

    The peak memory is that of the process during the calls.
    """
    side = processor.size_of(predictor.processor)
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(256, size=(side, side, 3), dtype=np.uint8)) for _ in range(BATCH)]
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # returns freed memory of earlier models that `keep_freed_memory` kept
    if RESET.exists():
        RESET.write_text("5")  # resets the peak
    for image in images[:WARM_UP]:
        predictor.logits([image])
    seconds = np.array([call_seconds(predictor, [images[i % BATCH]]) for i in range(SINGLE)])
    predictor.logits(images)
    batches = [call_seconds(predictor, images) for _ in range(BATCHES)]
    low, high = np.quantile(1000 * seconds, [0.5, 0.95])
    speeds = {"1": round(1 / float(seconds.mean()), 1), str(BATCH): round(BATCH / float(np.median(batches)), 1)}
    return ModelTiming(
        model=predictor.name,
        flops=backbone.forward_flops(predictor.model, side),
        latency_ms=Latency(p50=round(float(low), 2), p95=round(float(high), 2)),
        images_per_second=speeds,
        peak_megabytes=peak_megabytes(),
    )


def call_seconds(predictor: Predictor, images: list[Image.Image]) -> float:
    """Duration of a call of `Predictor.logits`, in seconds."""
    began = time.perf_counter()
    predictor.logits(images, batch_size=len(images))
    return time.perf_counter() - began


def peak_megabytes() -> int | None:
    """Peak resident memory of the process since the last reset, in units of 10⁶ bytes; None where there is no /proc."""
    if not STATUS.exists():
        return None
    [line] = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")]
    return round(int(line.split()[1]) * 1024 / 1e6)
