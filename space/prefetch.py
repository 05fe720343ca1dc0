"""Decodes each upload once, and keeps the decoded image while memory allows.

    images.prefetch(paths)          # as uploads arrive: decodes in the background
    images.decode(path)             # the image; decodes it first unless it is kept

Decoding starts while the next files are still being sent. All models and the detail view share the decoded image, which
is as large as the model with the largest `reduce_to` needs. A file whose image was dropped is decoded again.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from PIL import Image

from classifier.errors import ImageError, SlowImageError
from classifier.images import workers

MAX_PREFETCHED = 500  # files that wait to be decoded in the background; an upload of the page has at most so many
MAX_SLOW = 3  # files of a call that exceed the time limit; 500 such files would take more than an hour
MAX_KEPT_BYTES = 64_000_000  # of pixels: 300 photographs for a model with reduce_to=224


class DecodedImages:
    """The decoded images of uploads, by path. Safe to use from several threads.

    One background thread prefetches, so that at least one decoding worker is left for callers that wait.

    Args:
        reduce_to: pixels to which the shorter side of a larger image is reduced; None to keep its size.
    """

    def __init__(self, reduce_to: int | None):
        self.reduce_to = reduce_to
        self._waiting: dict[str, tuple[float, Future[Image.Image]]] = {}  # time of the request, image or ImageError
        self._kept: OrderedDict[str, tuple[float, Image.Image]] = OrderedDict()  # time of the last use; newest use last
        self._lock = threading.Lock()
        self._background = ThreadPoolExecutor(1, "prefetch")

    def prefetch(self, paths: Iterable[str]) -> None:
        """Decodes files in the background. Returns at once. Files beyond `MAX_PREFETCHED` waiting ones are ignored."""
        with self._lock:
            for path in paths:
                if path not in self._waiting and path not in self._kept and len(self._waiting) < MAX_PREFETCHED:
                    self._waiting[path] = time.monotonic(), self._background.submit(self._decode, path)

    def decode(self, path: str) -> Image.Image:
        """The RGB image of a file. Raises ImageError, which names the file, as `workers.decode`."""
        with self._lock:
            if path in self._kept:
                image = self._kept[path][1]
                self._kept[path] = time.monotonic(), image
                self._kept.move_to_end(path)
                return image
            _, future = self._waiting.pop(path, (0.0, None))
        if future and not future.cancel():  # the background thread has begun
            try:
                return future.result()
            except SlowImageError:
                raise
            except ImageError:
                pass  # decoded again below: the file may have been incomplete at that time
        return self._decode(path)

    def decode_many(self, paths: Iterable[str]) -> Iterator[Image.Image | ImageError]:
        """The images of several files, in order, with an ImageError in the place of a file that can't be read.

        After `MAX_SLOW` files that exceeded the time limit, files are refused without being decoded.
        """
        slow: list[SlowImageError] = []

        def decode(path: workers.ImageFile, *, reduce_to: int | None) -> Image.Image:
            if len(slow) >= MAX_SLOW:
                raise ImageError(f"not tried, as {MAX_SLOW} files before it took too long: send it without these")
            try:
                return self.decode(str(path))
            except SlowImageError as error:
                slow.append(error)
                raise

        return workers.decode_many(paths, decode=decode)

    def forget(self, unused_s: float) -> None:
        """Drops the images and the waiting files that were not asked for in the last `unused_s` seconds."""
        before = time.monotonic() - unused_s
        with self._lock:
            for path in [path for path, (since, _) in self._waiting.items() if since <= before]:
                self._waiting.pop(path)[1].cancel()
            for path in [path for path, (used, _) in self._kept.items() if used <= before]:
                del self._kept[path]

    def close(self) -> None:
        """Stops prefetching."""
        self._background.shutdown(wait=False, cancel_futures=True)

    def _decode(self, path: str) -> Image.Image:
        """Decodes a file and keeps its image; drops the least recently used images above `MAX_KEPT_BYTES`."""
        image = workers.decode(path, reduce_to=self.reduce_to)
        with self._lock:
            self._waiting.pop(path, None)
            self._kept[path] = time.monotonic(), image
            self._kept.move_to_end(path)
            while sum(3 * kept.width * kept.height for _, kept in self._kept.values()) > MAX_KEPT_BYTES:
                self._kept.popitem(last=False)
        return image
