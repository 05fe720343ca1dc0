"""Slides of a report: a title, then a slide for each section that has something to show."""

import io
import zipfile
from collections.abc import Sequence
from datetime import datetime
from math import ceil
from pathlib import Path

from PIL import Image
from pptx import Presentation
from pptx.dml.color import RGBColor
from pptx.enum.text import PP_ALIGN
from pptx.slide import Slide
from pptx.util import Emu, Inches, Pt

from classifier.files import replacing
from classifier.reporting.blocks import Block, Commands, Picture, Section, Table

WIDTH, HEIGHT, MARGIN = 13.333, 7.5, 0.6  # inches
TOP = 1.25  # of what is below the title
GAP = 0.15
BLUE, DARK = RGBColor(0x00, 0x72, 0xB2), RGBColor(0x22, 0x22, 0x22)
LETTER = 0.6  # mean width of a letter, of its height, where a wide font has to stand in for the deck's own
SENTENCES = 5

Box = tuple[float, float, float, float]  # left, top, width, height in inches


def write(path: Path, title: str, subtitle: str, sections: Sequence[Section], figures: Path, date: datetime) -> None:
    """Writes a presentation of 16:9.

    Args:
        path: to write.
        title, subtitle: of the first slide, which has the first section's sentences too.
        sections: in order; of those after the first, only the ones with `shown`.
        figures: folder of the pictures, as PNG.
        date: that the file and all in it is said to be from.
    """
    presentation = Presentation()
    presentation.slide_width, presentation.slide_height = Inches(WIDTH), Inches(HEIGHT)
    properties = presentation.core_properties
    properties.title, properties.author, properties.last_modified_by = title, "", ""
    properties.created = properties.modified = date.replace(tzinfo=None)
    first, *others = sections
    add_slide(presentation, title, [subtitle, *first.sentences], [], figures)
    for section in others:
        if section.shown:
            add_slide(presentation, section.title, section.sentences, section.shown, figures)
    presentation.save(buffer := io.BytesIO())
    with replacing(path) as temporary, zipfile.ZipFile(buffer) as source, zipfile.ZipFile(temporary, "w") as target:
        for name in source.namelist():  # python-pptx writes the time of day into the archive
            target.writestr(zipfile.ZipInfo(name, date.timetuple()[:6]), source.read(name), zipfile.ZIP_DEFLATED)


def add_slide(presentation, title: str, sentences: Sequence[str], shown: Sequence[Block], figures: Path) -> None:
    """A slide: text above what is shown, or to the left of one picture or table that is not wide."""
    slide = presentation.slides.add_slide(presentation.slide_layouts[5])  # title only
    heading = slide.shapes.title
    heading.left, heading.top, heading.width, heading.height = map(Inches, (MARGIN, 0.35, WIDTH - 2 * MARGIN, 0.8))
    heading.text_frame.text = title
    paragraph = heading.text_frame.paragraphs[0]
    paragraph.alignment = PP_ALIGN.LEFT
    paragraph.font.size, paragraph.font.bold, paragraph.font.color.rgb = Pt(30), True, BLUE
    width, height = WIDTH - 2 * MARGIN, HEIGHT - TOP - 0.35
    [block] = shown if len(shown) == 1 else [None]
    ratio = aspect(figures, block) if isinstance(block, Picture) else None
    beside = (ratio and ratio < 1.7) or (isinstance(block, Table) and len(block.rows) > 8 and len(block.header) <= 4)
    if not shown:
        add_sentences(slide, sentences, (MARGIN, TOP, width, height))
        return
    if beside:
        side = min(0.62 * width, (height - 0.4) * ratio) if ratio else 0.62 * width
        add_sentences(slide, sentences, (MARGIN, TOP, width - side - 2 * GAP, height))
        box = (WIDTH - MARGIN - side, TOP, side, height)
    else:
        used = add_sentences(slide, sentences, (MARGIN, TOP, width, 0.34 * height)) + GAP if sentences else 0.0
        box = (MARGIN, TOP + used, width, height - used)
    left, top, width, height = box
    each = (width - GAP * (len(shown) - 1)) / len(shown)
    for i, block in enumerate(shown):
        place = (left + i * (each + GAP), top, each, height)
        if isinstance(block, Picture):
            add_picture(slide, block, place, figures)
        elif isinstance(block, Table):
            add_table(slide, block, place)
        elif isinstance(block, Commands):
            add_commands(slide, block, place)


def aspect(figures: Path, picture: Picture) -> float:
    """Width by height."""
    with Image.open(figures / f"{picture.name}.png") as image:
        return image.width / image.height


def lines_of(text: str, width: float, size: float) -> int:
    """Lines that a text takes in `width` inches, in letters of `size` points, by its length."""
    return max(1, ceil(len(text) * LETTER * size / 72 / width))


def add_sentences(slide: Slide, sentences: Sequence[str], box: Box) -> float:
    """Sentences as points, in the largest letters that fit, the last left out if none do; the inches that they take."""
    kept = list(sentences[: SENTENCES + 4 if box[3] > 4 else SENTENCES])
    while True:
        for size in (20, 18, 16, 14):
            needed = height_of([f"•  {text}" for text in kept], box[2], size)
            if needed <= box[3] or (len(kept) == 1 and size == 14):
                add_text(slide, [f"•  {text}" for text in kept], (*box[:3], min(needed, box[3])), size)
                return min(needed, box[3])
        kept.pop()


def add_text(slide: Slide, lines: Sequence[str], box: Box, size: float, font: str | None = None) -> None:
    """A text box, a paragraph a line."""
    frame = slide.shapes.add_textbox(*map(Inches, box)).text_frame
    frame.word_wrap = True
    frame.margin_left = frame.margin_right = frame.margin_top = frame.margin_bottom = Inches(0.05)
    for i, line in enumerate(lines):
        paragraph = frame.paragraphs[0] if i == 0 else frame.add_paragraph()
        paragraph.text = line
        paragraph.space_after = Pt(0.4 * size)
        paragraph.font.size, paragraph.font.color.rgb = Pt(size), DARK
        if font:
            paragraph.font.name = font


def add_commands(slide: Slide, commands: Commands, box: Box) -> None:
    """Commands, those that have no place left out: a last line says how many."""
    kept = list(commands.lines)
    size = next((size for size in (12, 11, 10) if height_of(kept, box[2], size) <= box[3]), None)
    if size is None:
        size = 10
        while height_of([*kept, "#"], box[2], size) > box[3]:
            kept.pop()
        kept.append(f"# {len(commands.lines) - len(kept)} more lines are in the report")
    add_text(slide, kept, box, size, font="Consolas")


def height_of(lines: Sequence[str], width: float, size: float) -> float:
    """Inches that a text box of these paragraphs takes."""
    return sum((1.2 * lines_of(line, width - 0.1, size) + 0.4) * size / 72 for line in lines) + 0.1


def add_picture(slide: Slide, picture: Picture, box: Box, figures: Path) -> None:
    """A figure as large as fits, in the middle, its caption below and as alternative text."""
    left, top, width, height = box
    needed = 1.2 * lines_of(picture.caption, width - 0.1, 12) * 12 / 72 + 0.15
    height -= needed
    ratio = aspect(figures, picture)
    wide = min(width, height * ratio)
    tall = wide / ratio
    place = (left + (width - wide) / 2, top + (height - tall) / 2, wide, tall)
    shape = slide.shapes.add_picture(str(figures / f"{picture.name}.png"), *map(Inches, place))
    add_text(slide, [picture.caption], (left, place[1] + tall, width, needed), 12)
    shape._element.nvPicPr.cNvPr.set("descr", picture.caption)


def add_table(slide: Slide, table: Table, box: Box) -> None:
    """A table in the largest letters that fit; rows that have no place are left out, the caption below says how
    many.
    """
    left, top, width, height = box
    lines = [table.header, *table.rows]
    longest = [max(len(line[i]) for line in lines) for i in range(len(table.header))]
    for size in (16, 14, 12, 11, 10):
        needed = [n * 0.56 * size / 72 + 0.25 for n in longest]
        fitting = int((height - 0.7) / (0.024 * size)) - 1  # rows, of 1.7 times the letters' height
        if sum(needed) <= width and len(table.rows) <= fitting:
            break
    rows = table.rows[:fitting]
    scale = min(1.0, width / sum(needed))
    row_height = 0.024 * size
    made = slide.shapes.add_table(
        len(rows) + 1, len(longest), *map(Inches, (left, top, scale * sum(needed), row_height * (len(rows) + 1)))
    )
    for column, inches in zip(made.table.columns, needed, strict=True):
        column.width = Inches(scale * inches)
    for i, line in enumerate([table.header, *rows]):
        made.table.rows[i].height = Emu(Inches(row_height))
        for j, text in enumerate(line):
            cell = made.table.cell(i, j)
            cell.margin_top = cell.margin_bottom = Inches(0.02)
            cell.margin_left = cell.margin_right = Inches(0.08)
            cell.text = text
            paragraph = cell.text_frame.paragraphs[0]
            paragraph.font.size = Pt(size)
            paragraph.alignment = PP_ALIGN.RIGHT if j else PP_ALIGN.LEFT
    left_out = len(table.rows) - len(rows)
    caption = f"{table.caption}{f' {left_out} more rows are in the report.' if left_out else ''}"
    add_text(slide, [caption], (left, top + row_height * (len(rows) + 1) + 0.05, width, 0.6), 12)
