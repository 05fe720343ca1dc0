"""Deletes old files of visitors that gradio does not delete, and releases the memory of idle sessions.

gradio's `delete_cache` deletes only uploads that are in its list. It misses those of an earlier process, files that
came by MCP, parts of aborted uploads, and the previews and tables that the app writes beside the uploads.
"""

import contextlib
import threading
import time
from collections.abc import Set
from pathlib import Path

import gradio as gr

from space.gradio_internals import Sessions, permanent_files, upload_folder
from space.prefetch import DecodedImages

KEEP_S = 3600  # the age at which gradio deletes an upload, and at which an idle session is forgotten
INTERVAL_S = 300  # between two runs of gradio's deletion, and of this one
# gradio has to delete its uploads first: a file that it finds deleted already stays in its list for good
KEEP_OTHERS_S = KEEP_S + INTERVAL_S
DELETED_WITHIN_S = KEEP_OTHERS_S + INTERVAL_S  # the greatest age of any file
DIGEST = "[0-9a-f]" * 64  # pattern of the folder in which gradio, or `new_file`, keeps a file
PART = "tmp" + "[a-z0-9_]" * 8  # pattern of a file that gradio was receiving when the sender disconnected


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
    """Deletes uploads, previews and tables, unless they changed in the last `keep_s` seconds.

    Args:
        folder: gradio's upload folder. Files that are not in the layout that gradio and `new_file` use are kept.
        keep_s: seconds.
        permanent: paths of files that are kept.
    """
    oldest = time.time() - keep_s
    paths = [path for path in folder.glob(PART) if path.is_file()]
    for digest_folder in folder.glob(DIGEST):
        paths += [*sorted(digest_folder.rglob("*"), reverse=True), digest_folder]  # a folder after its content
    for path in paths:
        with contextlib.suppress(OSError):  # it is gone already, or a folder that is not empty
            if path.lstat().st_ctime < oldest and str(path) not in permanent:
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
