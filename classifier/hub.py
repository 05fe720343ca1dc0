"""Access to the Hub: ids, login, and download of a revision with the cache as a fallback.

    folder, name, commit, notice = pull("user/cifar10-cnn", "main")

The token is that of `hf auth login` or HF_TOKEN.
"""

import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx2  # the HTTP client of huggingface_hub, whose errors an unreachable Hub raises
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RevisionResolutionError,
)
from huggingface_hub.utils import logging, parse_ratelimit_headers
from huggingface_hub.utils.sha import git_hash

from classifier import environment, runs
from classifier.errors import HubError, ModelError, first_sentence

# user/name or user/name@revision
HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")
# user/name, user/name:config, user/name@revision or user/name:config@revision
DATASET_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(:(?P<config>[^:@/]+))?(@(?P<revision>[\w./-]+))?")
# Every error of the Hub client and its cache is one of these: a failed upload is a RuntimeError, bad metadata and an
# unknown kind of proxy are a ValueError, a SOCKS proxy without the package for it is an ImportError.
REFUSED = (
    OSError,
    httpx2.HTTPError,
    httpx2.InvalidURL,
    ImportError,
    RuntimeError,
    ValueError,
    RevisionResolutionError,
)
ATTEMPTS = 3  # the client does not retry after a 503


class Location(NamedTuple):
    """Where the files of a model are."""

    folder: Path  # with the files
    name: str  # name of the folder, or Hub id
    revision: str  # commit of the Hub, 40 hex digits, or "local"
    notice: str = ""  # why that is not the current commit of the Hub, "" if it is


def pull(
    repo: str, revision: str | None = None, *, files: Sequence[str] = runs.PULLED, patience: float | None = None
) -> Location:
    """Downloads files of a Hub model and verifies their digests.

    If the Hub is down, slow or refuses the request, the cached revision is returned and `notice` says so.

    Args:
        repo: `user/name`.
        revision: branch, tag or commit; the main branch if None.
        files: patterns of the files, by default those that inference needs.
        patience: seconds to wait for the Hub before the cached revision is used; None waits as long as data arrives.

    Raises:
        HubError: the Hub can't be reached or is slow, and nothing is cached.
        ModelError: the Hub has no such repository or revision, or the token gives no access to it.
    """
    results: list[Location | Exception] = []

    def fetch() -> None:
        for attempt in range(ATTEMPTS):
            try:
                with quiet_client():
                    return results.append(_fetch(repo, revision, files))
            except REFUSED as error:
                if attempt == ATTEMPTS - 1 or not is_unavailable(error):
                    return results.append(error)
            time.sleep(1 + attempt)

    # In a thread, because the client's timeouts don't end a slow but steady download. The thread may continue after
    # this function returns; the files that it downloads are used at the next start.
    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    thread.join(patience)
    result = results[0] if results else TimeoutError(f"it took more than {patience:g} s")
    if isinstance(result, Location):
        return result
    reason = first_reason(result)
    if cached := _cached(repo, revision, files):
        return cached._replace(
            notice=f"The Hub did not give {repo} ({reason}): commit {cached.revision[:7]}, from the cache."
        )
    where = f"{repo}@{revision}" if revision else repo
    if is_unavailable(result):
        raise HubError(
            f"The Hub did not give {where}, and nothing of it is cached ({reason}): {remedy(result)}"
        ) from result
    raise ModelError(f"{where} is no folder here, and the Hub did not give it ({reason}): {remedy(result)}") from result


def _fetch(repo: str, revision: str | None, files: Sequence[str]) -> Location:
    """Downloads the current files. The revision is recorded as cached only when all its files are complete."""
    commit = str(HfApi().model_info(repo, revision=revision, timeout=10).sha)
    folder = Path(snapshot_download(repo, revision=commit, allow_patterns=list(files)))
    if damaged := _damaged(folder):
        for path in damaged:
            path.resolve().unlink(missing_ok=True)  # the blob; `path` itself may be a link to it
            path.unlink(missing_ok=True)
        folder = Path(snapshot_download(repo, revision=commit, allow_patterns=list(files)))
        if damaged := _damaged(folder):
            raise OSError(f"{damaged[0].name} arrived damaged twice")
    HfApi().resolve_revision(repo, revision=revision)  # records the commit of the branch in the cache
    return Location(folder, repo, commit)


def _cached(repo: str, revision: str | None, files: Sequence[str]) -> Location | None:
    """The last completely downloaded revision, None if there is none. Does not use the network."""
    try:
        commit = HfApi().resolve_revision(repo, revision=revision, local_files_only=True).resolved
        folder = Path(snapshot_download(repo, revision=commit, allow_patterns=list(files), local_files_only=True))
        return None if _damaged(folder) else Location(folder, repo, commit)
    except REFUSED:
        return None


def _damaged(folder: Path) -> list[Path]:
    """Files of a cached snapshot that differ from those on the Hub. huggingface_hub itself compares only sizes."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and not _is_whole(path)]


def _is_whole(path: Path) -> bool:
    """Whether a file matches the digest in the name of its blob: SHA-256 for large files, else git's SHA-1.

    A cache without symbolic links has no blobs; then every file counts as whole.
    """
    digest = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", digest):
        return runs.sha256(path) == digest
    if re.fullmatch("[0-9a-f]{40}", digest):
        return git_hash(path.read_bytes()) == digest
    return True


def check_login() -> str:
    """Name of the token's user. Called before a training that ends with a push.

    Raises:
        HubError: there is no valid token, or the Hub can't be reached.
    """
    try:
        return HfApi().whoami()["name"]
    except REFUSED as error:
        raise HubError(f"--push_to_hub can't work ({advice(error)})") from error


def advice(error: Exception) -> str:
    """The reason of an error of the Hub, and what to do about it if the user can do something."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, LocalTokenNotFoundError) or status in (401, 403):
        return f"{first_reason(error)}; log in with a token that may write: hf auth login, or HF_TOKEN"
    return f"{first_reason(error)}; {remedy(error)}" if is_unavailable(error) else first_reason(error)


def remedy(error: Exception) -> str:
    """What to do when the Hub did not give something, by the cause of the error."""
    if isinstance(error, OfflineModeIsEnabled):
        return "unset HF_HUB_OFFLINE to download it, or pass a local folder"
    if setting := settings_advice(error):
        return setting
    if isinstance(error, GatedRepoError):
        return "accept the terms on its page, then log in with `hf auth login`"
    if not isinstance(error, HfHubHTTPError):
        return "check the network, or try again later" if is_unavailable(error) else "check the name and the revision"
    status, headers = error.response.status_code, error.response.headers
    if is_token_refused(error):
        return "the token is invalid or has expired: log in again with `hf auth login`, or renew HF_TOKEN"
    if status == 429:
        limit = parse_ratelimit_headers(headers)
        seconds = headers.get("Retry-After") or (limit and limit.reset_in_seconds)
        return (
            f"it limits requests: wait {seconds} s, then try again" if seconds else "wait a few minutes, then try again"
        )
    if status >= 500:
        return "this is a fault of the Hub: try again later"
    return "check the name and the revision, and log in if it is private (hf auth login, or HF_TOKEN)"


def settings_advice(error: Exception) -> str:
    """The variable of the environment that explains an error, and what to do about it; "" if there is none."""
    if isinstance(error, OfflineModeIsEnabled | LocalTokenNotFoundError | HFValidationError):
        return ""
    if isinstance(error, HfHubHTTPError) and error.response.status_code != 407:  # 407 is the answer of a proxy
        return ""
    if isinstance(error, OSError) and (setting := environment.folder_advice(error)):
        return setting
    return "" if getattr(error, "filename", None) else environment.network_advice(constants.ENDPOINT)


def is_token_refused(error: Exception) -> bool:
    """Whether the Hub did not accept the token. Without one, it answers 401 for all that does not exist."""
    return (
        isinstance(error, HfHubHTTPError)
        and error.response.status_code == 401
        and not isinstance(error, GatedRepoError)
        and "authorization" in error.response.request.headers
    )


def http_error(error: BaseException | None) -> HfHubHTTPError | None:
    """The answer of the Hub that an error of another library was caused by, if there is one."""
    while error is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__ or error.__context__
    return error


@contextmanager
def quiet_client() -> Iterator[None]:
    """Suppresses the lines of the Hub's client about each attempt: the error at the end says what was wrong."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def is_unavailable(error: Exception) -> bool:
    """Whether an error is caused by the Hub or the network, so that a later attempt may succeed."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (407, 429) or error.response.status_code >= 500
    if isinstance(error, ValueError) and not isinstance(error, HFValidationError):
        return bool(environment.unusable_settings())
    return not isinstance(error, HFValidationError | LocalTokenNotFoundError)


def first_reason(error: Exception) -> str:
    """First sentence of the Hub's own message, if the error has one, or of the error."""
    return first_sentence(getattr(error, "server_message", None) or error)
