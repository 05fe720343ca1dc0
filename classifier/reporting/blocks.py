"""The content of a report, independent of its format: sections with sentences, tables, figures and commands."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

NARROW = 0.5  # of the width of the text: two figures of this width fit side by side


@dataclass(frozen=True)
class TableBlock:
    """A table of plain text. The first column is aligned left, the others right."""

    kind: ClassVar[str] = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str


@dataclass(frozen=True)
class FigureBlock:
    """A figure in the folder figures/, both as PNG and as SVG.

    Attributes:
        name: file name without its extension.
        caption: also the alternative text.
        width: as a fraction of the width of the text.
    """

    kind: ClassVar[str] = "figure"
    name: str
    caption: str
    width: float = 1.0


@dataclass(frozen=True)
class CommandBlock:
    """Shell commands, one per line."""

    kind: ClassVar[str] = "commands"
    lines: Sequence[str]


Block = TableBlock | FigureBlock | CommandBlock


@dataclass(frozen=True)
class Section:
    """A heading and its content.

    Attributes:
        title: plain text.
        sentences: the text of the section, and the bullet points of its slide.
        blocks: what follows the text, in order.
        slide_blocks: what its slide shows; a section without any has no slide.
    """

    title: str
    sentences: Sequence[str]
    blocks: Sequence[Block] = ()
    slide_blocks: Sequence[Block] = ()

    @property
    def rows(self) -> list[tuple[bool, list[Block]]]:
        """The blocks in order, grouped: (True, consecutive narrow figures) or (False, any other blocks)."""

        def is_narrow(block: Block) -> bool:
            return isinstance(block, FigureBlock) and block.width <= NARROW

        return [(narrow, list(blocks)) for narrow, blocks in groupby(self.blocks, is_narrow)]
