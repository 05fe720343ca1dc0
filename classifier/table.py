"""The table of results that the page, the API and `classifier.predict` share: its columns, its rows, and its CSV file.

    index, file, status (ok or error), known, label_1, probability_1, … label_k, probability_k, error

Probabilities have six decimals. The row of a file that can't be read has the reason in `error`, and no prediction.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path


def column_names(k: int, extra: Sequence[str] = ()) -> list[str]:
    """The columns for k labels per image; those in `extra` come after `known`."""
    ranks = [f"{name}_{rank}" for rank in range(1, k + 1) for name in ("label", "probability")]
    return ["index", "file", "status", "known", *extra, *ranks, "error"]


def result_row(
    index: int, file: str, top: Sequence[dict] = (), known: bool | None = None, error: str = "", **extra: object
) -> dict[str, object]:
    """The cells of one image by column. Columns that are not in it are empty.

    Args:
        index: position of the image, from 0.
        file: its name.
        top: the labels to show, `[{"label", "score"}, …]`, best first.
        known: whether it looks like one of the labels; None without a threshold.
        error: why it can't be read, "" if it can.
        extra: cells of further columns.
    """
    cells = {"index": index, "file": file, "status": "error" if error else "ok", "known": known, **extra}
    for rank, entry in enumerate(top, 1):
        cells |= {f"label_{rank}": entry["label"], f"probability_{rank}": round(entry["score"], 6)}
    return cells | {"error": error}


def headers_and_data(names: Sequence[str], rows: Iterable[dict[str, object]]) -> dict[str, list]:
    """Rows as the API returns them: `{"headers": names, "data": [[cell, …], …]}`."""
    return {"headers": list(names), "data": [[cells.get(name) for name in names] for cells in rows]}


def write_csv_rows(path: Path, names: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Writes rows whose cells are in the order of `names`. Empty cells are written as nothing."""
    with path.open("w", newline="", encoding="utf-8-sig") as file:  # the signature tells spreadsheets that it is UTF-8
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(rows)
