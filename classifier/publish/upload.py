"""Sends a finished model folder to the Hub, in one commit."""

import shlex
import shutil
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from PIL import Image

from classifier.data.loaders import image_batches
from classifier.data.splits import load_splits
from classifier.errors import HubError
from classifier.files import move_files, read_json
from classifier.hub import REFUSED, advice, check_login
from classifier.publish import export
from classifier.reporting import card
from classifier.runs import PUSHED, REPLACED, RunFolder

PARITY_IMAGES = 64


def push(
    folder: Path,
    repo: str | None = None,
    *,
    private: bool = False,
    revision: str | None = None,
    dataset: str | None = None,
) -> str:
    """Completes a trained model's folder, proves that it gives the same probabilities elsewhere, and sends it.

    Args:
        folder: what train.py or finetune_vit.py wrote.
        repo, private, revision: as in `send`.
        dataset: where the images for the proof come from; the dataset that run.json names if None.

    Returns:
        The commit's address.

    Raises:
        ModelError: the folder isn't a finished model, or loads differently elsewhere. Nothing was sent or changed.
        DataError: the images for the proof can't be loaded. Nothing was sent or changed.
        HubError: the Hub did not take it. The folder is complete, and the message says what to run again.
    """
    images = _parity_images(folder, dataset)
    with TemporaryDirectory() as temporary:  # a copy, which takes the folder's place when all checks have passed
        copy = Path(temporary, folder.resolve().name)
        for file in {path for pattern in PUSHED for path in folder.glob(pattern)}:
            (copy / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy / file.relative_to(folder))
        export.complete(copy)
        difference = export.prove_parity(copy, images)
        for file in copy.glob("*.safetensors"):
            file.unlink()  # weights do not change
        move_files({copy: folder})
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
    """Sends a complete folder with its card, in one commit that says what it is and how good; gives its address.

    Args:
        folder: a model's.
        repo: `user/name`; the token's user and the folder's name if None. It is created where there is none.
        private: whether a repository that is created is private. One that exists stays as it is.
        revision: the branch, created where there is none; the main one if None.
        dataset: as in `push`, for the command that the error gives.

    Raises:
        HubError: the Hub did not take it. What has arrived is not sent again the next time.
    """
    again = ["python", "-m", "classifier.publish", "push", str(folder), *([repo] if repo else [])]
    again += ["--private"] * private + (["--revision", revision] if revision else [])
    again += ["--dataset", dataset] if dataset else []
    try:
        api = HfApi()
        repo = repo or f"{check_login()}/{folder.resolve().name}"
        card.write(folder, repo, has_onnx=(folder / export.ONNX).is_file())
        api.create_repo(repo, private=private or None, exist_ok=True)
        if revision:
            api.create_branch(repo, branch=revision, exist_ok=True)
        files = sorted(path for pattern in PUSHED for path in folder.glob(pattern))
        added = {path.relative_to(folder).as_posix(): path for path in files}
        # Files of an earlier model that this one does not have, such as its evaluation or its processor
        gone = [
            name
            for name in api.list_repo_files(repo, revision=revision)
            if name not in added and any(fnmatch(name, pattern) for pattern in REPLACED)
        ]
        sent = api.create_commit(  # upload_folder may make several
            repo,
            [*(CommitOperationAdd(*each) for each in added.items()), *map(CommitOperationDelete, gone)],
            revision=revision,
            commit_message=_message(folder),
        )
    except REFUSED as error:
        raise HubError(
            f"{folder} is complete, but the Hub did not take it ({advice(error)}): {shlex.join(again)}"
        ) from error
    return sent.commit_url


def _parity_images(folder: Path, dataset: str | None) -> list[Image.Image]:
    """Validation images of the dataset that the model was trained on, which run.json names."""
    run = RunFolder(folder).finished_run()
    splits = load_splits(
        dataset or run.dataset,
        splits=("validation",),
        validation=run.settings["validation_fraction"],
        image_column=run.settings["image_column"],
        label_column=run.settings["label_column"],
        max_eval_samples=PARITY_IMAGES,
        skip_unreadable=True,
    )
    return [image for images, _ in image_batches("validation", splits, PARITY_IMAGES) for image in images]


def _message(folder: Path) -> str:
    """The commit's message: the architecture and its accuracy."""
    name = read_json(folder / "config.json")["architectures"][0]
    evaluation, run = RunFolder(folder).evaluation, RunFolder(folder).run
    if evaluation:
        low, high = evaluation.model.accuracy_ci95
        accuracy = f"{evaluation.model.accuracy:.2%} of {evaluation.n:,} test images ({low:.2%} to {high:.2%})"
    elif run and run.validation:
        accuracy = f"{run.validation.accuracy:.2%} of validation"
    else:
        accuracy = "not measured yet"
    return f"{name}: {accuracy}"
