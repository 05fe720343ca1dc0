"""The CSV file of results holds labels as they are."""

import csv

import pytest

from classifier.table import column_names, result_row, write_csv_rows


@pytest.mark.parametrize(
    "label",
    ["狗", "قطة", '=HYPERLINK("x")', "-1", "a,b;c", "new\nline", "  blanks  ", "\"a\" 'b'", "_x", "\\"],
)
def test_a_label_is_read_back_as_it_was(label, tmp_path):
    names = column_names(1)
    row = result_row(0, f"{label}.png", [{"label": label, "score": 0.5}])
    write_csv_rows(tmp_path / "rows.csv", names, [[row.get(name) for name in names]])
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8-sig") as file:
        [found] = csv.DictReader(file)
    assert found["label_1"] == label and found["file"] == f"{label}.png" and found["probability_1"] == "0.5"
