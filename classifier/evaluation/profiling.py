"""What an answer costs on this machine: operations, bytes, milliseconds, images a second, memory."""

import ctypes
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from classifier.models import backbone, processor
from classifier.models.predictor import Predictor

PEAK, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
WARM_UP, SINGLE, BATCHES, BATCH = 10, 100, 5, 64


def measure(predictor: Predictor) -> dict:
    """Times a model on random images of its own size, decoded already.

    Returns:
        flops: of an image's forward pass.
        latency_ms: one image at a time, {"p50", "p95"} of 100.
        images_per_second: {"1": one at a time, "64": in batches}.
        peak_megabytes: the most that the process held meanwhile; None where the system doesn't tell.
    """
    side = processor.size_of(predictor.processor)
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(256, size=(side, side, 3), dtype=np.uint8)) for _ in range(BATCH)]
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)  # what `keep_freed_memory` kept of others is not this model's
    if RESET.exists():
        RESET.write_text("5")  # the peak counts from here on
    for image in images[:WARM_UP]:
        predictor.logits([image])
    seconds = np.array([timed(predictor, [images[i % BATCH]]) for i in range(SINGLE)])
    predictor.logits(images)
    batches = [timed(predictor, images) for _ in range(BATCHES)]
    low, high = np.quantile(1000 * seconds, [0.5, 0.95])
    return {
        "flops": backbone.forward_flops(predictor.model, side),
        "latency_ms": {"p50": round(float(low), 2), "p95": round(float(high), 2)},
        "images_per_second": {
            "1": round(1 / seconds.mean(), 1),
            str(BATCH): round(BATCH / float(np.median(batches)), 1),
        },
        "peak_megabytes": peak_megabytes(),
    }


def timed(predictor: Predictor, images: list[Image.Image]) -> float:
    """Seconds that the logits of some images take."""
    began = time.perf_counter()
    predictor.logits(images, batch_size=len(images))
    return time.perf_counter() - began


def peak_megabytes() -> int | None:
    """The process's largest resident set since the last reset, in units of 10⁶ bytes; None where there is no /proc."""
    if not PEAK.exists():
        return None
    [line] = [line for line in PEAK.read_text().splitlines() if line.startswith("VmHWM")]
    return round(int(line.split()[1]) * 1024 / 1e6)
