"""Labels in any alphabet: a font that has the characters is used, and where there is none, one line says so."""

import json
import re
import warnings
from html import escape

import numpy as np
import pypdfium2
import pytest
from matplotlib.font_manager import fontManager
from pptx import Presentation

from classifier import load_predictor
from classifier.reporting import figures, fonts, report
from classifier.reporting.formatting import escape_markdown, one_line, text_width
from tests.helpers.evaluations import evaluation
from tests.helpers.models import save_tiny_cnn

RARE = "\N{ANATOLIAN HIEROGLYPH A001}\N{ANATOLIAN HIEROGLYPH A002}"  # of a script that few fonts have
STIX = "\u1d81\u1d84"  # letters of a font that comes with matplotlib, but not of DejaVu Sans
HOSTILE = ["_hidden", "<b>&amp;|*#", "$x$ \\frac{a}", "=1+1", "- 'a' \"b\"", "@user [x](y)", "狗", "قطة", "🐱 cat"]


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """As in a new process, with only the fonts that come with matplotlib."""
    monkeypatch.setattr(fonts, "_families", {})
    monkeypatch.setattr(fontManager, "ttflist", [font for font in fontManager.ttflist if "mpl-data" in font.fname])
    fonts._installed.cache_clear()
    yield
    fonts._installed.cache_clear()


def test_a_font_that_has_the_characters_is_used(tmp_path, capsys):
    assert fonts.families_for(f"aé→…{STIX}") == ["STIXGeneral"] and fonts.families_for("aé→…") == []
    figures.save_confusion(tmp_path / "confusion", np.eye(2, dtype=int), [STIX, "cat"])
    assert "STIXGeneral-Regular" in (tmp_path / "confusion.svg").read_text()
    assert capsys.readouterr().out == "" and fonts.describe_missing(STIX) == ""


def test_characters_that_no_font_has_are_told_once(tmp_path, capsys):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in ("one", "two"):
            figures.save_confusion(tmp_path / name, np.eye(2, dtype=int), [RARE, "cat"])
    assert [str(each.message) for each in caught] == []
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and said.startswith(
        "No installed font has 2 characters of the names (U+14400, U+14401)"
    )


def write_report(folder, labels: list[str], names=("tiny", "_two")) -> None:
    found = evaluation(labels)
    found["models"] = [found["models"][0] | {"model": name} for name in names]
    predictors = {str(folder / name): load_predictor(save_tiny_cnn(folder / name)) for name in names}
    (folder / "out").mkdir()
    (folder / "out/evaluation.json").write_text(json.dumps(found))
    report.write(folder / "out", predictors)


def test_labels_are_drawn_literally_in_every_format(tmp_path, capsys):
    labels = [*HOSTILE, "a\nb"]
    write_report(tmp_path, labels)
    out = tmp_path / "out"
    assert capsys.readouterr().out.count("\n") == 1  # on the Chinese label
    svg = (out / "figures/class_f1.svg").read_text()
    assert all(f"<!-- {escape(figures.shorten(label), quote=False)} -->" in svg for label in HOSTILE)
    assert "<!-- _two -->" in svg, "matplotlib leaves out names with this beginning"
    text = (out / "report.md").read_text()
    assert text.count("No installed font has 1 character of the names (U+72D7)") == 1
    assert all(f"| {escape_markdown(label)} |" in text for label in labels)
    pages = pypdfium2.PdfDocument(out / "report.pdf")
    printed = "".join(page.get_textpage().get_text_range() for page in pages)
    assert all(label in printed for label in HOSTILE[:-3])
    shapes = [shape for slide in Presentation(str(out / "slides.pptx")).slides for shape in slide.shapes]
    words = "\n".join(shape.text_frame.text for shape in shapes if shape.has_text_frame)
    assert "No installed font" in words and not re.search("[\0-\b\v-\x1f]|_x00", words)


def test_a_report_without_such_labels_does_not_tell(tmp_path, capsys):
    write_report(tmp_path, ["cat", "Käse", "кот", "قطة"], names=["tiny"])
    assert "No installed font" not in (tmp_path / "out/report.md").read_text() + capsys.readouterr().out


def test_width_and_line_of_a_text():
    assert text_width("cat") == 3 and text_width("狗a") == 3 and text_width("한국") == 4
    assert figures.shorten("狗" * 20) == "狗" * 8 + "…" and figures.shorten("a\nb") == "a b"
    assert figures.shorten("n" * 19) == "n" * 17 + "…"
    assert one_line(" a\x00\n\tb\u202e ") == "a b" and one_line("👩\u200d🚀") == "👩\u200d🚀"
    assert escape_markdown("- a") == "\\- a" and escape_markdown("-1") == "-1" and escape_markdown("a - b") == "a - b"
