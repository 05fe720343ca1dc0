"""SECURITY.md keeps to what there is: each test in its table can be found, by the words of its name."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_tests_that_the_table_names_are_there():
    rows = [
        line.strip("| ").split(" | ")
        for line in (ROOT / "SECURITY.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    assert rows[0] == ["threat", "bound", "test"] and len(rows) > 15
    for threat, _, shown_by in rows[1:]:
        for file, words in re.findall(r"`([^`]+)`(?:: ([^;]+))?", shown_by):
            path = ROOT / (file if "/" in file else f"tests/{file}.py")
            assert path.exists(), f"{threat}: no {file}"
            names = " ".join(re.findall(r"^def test_(\w+)", path.read_text(), re.MULTILINE)).replace("_", " ")
            for name in filter(None, words.split(", ")):
                assert name in names, f"{threat}: {file} has no test of {name!r}"
