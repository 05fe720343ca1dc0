"""What a report consists of, before it is Markdown, a page or a slide."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Cells as text, the first column to the left and the others to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str


@dataclass(frozen=True)
class Picture:
    """A figure in figures/, by its name without an ending; narrow ones that follow each other share a row of the
    page.
    """

    name: str
    caption: str
    width: float = 1.0  # of the text's


@dataclass(frozen=True)
class Commands:
    """What to type, a line each."""

    lines: Sequence[str]


Block = Table | Picture | Commands


@dataclass(frozen=True)
class Section:
    """A heading and what is below it; its sentences are the points of its slide, which shows the blocks in `shown`."""

    title: str
    sentences: Sequence[str]
    blocks: Sequence[Block] = ()
    shown: Sequence[Block] = ()
