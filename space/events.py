"""What the page does when a visitor does something: each method of `PageEvents` handles an event.

Handlers take the current values of components by keyword, and return the new values of components in a dictionary. So a
test can call them without a browser or a server.

Several events of a visit can run at the same time, in threads of their own, and they share its `Visit`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any

import gradio as gr

from classifier.images.workers import MAX_BYTES
from space import about, compare, components, detail, layout, validation
from space.endpoints import Endpoints, errors_as_messages
from space.gradio_internals import event_data
from space.layout import Components
from space.pictures import Picture, Upload, uploads
from space.session import (
    KINDS,
    ORDERS,
    Run,
    Settings,
    Visit,
    label_counts,
    result_table,
    shown_indices,
    write_csv,
    write_json,
)

MAX_RUNS = 4  # uploads of all visitors that are classified at a time; each holds some images in memory
MAX_PICTURES = 2000  # on a page: each takes 8 kB of memory for as long as the visit is kept
UPDATE_EVERY_S = 0.5  # seconds between two updates of a page whose pictures are being classified
FEW_PICTURES = 24  # up to so many, the detail view is below the gallery, which then has three rows at most
KEPT_LABELS = 10  # labels of each model that are kept of a picture

Update = dict[Any, Any]  # component -> its new value


class PageEvents:
    """The event handlers of the page. `controls` are the values of model, top_k, kind, below, label and order.

    Args:
        page: its components.
        api: checks of model names and numbers of labels, and the classifier.
    """

    def __init__(self, page: Components, api: Endpoints):
        self.page, self.api, self.classifier = page, api, api.classifier

    # Pictures arrive.

    def upload(self, *, visit: Visit, files: Any, **controls: Any) -> Iterator[Update]:
        """Classifies uploaded files."""
        run = self._classify(uploads(files), visit, controls)
        yield {**next(run), self.page.files: None}  # only in the first update: later ones could remove the next upload
        yield from run

    def classify_example(self, *, visit: Visit, example: Any, **controls: Any) -> Iterator[Update]:
        """Classifies the example with the index `example`."""
        is_index = type(example) is int and example >= 0
        chosen = self.page.example_paths[example : example + 1] if is_index else []
        yield from self._classify([Upload(str(path), path.name) for path in chosen], visit, controls)

    def _classify(self, new: Sequence[Upload], visit: Visit, controls: dict[str, Any]) -> Iterator[Update]:
        """Classifies files and reports progress; the last update has the values of all components that show results."""
        page, pictures, stops, first = self.page, visit.pictures, visit.stops, len(visit.pictures)
        full = gr.Error(f"{MAX_PICTURES:,} pictures at most are on the page: clear it first", print_exception=False)
        if not new:
            raise gr.Error("no files: choose at least one picture", print_exception=False)
        if first + len(new) > MAX_PICTURES:
            raise full
        visit.settings = visit.settings or self._settings(**controls)
        run, updated = Run(len(new)), float("-inf")
        visit.runs.append(run)
        try:
            yield {page.progress: components.progress_bar(visit.runs), page.answer: self._arranged(first + len(new))}
            with errors_as_messages():
                for picture in self.classifier.classify(new, self.classifier.predictors, KEPT_LABELS, previews=True):
                    if visit.stops != stops:
                        break
                    if len(pictures) >= MAX_PICTURES:  # other runs add pictures too
                        raise full
                    pictures.append(picture)
                    run.done += 1
                    if time.monotonic() - updated > UPDATE_EVERY_S:
                        updated, settings = time.monotonic(), visit.settings
                        indices = shown_indices(pictures, settings)
                        yield {
                            page.progress: components.progress_bar(visit.runs),
                            page.results: gr.Column(visible=True),
                            page.gallery: components.gallery_tiles(pictures, indices, settings.model),
                        }
        finally:
            visit.end(run)
        if visit.pictures is pictures:  # the page was not cleared meanwhile
            visit.select_first(first)
        # gradio sends the last update a second time when the generator ends, so this has to be the newest one.
        yield self._draw(visit, self._everything)

    def add_too_large(self, event: gr.EventData, *, visit: Visit, **controls: Any) -> Update:
        """Lists the files that the browser did not send because they are too large."""
        names = read_event(event, "names", list)
        room = max(0, MAX_PICTURES - len(visit.pictures))
        error = f"more than {MAX_BYTES / 1e6:.0f} MB"
        visit.pictures += [Picture(str(name)[: validation.MAX_NAME], error=error) for name in names[:room]]
        return self.show(visit=visit, **controls)

    # What is shown.

    def show(self, *, visit: Visit, **controls: Any) -> Update:
        """Shows the results by the current settings."""
        visit.set(self._settings(**controls))
        visit.select_first()
        return self._draw(visit, self._everything)

    def change_model(self, *, visit: Visit, **controls: Any) -> Update:
        """Shows the labels of another model, and describes it in the header."""
        update = self.show(visit=visit, **controls)
        return update | {self.page.header: layout.describe_model(self.classifier.predictors[controls["model"]])}

    def filter(self, *, visit: Visit, **controls: Any) -> Update:
        """Shows the pictures that pass the filters."""
        visit.set(self._settings(**controls))
        return self._draw(visit, self._filtered)

    def filter_unsure(self, *, visit: Visit, **controls: Any) -> Update:
        """Shows the pictures that are unsure by the limit that was just set."""
        controls["kind"] = "unsure"
        return self.filter(visit=visit, **controls) | {self.page.kind: "unsure"}

    def stop(self, *, visit: Visit, **controls: Any) -> Update:
        """Stops classifying; the pictures that are classified stay."""
        visit.stop()
        return self.show(visit=visit, **controls)

    def clear(self, *, visit: Visit, model: Any, top_k: Any, **_: Any) -> Update:
        """Removes all pictures and resets the filters."""
        page = self.page
        filters = {"kind": "all", "below": layout.UNSURE_BELOW, "label": "", "order": "added"}
        visit.pictures, visit.selected = [], None
        update = self.stop(visit=visit, model=model, top_k=top_k, **filters)
        return update | {getattr(page, name): value for name, value in filters.items()}

    def _settings(self, *, model: Any, top_k: Any, kind: Any, below: Any, label: Any, order: Any) -> Settings:
        """The settings of the page. Raises gr.Error for values that only a script can send."""
        model, top_k = self.api.checked_model(model), self.api.checked_top_k(top_k)
        choices = (kind, KINDS), (order, ORDERS), (label, ("", *self.classifier.labels))
        if not all(isinstance(value, str) and value in known for value, known in choices):
            raise gr.Error("not a choice of Show, Label or Sort by", print_exception=False)
        if type(below) not in (int, float) or not 0 < below <= 100:
            raise gr.Error("Unsure below has to be a number from 1 to 100", print_exception=False)
        return Settings(model, top_k, kind, below / 100, label, order)

    def _draw(self, visit: Visit, values: Callable[[Visit], Update]) -> Update:
        """Computes new values, again if the visit changed meanwhile: newer values may already be on the page."""
        while True:
            version = visit.version
            update = values(visit)
            if visit.version == version:
                return update

    def _everything(self, visit: Visit) -> Update:
        """New values of all components that show results."""
        page, pictures, settings = self.page, visit.pictures, visit.settings
        assert settings is not None  # set by every event that draws
        return {
            page.progress: components.progress_bar(visit.runs),
            page.results: gr.Column(visible=bool(pictures)),
            page.filters: gr.Row(visible=len(pictures) > 1),
            page.answer: self._arranged(len(pictures)),
            page.detail: self._detail(visit),
            page.counts: components.count_bars(label_counts(pictures, settings.model)),
            page.disagreement: compare.describe_disagreement(pictures),
            page.comparison: compare.table_value(pictures, self.classifier.predictors),
            **self._filtered(visit),
        }

    def _arranged(self, n_pictures: int) -> gr.Row:
        """Gallery and detail view side by side or, for a few pictures, one below the other."""
        return gr.Row(elem_classes="few" if n_pictures <= FEW_PICTURES else "")

    def _filtered(self, visit: Visit) -> Update:
        """New values of the components that depend on the filters."""
        page, pictures, settings, selected = self.page, visit.pictures, visit.settings, visit.selected
        assert settings is not None  # set by every event that draws
        indices = shown_indices(pictures, settings)
        table = result_table(pictures, indices, settings.model, settings.top_k)
        rows = f"{len(indices)} {'row' if len(indices) == 1 else 'rows'}"
        tiles = components.gallery_tiles(pictures, indices, settings.model)
        return {
            page.gallery: gr.HTML(tiles, selected=-1 if selected is None else selected),
            page.summary: components.summary(pictures, indices, settings),
            page.table: components.table_value(pictures, indices, settings),
            page.csv: gr.DownloadButton(f"Download CSV ({rows})", value=write_csv(table)),
            page.json: gr.DownloadButton(f"Download JSON ({rows})", value=write_json(table)),
        }

    # One picture in detail.

    def select_tile(self, event: gr.EventData, *, visit: Visit) -> Update:
        """Selects the picture that was clicked in the gallery."""
        index, clicked = read_event(event, "index", int), read_event(event, "at", int, float)
        if index in range(len(visit.pictures)) and clicked >= visit.clicked:  # clicks may arrive in another order
            visit.selected, visit.clicked = index, clicked
        return {self.page.detail: self._detail(visit)}

    def select_row(self, event: gr.EventData, *, visit: Visit) -> Update:
        """Selects the picture that was clicked in the table, whose first column has its number."""
        number = next(iter(read_event(event, "row_value", list)), None)
        if type(number) is int and number - 1 in range(len(visit.pictures)):
            visit.selected = number - 1
        return {self.page.detail: self._detail(visit), self.page.gallery: gr.HTML(selected=visit.selected)}

    def explain(self, *, visit: Visit) -> Iterator[Update]:
        """Shows the selected picture, then what each model saw of it and where it looked, which takes a second."""
        yield {self.page.detail: self._detail(visit)}
        picture, figures = visit.picture, {}
        if picture and not picture.error and not picture.figures:
            with errors_as_messages():
                for name, top in picture.tops.items():
                    if visit.picture is not picture:  # another one was selected, which has an event of its own
                        break
                    figures[name] = detail.figures(self.classifier, picture, name, top[0]["label"])
                else:
                    picture.figures.update(figures)
        yield {self.page.detail: self._detail(visit)}

    def _detail(self, visit: Visit) -> str:
        picture, settings = visit.picture, visit.settings
        return detail.describe(picture, settings.model, settings.top_k) if picture and settings else ""

    # Messages, and the tab about the models.

    def warn_too_many(self, event: gr.EventData) -> None:
        """Says that not all files are taken."""
        gr.Warning(f"{read_event(event, 'count', int):,} files: the first {validation.MAX_FILES} are taken.")

    def warn_no_webcam(self, event: gr.EventData) -> None:
        """Says why the webcam gives no picture."""
        gr.Warning(f"The webcam can't be used: {escape(read_event(event, 'reason', str))}")

    def warn_unreadable(self, event: gr.EventData) -> None:
        """Says how many dropped files and folders the browser could not read, and names one."""
        name, count = escape(read_event(event, "name", str)), read_event(event, "count", int)
        gr.Warning(f"{name} can't be read" + (f", nor can {count - 1:,} more" if count > 1 else ""))

    def describe_models(self) -> Update:
        """The figures and the card of each model, for the tab About."""
        update: Update = {}
        with errors_as_messages():
            for predictor, (figures, card) in zip(self.classifier.predictors.values(), self.page.models, strict=True):
                update |= {figures: about.figures(predictor), card: about.card_text(predictor)}
        return update

    def connect(self) -> None:
        """Connects the handlers to the events of the components, in the current gr.Blocks.

        Of an event that comes while the same event is processed, gradio's default keeps the first. Here, events that
        bring data ("multiple") are all processed; of refreshes, the last one is ("always_last").
        """
        page = self.page
        controls: dict[str, Any] = {
            "visit": page.visit,
            "model": page.model,
            "top_k": page.top_k,
            "kind": page.kind,
            "below": page.below,
            "label": page.label,
            "order": page.order,
        }
        filtered = [page.gallery, page.summary, page.table, page.csv, page.json]
        everything: list[Any] = [page.progress, page.results, page.filters, page.answer, page.detail, page.counts]
        everything += [page.disagreement, page.comparison, *filtered]
        private: dict[str, Any] = {"api_visibility": "private", "preprocess": False}
        refresh: dict[str, Any] = private | {"show_progress": "hidden", "trigger_mode": "always_last"}
        data: dict[str, Any] = private | {"show_progress": "hidden", "trigger_mode": "multiple"}
        run: dict[str, Any] = private | {"show_progress_on": page.files, "trigger_mode": "multiple"}
        run |= {"concurrency_limit": MAX_RUNS, "concurrency_id": "runs"}

        def then_explain(event: Any) -> None:
            event(self.explain, inputs_kwargs={"visit": page.visit}, outputs=page.detail, **refresh)

        uploaded = page.files.upload(
            self.upload, inputs_kwargs=controls | {"files": page.files}, outputs=[page.files, *everything], **run
        )
        uploaded.failure(lambda: None, outputs=page.files, **refresh)
        example = page.examples.click(
            self.classify_example, inputs_kwargs=controls | {"example": page.examples}, outputs=everything, **run
        )
        for event in (uploaded, example):
            then_explain(event.success)
            event.failure(self.show, inputs_kwargs=controls, outputs=everything, **refresh)
        then_explain(page.stop.click(self.stop, inputs_kwargs=controls, outputs=everything, **data).then)
        filters: list[Any] = [page.kind, page.below, page.label, page.order]
        page.clear.click(self.clear, inputs_kwargs=controls, outputs=[*everything, *filters], **data)
        then_explain(
            page.model.input(
                self.change_model, inputs_kwargs=controls, outputs=[*everything, page.header], **refresh
            ).then
        )
        # `input` instead of `release`, because the keyboard causes no `release`.
        then_explain(page.top_k.input(self.show, inputs_kwargs=controls, outputs=everything, **refresh).then)
        gr.on(
            [page.kind.input, page.label.input, page.order.input],
            self.filter,
            inputs_kwargs=controls,
            outputs=filtered,
            **refresh,
        )
        page.below.input(self.filter_unsure, inputs_kwargs=controls, outputs=[page.kind, *filtered], **refresh)
        select: dict[str, Any] = data | {"inputs_kwargs": {"visit": page.visit}, "concurrency_id": "select"}
        select |= {"concurrency_limit": 1}
        then_explain(page.gallery.click(self.select_tile, outputs=page.detail, **select).then)
        then_explain(
            page.table.select(
                self.select_row, outputs=[page.detail, page.gallery], scroll_to_output=True, **select
            ).then
        )
        page.upload_buttons.too_many(self.warn_too_many, **data)
        page.upload_buttons.no_webcam(self.warn_no_webcam, **data)
        page.upload_buttons.unreadable(self.warn_unreadable, **data)
        page.upload_buttons.too_large(self.add_too_large, inputs_kwargs=controls, outputs=everything, **data)
        page.about_tab.select(
            self.describe_models, outputs=[part for parts in page.models for part in parts], api_visibility="private"
        )


def read_event(event: gr.EventData, key: str, *types: type) -> Any:
    """A value that the browser sent with an event. Raises gr.Error if it has another type, as a script can send."""
    value = event_data(event).get(key)
    if type(value) not in types:
        raise gr.Error(f"an event whose {key} is no {types[0].__name__}", print_exception=False)
    return value
