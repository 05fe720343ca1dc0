"""Shares one model among many callers: images that wait are classified together, in one batch.

with Batcher(predictor) as batcher:
    probabilities, known = batcher.submit(image).result()
"""

import queue
import threading
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
from PIL import Image

from classifier.images.convert import to_rgb
from classifier.models.predictor import Predictor

BATCH_SIZE = 16  # images per forward pass, at most


class Prediction(NamedTuple):
    """The output of a model for one image."""

    probabilities: np.ndarray  # float32 (C,)
    known: bool | None  # whether the image looks like one of the labels; None if the model has no threshold


class Batcher:
    """A thread that classifies the images of any number of callers, in the order in which they arrive.

    A batch consists of the images that wait when the model is free, so a single image does not wait for others.

    Args:
        predictor: the model.
        batch_size: images per forward pass, at most.
        turn: a lock that several models share, so that only one of them computes at a time; none by default.
    """

    def __init__(
        self, predictor: Predictor, *, batch_size: int = BATCH_SIZE, turn: AbstractContextManager | None = None
    ):
        self.predictor, self.batch_size, self.turn = predictor, batch_size, turn or nullcontext()
        self._waiting: queue.SimpleQueue[tuple[Image.Image, Future] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"batches of {predictor.name}", daemon=True)
        self._thread.start()

    def submit(self, image: Image.Image) -> "Future[Prediction]":
        """Queues an RGB image, and returns a future of its prediction, which raises the errors of the predictor.

        An image that is larger than the model's `reduce_to` is shrunk first.
        """
        future: Future[Prediction] = Future()
        self._waiting.put((reduced(image, self.predictor.reduce_to), future))
        return future

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch, is_last = [first], False
            while len(batch) < self.batch_size and not self._waiting.empty():
                if (more := self._waiting.get()) is None:
                    is_last = True
                    break
                batch.append(more)
            images, futures = zip(*batch, strict=True)
            try:
                with self.turn:
                    rows, known = self.predictor.predict_with_ood(images, self.batch_size)
            except Exception as error:  # raised in each caller by future.result(); the thread continues
                for future in futures:
                    future.set_exception(error)
            else:
                for future, *prediction in zip(futures, rows, known, strict=True):
                    future.set_result(Prediction(*prediction))
            if is_last:
                return

    def close(self) -> None:
        """Ends the thread once everything that waits is classified."""
        self._waiting.put(None)
        self._thread.join()

    def __enter__(self) -> "Batcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def reduced(image: Image.Image, reduce_to: int | None) -> Image.Image:
    """The image, shrunk to a shorter side of `reduce_to` pixels if it is larger."""
    return to_rgb(image, reduce_to=reduce_to) if reduce_to and min(image.size) > reduce_to else image
