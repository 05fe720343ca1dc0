"""What page and API share: uploaded files in, a result a file, a table, a CSV file; and the endpoints made of these."""

import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr
import numpy as np
from gradio.utils import get_upload_folder
from PIL import Image

from classifier.errors import ClassifierError, ImageError
from classifier.images.convert import to_rgb
from classifier.models.predictor import Predictor
from classifier.table import column_names, headers_and_data, result_row, write_csv_rows
from space.batching import Batcher
from space.prefetch import Prefetcher
from space.validation import MAX_NAME

TOP_K = 5  # labels an image, when the caller does not say
PREVIEW = 320  # pixels of the shorter side, at most; twice that of the longer one


@dataclass(frozen=True)
class Result:
    """One file and what a model says: (C,) `probabilities` and whether it looks like a label, or why it can't be
    read.
    """

    name: str
    path: str
    probabilities: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    known: bool | None = None
    error: str = ""
    preview: str = ""  # path of a small JPEG, where one was asked for


def uploads(files: dict | list[dict] | None) -> list[tuple[str, str]]:
    """gradio's FileData (one, a list or nothing) -> (path, the name that its sender gave it) of each.

    Raises gr.Error for anything else: what a script sends arrives unchecked.
    """
    files = [files] if isinstance(files, dict) else files or []
    if not isinstance(files, list) or not all(
        isinstance(file, dict) and isinstance(file.get("path"), str) for file in files
    ):
        raise gr.Error("not a file, or a list of files: send what handle_file gives", print_exception=False)
    return [(file["path"], str(file.get("orig_name") or Path(file["path"]).name)[:MAX_NAME]) for file in files]


def classify_files(batcher: Batcher, files: Sequence[tuple[str, str]], *, previews: bool = False) -> Iterator[Result]:
    """A result a file, in order, as each is ready. A file that can't be read has an error instead of probabilities.

    Args:
        batcher: of the model.
        files: (path, name) of each.
        previews: whether to keep a small JPEG of each, which any browser can show.
    """
    for (path, name), found in zip(files, batcher.classify(path for path, _ in files), strict=True):
        if isinstance(found, ImageError):
            yield Result(name, path, error=str(found).removeprefix(f"{Path(path).name}: "))
        else:
            preview = write_preview(found.image) if previews else ""
            yield Result(name, path, found.probabilities, found.known, preview=preview)


def new_file(name: str) -> Path:
    """A path in gradio's cache, where files are served, and deleted with the uploads; not to be guessed by others."""
    path = Path(get_upload_folder()) / secrets.token_hex(32) / name
    path.parent.mkdir(parents=True)
    return path


def write_preview(image: Image.Image) -> str:
    """Writes a decoded image as a small JPEG."""
    path = new_file("preview.jpg")
    preview = to_rgb(image, reduce_to=PREVIEW)
    preview.thumbnail((2 * PREVIEW, 2 * PREVIEW))
    preview.save(path, quality=85)
    return str(path)


def table(predictor: Predictor, results: Iterable[Result], top_k: int) -> dict[str, list]:
    """Results as `{"headers", "data"}`, one row each, with the columns of `classifier.table`."""
    k = min(top_k, len(predictor.labels))
    rows = []
    for index, result in enumerate(results):
        top = [] if result.error else predictor.top(result.probabilities, k)
        rows.append(result_row(index, result.name, top, result.known, result.error))
    return headers_and_data(column_names(k), rows)


def write_csv(rows: dict[str, list]) -> str:
    """Writes a `table` as predictions.csv into gradio's cache, where it is served and deleted with the uploads."""
    path = new_file("predictions.csv")
    write_csv_rows(path, rows["headers"], rows["data"])
    return str(path)


@contextmanager
def as_messages() -> Iterator[None]:
    """Our own errors become messages that page and clients show; anything else stays what it is, a bug."""
    try:
        yield
    except ClassifierError as error:
        raise gr.Error(str(error), print_exception=False) from error


class Endpoints:
    """The API over some models, the first of them the default. Names of arguments and results are stable: scripts have
    them.

    The endpoints are registered with `preprocess=False`: files arrive as gradio's FileData, after its check that they
    lie in the upload folder, with the name that the sender gave them.
    """

    def __init__(self, predictors: dict[str, Predictor], ahead: Prefetcher):
        self.turn = threading.Lock()  # models take turns: each uses all cores
        self.predictors = predictors
        self.batchers = {
            name: Batcher(predictor, turn=self.turn, decode_many=ahead.decode_many)
            for name, predictor in predictors.items()
        }
        self.max_top_k = max(len(predictor.labels) for predictor in predictors.values())

    def predictor(self, model: str | None) -> Predictor:
        """The model of that name, the first one for None."""
        if model is None:
            return next(iter(self.predictors.values()))
        if not isinstance(model, str) or model not in self.predictors:
            raise gr.Error(f"no model {model!r}: choose one of {', '.join(self.predictors)}", print_exception=False)
        return self.predictors[model]

    def checked_top_k(self, top_k: int | None) -> int:
        """`top_k`, `TOP_K` for None. A model with fewer labels gives all it has, as `transformers.pipeline` does."""
        if top_k is None:
            return TOP_K
        if isinstance(top_k, bool) or not isinstance(top_k, int | float) or top_k not in range(1, self.max_top_k + 1):
            raise gr.Error(
                f"top_k is {top_k!r}: it has to be a whole number from 1 to {self.max_top_k}", print_exception=False
            )
        return int(top_k)

    def classify(self, image: dict, model: str | None = None, top_k: int | None = None) -> tuple[dict, dict]:
        """Classify one image: the most probable labels, best first, and which model said so.

        Args:
            image: an image file (JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF, HEIC); over MCP a data: URL (base64).
            model: name of a model as /models lists them; the first of these by default.
            top_k: how many labels to return, 5 by default.

        Returns:
            The labels with confidences (0 to 1); a JSON object: model, revision, known (does it look like a label?).
        """
        predictor, top_k = self.predictor(model), self.checked_top_k(top_k)
        if not image:
            raise gr.Error("no image: send one file", print_exception=False)
        with as_messages():
            [result] = classify_files(self.batchers[predictor.name], uploads(image))
        if result.error:
            raise gr.Error(f"{result.name}: {result.error}", print_exception=False)
        label = {entry["label"]: entry["score"] for entry in predictor.top(result.probabilities, top_k)}
        return label, {"model": predictor.name, "revision": predictor.revision, "known": result.known}

    def compare(self, image: dict, top_k: int | None = None) -> list[dict] | dict:
        """Classify one image with every model, to see whether they agree.

        Args:
            image: an image file (JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF, HEIC); over MCP a data: URL (base64).
            top_k: how many labels of each model to return, 5 by default.

        Returns:
            The labels with their confidences (0 to 1) of each model, in the order in which /models lists them.
        """
        labels = [self.classify(image, model, top_k)[0] for model in self.predictors]
        return labels if len(labels) > 1 else labels[0]

    def classify_gallery(
        self,
        files: list,
        model: str | None = None,
        top_k: int | None = None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  how gradio hands it over
    ) -> tuple[dict, str]:
        """Classify many images: a table with a row a file, in the order given, and the same as a CSV file.

        Args:
            files: image files. One that can't be read has status "error" and a reason; the others are classified.
            model: name of a model as /models lists them; the first of these by default.
            top_k: how many labels to return for each image, 5 by default.

        Returns:
            The table (index, file, status, known, label_1, probability_1, …, error) and the CSV file.
        """
        predictor, top_k = self.predictor(model), self.checked_top_k(top_k)
        if not files:
            raise gr.Error("no files: send at least one image", print_exception=False)
        with as_messages():
            uploaded = uploads(files)
            results = []
            for result in classify_files(self.batchers[predictor.name], uploaded):
                results.append(result)
                progress((len(results), len(uploaded)), desc="images classified")
        rows = table(predictor, results, top_k)
        return rows, write_csv(rows)

    vars(classify_gallery)["_mcp_type"] = (
        "none"  # no tool: the schema that gradio makes for MCP of a list of files is not valid
    )

    def models(self) -> list[dict]:
        """The models served, the default first: name, revision, parameters, accuracy with 95% interval, and labels."""
        return [
            {
                "name": name,
                "revision": predictor.revision,
                "parameters": predictor.n_parameters,
                "accuracy": predictor.accuracy,
                "accuracy_ci95": predictor.accuracy_ci95,
                "labels": predictor.labels,
            }
            for name, predictor in self.predictors.items()
        ]
