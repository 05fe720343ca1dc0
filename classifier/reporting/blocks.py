"""The content of a report, independent of its format: sections with sentences, tables, figures and commands."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import ClassVar, TypeVar

from classifier.reporting.formatting import join_words

HALF = 0.48  # of the width of the text: two figures of this width fit side by side
MODELS_SIDE_BY_SIDE = 3

T = TypeVar("T")


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


def figures_of_models(
    folder: Path, name: str, models: dict[str, T], save: Callable[[Path, dict[str, T]], None], caption: str
) -> list[Block]:
    """Figures that show models side by side, at most three in each.

    Args:
        folder: where `save` writes the figures.
        name: of the first file; the next ones have a number.
        models: {name: what is drawn of the model}.
        save: writes a figure of some of the models.
        caption: of each figure; with several figures, it starts with the names of the models.
    """
    names = list(models)
    blocks: list[Block] = []
    n_rows = ceil(len(names) / MODELS_SIDE_BY_SIDE)
    for row in range(n_rows):
        shown = names[row * len(names) // n_rows : (row + 1) * len(names) // n_rows]
        file = f"{name}_{row + 1}" if row else name
        save(folder / file, {model: models[model] for model in shown})
        blocks.append(FigureBlock(file, caption if n_rows == 1 else f"{join_words(shown)}: {caption}"))
    return blocks


@dataclass(frozen=True)
class Section:
    """A heading and its content.

    Attributes:
        title: plain text.
        sentences: the text of the section, and the bullet points of its slide.
        blocks: what stands beside or below the text, in order. A page puts blocks side by side that fit into its width.
        slide_blocks: what its slide shows; a section without any has no slide.
    """

    title: str
    sentences: Sequence[str]
    blocks: Sequence[Block] = ()
    slide_blocks: Sequence[Block] = ()
