"""Deletes what visitors left behind.

gradio's `delete_cache` deletes the uploads that it knows of: not those of an earlier process, what came by MCP, parts
of uploads that were broken off, and previews and tables, which are written beside them.
"""

import contextlib
import threading
import time
from collections.abc import Set
from pathlib import Path

import gradio as gr

from space.gradio_internals import Sessions, permanent_files, upload_folder
from space.prefetch import DecodedImages

KEEP_S = 3600  # gradio keeps an upload for at least so long
INTERVAL_S = 300  # between two runs of gradio's deletion, and of ours
# gradio comes first: its list of uploads grows for good by each file that is gone already
KEEP_OTHERS_S = KEEP_S + INTERVAL_S
DELETED_WITHIN_S = KEEP_OTHERS_S + INTERVAL_S
DIGEST = "[0-9a-f]" * 64  # the name of the folder that gradio, or `new_file`, keeps a file in
PART = "tmp" + "[a-z0-9_]" * 8  # the name of a file that gradio was receiving when its sender disconnected


def start(demo: gr.Blocks, images: DecodedImages, sessions: Sessions) -> None:
    """Starts a thread that deletes old files, decoded images that are no longer used, and idle sessions."""
    threading.Thread(target=_clean, args=(demo, images, sessions), name="cleanup", daemon=True).start()


def _clean(demo: gr.Blocks, images: DecodedImages, sessions: Sessions) -> None:
    while True:
        delete_old_files(upload_folder(), KEEP_OTHERS_S, permanent_files(demo))
        images.forget(2 * INTERVAL_S)
        sessions.forget_idle(KEEP_S)
        time.sleep(INTERVAL_S)


def delete_old_files(folder: Path, keep_s: float, permanent: Set[str] = frozenset()) -> None:
    """Deletes uploads and what was made of them, unless they changed in the last `keep_s` seconds or are permanent."""
    oldest = time.time() - keep_s
    paths = [path for path in folder.glob(PART) if path.is_file()]
    for digest_folder in folder.glob(DIGEST):
        paths += [*sorted(digest_folder.rglob("*"), reverse=True), digest_folder]  # a folder after its content
    for path in paths:
        with contextlib.suppress(OSError):  # it is gone already, or a folder that is not empty
            if path.lstat().st_ctime < oldest and str(path) not in permanent:
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
