"""The Hub: ids, the login, and the download of a pinned revision, which falls back to what is cached.

    folder, commit, notice = pull("user/cifar10-cnn", "main")

The token is the one of `hf auth login` or HF_TOKEN.
"""

import hashlib
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import httpx2  # what huggingface_hub talks through: its errors are what an unreachable Hub raises
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RevisionResolutionError

from classifier import runs
from classifier.errors import HubError, ModelError

# user/name or user/name@revision
HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")
# What inference needs of a repository: neither code, nor checkpoints, nor weights in other formats.
PULLED = ["config.json", "model*.safetensors", "model.safetensors.index.json", "preprocessor_config.json"]
PULLED += ["evaluation.json", "timing.json", "run.json"]  # small, and what the page tells of a model
# Every error of the Hub's client and its cache is one of these: a failed upload a RuntimeError, bad metadata a
# ValueError.
REFUSED = (OSError, httpx2.HTTPError, RuntimeError, ValueError, RevisionResolutionError)
ATTEMPTS = 3  # the client does not ask again by itself after a 503


class Snapshot(NamedTuple):
    """A repository's inference files on this disk.

    Attributes:
        folder: with the files.
        commit: that they belong to, 40 hex digits.
        notice: why it is not the revision that the Hub has now; empty when it is.
    """

    folder: Path
    commit: str
    notice: str = ""


def pull(
    repo: str, revision: str | None = None, *, files: Sequence[str] = PULLED, patience: float | None = None
) -> Snapshot:
    """Files of a Hub model, verified by their digests; by default those that inference needs.

    When the Hub is down, slow or refuses, what was fetched last is given, and `notice` says so.

    Args:
        repo: `user/name`.
        revision: branch, tag or commit; the main branch if None.
        files: patterns of what to fetch.
        patience: seconds to wait for the Hub before what is cached is good enough; None waits for as long as bytes
            come.

    Raises:
        HubError: the Hub can't be reached, or is slow, and nothing is cached.
        ModelError: the Hub has no such repository or revision, or does not give it to this token.
    """
    found: list[Snapshot | Exception] = []

    def fetch() -> None:
        for attempt in range(ATTEMPTS):
            try:
                return found.append(_fetch(repo, revision, files))
            except REFUSED as error:
                if attempt == ATTEMPTS - 1 or not is_unavailable(error):
                    return found.append(error)
            time.sleep(1 + attempt)

    # A thread, because a trickle of bytes never runs into a timeout of the client. It may go on behind our back: what
    # it fetches is there at the next start.
    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    thread.join(patience)
    result = found[0] if found else TimeoutError(f"it took more than {patience:g} s")
    if isinstance(result, Snapshot):
        return result
    reason = first_reason(result)
    if cached := _cached(repo, revision, files):
        return cached._replace(
            notice=f"The Hub did not give {repo} ({reason}): commit {cached.commit[:7]}, from the cache."
        )
    where = f"{repo}@{revision}" if revision else repo
    if is_unavailable(result):
        raise HubError(
            f"The Hub did not give {where}, and nothing of it is cached ({reason}): try again later"
        ) from result
    raise ModelError(
        f"{where} is no folder here, and the Hub did not give it ({reason}): "
        "check the name and the revision, and log in if it is private (hf auth login, or HF_TOKEN)"
    ) from result


def _fetch(repo: str, revision: str | None, files: Sequence[str]) -> Snapshot:
    """What the Hub has now. The revision counts as cached only once all its files are there and whole."""
    commit = HfApi().model_info(repo, revision=revision, timeout=10).sha
    folder = Path(snapshot_download(repo, revision=commit, allow_patterns=files))
    if damaged := _damaged(folder):
        for path in damaged:
            path.resolve().unlink(missing_ok=True)  # the blob; `path` itself may be a link to it
            path.unlink(missing_ok=True)
        folder = Path(snapshot_download(repo, revision=commit, allow_patterns=files))
        if damaged := _damaged(folder):
            raise OSError(f"{damaged[0].name} arrived damaged twice")
    HfApi().resolve_revision(repo, revision=revision)  # remembers which commit the branch is at
    return Snapshot(folder, commit)


def _cached(repo: str, revision: str | None, files: Sequence[str]) -> Snapshot | None:
    """The last revision that was fetched whole, None when there is none. Asks no server."""
    try:
        commit = HfApi().resolve_revision(repo, revision=revision, local_files_only=True).resolved
        folder = Path(snapshot_download(repo, revision=commit, allow_patterns=files, local_files_only=True))
        return None if _damaged(folder) else Snapshot(folder, commit)
    except REFUSED:
        return None


def _damaged(folder: Path) -> list[Path]:
    """The files of a cached snapshot whose bytes are not those that the Hub listed; huggingface_hub compares sizes
    only.
    """
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and not _is_whole(path)]


def _is_whole(path: Path) -> bool:
    """Whether the file has the digest that its blob in the cache is named by: SHA-256 for large files, else git's
    SHA-1.

    Where the system has no links, there are no blobs to compare with, and the size has to do.
    """
    digest = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", digest):
        return runs.sha256(path) == digest
    if re.fullmatch("[0-9a-f]{40}", digest):
        data = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == digest
    return True


def check_login() -> str:
    """The user that the token belongs to; HubError where there is none, which is better known before a training."""
    try:
        return HfApi().whoami()["name"]
    except REFUSED as error:
        raise HubError(f"--push_to_hub can't work ({advice(error)})") from error


def advice(error: Exception) -> str:
    """The reason, and what to do about it where there is something."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, LocalTokenNotFoundError) or status in (401, 403):
        return f"{first_reason(error)}; log in with a token that may write: hf auth login, or HF_TOKEN"
    return f"{first_reason(error)}; try again later" if is_unavailable(error) else first_reason(error)


def is_unavailable(error: Exception) -> bool:
    """Whether it is the Hub's or the network's fault, and may pass."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    return not isinstance(error, ValueError | LocalTokenNotFoundError)


def first_reason(error: Exception) -> str:
    """The first sentence of an error, in one line."""
    text = getattr(error, "server_message", None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0].split(". ")[0].rstrip(" .:")
