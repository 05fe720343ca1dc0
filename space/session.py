"""One visit to the page: its pictures and settings, which pictures are shown, and the tables to download."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from classifier.table import column_names, headers_and_data, result_row, write_csv_rows
from space.pictures import Picture, new_file

KINDS = {"all": "All", "unsure": "Unsure", "disagree": "Disagreed on", "unknown": "Like none", "error": "Unreadable"}
ORDERS = {"added": "Order added", "unsure": "Least sure first", "label": "Label", "name": "File name"}


@dataclass(frozen=True)
class Settings:
    """What the page is set to.

    Attributes:
        model: name of the model whose labels are shown.
        top_k: number of labels shown of each picture.
        kind: key of `KINDS`; only pictures of this kind are shown.
        below: probability, 0 to 1; a picture whose best label has less is unsure.
        label: only pictures with this label are shown; "" for all.
        order: key of `ORDERS`; how pictures are sorted.
    """

    model: str
    top_k: int
    kind: str = "all"
    below: float = 0.8
    label: str = ""
    order: str = "added"


@dataclass(eq=False)
class Run:
    """Files of one upload that are being classified."""

    total: int
    done: int = 0
    began: float = field(default_factory=time.monotonic)  # seconds


@dataclass
class Visit:
    """What a visitor has on the page. Several events may share and change it at the same time.

    Attributes:
        pictures: all pictures, in the order of their arrival. The list only grows; Clear replaces it.
        settings: the current ones; a run that ends uses these, not those with which it began. None before the first
            event.
        selected: index in `pictures` of the one in the detail view.
        clicked: browser time of the newest click in the gallery, in milliseconds.
        runs: the uploads that are being classified. A run that is removed from it adds no more pictures.
        version: increased by each change of the settings, the runs or the selection.
    """

    pictures: list[Picture] = field(default_factory=list)
    settings: Settings | None = None
    selected: int | None = None
    clicked: float = 0.0
    runs: list[Run] = field(default_factory=list)
    version: int = 0

    def set(self, settings: Settings) -> None:
        """Changes the settings."""
        self.settings = settings
        self.version += 1

    def stop(self) -> None:
        """Ends all runs: they add no more pictures."""
        self.runs = []
        self.version += 1

    def end(self, run: Run) -> None:
        """Ends a run that added all its pictures, failed, or was stopped."""
        if run in self.runs:
            self.runs.remove(run)
        self.version += 1

    @property
    def picture(self) -> Picture | None:
        """The selected picture; None without one."""
        pictures, selected = self.pictures, self.selected
        return pictures[selected] if selected is not None and selected < len(pictures) else None

    def select(self, index: int) -> None:
        """Selects a picture, if there is one with this index."""
        if index in range(len(self.pictures)):
            self.selected = index
            self.version += 1

    def select_first(self, since: int = 0) -> None:
        """Selects the first readable picture from index `since` on, unless one of these is selected already."""
        if self.picture is None or self.selected is None or self.selected < since:
            readable = (i for i, picture in enumerate(self.pictures) if i >= since and not picture.error)
            if (first := next(readable, None)) is not None:
                self.select(first)


def kinds_of(picture: Picture, model: str, below: float) -> set[str]:
    """The keys of `KINDS` that apply to a picture.

    Args:
        picture: with a prediction of `model`, or an error.
        model: name of the model that decides between known and unknown, sure and unsure.
        below: probability, 0 to 1; a picture whose best label has less is unsure.
    """
    if picture.error:
        return {"all", "error"}
    applies = {
        "unsure": picture.best(model)["score"] < below,
        "disagree": picture.models_agree is False,
        "unknown": picture.is_unknown(model),
    }
    return {"all", *(kind for kind, is_so in applies.items() if is_so)}


def shown_indices(pictures: Sequence[Picture], settings: Settings) -> list[int]:
    """Indices of the pictures that pass the filters, sorted. Pictures that can't be read come last."""
    model, label = settings.model, settings.label
    indices = [
        i
        for i, picture in enumerate(pictures)
        if settings.kind in kinds_of(picture, model, settings.below)
        and (not label or (not picture.error and picture.best(model)["label"] == label))
    ]

    def sort_key(index: int) -> tuple:
        picture = pictures[index]
        if picture.error:
            return True, index
        best = picture.best(model)
        keys = {"unsure": best["score"], "label": best["label"], "name": picture.name.lower()}
        return False, keys[settings.order], index

    return indices if settings.order == "added" else sorted(indices, key=sort_key)


def label_counts(pictures: Sequence[Picture], model: str) -> list[tuple[str, int]]:
    """(label, number of pictures with this best label by `model`), most frequent first."""
    return Counter(picture.best(model)["label"] for picture in pictures if not picture.error).most_common()


def result_table(pictures: Sequence[Picture], indices: Sequence[int], model: str, top_k: int) -> dict[str, list]:
    """The table to download, as `{"headers", "data"}`: the columns of the API's table, and `models_agree`.

    Args:
        pictures: all pictures of the visit.
        indices: of the pictures that get a row, in the order of the rows.
        model: name of the model whose labels are listed.
        top_k: labels of each picture; fewer if fewer are kept.
    """
    k = min(top_k, max((len(picture.top_labels[model]) for picture in pictures if not picture.error), default=0))
    rows = []
    for index in indices:
        picture = pictures[index]
        top, known = picture.top_labels.get(model, [])[:k], picture.known.get(model)
        rows.append(result_row(index, picture.name, top, known, picture.error, models_agree=picture.models_agree))
    return headers_and_data(column_names(k, ["models_agree"]), rows)


def write_csv(table: dict[str, list]) -> str:
    """Writes a table as predictions.csv into gradio's cache; returns its path."""
    path = new_file("predictions.csv")
    write_csv_rows(path, table["headers"], table["data"])
    return str(path)


def write_json(table: dict[str, list]) -> str:
    """Writes a table as predictions.json, an object for each row, into gradio's cache; returns its path."""
    path = new_file("predictions.json")
    rows = [dict(zip(table["headers"], row, strict=True)) for row in table["data"]]
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    return str(path)
