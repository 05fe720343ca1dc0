"""The report of an evaluation as report.md, report.pdf and slides.pptx, with the same content, and its figures.

    report.write(Path("report"), {"models/cnn": predictor}, splits)  # the folder has evaluation.json and timing.json

Every number comes from evaluation.json, timing.json, or run.json and metrics.jsonl beside the weights, and the
conclusions follow from these numbers. A section whose results are missing is left out. The same files give the same
bytes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import matplotlib
import typst
from PIL import Image

from classifier.data.splits import Splits
from classifier.errors import ModelError
from classifier.files import replacing, write_text
from classifier.models.predictor import Predictor
from classifier.reporting import fonts, slides
from classifier.reporting.blocks import Block, FigureBlock, Section
from classifier.reporting.formatting import escape_markdown, join_words, one_line
from classifier.reporting.results import Results, read_results
from classifier.reporting.sections import comparison, inputs, performance, training
from classifier.reporting.sections.performance import HeatMap

FORMATS = ("md", "pdf", "pptx")
DATE = datetime(2000, 1, 1, tzinfo=UTC)  # written into the files, as the current date would change their bytes
MAX_HEIGHT = 0.75  # of a figure, relative to the width of the text; the text of a page is 1.5 high
TEMPLATES = Path(__file__).parent / "templates"


def write(
    output_dir: Path,
    predictors: Mapping[str, Predictor],
    splits: Splits | None = None,
    *,
    heat_map: HeatMap | None = None,
    command: str | None = None,
    formats: Sequence[str] = FORMATS,
) -> None:
    """Writes the report on `output_dir`'s evaluation.json into the same folder.

    Args:
        output_dir: with evaluation.json, and timing.json if the models were timed; receives report.md, report.pdf,
            slides.pptx and figures/.
        predictors: {folder or Hub id: the model}, the models of evaluation.json.
        splits: with the test split that was evaluated, and train, to show images of both; None: without images.
        heat_map: returns an image as a model received it with a heat map on top, which is shown with each mistake.
        command: the command that wrote evaluation.json.
        formats: some of `FORMATS`.

    Raises:
        ModelError: evaluation.json is missing, it or a model's record lacks what its script writes, or a format is
            unknown.
    """
    if unknown := set(formats) - set(FORMATS):
        raise ModelError(f"no format {', '.join(sorted(unknown))}: choose from {', '.join(FORMATS)}")
    figures = output_dir / "figures"
    results = read_results(output_dir, predictors)
    sections = build_sections(figures, results, splits, heat_map, command)
    evaluation = results.evaluation
    title = f"Image classification: {evaluation.dataset}"
    names = join_words([model.name for model in results.models])
    subtitle = f"{names}, evaluated on {evaluation.n:,} images of the {evaluation.split} split"
    if "md" in formats:
        write_text(output_dir / "report.md", render_markdown(title, subtitle, sections))
    if "pdf" in formats:
        with replacing(output_dir / "report.pdf") as temporary:
            temporary.write_bytes(render_pdf(title, subtitle, sections, output_dir))
    if "pptx" in formats:
        slides.write(output_dir / "slides.pptx", title, subtitle, sections, figures, DATE)


def build_sections(
    figures: Path, results: Results, splits: Splits | None, heat_map: HeatMap | None, command: str | None
) -> list[Section]:
    """All sections in order; their figures are written into the folder `figures`. Other arguments as `write`."""
    models = results.models
    choice = comparison.choose(results)
    sections = [
        comparison.summary(results, choice),
        performance.metrics(results),
        performance.confusion(figures, models),
        performance.classes(figures, models, choice.model),
        performance.photographs(models),
        performance.calibration(figures, models),
        performance.robustness(figures, models),
        performance.out_of_distribution(models),
        performance.mistakes(figures, results, choice.model, splits, heat_map),
        comparison.costs(results),
        comparison.transfer(results),
        inputs.data(figures, results, splits),
        inputs.architectures(figures, models),
        training.training(figures, models),
        training.reproduction(models, command),
    ]
    first, *others = filter(None, sections)
    names = "".join(label for model in models for label in (model.name, *model.evaluation.per_class))
    if note := fonts.describe_missing(names):
        first = replace(first, sentences=[*first.sentences, note])
    return [
        replace(section, blocks=[fit_to_page(figures, block) for block in section.blocks])
        for section in (first, *others)
    ]


def fit_to_page(figures: Path, block: Block) -> Block:
    """The block; a figure that would be higher than half a page is made narrower."""
    if not isinstance(block, FigureBlock):
        return block
    with Image.open(figures / f"{block.name}.png") as image:
        return replace(block, width=min(block.width, MAX_HEIGHT * image.width / image.height))


def render_markdown(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The report as Markdown, with figures as PNG."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # the filter below escapes for Markdown, which includes HTML
    )
    environment.filters["markdown"] = escape_markdown
    return environment.get_template("report.md").render(title=title, subtitle=subtitle, sections=sections)


def render_pdf(title: str, subtitle: str, sections: Sequence[Section], output_dir: Path) -> bytes:
    """The report as PDF, with the SVG figures of `output_dir`.

    The template is a Typst program that reads the content as JSON: as data, no text can be taken for markup.
    """
    content = {
        "title": title,
        "subtitle": subtitle,
        "sections": [
            {
                "title": section.title,
                "sentences": section.sentences,
                "blocks": [{"kind": block.kind, **asdict(block)} for block in section.blocks],
            }
            for section in sections
        ],
    }
    return typst.compile(  # type: ignore[call-overload]  # declared as if source and root had to be of one type
        (TEMPLATES / "report.typ").read_bytes(),
        root=str(output_dir),
        font_paths=[str(Path(matplotlib.get_data_path()) / "fonts/ttf")],  # those of the figures, for many alphabets
        format="pdf",
        timestamp=DATE,
        sys_inputs={"report": json.dumps(printable(content))},
    )


def printable(content: object) -> object:
    """JSON content in which every text is on one line and has no control characters."""
    if isinstance(content, str):
        return one_line(content)
    if isinstance(content, dict):
        return {key: printable(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [printable(value) for value in content]
    return content
