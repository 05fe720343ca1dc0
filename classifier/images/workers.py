"""Decodes the files that users send, in sandboxed processes, into upright 8-bit sRGB images.

    image = decode("photo.heic", reduce_to=64)             # PIL, mode RGB, shorter side at most 64 pixels
    for image in decode_many(paths): ...                   # in order; an ImageError in the place of a bad file

Decoders are C code that gets untrusted input, so they run in two worker processes with limits on time and memory. A
worker imports only Pillow, pillow_heif and NumPy, never the caller's `__main__`. A worker that hangs or dies is
replaced, and the error names the file. Parent and worker communicate over the worker's stdin and stdout: a fixed-size
header, then as many bytes as the header says.

A photograph of 12 megapixels with reduce_to=64 takes 26 ms of CPU time as a JPEG, 0.1 s as a progressive JPEG, 0.2 s as
PNG, WebP or AVIF, and 0.7 s as HEIC (one core of an AMD EPYC).
"""

import atexit
import contextlib
import io
import logging
import math
import os
import queue
import signal
import stat
import struct
import subprocess
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from classifier.errors import ImageError, SlowImageError
from classifier.images.convert import DECOMPRESSION_BOMB, MALFORMED, convert_to_rgb, reduced_size
from classifier.images.limits import FORMATS, MAX_MEGAPIXELS, check_bytes, open_image

ImageFile = str | os.PathLike | bytes  # a path, or the bytes of a file

DRAFT = 1.5  # a JPEG is decoded to at least this many times the wanted size: less is blurred, more costs time
TIME_LIMIT_S = 10.0  # wall time for one image
START_LIMIT_S = 60.0  # wall time until a new worker is ready, which takes 0.2 s on an idle machine
WORKER_MEMORY = 3 << 30  # bytes of address space (Linux only): the worst case of 120 megapixels (WebP with alpha)
WORKERS = 2
LOOK_AHEAD = 2  # images per worker that decode_many works on, by default, beyond the one that it hands out
_ROOT = Path(__file__).parents[2]
_REQUEST = struct.Struct("!cIQ")  # b"p" path or b"b" bytes; reduce_to in pixels, 0 for none; length of the body
# b"i" image, b"e" error, b"r" ready; width; height; length of the body (RGB, or UTF-8)
_REPLY = struct.Struct("!cIIQ")


def _decode(source: str | io.BytesIO, reduce_to: int | None) -> Image.Image:
    with open_image(source) as image:
        size, box = reduced_size(image.size, reduce_to), None
        if size != image.size and image.format in ("JPEG", "MPO"):
            # The JPEG decoder itself scales to 1/2, 1/4 or 1/8, still above the target. Its last column and row may
            # reach beyond the picture: `box` is the part inside, in scaled pixels.
            _, box = image.draft(None, (math.ceil(DRAFT * size[0]), math.ceil(DRAFT * size[1]))) or (None, None)
        return convert_to_rgb(image, size, box)


def _describe_error(error: BaseException) -> str:
    """Why an image can't be used, without paths of the server."""
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not an image of a known type ({', '.join(FORMATS)}), or its header is damaged"
    if isinstance(error, DECOMPRESSION_BOMB):
        return f"more than {MAX_MEGAPIXELS} megapixels"
    if isinstance(error, MemoryError):
        return "needs more memory than a decoder may take"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _run_worker(memory: int, time_limit_s: float) -> None:
    """Answers requests until stdin closes. An exception that is not one of MALFORMED ends it with a traceback."""
    import pillow_heif
    from PIL import AvifImagePlugin

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    sys.stderr = os.fdopen(os.dup(2), "w")  # for tracebacks; the output of C libraries is discarded
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pillow_heif.register_heif_opener(thumbnails=False)
    pillow_heif.options.DECODE_THREADS = AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # threads take address space
    Image.MAX_IMAGE_PIXELS = MAX_MEGAPIXELS * 1_000_000
    logging.disable()  # Pillow's plugins both log and raise errors
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    alarm = getattr(signal, "alarm", lambda seconds: None)

    def answer(kind: bytes, reduce_to: int, body: bytes) -> tuple[bytes, int, int, bytes]:
        try:
            image = _decode(io.BytesIO(body) if kind == b"b" else os.fsdecode(body), reduce_to or None)
            return b"i", image.width, image.height, image.tobytes()
        except MALFORMED as error:
            return b"e", 0, 0, _describe_error(error).encode()

    def reply(kind: bytes, width: int, height: int, body: bytes) -> None:
        replies.write(_REPLY.pack(kind, width, height, len(body)))
        replies.write(body)
        replies.flush()

    reply(b"r", 0, 0, b"")
    with contextlib.suppress(BrokenPipeError):  # the parent has died
        while header := requests.read(_REQUEST.size):
            kind, reduce_to, length = _REQUEST.unpack(header)
            alarm(int(2 * time_limit_s) + 1)  # ends a decoder that hangs after its parent has died
            reply(*answer(kind, reduce_to, requests.read(length)))
            alarm(0)


class _Worker:
    """One worker process. `ask` raises EOFError if it dies and TimeoutError if it exceeds the limit."""

    def __init__(self, memory: int, time_limit_s: float):
        self.time_limit_s = time_limit_s
        self.process = subprocess.Popen(
            [sys.executable, "-m", "classifier.images.workers", str(memory), str(time_limit_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_ROOT,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            process_group=0,  # so that Ctrl-C in the terminal does not reach it
        )
        assert self.process.stdin and self.process.stdout  # both are pipes
        self.requests, self.replies = self.process.stdin, self.process.stdout
        try:
            with self._deadline(START_LIMIT_S):
                self._read(_REPLY.size)
        except (EOFError, TimeoutError) as error:
            self.stop()
            raise RuntimeError(f"no decode worker starts: {error}; its stderr says why") from None

    def ask(self, kind: bytes, reduce_to: int, body: bytes) -> tuple[bytes, int, int, bytes]:
        """Sends a request as _REQUEST has it; gives kind, width, height and body of the reply, as in _REPLY."""
        with self._deadline(self.time_limit_s):
            self.requests.write(_REQUEST.pack(kind, reduce_to, len(body)))
            self.requests.write(body)
            self.requests.flush()
            kind, width, height, length = _REPLY.unpack(self._read(_REPLY.size))
            return kind, width, height, self._read(length)

    @contextlib.contextmanager
    def _deadline(self, seconds: float) -> Iterator[None]:
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self.process.kill()

        timer = threading.Timer(seconds, expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (EOFError, OSError):
            if not expired.is_set():
                raise EOFError(f"the decoder died (exit status {self.process.wait()})") from None
        finally:
            timer.cancel()
            timer.join()
        if expired.is_set():
            raise TimeoutError(f"took longer than {seconds:g} s")

    def _read(self, length: int) -> bytes:
        data = self.replies.read(length)
        if len(data) < length:
            raise EOFError
        return data

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.requests, self.replies):
            with contextlib.suppress(OSError):  # nobody reads the bytes that are left in a buffer
                pipe.close()


class Decoder:
    """A pool of decode workers for any number of threads. Workers start when they are first needed.

    Args:
        workers: number of processes.
        time_limit_s: seconds of wall time for an image, not counting the time that it waits for a worker.
        memory: bytes of address space of a worker.
    """

    def __init__(self, *, workers: int = WORKERS, time_limit_s: float = TIME_LIMIT_S, memory: int = WORKER_MEMORY):
        self.workers, self.time_limit_s, self.memory = workers, time_limit_s, memory
        self._reset()

    def _reset(self) -> None:
        """Starts with no workers. Those of before are not stopped: in a forked child they belong to the parent."""
        self._closing = threading.Lock()
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()  # None: a worker not started yet
        for _ in range(self.workers):
            self._idle.put(None)

    def decode(self, source: ImageFile, *, reduce_to: int | None = None) -> Image.Image:
        """Decodes a file, given by its path or its bytes, to an upright 8-bit sRGB image of mode RGB.

        A larger image is shrunk to a shorter side of `reduce_to` pixels.

        Raises:
            ImageError: the file is no image or exceeds a limit. The message names the file, never its folder.
            SlowImageError: decoding took longer than `time_limit_s`.
        """
        name, kind, body = _request(source)
        try:
            with self._worker() as worker:
                kind, width, height, body = worker.ask(kind, reduce_to or 0, body)
        except TimeoutError as error:
            raise SlowImageError(f"{name}: {error}") from None
        except EOFError as error:
            raise ImageError(f"{name}: {error}") from None
        if kind == b"e":
            raise ImageError(f"{name}: {body.decode()}")
        return Image.frombytes("RGB", (width, height), body)

    @contextlib.contextmanager
    def _worker(self) -> Iterator[_Worker]:
        worker = self._idle.get()
        try:
            if worker and worker.process.poll() is not None:  # died while idle
                worker.stop()
                worker = None
            worker = worker or _Worker(self.memory, self.time_limit_s)
            yield worker
        except BaseException:  # KeyboardInterrupt too: the worker is still busy with the request
            if worker:
                worker.stop()
            worker = None
            raise
        finally:
            self._idle.put(worker)

    def decode_many(
        self,
        sources: Iterable[ImageFile],
        *,
        reduce_to: int | None = None,
        decode: Callable[..., Image.Image] | None = None,
        look_ahead: int | None = None,
    ) -> Iterator[Image.Image | ImageError]:
        """Decodes with all workers at once. Yields in the order of `sources`, an ImageError in the place of a bad file.

        Args:
            sources: paths or bytes. It may be endless: `look_ahead` items are read in advance.
            reduce_to: as in `decode`.
            decode: called instead of `self.decode`, for callers that have some of the images already.
            look_ahead: images that are decoded in advance; LOOK_AHEAD per worker if None.
        """
        decode = decode or self.decode
        look_ahead = LOOK_AHEAD * self.workers if look_ahead is None else look_ahead

        def attempt(source: ImageFile) -> Image.Image | ImageError:
            try:
                return decode(source, reduce_to=reduce_to)
            except ImageError as error:
                return error

        threads = ThreadPoolExecutor(self.workers, "decode")
        try:
            pending: deque[Future[Image.Image | ImageError]] = deque()
            for source in sources:
                pending.append(threads.submit(attempt, source))
                if len(pending) > look_ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)  # a caller that stops early does not wait

    def close(self) -> None:
        """Stops the workers once they are idle. A later decode starts new ones."""
        with self._closing:
            workers = [self._idle.get() for _ in range(self.workers)]
            for worker in workers:
                if worker:
                    worker.stop()
                self._idle.put(None)

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _request(source: ImageFile) -> tuple[str, bytes, bytes]:
    """The name for messages, and the kind and body of the request.

    Raises:
        ImageError: the file is missing, empty, not a regular file, or too large.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        name, kind, body, size = f"image of {len(source):,} bytes", b"b", bytes(source), len(source)
    else:
        path = Path(source)
        name, kind, body = path.name, b"p", os.fsencode(path.absolute())
        try:
            status = path.stat()
        except OSError as error:
            raise ImageError(f"{name}: {error.strerror}") from None
        except ValueError as error:  # a null byte in the path
            raise ImageError(f"{name!r}: {error}") from None
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{name}: not a file")
        size = status.st_size
    try:
        check_bytes(size)
    except ValueError as error:
        raise ImageError(f"{name}: {error}") from None
    return name, kind, body


_shared = Decoder()
decode = _shared.decode
decode_many = _shared.decode_many
atexit.register(_shared.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_shared._reset)

if __name__ == "__main__":
    _run_worker(int(sys.argv[1]), float(sys.argv[2]))
