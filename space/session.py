"""A visit to the page: each picture with what every model says of it, which of them are shown, and tables to take
away.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from classifier.models.predictor import Predictor
from classifier.table import column_names, headers_and_data, result_row
from space.batching import Batcher
from space.endpoints import Result, classify_files, new_file

KEPT = 10  # labels of each model that are kept of a picture, best first
KINDS = {"all": "All", "unsure": "Unsure", "disagree": "Disagreed on", "unknown": "Like none", "error": "Unreadable"}


@dataclass(frozen=True)
class Row:
    """A picture of a visit: what the models say of it, by their names, or why it can't be read.

    Attributes:
        name: that its sender gave it; two pictures may have the same.
        path: of the upload.
        preview: path of a small JPEG.
        tops: the `KEPT` best of each model, `[{"label", "score"}, …]`.
        known: whether it looks like one of the labels to each model; None without a threshold.
        error: why it can't be read, "" when it can.
        figures: by name of the model, HTML of what it saw, once the picture was looked at.
    """

    name: str
    path: str
    preview: str = ""
    tops: Mapping[str, list[dict]] = field(default_factory=dict)
    known: Mapping[str, bool | None] = field(default_factory=dict)
    error: str = ""
    figures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """What the page is set to: whose labels it shows, how many of them, and of which pictures (see `picked`)."""

    model: str
    top_k: int
    kind: str
    below: float
    label: str


@dataclass
class Visit:
    """What a visitor has on the page. Events share and change it, several at a time: one that is stopped loses nothing.

    Attributes:
        rows: every picture, in the order in which they came. It only grows; Clear puts another list in its place.
        chosen: index in `rows` of the one that is shown in depth.
        clicked: when the last of the clicks that were heard of was made, in milliseconds of the page's clock.
        stopped: how often; what was begun before the last time adds no more rows.
        ended: how many runs have added all their rows.
        settings: of the page, as it was last heard of: what takes long ends with these, not with those it began with.
    """

    rows: list[Row] = field(default_factory=list)
    chosen: int | None = None
    clicked: float = 0.0
    stopped: int = 0
    ended: int = 0
    settings: Settings | None = None

    @property
    def picture(self) -> Row | None:
        """The one that is chosen."""
        rows, chosen = self.rows, self.chosen
        return rows[chosen] if chosen is not None and chosen < len(rows) else None

    def choose(self, since: int = 0) -> None:
        """Chooses the first readable picture from index `since` on, unless one of these is chosen already."""
        if self.picture is None or self.chosen is None or self.chosen < since:
            self.chosen = next((i for i, row in enumerate(self.rows) if i >= since and not row.error), self.chosen)


def classify_all(batchers: Mapping[str, Batcher], files: Sequence[tuple[str, str]]) -> Iterator[Row]:
    """A row a file (path, name), in order, as all models have said what they see. The first one's image is
    previewed.
    """
    streams = [classify_files(batcher, files, previews=not i) for i, batcher in enumerate(batchers.values())]
    for results in zip(*streams, strict=True):
        yield row({name: batcher.predictor for name, batcher in batchers.items()}, results)


def row(predictors: Mapping[str, Predictor], results: Sequence[Result]) -> Row:
    """The results of one file, one a model -> its row."""
    first = results[0]
    if error := next((result.error for result in results if result.error), ""):
        return Row(first.name, first.path, error=error)
    said = dict(zip(predictors, results, strict=True))
    return Row(
        first.name,
        first.path,
        first.preview,
        {name: predictors[name].top(result.probabilities, KEPT) for name, result in said.items()},
        {name: result.known for name, result in said.items()},
    )


def agree(row: Row) -> bool | None:
    """Whether all models give a picture the same label; None when it can't be read, or there is but one model."""
    if len(row.tops) < 2:
        return None
    return len({top[0]["label"] for top in row.tops.values()}) == 1


def kinds(row: Row, model: str, below: float) -> set[str]:
    """Which of `KINDS` a picture is; it is unsure where `model` gives no label a probability of at least `below`."""
    if row.error:
        return {"all", "error"}
    found = {
        "unsure": row.tops[model][0]["score"] < below,
        "disagree": agree(row) is False,
        "unknown": row.known[model] is False,
    }
    return {"all", *(kind for kind, is_so in found.items() if is_so)}


def picked(rows: Sequence[Row], model: str, label: str | None, kind: str, below: float) -> list[int]:
    """Indices of the rows of one of `KINDS` and, unless None, of a label by `model`."""
    return [
        i
        for i, row in enumerate(rows)
        if kind in kinds(row, model, below)
        and (label is None or (not row.error and row.tops[model][0]["label"] == label))
    ]


def counts(rows: Sequence[Row], model: str) -> list[tuple[str, int]]:
    """How many pictures have which label by `model`, most first."""
    return Counter(row.tops[model][0]["label"] for row in rows if not row.error).most_common()


def table(rows: Sequence[Row], indices: Sequence[int], model: str, top_k: int) -> dict[str, list]:
    """`{"headers", "data"}` as `classify.table` gives it, of some rows by `model`, and whether the models agree."""
    k = min(top_k, max((len(row.tops[model]) for row in rows if not row.error), default=0))
    cells = []
    for index in indices:
        row = rows[index]
        top, known = row.tops.get(model, [])[:k], row.known.get(model)
        cells.append(result_row(index, row.name, top, known, row.error, models_agree=agree(row)))
    return headers_and_data(column_names(k, ["models_agree"]), cells)


def write_json(rows: dict[str, list]) -> str:
    """Writes a `table` as predictions.json, an object a row, where it is served and deleted with the uploads."""
    path = new_file("predictions.json")
    records = [dict(zip(rows["headers"], row, strict=True)) for row in rows["data"]]
    path.write_text(json.dumps(records, ensure_ascii=False, indent=1), encoding="utf-8")
    return str(path)
