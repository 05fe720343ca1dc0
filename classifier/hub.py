"""The Hub, both ways: a finished folder up in one commit, a revision down to its cached files; and the Space itself.

    python -m classifier.hub push runs/cnn user/cifar10-cnn
    python -m classifier.hub space user/cifar10 --models user/cifar10-cnn,user/cifar10-vit

The token is the one of `hf auth login` or HF_TOKEN. A push that failed can be given again: files that have arrived are
not sent twice.
"""

import argparse
import hashlib
import json
import re
import shlex
import threading
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import httpx2  # what huggingface_hub talks through: its errors are what an unreachable Hub raises
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    SpaceCard,
    snapshot_download,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    RevisionResolutionError,
)
from PIL import Image

from classifier import errors, runs
from classifier.errors import HubError, ModelError

# user/name or user/name@revision
HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")
# What inference needs of a repository: neither code, nor checkpoints, nor weights in other formats.
PULLED = ["config.json", "model*.safetensors", "model.safetensors.index.json", "preprocessor_config.json"]
PULLED += ["evaluation.json", "timing.json", "run.json"]  # small, and what the page tells of a model
# What a repository holds of a finished folder: checkpoints and logs of trackers stay at home.
MADE = [*PULLED, "metrics.jsonl", "confusion_matrix.png", "cnn.py", "onnx/model.onnx"]  # by a run and its evaluation
PUSHED = [*MADE, "README.md", "*.png"]
SPACE = ["app.py", "requirements.txt", "LICENSE", "space/**/*.py", "classifier/**/*.py"]
SPACE += ["classifier/reporting/templates/*"]
SPACE += ["model_card.md", "SECURITY.md", "examples/*", *(f"models/*/{pattern}" for pattern in PULLED)]
SPACE += [
    "docs/*",
    "report/report.*",
    "report/slides.pptx",
    "report/figures/*.png",
]  # what the README links to, and shows
ROOT = Path(__file__).resolve().parent.parent
PARITY_IMAGES = 64
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
                if attempt == ATTEMPTS - 1 or not _unavailable(error):
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
    reason = _reason(result)
    if cached := _cached(repo, revision, files):
        return cached._replace(
            notice=f"The Hub did not give {repo} ({reason}): commit {cached.commit[:7]}, from the cache."
        )
    where = f"{repo}@{revision}" if revision else repo
    if _unavailable(result):
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


def push(
    folder: Path,
    repo: str | None = None,
    *,
    private: bool = False,
    revision: str | None = None,
    dataset: str | None = None,
) -> str:
    """Completes a trained model's folder, proves that strangers get its probabilities, and sends it.

    Args:
        folder: what train.py or finetune_vit.py wrote.
        repo, private, revision: as in `send`.
        dataset: where the images for the proof come from; the dataset that run.json names if None.

    Returns:
        The commit's address.

    Raises:
        ModelError: the folder isn't a finished model, or loads differently elsewhere. Nothing was sent.
        DataError: the images for the proof can't be loaded. Nothing was sent.
        HubError: the Hub did not take it. The folder is complete, and the message says what to run again.
    """
    from classifier import export  # which takes seconds to import, as data does below: an app that pulls can spare them

    images = _parity_images(folder, dataset)
    export.complete(folder)
    difference = export.prove_parity(folder, images)
    print(
        f"{folder}: pipeline in a fresh process differs by {difference:.1e} at most on {len(images)} validation images"
    )
    return send(folder, repo, private=private, revision=revision, dataset=dataset)


def send(
    folder: Path,
    repo: str | None = None,
    *,
    private: bool = False,
    revision: str | None = None,
    dataset: str | None = None,
) -> str:
    """Sends a complete folder with its card, in one commit that says what it is and how good. Gives the commit's
    address.

    Args:
        folder: a model's.
        repo: `user/name`; the token's user and the folder's name if None. It is created where there is none.
        private: whether a repository that is created is private. One that exists stays as it is.
        revision: the branch, created where there is none; the main one if None.
        dataset: as in `push`, for the command that the error gives.

    Raises:
        HubError: the Hub did not take it. What has arrived is not sent again the next time.
    """
    from classifier.reporting import card

    again = ["python", "-m", "classifier.hub", "push", str(folder), *([repo] if repo else [])]
    again += ["--private"] * private + (["--revision", revision] if revision else [])
    again += ["--dataset", dataset] if dataset else []
    try:
        api = HfApi()
        repo = repo or f"{check_login()}/{folder.resolve().name}"
        card.write(folder, repo)
        api.create_repo(repo, private=private or None, exist_ok=True)
        if revision:
            api.create_branch(repo, branch=revision, exist_ok=True)
        files = sorted(path for pattern in PUSHED for path in folder.glob(pattern))
        added = {path.relative_to(folder).as_posix(): path for path in files}
        # What an earlier model left would speak of other weights: its evaluation, or a processor that this one has not
        gone = [
            name
            for name in api.list_repo_files(repo, revision=revision)
            if name not in added and any(fnmatch(name, pattern) for pattern in MADE)
        ]
        sent = api.create_commit(  # upload_folder may make several
            repo,
            [*(CommitOperationAdd(*each) for each in added.items()), *map(CommitOperationDelete, gone)],
            revision=revision,
            commit_message=_message(folder),
        )
    except REFUSED as error:
        raise HubError(
            f"{folder} is complete, but the Hub did not take it ({_advice(error)}): {shlex.join(again)}"
        ) from error
    return sent.commit_url


def _parity_images(folder: Path, dataset: str | None) -> list[Image.Image]:
    """Validation images of the dataset that the model was trained on, as run.json tells it."""
    from classifier.data.loaders import image_batches
    from classifier.data.splits import load_splits

    if not (folder / "run.json").is_file():
        raise ModelError(f"no run.json in {folder}: give a folder that train.py or finetune_vit.py has finished")
    settings = json.loads((folder / "run.json").read_text())["settings"]
    splits = load_splits(
        dataset or settings["dataset"],
        splits=("validation",),
        validation=settings["validation_fraction"],
        image_column=settings["image_column"],
        label_column=settings["label_column"],
        max_eval_samples=PARITY_IMAGES,
        skip_unreadable=True,
    )
    return [image for images, _ in image_batches("validation", splits, PARITY_IMAGES) for image in images]


def _message(folder: Path) -> str:
    """The commit's message: what it is, and how good."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    if not (folder / "evaluation.json").is_file():
        accuracy = json.loads((folder / "run.json").read_text())["validation"]["accuracy"]
        return f"{name}: {accuracy:.2%} of validation"
    evaluation = json.loads((folder / "evaluation.json").read_text())
    [model] = evaluation["models"]
    low, high = model["accuracy_ci95"]
    return f"{name}: {model['accuracy']:.2%} of {evaluation['n']:,} test images ({low:.2%} to {high:.2%})"


def push_space(repo: str, models: list[str], *, private: bool = False) -> str:
    """Creates or updates the Space: app, library, embedded models and README, in one commit. Gives its address.

    Args:
        repo: `user/name` of the Space.
        models: Hub models to serve, `user/name` or `user/name@revision`; the embedded ones if there are none.
        private: whether a Space that is created is private.

    Raises:
        HubError: the Hub did not take it.
    """
    files = sorted({path for pattern in SPACE for path in ROOT.glob(pattern) if path.is_file()})
    readme = SpaceCard.load(ROOT / "README.md")
    try:
        api = HfApi()
        if models:
            readme.data["models"] = [model.partition("@")[0] for model in models]
            readme.data["preload_from_hub"] = [_preload(api, *model.partition("@")[::2]) for model in models]
        additions = {path.relative_to(ROOT).as_posix(): path for path in files} | {"README.md": str(readme).encode()}
        api.create_repo(repo, repo_type="space", space_sdk="gradio", private=private or None, exist_ok=True)
        if models:
            api.add_space_variable(repo, "MODELS", ",".join(models))
        sent = api.create_commit(
            repo,
            [CommitOperationAdd(path, content) for path, content in additions.items()],
            repo_type="space",
            commit_message=f"Serve {', '.join(models) or 'the embedded models'}",
        )
    except REFUSED as error:
        raise HubError(f"the Hub did not take the Space {repo} ({_advice(error)}): give the command again") from error
    return sent.commit_url


def _preload(api: HfApi, repo: str, revision: str) -> str:
    """The line of a Space's front matter that has the model's inference files fetched when the Space is built."""
    found = api.model_info(repo, revision=revision or None)
    files = [f.rfilename for f in found.siblings if any(fnmatch(f.rfilename, pattern) for pattern in PULLED)]
    return " ".join([repo, ",".join(files), *([found.sha] if revision else [])])


def check_login() -> str:
    """The user that the token belongs to; HubError where there is none, which is better known before a training."""
    try:
        return HfApi().whoami()["name"]
    except REFUSED as error:
        raise HubError(f"--push_to_hub can't work ({_advice(error)})") from error


def _advice(error: Exception) -> str:
    """The reason, and what to do about it where there is something."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, LocalTokenNotFoundError) or status in (401, 403):
        return f"{_reason(error)}; log in with a token that may write: hf auth login, or HF_TOKEN"
    return f"{_reason(error)}; try again later" if _unavailable(error) else _reason(error)


def _unavailable(error: Exception) -> bool:
    """Whether it is the Hub's or the network's fault, and may pass."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    return not isinstance(error, ValueError | LocalTokenNotFoundError)


def _reason(error: Exception) -> str:
    """The first sentence of an error, in one line."""
    text = getattr(error, "server_message", None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0].split(". ")[0].rstrip(" .:")


def parse_args() -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    model = commands.add_parser("push", help="send a finished model folder", description=push.__doc__.splitlines()[0])
    model.add_argument("folder", type=Path, help="what train.py or finetune_vit.py wrote")
    model.add_argument("repo", nargs="?", help="user/name (yours, named like the folder)")
    model.add_argument("--revision", metavar="BRANCH", help="created where there is none (main)")
    model.add_argument("--dataset", help="Hub id or folder whose validation images prove parity (run.json's)")
    space = commands.add_parser(
        "space", help="create or update the Space", description=push_space.__doc__.splitlines()[0]
    )
    space.add_argument("repo", help="user/name of the Space")
    space.add_argument(
        "--models", default="", metavar="IDS", help="user/name[@revision],… to serve (the embedded ones)"
    )
    for command in (model, space):
        command.add_argument("--private", action="store_true", help="create it private; one that exists stays as it is")
    return parser.parse_args()


def main() -> None:
    """Push a model, or the Space."""
    args = parse_args()
    if args.command == "push":
        print(push(args.folder, args.repo, private=args.private, revision=args.revision, dataset=args.dataset))
    else:
        print(push_space(args.repo, [name for name in args.models.split(",") if name], private=args.private))


if __name__ == "__main__":
    errors.run(main)
