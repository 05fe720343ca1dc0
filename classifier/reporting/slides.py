"""The slides of a report: a title slide, then one slide for each section that has a figure, table or commands."""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import replace
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
from classifier.reporting.blocks import Block, CommandBlock, FigureBlock, Section, TableBlock
from classifier.reporting.formatting import one_line, text_width

WIDTH, HEIGHT, MARGIN = 13.333, 7.5, 0.6  # inches
TOP = 1.25  # inches, where the content starts below the title
GAP = 0.15
BLUE, DARK = RGBColor(0x00, 0x72, 0xB2), RGBColor(0x22, 0x22, 0x22)
LETTER = 0.6  # mean width of a letter relative to its height, for a wide font in case the deck's own is missing
MAX_SENTENCES = 5

Box = tuple[float, float, float, float]  # left, top, width, height in inches


def write(path: Path, title: str, subtitle: str, sections: Sequence[Section], figures: Path, date: datetime) -> None:
    """Writes a presentation with the aspect ratio 16:9.

    Args:
        path: to write.
        title, subtitle: of the first slide, which also has the sentences of the first section.
        sections: in order; those without `slide_blocks` are left out.
        figures: folder with the figures as PNG.
        date: creation date of the file and of all files in its archive.
    """
    presentation = Presentation()
    presentation.slide_width, presentation.slide_height = Inches(WIDTH), Inches(HEIGHT)
    properties = presentation.core_properties
    properties.title, properties.author, properties.last_modified_by = title, "", ""
    properties.created = properties.modified = date.replace(tzinfo=None)
    first, *others = sections
    add_slide(presentation, title, [subtitle, *first.sentences], [], figures)
    for section in (replace(first, sentences=[]), *others):
        if section.slide_blocks:
            add_slide(presentation, section.title, section.sentences, section.slide_blocks, figures)
    presentation.save(buffer := io.BytesIO())
    with replacing(path) as temporary, zipfile.ZipFile(buffer) as source, zipfile.ZipFile(temporary, "w") as target:
        for name in source.namelist():  # python-pptx writes the current time into the archive
            target.writestr(zipfile.ZipInfo(name, date.timetuple()[:6]), source.read(name), zipfile.ZIP_DEFLATED)


def add_slide(presentation, title: str, sentences: Sequence[str], blocks: Sequence[Block], figures: Path) -> None:
    """Adds a slide with the sentences above the blocks, or to the left of a single narrow figure or table."""
    slide = presentation.slides.add_slide(presentation.slide_layouts[5])  # title only
    heading = slide.shapes.title
    heading.left, heading.top, heading.width, heading.height = map(Inches, (MARGIN, 0.35, WIDTH - 2 * MARGIN, 0.8))
    heading.text_frame.text = one_line(title)
    paragraph = heading.text_frame.paragraphs[0]
    paragraph.alignment = PP_ALIGN.LEFT
    paragraph.font.size, paragraph.font.bold, paragraph.font.color.rgb = Pt(30), True, BLUE
    width, height = WIDTH - 2 * MARGIN, HEIGHT - TOP - 0.35
    [block] = blocks if len(blocks) == 1 else [None]
    ratio = aspect(figures, block) if isinstance(block, FigureBlock) else None
    beside = (ratio and ratio < 1.7) or (
        isinstance(block, TableBlock) and len(block.rows) > 8 and len(block.header) <= 4
    )
    if not blocks:
        add_sentences(slide, sentences, (MARGIN, TOP, width, height))
        return
    if beside:
        side = min(0.62 * width, (height - 0.4) * ratio) if ratio else 0.62 * width
        add_sentences(slide, sentences, (MARGIN, TOP, width - side - 2 * GAP, height))
        box = (WIDTH - MARGIN - side, TOP, side, height)
    else:
        used = add_sentences(slide, sentences, (MARGIN, TOP, width, 0.38 * height)) + GAP if sentences else 0.0
        box = (MARGIN, TOP + used, width, height - used)
    left, top, width, height = box
    column = (width - GAP * (len(blocks) - 1)) / len(blocks)
    for i, block in enumerate(blocks):
        place = (left + i * (column + GAP), top, column, height)
        if isinstance(block, FigureBlock):
            add_figure(slide, block, place, figures)
        elif isinstance(block, TableBlock):
            add_table(slide, block, place)
        elif isinstance(block, CommandBlock):
            add_commands(slide, block, place)


def aspect(figures: Path, figure: FigureBlock) -> float:
    """The width of a figure divided by its height."""
    with Image.open(figures / f"{figure.name}.png") as image:
        return image.width / image.height


def lines_of(text: str, width: float, size: float) -> int:
    """An estimate of the lines that a text takes in a column of `width` inches, with letters of `size` points."""
    return max(1, ceil(text_width(text) * LETTER * size / 72 / width))


def add_sentences(slide: Slide, sentences: Sequence[str], box: Box) -> float:
    """Adds sentences as bullet points in the largest size that fits, without the last ones if none does.

    Returns the height in inches.
    """
    kept = list(map(one_line, sentences if box[3] > 4 else sentences[:MAX_SENTENCES]))
    while True:
        for size in (20, 18, 16, 14):
            needed = height_of([f"•  {text}" for text in kept], box[2], size)
            if needed <= box[3] or (len(kept) == 1 and size == 14):
                add_text(slide, [f"•  {text}" for text in kept], (*box[:3], min(needed, box[3])), size)
                return min(needed, box[3])
        kept.pop()


def add_text(slide: Slide, lines: Sequence[str], box: Box, size: float, font: str | None = None) -> None:
    """Adds a text box with one paragraph per line."""
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


def add_commands(slide: Slide, commands: CommandBlock, box: Box) -> None:
    """Adds commands; if there is no space for all, the last line says how many are left out."""
    kept = list(commands.lines)
    size = next((size for size in (12, 11, 10) if height_of(kept, box[2], size) <= box[3]), None)
    if size is None:
        size = 10
        while height_of([*kept, "#"], box[2], size) > box[3]:
            kept.pop()
        kept.append(f"# {len(commands.lines) - len(kept)} more lines are in the report")
    add_text(slide, kept, box, size, font="Consolas")


def height_of(lines: Sequence[str], width: float, size: float) -> float:
    """The height in inches of a text box with these paragraphs."""
    return sum((1.2 * lines_of(line, width - 0.1, size) + 0.4) * size / 72 for line in lines) + 0.1


def add_figure(slide: Slide, figure: FigureBlock, box: Box, figures: Path) -> None:
    """Adds a figure as large as possible, centred, with its caption below and as alternative text."""
    left, top, width, height = box
    needed = 1.2 * lines_of(figure.caption, width - 0.1, 12) * 12 / 72 + 0.15
    height -= needed
    ratio = aspect(figures, figure)
    wide = min(width, height * ratio)
    tall = wide / ratio
    place = (left + (width - wide) / 2, top + (height - tall) / 2, wide, tall)
    shape = slide.shapes.add_picture(str(figures / f"{figure.name}.png"), *map(Inches, place))
    add_text(slide, [one_line(figure.caption)], (left, place[1] + tall, width, needed), 12)
    properties = shape._element.nvPicPr.cNvPr  # type: ignore[union-attr]  # declared as the descriptor, not its value
    properties.set("descr", figure.caption)


def add_table(slide: Slide, table: TableBlock, box: Box) -> None:
    """Adds a table in the largest size that fits; the caption says how many rows are left out, if any."""
    left, top, width, height = box
    lines = [table.header, *table.rows]
    longest = [max(text_width(line[i]) for line in lines) for i in range(len(table.header))]
    for size in (16, 14, 12, 11, 10):
        needed = [n * 0.66 * size / 72 + 0.3 for n in longest]  # words in capitals are wider
        fitting = int((height - 0.7) / (0.024 * size)) - 1  # rows, whose height is 1.7 times that of the letters
        if sum(needed) <= width and len(table.rows) <= fitting:
            break
    rows = table.rows[:fitting]
    scale = min(1.0, width / sum(needed))
    row_height = 0.024 * size
    shape = slide.shapes.add_table(
        len(rows) + 1, len(longest), *map(Inches, (left, top, scale * sum(needed), row_height * (len(rows) + 1)))
    )
    for i, inches in enumerate(needed):
        shape.table.columns[i].width = Inches(scale * inches)
    for i, line in enumerate([table.header, *rows]):
        shape.table.rows[i].height = Emu(Inches(row_height))
        for j, text in enumerate(line):
            cell = shape.table.cell(i, j)
            cell.margin_top = cell.margin_bottom = Inches(0.02)
            cell.margin_left = cell.margin_right = Inches(0.08)
            cell.text = one_line(text)
            paragraph = cell.text_frame.paragraphs[0]
            paragraph.font.size = Pt(size)
            paragraph.alignment = PP_ALIGN.RIGHT if j else PP_ALIGN.LEFT
    left_out = len(table.rows) - len(rows)
    caption = f"{table.caption}{f' {left_out} more rows are in the report.' if left_out else ''}"
    add_text(slide, [caption], (left, top + row_height * (len(rows) + 1) + 0.05, width, 0.6), 12)
