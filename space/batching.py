"""One model for many callers: decoding, copying and inference overlap, and what waits is computed together.

with Batcher(predictor) as batcher:
    for result in batcher.classify(paths): ...      # in order: (C,) probabilities, or an ImageError
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
from PIL import Image

from classifier.errors import ImageError
from classifier.images import workers
from classifier.models.predictor import Predictor

BATCH_SIZE = 16  # images a forward pass, at most


class Answer(NamedTuple):
    """One image, as it was decoded, and what the model says of it."""

    image: Image.Image  # RGB, at most `reduce_to` pixels a side shorter
    probabilities: np.ndarray  # float32 (C,)
    known: bool | None  # whether it looks like one of the labels; None where the model has no threshold


class Batcher:
    """A thread that classifies what any number of threads hand it, in the order in which it came.

    It takes what waits, up to a batch: an image that comes alone is not held back for others, and many that come at
    once cost little more than a few.

    Args:
        predictor: the model.
        batch_size: images a forward pass, at most.
        turn: a lock that models share, so that they don't compute at the same time; none by default.
        decode_many: what decodes, `decode_many` or something that does the same.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        batch_size: int = BATCH_SIZE,
        turn: AbstractContextManager | None = None,
        decode_many: Callable[..., Iterator[Image.Image | ImageError]] = workers.decode_many,
    ):
        self.predictor, self.batch_size, self.turn = predictor, batch_size, turn or nullcontext()
        self.decode_many = decode_many
        self._waiting: queue.SimpleQueue[tuple[Image.Image, Future] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"batches of {predictor.name}", daemon=True)
        self._thread.start()

    def submit(self, image: Image.Image) -> Future:
        """A decoded RGB image -> a future of its `Answer`; the future raises what the predictor raises."""
        future: Future = Future()
        self._waiting.put((image, future))
        return future

    def classify(self, sources: Iterable[workers.ImageFile]) -> Iterator[Answer | ImageError]:
        """Answers in the order of `sources` (paths or encoded bytes), an ImageError in the place of a bad file.

        Two batches are decoded ahead of what was yielded, at most: memory stays flat, however many sources there are.
        """
        pending: deque[Future | ImageError] = deque()
        for decoded in self.decode_many(sources, reduce_to=self.predictor.reduce_to):
            pending.append(decoded if isinstance(decoded, ImageError) else self.submit(decoded))
            while pending and (len(pending) > 2 * self.batch_size or is_done(pending[0])):
                yield result(pending.popleft())
        yield from map(result, pending)

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
            except Exception as error:  # whatever it is: each caller raises it, and the thread goes on
                for future in futures:
                    future.set_exception(error)
            else:
                for future, *answer in zip(futures, images, rows, known, strict=True):
                    future.set_result(Answer(*answer))
            if is_last:
                return

    def close(self) -> None:
        """Ends the thread after what waits."""
        self._waiting.put(None)
        self._thread.join()

    def __enter__(self) -> "Batcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_done(item: Future | ImageError) -> bool:
    """Whether its result is there."""
    return isinstance(item, ImageError) or item.done()


def result(item: Future | ImageError) -> Answer | ImageError:
    """The result, when it is there."""
    return item if isinstance(item, ImageError) else item.result()
