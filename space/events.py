"""What the page does when a visitor does something: each public method of `PageEvents` handles an event.

Handlers take the current values of components by keyword, and return new values in a dictionary from component to
value, so a test can call them without a browser or a server. `connect` says which event calls which handler.

Several events of a visit can run at the same time, in threads of their own, and they share its `Visit`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any

import gradio as gr

from classifier.images.limits import MAX_BYTES
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

MAX_RUNS = 4  # uploads, of all visitors together, that are classified at the same time; each holds images in memory
MAX_PICTURES = 2000  # on a page: each takes 8 kB of memory for as long as the visit is kept
UPDATE_EVERY_S = 0.5  # seconds between two updates of a page whose pictures are being classified
FEW_PICTURES = 24  # up to this number, the detail view is below the gallery, which then has at most three rows

Update = dict[Any, Any]  # component -> its new value

# Options of events. `trigger_mode` says what happens to an event that comes while the same one is processed: gradio's
# default drops it, "multiple" processes every event, and "always_last" only the last of those that wait.
PRIVATE: dict[str, Any] = {"api_visibility": "private", "preprocess": False}
ACTION: dict[str, Any] = PRIVATE | {"show_progress": "hidden", "trigger_mode": "multiple"}
REFRESH: dict[str, Any] = PRIVATE | {"show_progress": "hidden", "trigger_mode": "always_last"}


class PageEvents:
    """The event handlers of the page. Their `controls` are the values of model, top_k, kind, below, label and order.

    Args:
        page: the components of the page.
        api: has the served models, and checks model names and numbers of labels.
    """

    def __init__(self, page: Components, api: Endpoints):
        self.page, self.api, self.classifier = page, api, api.classifier
        # Inputs, outputs and options that several events share
        self.controls: dict[str, Any] = {
            "visit": page.visit,
            "model": page.model,
            "top_k": page.top_k,
            "kind": page.kind,
            "below": page.below,
            "label": page.label,
            "order": page.order,
        }
        self.filtered_outputs: list[Any] = [page.gallery, page.summary, page.table, page.csv, page.json]
        self.all_outputs: list[Any] = [page.progress, page.results, page.filters, page.answer, page.detail, page.counts]
        self.all_outputs += [page.disagreement, page.comparison, *self.filtered_outputs]
        self.explain_options: dict[str, Any] = REFRESH | {
            "inputs_kwargs": {"visit": page.visit},
            "outputs": page.detail,
        }

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
        page, pictures, first = self.page, visit.pictures, len(visit.pictures)
        full = gr.Error(f"{MAX_PICTURES:,} pictures at most are on the page: clear it first", print_exception=False)
        if not new:
            raise gr.Error("no files: choose at least one picture", print_exception=False)
        if first + len(new) > MAX_PICTURES:
            raise full
        visit.settings = visit.settings or self._settings(**controls)
        run, updated = Run(len(new)), float("-inf")
        visit.runs.append(run)
        classified = self.classifier.classify(new, self.classifier.predictors, layout.MAX_TOP_K, previews=True)
        try:
            yield {page.progress: components.progress_bar(visit.runs), page.answer: self._arrangement(first + len(new))}
            with errors_as_messages():
                for picture in classified:
                    if run not in visit.runs:  # Stop or Clear was clicked
                        break
                    if len(pictures) >= MAX_PICTURES:  # other runs add pictures too
                        raise full
                    if not run.done:
                        first = len(pictures)  # other runs may have added pictures since this one began
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
        yield self._draw(visit, self._all_values)

    def add_too_large(self, event: gr.EventData, *, visit: Visit, **controls: Any) -> Update:
        """Lists the files that the browser did not send because they are too large."""
        names = read_event(event, "names", list)
        room = max(0, MAX_PICTURES - len(visit.pictures))
        error = f"more than {MAX_BYTES / 1e6:.0f} MB"
        visit.pictures.extend(Picture(str(name)[: validation.MAX_NAME], error=error) for name in names[:room])
        return self.show(visit=visit, **controls)

    # What is shown.

    def show(self, *, visit: Visit, **controls: Any) -> Update:
        """Shows the results by the current settings."""
        visit.set(self._settings(**controls))
        visit.select_first()
        return self._draw(visit, self._all_values)

    def change_model(self, *, visit: Visit, **controls: Any) -> Update:
        """Shows the labels of another model, and describes it in the header."""
        update = self.show(visit=visit, **controls)
        predictor = self.classifier.predictors[self.api.checked_model(controls["model"])]
        return update | {self.page.header: layout.describe_model(predictor)}

    def filter(self, *, visit: Visit, **controls: Any) -> Update:
        """Shows the pictures that pass the filters."""
        visit.set(self._settings(**controls))
        return self._draw(visit, self._filtered_values)

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
        kind, below, label, order = page.kind.value, page.below.value, page.label.value, page.order.value
        visit.pictures, visit.selected = [], None
        update = self.stop(visit=visit, model=model, top_k=top_k, kind=kind, below=below, label=label, order=order)
        return update | {page.kind: kind, page.below: below, page.label: label, page.order: order}

    def _settings(self, *, model: Any, top_k: Any, kind: Any, below: Any, label: Any, order: Any) -> Settings:
        """The settings of the page. Raises gr.Error for values that only a script can send."""
        model, top_k = self.api.checked_model(model), self.api.checked_top_k(top_k)
        choices = (kind, KINDS), (order, ORDERS), (label, ("", *self.classifier.labels))
        if not all(isinstance(value, str) and value in allowed for value, allowed in choices):
            raise gr.Error("not a choice of Show, Label or Sort by", print_exception=False)
        if type(below) not in (int, float) or not 0 < below <= 100:
            raise gr.Error("Unsure below has to be a number from 1 to 100", print_exception=False)
        return Settings(model, top_k, kind, below / 100, label, order)

    def _draw(self, visit: Visit, values: Callable[[Visit], Update]) -> Update:
        """The result of `values`, computed again if the visit changed meanwhile.

        Otherwise values that are out of date could replace newer ones that another event has sent to the page.
        """
        while True:
            version = visit.version
            update = values(visit)
            if visit.version == version:
                return update

    def _all_values(self, visit: Visit) -> Update:
        """New values of all components that show results."""
        page, pictures, settings = self.page, visit.pictures, visit.settings
        assert settings is not None  # set by every event that draws
        return {
            page.progress: components.progress_bar(visit.runs),
            page.results: gr.Column(visible=bool(pictures)),
            page.filters: gr.Row(visible=len(pictures) > 1),
            page.answer: self._arrangement(len(pictures)),
            page.detail: self._detail(visit),
            page.counts: components.count_bars(label_counts(pictures, settings.model)),
            page.disagreement: compare.describe_disagreement(pictures),
            page.comparison: compare.table_value(pictures, self.classifier.predictors),
            **self._filtered_values(visit),
        }

    def _arrangement(self, n_pictures: int) -> gr.Row:
        """The row with its gallery and detail view side by side or, for a few pictures, one below the other."""
        return gr.Row(elem_classes="few" if n_pictures <= FEW_PICTURES else "")

    def _filtered_values(self, visit: Visit) -> Update:
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

    # The selected picture.

    def select_tile(self, event: gr.EventData, *, visit: Visit) -> Update:
        """Selects the picture that was clicked in the gallery."""
        index, clicked = read_event(event, "index", int), read_event(event, "at", int, float)
        if clicked >= visit.clicked:  # clicks may arrive in another order
            visit.clicked = clicked
            visit.select(index)
        return {self.page.detail: self._detail(visit)}

    def select_row(self, event: gr.EventData, *, visit: Visit) -> Update:
        """Selects the picture that was clicked in the table, whose first column has its number."""
        number = next(iter(read_event(event, "row_value", list)), None)
        if type(number) is int:
            visit.select(number - 1)
        return {self.page.detail: self._detail(visit), self.page.gallery: gr.HTML(selected=visit.selected)}

    def explain(self, *, visit: Visit) -> Iterator[Update]:
        """Shows the selected picture, then what each model saw of it and where it looked, which takes a second."""
        yield {self.page.detail: self._detail(visit)}
        picture, figures = visit.picture, {}
        if picture and not picture.error and not picture.figures:
            with errors_as_messages():
                for name in picture.top_labels:
                    if visit.picture is not picture:  # another one was selected; an event of its own explains it
                        break
                    figures[name] = detail.figures(self.classifier, picture, name)
                else:
                    picture.figures.update(figures)
        yield {self.page.detail: self._detail(visit)}

    def _detail(self, visit: Visit) -> str:
        picture, settings = visit.picture, visit.settings
        return detail.describe(picture, settings.model, settings.top_k) if picture and settings else ""

    # Messages, and the tab about the models.

    def warn_too_many(self, event: gr.EventData) -> None:
        """Warns that only the first files of an upload are taken."""
        gr.Warning(f"{read_event(event, 'count', int):,} files: the first {validation.MAX_FILES} are taken.")

    def warn_no_webcam(self, event: gr.EventData) -> None:
        """Warns that the webcam can't be used, and says why."""
        gr.Warning(f"The webcam can't be used: {escape(read_event(event, 'reason', str))}")

    def warn_unreadable(self, event: gr.EventData) -> None:
        """Warns how many dropped files and folders the browser could not read, and names one of them."""
        name, count = escape(read_event(event, "name", str)), read_event(event, "count", int)
        gr.Warning(f"{name} can't be read" + (f", nor can {count - 1:,} more" if count > 1 else ""))

    def describe_models(self) -> Update:
        """The figures and the card of each model, for the tab About."""
        update: Update = {}
        with errors_as_messages():
            for predictor, (figures, card) in zip(self.classifier.predictors.values(), self.page.models, strict=True):
                update |= {figures: about.figures(predictor), card: about.card_text(predictor)}
        return update

    # Which event calls which handler.

    def connect(self) -> None:
        """Connects the handlers to the events of the components, in the current gr.Blocks."""
        self._connect_uploads()
        self._connect_settings()
        self._connect_selection()
        self._connect_messages()

    def _connect_uploads(self) -> None:
        page = self.page
        run: dict[str, Any] = PRIVATE | {"trigger_mode": "multiple", "show_progress_on": page.files}
        run |= {"concurrency_limit": MAX_RUNS, "concurrency_id": "runs"}
        uploaded = page.files.upload(
            self.upload,
            inputs_kwargs=self.controls | {"files": page.files},
            outputs=[page.files, *self.all_outputs],
            **run,
        )
        uploaded.failure(lambda: None, outputs=page.files, **REFRESH)
        example = page.examples.click(
            self.classify_example,
            inputs_kwargs=self.controls | {"example": page.examples},
            outputs=self.all_outputs,
            **run,
        )
        for event in (uploaded, example):
            event.success(self.explain, **self.explain_options)
            event.failure(self.show, inputs_kwargs=self.controls, outputs=self.all_outputs, **REFRESH)
        stopped = page.stop.click(self.stop, inputs_kwargs=self.controls, outputs=self.all_outputs, **ACTION)
        stopped.then(self.explain, **self.explain_options)
        page.clear.click(
            self.clear,
            inputs_kwargs=self.controls,
            outputs=[*self.all_outputs, page.kind, page.below, page.label, page.order],
            **ACTION,
        )

    def _connect_settings(self) -> None:
        page = self.page
        refresh: dict[str, Any] = REFRESH | {"inputs_kwargs": self.controls}
        model_changed = page.model.input(self.change_model, outputs=[*self.all_outputs, page.header], **refresh)
        model_changed.then(self.explain, **self.explain_options)
        # `input` instead of `release`, because the keyboard causes no `release`.
        page.top_k.input(self.show, outputs=self.all_outputs, **refresh).then(self.explain, **self.explain_options)
        gr.on(
            [page.kind.input, page.label.input, page.order.input], self.filter, outputs=self.filtered_outputs, **refresh
        )
        page.below.input(self.filter_unsure, outputs=[page.kind, *self.filtered_outputs], **refresh)

    def _connect_selection(self) -> None:
        page = self.page
        select: dict[str, Any] = ACTION | {"inputs_kwargs": {"visit": page.visit}}
        select |= {"concurrency_limit": 1, "concurrency_id": "select"}
        tile_selected = page.gallery.click(self.select_tile, outputs=page.detail, **select)
        row_selected = page.table.select(self.select_row, outputs=[page.detail, page.gallery], **select)
        row_selected.then(js=components.module_call("detail", "scrollIntoWindow"), api_visibility="private")
        for event in (tile_selected, row_selected):
            event.then(self.explain, **self.explain_options)

    def _connect_messages(self) -> None:
        page = self.page
        page.upload_buttons.too_many(self.warn_too_many, **ACTION)
        page.upload_buttons.no_webcam(self.warn_no_webcam, **ACTION)
        page.upload_buttons.unreadable(self.warn_unreadable, **ACTION)
        page.upload_buttons.too_large(
            self.add_too_large, inputs_kwargs=self.controls, outputs=self.all_outputs, **ACTION
        )
        page.about_tab.select(
            self.describe_models, outputs=[part for parts in page.models for part in parts], api_visibility="private"
        )


def read_event(event: gr.EventData, key: str, *types: type) -> Any:
    """A value that the browser sent with an event.

    Raises:
        gr.Error: the value is missing or has none of the `types`; only a script can send that.
    """
    value = event_data(event).get(key)
    if type(value) not in types:
        expected = " or ".join(allowed.__name__ for allowed in types)
        raise gr.Error(f"{key} of the event has to be of type {expected}", print_exception=False)
    return value
