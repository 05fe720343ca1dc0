"""From uploaded files to labels: the steps that the page and the API share.

    for picture in classifier.classify(uploads(files), [model], top_k=5): ...

A file is decoded once (prefetch.py), its image is handed to each model's batcher (batching.py), and the answers become
a `Picture`.
"""

import secrets
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr
from PIL import Image

from classifier.errors import ImageError
from classifier.images.convert import to_rgb
from classifier.models.predictor import Predictor
from space import gradio_internals
from space.batching import BATCH_SIZE, Batcher, Prediction
from space.prefetch import DecodedImages
from space.validation import MAX_NAME

PREVIEW = 320  # pixels: the most that the shorter side of a preview has; its longer side has at most twice as many


@dataclass(frozen=True)
class Upload:
    """A file that was uploaded."""

    path: str
    name: str  # given by the sender; two uploads may have the same


@dataclass(frozen=True)
class Picture:
    """An upload, and either what the models say about it or why it can't be read.

    Attributes:
        name: given by the sender; two pictures may have the same.
        path: of the upload.
        top_labels: by model, its most probable labels, `[{"label", "score"}, …]`, best first; scores are 0 to 1.
        known: by model, whether the picture looks like one of the labels; None if the model has no threshold.
        error: why the file can't be read, "" if it can.
        preview: path of a small JPEG, "" if none was asked for.
        figures: by model, HTML of what it saw and where it looked; filled when the picture is selected.
    """

    name: str
    path: str = ""
    top_labels: Mapping[str, list[dict]] = field(default_factory=dict)
    known: Mapping[str, bool | None] = field(default_factory=dict)
    error: str = ""
    preview: str = ""
    figures: dict[str, str] = field(default_factory=dict)

    def best(self, model: str) -> dict:
        """The most probable label of a model, `{"label", "score"}`. Only for pictures without an error."""
        return self.top_labels[model][0]

    def is_unknown(self, model: str) -> bool:
        """Whether the picture looks like none of the labels to a model. Only for pictures without an error."""
        return self.known[model] is False

    @property
    def models_agree(self) -> bool | None:
        """Whether all models find the same label most probable; None for one model or an unreadable file."""
        labels = {self.best(model)["label"] for model in self.top_labels}
        return len(labels) == 1 if len(self.top_labels) > 1 else None


class PictureClassifier:
    """Classifies uploads with the served models, which share decoded images and compute one at a time.

    Safe to use from several threads.

    Args:
        predictors: the models by name, the default first.
    """

    def __init__(self, predictors: Mapping[str, Predictor]):
        sides = [predictor.reduce_to for predictor in predictors.values()]
        self.predictors = predictors
        self.images = DecodedImages(max(filter(None, sides)) if all(sides) else None)
        self.turn = threading.Lock()  # each model uses all cores
        self.batchers = {name: Batcher(predictor, turn=self.turn) for name, predictor in predictors.items()}

    @property
    def default(self) -> str:
        """The name of the default model."""
        return next(iter(self.predictors))

    @property
    def labels(self) -> list[str]:
        """The labels of all models, without repetitions."""
        return list(dict.fromkeys(label for predictor in self.predictors.values() for label in predictor.labels))

    def classify(
        self, uploads: Sequence[Upload], models: Iterable[str], top_k: int, *, previews: bool = False
    ) -> Iterator[Picture]:
        """A picture for each upload, in order, as soon as all `models` have classified it.

        A file that can't be read becomes a picture with an error. At most two batches of images are decoded ahead of
        the pictures that were yielded, so memory stays flat.

        Args:
            uploads: the files.
            models: names of the models to ask.
            top_k: labels kept for each model; all of them if there are fewer.
            previews: whether to write a small JPEG of each picture, which every browser can show.
        """
        models = list(models)
        pending: deque[PendingPicture] = deque()
        decoded = self.images.decode_many(upload.path for upload in uploads)
        for upload, image in zip(uploads, decoded, strict=True):
            predictions: dict[str, Future[Prediction]] = {}
            if not isinstance(image, ImageError):
                predictions = {model: self.batchers[model].submit(image) for model in models}
            pending.append(PendingPicture(upload, image, predictions))
            while pending and (len(pending) > 2 * BATCH_SIZE or pending[0].is_done):
                yield self._picture(pending.popleft(), top_k, previews)
        while pending:
            yield self._picture(pending.popleft(), top_k, previews)

    def _picture(self, pending: "PendingPicture", top_k: int, previews: bool) -> Picture:
        """Waits for the predictions of an image."""
        upload, image = pending.upload, pending.image
        if isinstance(image, ImageError):
            return Picture(upload.name, upload.path, error=str(image).removeprefix(f"{Path(upload.path).name}: "))
        predictions = {model: future.result() for model, future in pending.predictions.items()}
        return Picture(
            upload.name,
            upload.path,
            {model: self.predictors[model].top(each.probabilities, top_k) for model, each in predictions.items()},
            {model: each.known for model, each in predictions.items()},
            preview=write_preview(image) if previews else "",
        )


@dataclass(frozen=True)
class PendingPicture:
    """An upload that is being classified."""

    upload: Upload
    image: Image.Image | ImageError
    predictions: Mapping[str, Future[Prediction]]  # by model; empty if the file can't be read

    @property
    def is_done(self) -> bool:
        """Whether all predictions are there."""
        return all(future.done() for future in self.predictions.values())


def uploads(files: dict | list[dict] | None) -> list[Upload]:
    """gradio's FileData (one, a list, or None) -> the uploads. Raises gr.Error for anything else.

    The functions of page and API are registered with `preprocess=False`: gradio then checks that each file lies in its
    upload folder, and keeps the name that the sender gave it.
    """
    files = [files] if isinstance(files, dict) else files or []
    if not isinstance(files, list) or not all(
        isinstance(file, dict) and isinstance(file.get("path"), str) for file in files
    ):
        raise gr.Error("not a file, or a list of files: send what handle_file gives", print_exception=False)
    return [Upload(file["path"], str(file.get("orig_name") or Path(file["path"]).name)[:MAX_NAME]) for file in files]


def new_file(name: str) -> Path:
    """A path in gradio's cache that nobody can guess. Files there are served, and deleted together with the uploads."""
    path = gradio_internals.upload_folder() / secrets.token_hex(32) / name
    path.parent.mkdir(parents=True)
    return path


def write_preview(image: Image.Image) -> str:
    """Writes a decoded image as a small JPEG into gradio's cache; returns its path."""
    path = new_file("preview.jpg")
    preview = to_rgb(image, reduce_to=PREVIEW)
    preview.thumbnail((2 * PREVIEW, 2 * PREVIEW))
    preview.save(path, quality=85)
    return str(path)
