"""Deletes what visitors left: gradio does so for what it knows of, not for previews, figures, and what came by MCP."""

import contextlib
import threading
import time
from pathlib import Path
from typing import Protocol

from space.prefetch import DecodedImages

KEEP_S = 3600  # that a file stays, at least
INTERVAL_S = 600  # between two sweeps
DIGEST = "[0-9a-f]" * 64  # the name of the folder that gradio, or `new_file`, keeps a file in
PART = "tmp" + "[a-z0-9_]" * 8  # the name of a file that gradio was still receiving when its sender went away


class Visits(Protocol):
    """What is kept of visits."""

    def forget_idle(self, seconds: float) -> None:
        """Lets go of visits of which nothing was heard for so long."""


def start(folder: Path, images: DecodedImages, visits: Visits) -> None:
    """Sweeps `folder` from now on, what an earlier process left too, images that are not used, and idle
    visits.
    """
    threading.Thread(target=_work, args=(folder, images, visits), name="sweep", daemon=True).start()


def _work(folder: Path, images: DecodedImages, visits: Visits) -> None:
    while True:
        delete_old_files(folder, KEEP_S)
        images.forget(INTERVAL_S)
        visits.forget_idle(KEEP_S)
        time.sleep(INTERVAL_S)


def delete_old_files(folder: Path, kept_s: float) -> None:
    """Deletes uploads in `folder`, and what was made of them, that have not changed for `kept_s` seconds; nothing
    else.
    """
    before = time.time() - kept_s
    paths = [path for path in folder.glob(PART) if path.is_file()]
    for each in folder.glob(DIGEST):
        paths += [*sorted(each.rglob("*"), reverse=True), each]  # what is in a folder comes before the folder
    for path in paths:
        with contextlib.suppress(OSError):  # gone already, or a folder that isn't empty
            if path.lstat().st_ctime < before:
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
