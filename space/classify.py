"""What page and API share: uploaded files in, a result a file, a table, a CSV file; and the endpoints made of these."""

import csv
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import numpy as np
from gradio.utils import get_upload_folder

from classifier import pixels
from classifier.errors import ClassifierError, ImageError
from classifier.predictor import Predictor, batches

TOP_K = 5  # labels an image, when the caller does not say
BATCH_SIZE = 16  # images a step: the model takes a batch while the decoder's workers fill the next


@dataclass(frozen=True)
class Result:
    """One file and what a model says about it: either (C,) `probabilities`, or why it can't be read."""

    name: str
    path: str
    probabilities: np.ndarray | None = None
    error: str = ""


def uploads(files: dict | list[dict] | None) -> list[tuple[str, str]]:
    """gradio's FileData (one, a list or nothing) -> (path, the name that its sender gave it) of each."""
    files = [files] if isinstance(files, dict) else files or []
    return [(file["path"], file.get("orig_name") or Path(file["path"]).name) for file in files]


def classify_files(
    predictor: Predictor, files: Sequence[tuple[str, str]], progress: Callable = lambda done, desc: None
) -> list[Result]:
    """A result a file, in order. A file that can't be read has an error instead of probabilities; the others go on.

    Args:
        predictor: the model.
        files: (path, name) of each.
        progress: called as `progress((images done, images), desc)`, like `gr.Progress`.
    """
    results = []
    pairs = zip(files, pixels.decode_many([path for path, _ in files], reduce_to=predictor.reduce_to), strict=True)
    for batch in batches(pairs, BATCH_SIZE):
        readable = [image for _, image in batch if not isinstance(image, ImageError)]
        rows = iter(predictor.probabilities(readable))
        for (path, name), image in batch:
            if isinstance(image, ImageError):
                results.append(Result(name, path, error=str(image).removeprefix(f"{Path(path).name}: ")))
            else:
                results.append(Result(name, path, next(rows)))
        progress((len(results), len(files)), desc="images classified")
    return results


def table(predictor: Predictor, results: Iterable[Result], top_k: int) -> dict[str, list]:
    """Results as `{"headers", "data"}`, a row each: index, file, status, known, label_1, probability_1, …, error."""
    k = min(top_k, len(predictor.labels))
    ranks = [f"{column}_{rank}" for rank in range(1, k + 1) for column in ("label", "probability")]
    data = []
    for index, result in enumerate(results):
        if result.error:
            data.append([index, result.name, "error", None, *[None] * len(ranks), result.error])
        else:
            top = predictor.top(result.probabilities, k)
            cells = [cell for entry in top for cell in (entry["label"], round(entry["score"], 6))]
            data.append([index, result.name, "ok", predictor.is_known(result.probabilities), *cells, ""])
    return {"headers": ["index", "file", "status", "known", *ranks, "error"], "data": data}


def write_csv(rows: dict[str, list]) -> str:
    """Writes a `table` as predictions.csv into gradio's cache, where it is served and deleted with the uploads."""
    folder = Path(get_upload_folder())
    folder.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(dir=folder)) / "predictions.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:  # the signature tells spreadsheets that it is UTF-8
        csv.writer(file).writerows([rows["headers"], *rows["data"]])
    return str(path)


@contextmanager
def as_messages() -> Iterator[None]:
    """Our own errors become messages that page and clients show; anything else stays what it is, a bug."""
    try:
        yield
    except ClassifierError as error:
        raise gr.Error(str(error), print_exception=False) from error


class Endpoints:
    """The API over some models, the first of them the default. Argument names and results are stable (design.md).

    The endpoints are registered with `preprocess=False`: files arrive as gradio's FileData, after its check that they lie
    in the upload folder, with the name that the sender gave them.
    """

    def __init__(self, predictors: dict[str, Predictor]):
        self.predictors = predictors
        self.max_top_k = max(len(predictor.labels) for predictor in predictors.values())

    def predictor(self, model: str | None) -> Predictor:
        """The model of that name, the first one for None."""
        if model is None:
            return next(iter(self.predictors.values()))
        if model not in self.predictors:
            raise gr.Error(f"no model {model!r}: choose one of {', '.join(self.predictors)}", print_exception=False)
        return self.predictors[model]

    def checked_top_k(self, top_k: int | None) -> int:
        """`top_k`, `TOP_K` for None. A model with fewer labels gives all it has, as `transformers.pipeline` does."""
        if top_k is None:
            return TOP_K
        if isinstance(top_k, bool) or not isinstance(top_k, int | float) or top_k not in range(1, self.max_top_k + 1):
            raise gr.Error(f"top_k is {top_k!r}: it has to be a whole number from 1 to {self.max_top_k}", print_exception=False)
        return int(top_k)

    def classify(self, image: dict, model: str | None = None, top_k: int | None = None) -> tuple[dict, dict]:
        """Classify one image: the most probable labels, best first, and which model said so.

        Args:
            image: an image file (JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF or HEIC).
            model: name of a model as /models lists them; the best one by default.
            top_k: how many labels to return, 5 by default.

        Returns:
            The labels with their confidences (0 to 1), and a JSON object with model, revision and known (whether the
            image looks like one of the labels; null when the model has no threshold for that).
        """
        predictor, top_k = self.predictor(model), self.checked_top_k(top_k)
        if not image:
            raise gr.Error("no image: send one file", print_exception=False)
        with as_messages():
            [result] = classify_files(predictor, uploads(image))
        if result.error:
            raise gr.Error(f"{result.name}: {result.error}", print_exception=False)
        label = {entry["label"]: entry["score"] for entry in predictor.top(result.probabilities, top_k)}
        known = predictor.is_known(result.probabilities)
        return label, {"model": predictor.name, "revision": predictor.revision, "known": known}

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
            model: name of a model as /models lists them; the best one by default.
            top_k: how many labels to return for each image, 5 by default.

        Returns:
            The table (index, file, status, known, label_1, probability_1, …, error) and the CSV file.
        """
        predictor, top_k = self.predictor(model), self.checked_top_k(top_k)
        if not files:
            raise gr.Error("no files: send at least one image", print_exception=False)
        with as_messages():
            results = classify_files(predictor, uploads(files), progress)
        rows = table(predictor, results, top_k)
        return rows, write_csv(rows)

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
