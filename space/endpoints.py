"""The API: functions for gradio_client, curl and MCP. Scripts rely on the names of endpoints, arguments and columns."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from classifier.errors import ClassifierError
from classifier.table import column_names, headers_and_data, result_row
from space.layout import TOP_K, Components
from space.pictures import Picture, PictureClassifier, uploads
from space.session import write_csv

MAX_CONCURRENT = 32  # calls of /classify and /compare that are processed at the same time; they share batches


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """Turns the errors that a user can cause into messages that page and clients show."""
    try:
        yield
    except ClassifierError as error:
        raise gr.Error(str(error), print_exception=False) from error


class Endpoints:
    """The functions of the API.

    They are registered with `preprocess=False`, so files arrive as gradio's FileData, with the name that the sender
    gave them. gradio has checked that they lie in its upload folder; the functions check all other arguments.

    Args:
        classifier: the served models.
    """

    def __init__(self, classifier: PictureClassifier):
        self.classifier = classifier
        self.max_top_k = max(len(predictor.labels) for predictor in classifier.predictors.values())

    def checked_model(self, model: str | None) -> str:
        """The name of a served model, the default for None. Raises gr.Error for an unknown name."""
        if model is None:
            return self.classifier.default
        if not isinstance(model, str) or model not in self.classifier.predictors:
            names = ", ".join(self.classifier.predictors)
            raise gr.Error(f"no model {model!r}: choose one of {names}", print_exception=False)
        return model

    def checked_top_k(self, top_k: int | None) -> int:
        """A number of labels, `TOP_K` for None. Raises gr.Error unless it is from 1 to the most labels of any model.

        A model with fewer labels returns all of them, as `transformers.pipeline` does.
        """
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
            image: an image file (JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF, HEIC); over MCP an upload's URL or a data: URL.
            model: name of a model as /models lists them; the first of these by default.
            top_k: how many labels to return, 5 by default.

        Returns:
            The labels with confidences (0 to 1); a JSON object: model, revision, known (does it look like a label?).
        """
        name = self.checked_model(model)
        picture = self._classify_one(image, [name], top_k)
        revision = self.classifier.predictors[name].revision
        return as_label(picture.top_labels[name]), {"model": name, "revision": revision, "known": picture.known[name]}

    def compare(self, image: dict, top_k: int | None = None) -> list[dict] | dict:
        """Classify one image with every model, to see whether they agree.

        Args:
            image: an image file (JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF, HEIC); over MCP an upload's URL or a data: URL.
            top_k: how many labels of each model to return, 5 by default.

        Returns:
            The labels with their confidences (0 to 1) of each model, in the order in which /models lists them.
        """
        picture = self._classify_one(image, self.classifier.predictors, top_k)
        labels = [as_label(top) for top in picture.top_labels.values()]
        return labels if len(labels) > 1 else labels[0]  # gradio takes a list of one as the value

    def _classify_one(self, image: dict, models: Iterable[str], top_k: int | None) -> Picture:
        """The picture of one upload. Raises gr.Error if there is none, or if it can't be read."""
        top_k = self.checked_top_k(top_k)
        if not image:
            raise gr.Error("no image: send one file", print_exception=False)
        with errors_as_messages():
            [picture] = self.classifier.classify(uploads(image), models, top_k)
        if picture.error:
            raise gr.Error(f"{picture.name}: {picture.error}", print_exception=False)
        return picture

    def classify_gallery(
        self,
        files: list,
        model: str | None = None,
        top_k: int | None = None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  gradio recognises the parameter by this default
    ) -> tuple[dict, str]:
        """Classify many images: a table with a row a file, in the order given, and the same as a CSV file.

        Args:
            files: image files; over MCP the URLs of uploads. One that can't be read has status "error" and a reason.
            model: name of a model as /models lists them; the first of these by default.
            top_k: how many labels to return for each image, 5 by default.

        Returns:
            The table (index, file, status, known, label_1, probability_1, …, error) and the CSV file.
        """
        name, top_k = self.checked_model(model), self.checked_top_k(top_k)
        if not files:
            raise gr.Error("no files: send at least one image", print_exception=False)
        uploaded, rows = uploads(files), []
        with errors_as_messages():
            for i, picture in enumerate(self.classifier.classify(uploaded, [name], top_k)):
                top, known = picture.top_labels.get(name, []), picture.known.get(name)
                rows.append(result_row(i, picture.name, top, known, picture.error))
                progress((len(rows), len(uploaded)), desc="images classified")
        columns = column_names(min(top_k, len(self.classifier.predictors[name].labels)))
        table = headers_and_data(columns, rows)
        return table, write_csv(table)

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
            for name, predictor in self.classifier.predictors.items()
        ]


def as_label(top: list[dict]) -> dict[str, float]:
    """`[{"label", "score"}, …]` -> the value of a gr.Label."""
    return {entry["label"]: entry["score"] for entry in top}


def register(api: Endpoints, page: Components) -> None:
    """Registers the endpoints in the current gr.Blocks. Arguments share the page's components and their defaults."""
    with gr.Row(visible=False):  # components that only the API uses
        image = gr.File(label="image")
        label = gr.Label(label="label")
        about = gr.JSON(label="about")
        table = gr.Dataframe(label="table")
        csv_file = gr.File(label="CSV")
        label_of_each_model = [gr.Label(label=name) for name in api.classifier.predictors]
    options: dict[str, Any] = {"triggers": [], "preprocess": False}
    single: dict[str, Any] = options | {"concurrency_limit": MAX_CONCURRENT, "concurrency_id": "pictures"}
    gr.on(
        fn=api.classify,
        inputs=[image, page.model, page.top_k],
        outputs=[label, about],
        api_name="classify",
        **single,
    )
    gr.on(fn=api.compare, inputs=[image, page.top_k], outputs=label_of_each_model, api_name="compare", **single)
    gr.on(
        fn=api.classify_gallery,
        inputs=[page.files, page.model, page.top_k],
        outputs=[table, csv_file],
        api_name="classify_gallery",
        **options,
    )
    gr.api(api.models, api_name="models", queue=False)
