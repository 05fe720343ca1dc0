"""Decodes pictures while the next ones are still being sent: of a gallery of large photographs, half of that time is
idle.

    ahead.start(paths)                                  # as uploads arrive
    ahead.decode_many(paths, reduce_to=224)             # as `decode_many`, and faster where they were started

One thread decodes, so that whoever waits for an answer has a decode worker at least. What it decoded waits for a call
that names it: for a while, once, and as long as there is room. Whatever is not there then is decoded as ever.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from classifier.errors import ImageError, SlowImageError
from classifier.images import workers

MAX_WAITING = 500  # pictures that wait, a gallery
MAX_SLOW = 3  # files of a call that reach the limit of time; a gallery of such would hold its place for an hour
MAX_BYTES = 64_000_000  # of pixels that wait, 300 photographs for a model that sees 224 pixels


@dataclass
class Waiting:
    """A picture that was started."""

    since: float  # of time.monotonic, seconds
    future: Future  # an image or an ImageError
    bytes: int = 0  # of its pixels, once they are there


class Prefetcher:
    """What was decoded before it was asked for. Safe to call from several threads.

    Args:
        reduce_to: as in `decode`; for other values nothing is decoded ahead.
    """

    def __init__(self, reduce_to: int | None):
        self.reduce_to = reduce_to
        self._waiting: dict[str, Waiting] = {}
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "decode ahead")

    def start(self, paths: Iterable[str]) -> None:
        """Decodes these files when there is time, unless too many wait already. Returns at once."""
        with self._lock:
            for path in paths:
                if path not in self._waiting and len(self._waiting) < MAX_WAITING:
                    self._waiting[path] = Waiting(time.monotonic(), self._thread.submit(self._decode, path))

    def decode_many(
        self, sources: Iterable[workers.ImageFile], *, reduce_to: int | None = None
    ) -> Iterator[Image.Image | ImageError]:
        """As `decode_many`, but after MOST_SLOW files that took too long no other is tried."""
        slow: list[SlowImageError] = []

        def decode(source: workers.ImageFile, *, reduce_to: int | None) -> Image.Image:
            if len(slow) >= MAX_SLOW:
                raise ImageError(f"not tried, as {MAX_SLOW} files before it took too long: send it without these")
            try:
                return self._decoded(source, reduce_to=reduce_to)
            except SlowImageError as error:
                slow.append(error)
                raise

        return workers.decode_many(sources, reduce_to=reduce_to, decode=decode)

    def forget(self, kept_s: float) -> None:
        """Lets go of what has waited for so many seconds."""
        before = time.monotonic() - kept_s
        with self._lock:
            for path in [path for path, waiting in self._waiting.items() if waiting.since <= before]:
                self._waiting.pop(path).future.cancel()

    def close(self) -> None:
        """Starts nothing any more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _decode(self, path: str) -> Image.Image | ImageError:
        try:
            image = workers.decode(path, reduce_to=self.reduce_to)
        except ImageError as error:
            return error
        size = len(image.getbands()) * image.width * image.height
        with self._lock:
            if waiting := self._waiting.get(path):
                if sum(each.bytes for each in self._waiting.values()) + size > MAX_BYTES:
                    del self._waiting[path]
                waiting.bytes = size
        return image

    def _decoded(self, source: workers.ImageFile, *, reduce_to: int | None) -> Image.Image:
        with self._lock:
            waiting = (
                self._waiting.pop(source, None) if isinstance(source, str) and reduce_to == self.reduce_to else None
            )
        if waiting and not waiting.future.cancel():  # it has begun
            decoded = waiting.future.result()
            if not isinstance(decoded, ImageError):
                return decoded
            if isinstance(decoded, SlowImageError):
                raise decoded
        return workers.decode(source, reduce_to=reduce_to)
