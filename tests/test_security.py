"""SECURITY.md names tests that exist: each can be found by the words of its name."""

import re

from tests.helpers.paths import ROOT


def test_the_tests_that_the_table_names_are_there():
    rows = [
        line.strip("| ").split(" | ")
        for line in (ROOT / "SECURITY.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    assert rows[0] == ["threat", "limit", "test"] and len(rows) > 15
    for threat, _, shown_by in rows[1:]:
        for file, words in re.findall(r"`([^`]+)`(?:: ([^;]+))?", shown_by):
            paths = [ROOT / file] if "/" in file else list((ROOT / "tests").rglob(f"{file}.py"))
            assert len(paths) == 1 and paths[0].exists(), f"{threat}: no {file}"
            [path] = paths
            names = " ".join(re.findall(r"^def test_(\w+)", path.read_text(), re.MULTILINE)).replace("_", " ")
            for name in filter(None, words.split(", ")):
                assert name in names, f"{threat}: {file} has no test of {name!r}"
