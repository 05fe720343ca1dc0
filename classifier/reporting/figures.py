"""Figures of a dataset, a run and an evaluation, in the colour-blind safe palette of Okabe and Ito.

A path that ends in .png is written as PNG only; for any other path both a PNG and an SVG are written, with these
extensions added. The same input gives the same bytes.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import matplotlib
import matplotlib.patches
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from classifier.files import replacing
from classifier.reporting.architecture import Layer
from classifier.reporting.blocks import HALF
from classifier.reporting.fonts import use_fonts
from classifier.reporting.formatting import one_line, text_width

BLUE, ORANGE = "#0072B2", "#D55E00"
COLOURS = {"train": BLUE, "validation": "#E69F00", "test": "#009E73"}
# Colour, marker, line and hatch of each model; the last three distinguish models in grey print. More models start over.
STYLES = (
    (BLUE, "o", "-", ""),
    (ORANGE, "s", "--", "///"),
    ("#009E73", "^", "-.", "..."),
    ("#E69F00", "D", ":", "xxx"),
    ("#CC79A7", "v", (0, (5, 1)), "\\\\\\"),
    ("#56B4E9", "P", (0, (3, 1, 1, 1)), "+++"),
)
WIDTH = 6.7  # inches, the width of a page's text: font sizes are those on the page
MIN_LETTERS = 4.5  # points: smaller numbers are left out of a confusion matrix
MAX_MISTAKES = 8
MAX_SAMPLE_ROWS = 20
MAX_CLASS_ROWS = 30
MAX_MATRIX_NAMES = 40
matplotlib.rcParams["text.parse_math"] = False  # the dollar signs of a label are drawn, not read as a formula
MAX_MATRICES_NAMES = 20  # classes of matrices side by side


def save_figure(figure: Figure, path: Path, dpi: int = 150) -> None:
    """Writes `figure` as PNG at `dpi` dots per inch, and as SVG unless `path` ends in .png; each file atomically."""
    paths = [path] if path.suffix == ".png" else [path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg")]
    use_fonts(figure)
    # Without a hash salt, the ids in the SVG would differ between runs.
    with matplotlib.rc_context({"svg.hashsalt": "classifier"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # `use_fonts` says so once
        for file in paths:
            with replacing(file) as temporary:
                figure.savefig(temporary, dpi=dpi, metadata={"Date": None} if file.suffix == ".svg" else None)


def save_samples(
    path: Path,
    images: np.ndarray | torch.Tensor,
    labels: np.ndarray | torch.Tensor,
    names: Sequence[str],
    *,
    columns: int = 10,
    seed: int = 0,
) -> None:
    """Writes a grid of randomly drawn images, one row per class, for up to 20 classes.

    Args:
        path: the PNG to write.
        images: uint8 (N, 3, H, W).
        labels: class indices, int (N,).
        names: names of the C classes.
        columns: images per class.
        seed: seed of the random draw.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    height, width = images.shape[2:]
    zoom = max(1, round(64 / height))  # an integer, so that small images stay sharp
    gap = 6
    rows = min(len(names), MAX_SAMPLE_ROWS)
    step_y, step_x = height * zoom + gap, width * zoom + gap
    canvas = np.full((rows * step_y - gap, columns * step_x - gap, 3), 255, np.uint8)
    generator = np.random.default_rng(seed)
    for row in range(rows):
        drawn = generator.permutation(np.flatnonzero(labels == row))[:columns]
        for column, index in enumerate(drawn):
            tile = images[index].transpose(1, 2, 0).repeat(zoom, 0).repeat(zoom, 1)  # (H·zoom, W·zoom, 3)
            y, x = row * step_y, column * step_x
            canvas[y : y + tile.shape[0], x : x + tile.shape[1]] = tile

    dpi = 100  # the axes below cover exactly the canvas, with one pixel of the figure for each of its pixels
    left, right, top, bottom = 30 + 12 * max(text_width(shorten(name)) for name in names[:rows]), 16, 42, 16
    full_width, full_height = canvas.shape[1] + left + right, canvas.shape[0] + top + bottom
    figure = Figure(figsize=(full_width / dpi, full_height / dpi), dpi=dpi)
    axes = figure.add_axes(
        (left / full_width, bottom / full_height, canvas.shape[1] / full_width, canvas.shape[0] / full_height)
    )
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.set_yticks(
        [row * step_y + height * zoom / 2 for row in range(rows)], [shorten(names[row]) for row in range(rows)]
    )
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=13, pad=8)
    axes.spines[:].set_visible(False)
    shown = f"first {rows} of {len(names)} classes" if rows < len(names) else f"{rows} classes"
    axes.set_title(f"{shown}, up to {columns} images of each, {width}×{height} pixels", loc="left", fontsize=11)
    save_figure(figure, path, dpi=100)


def save_classes(path: Path, counts: Mapping[str, np.ndarray | torch.Tensor], names: Sequence[str]) -> None:
    """Writes the number of images of each class as grouped bars, one colour per split, for up to 30 classes.

    Args:
        path: the PNG to write.
        counts: {split: int (C,)}.
        names: names of the C classes.
    """
    rows = min(len(names), MAX_CLASS_ROWS)
    bar = 0.8 / len(counts)  # height of a bar, relative to the distance between classes
    figure = Figure(figsize=(9, 1.3 + rows * (0.18 + 0.14 * len(counts))), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    y = np.arange(rows)
    for index, (split, images) in enumerate(counts.items()):
        images = np.asarray(images)
        bars = axes.barh(
            y + (index - (len(counts) - 1) / 2) * bar,
            images[:rows],
            bar,
            label=f"{split} ({images.sum():,})",
            color=COLOURS[split],
        )
        axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
    axes.set_yticks(y, [shorten(name) for name in names[:rows]])
    axes.set_ylim(rows - 0.5, -0.5)  # the first class on top
    axes.margins(x=0.08)
    axes.set_xlabel("images" + (f" (first {rows} of {len(names)} classes)" if rows < len(names) else ""))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=len(counts), frameon=False)
    save_figure(figure, path, dpi=100)


def shorten(name: str, longest: int = 18) -> str:
    """A label on one line, at most as wide as `longest` letters."""
    name = one_line(name)
    if text_width(name) <= longest:
        return name
    while text_width(name) > longest - 1:
        name = name[:-1]
    return f"{name}…"


def save_curves(path: Path, history: list[dict]) -> None:
    """Writes loss (nats) and accuracy by epoch, from the lines of metrics.jsonl."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    draw_curves(loss, history, "loss")
    draw_curves(accuracy, history, "accuracy")
    loss.set(ylabel="cross-entropy (nats)", title="Loss")
    accuracy.set(ylabel="accuracy", title="Accuracy")
    for axes in (loss, accuracy):
        axes.set_xlabel("epoch")
        axes.legend(frameon=False)
    save_figure(figure, path)


def draw_curves(axes: Axes, history: list[dict], metric: Literal["loss", "accuracy"]) -> None:
    """Draws a metric of the training and of the validation split by epoch."""
    for split, colour, style in (("train", BLUE, "o-"), ("validation", ORANGE, "s--")):
        key = f"{split}_{metric}"
        if values := {line["epoch"]: line[key] for line in history if key in line}:
            axes.plot(list(values), list(values.values()), style, color=colour, markersize=4, label=split)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))  # a run may be shorter than an epoch
    axes.grid(alpha=0.3)


def panels_of_models(names: Sequence[str], height: float, ratios: Sequence[float]) -> tuple[Figure, list[np.ndarray]]:
    """A figure as wide as a page's text, with a column of panels for each model.

    Args:
        names: of the models; the title of a model's top panel.
        height: of the figure in inches.
        ratios: heights of a model's panels relative to each other, the top one first.

    Returns the figure and the panels of each model.
    """
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(len(ratios), len(names), squeeze=False, height_ratios=ratios).T
    for name, [top, *_] in zip(names, panels, strict=True):
        top.set_title(shorten(name), fontsize=9)
    return figure, list(panels)


def save_curves_of_models(path: Path, models: Mapping[str, list[dict]]) -> None:
    """Writes loss (nats) by epoch, and below it accuracy, in a column for each model; `models` is {name: history}."""
    figure, panels = panels_of_models(list(models), 3.1, (1, 1))
    for i, (history, [loss, accuracy]) in enumerate(zip(models.values(), panels, strict=True)):
        draw_curves(loss, history, "loss")
        draw_curves(accuracy, history, "accuracy")
        accuracy.set_xlabel("epoch", fontsize=8)
        if i == 0:
            loss.set_ylabel("cross-entropy (nats)", fontsize=8)
            accuracy.set_ylabel("accuracy", fontsize=8)
        for axes in (loss, accuracy):
            set_plain_style(axes)
    figure.legend(handles=panels[0][0].lines, loc="outside upper left", ncols=2, frameon=False, fontsize=8)
    save_figure(figure, path)


def save_confusion(path: Path, matrix: np.ndarray, labels: list[str]) -> None:
    """Writes a confusion matrix; with more than 40 classes, axes and cells have no text.

    Args:
        path: to write.
        matrix: counts (C, C), a row per true class and a column per predicted class.
        labels: names of the C classes.
    """
    n = len(labels)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    named = n <= MAX_MATRIX_NAMES  # beyond that, cells are too small for text
    side = 1.8 + 0.48 * n if named else WIDTH
    figure = Figure(figsize=(side, side * 0.92), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    if named:
        axes.set_xticks(range(n), map(shorten, labels), rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(n), rows_of(matrix, labels))
        for (row, column), count in np.ndenumerate(matrix):
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count:d}", ha="center", va="center", color=colour, fontsize=8)
    else:
        axes.set(xlabel="index of the predicted class", ylabel="index of the true class")
    figure.colorbar(image, ax=axes, shrink=0.8, label="fraction of the images of the true class")
    save_figure(figure, path)


def rows_of(matrix: np.ndarray, labels: Sequence[str]) -> list[str]:
    """The names of a confusion matrix's rows, which say where there are no images."""
    return [
        shorten(label) if n else f"{shorten(label)} (no images)"
        for label, n in zip(labels, matrix.sum(axis=1), strict=True)
    ]


def save_confusion_of_models(path: Path, models: Mapping[str, np.ndarray], labels: list[str]) -> None:
    """Writes the confusion matrices of several models side by side, for up to 20 classes.

    Args:
        path: to write.
        models: {name: counts (C, C), a row per true class and a column per predicted class}.
        labels: names of the C classes.
    """
    names, rows = list(map(shorten, labels)), rows_of(next(iter(models.values())), labels)
    label_size = min(7, 110 / len(labels))
    # Inches for the names of classes, on the left and below.
    margin = max(map(text_width, rows)) * 0.6 * label_size / 72
    side = (WIDTH - margin) / len(models)  # inches for each matrix
    figure, panels = panels_of_models(list(models), side + 0.75 * margin + 0.3, (1,))
    cell = 0.9 * 72 * side / len(labels)  # points
    digits = max(len(str(matrix.max())) for matrix in models.values())
    size = min(8, cell / (0.72 * digits))
    for i, (matrix, [axes]) in enumerate(zip(models.values(), panels, strict=True)):
        share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), rows if i == 0 else [""] * len(names))
        axes.tick_params(labelsize=label_size, length=2)
        axes.set_xlabel("predicted class", fontsize=8)
        if i == 0:
            axes.set_ylabel("true class", fontsize=8)
        for row, column in np.argwhere(matrix) if size >= MIN_LETTERS else []:
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, f"{matrix[row, column]}", ha="center", va="center", color=colour, fontsize=size)
    save_figure(figure, path)


def save_reliability(path: Path, models: Mapping[str, tuple[dict, dict | None]]) -> None:
    """Writes a reliability diagram per model: accuracy by confidence, and the distribution of confidences.

    Args:
        path: to write.
        models: {name: (bins, bins before temperature scaling or None)}; bins are the fields of
            `metrics.Reliability` as lists.
    """
    figure, panels = panels_of_models(list(models), 2.8, (3, 1))
    for i, ((after, before), [top, below]) in enumerate(zip(models.values(), panels, strict=True)):
        top.plot([0, 1], [0, 1], color="0.5", linewidth=1, label="perfect")
        for bins, style, colour, label in (
            (before, "s--", ORANGE, "before temperature scaling"),
            (after, "o-", BLUE, "final"),
        ):
            if bins:
                filled = np.array(bins["count"]) > 0
                x, y = np.array(bins["confidence"])[filled], np.array(bins["accuracy"])[filled]
                top.plot(x, y, style, color=colour, markersize=3.5, linewidth=1.2, label=label)
        n_bins = len(after["count"])
        share = np.array(after["count"]) / max(sum(after["count"]), 1)
        below.bar((np.arange(n_bins) + 0.5) / n_bins, share, 0.9 / n_bins, color=BLUE)
        top.set(xlim=(0, 1), ylim=(0, 1), xticklabels=[])
        below.set(xlim=(0, 1))
        below.set_xlabel("confidence (top probability)", fontsize=8)
        if i == 0:
            top.set_ylabel("accuracy", fontsize=8)
            below.set_ylabel("images,\nfraction", fontsize=8)
        for axes in (top, below):
            set_plain_style(axes)
    longest = max((top.lines for top, _ in panels), key=len)
    figure.legend(handles=longest, loc="outside upper left", ncols=3, frameon=False, fontsize=8)
    save_figure(figure, path)


def save_class_scores(path: Path, models: Mapping[str, Mapping[str, float | None]], metric: str) -> None:
    """Writes a score of each class as a row of points, one per model, half as wide as the text of a page.

    Args:
        path: to write.
        models: {name: {class: score in [0, 1], or None without images}}, the same classes in each, the first on top.
        metric: name of the score.
    """
    names = list(next(iter(models.values())))
    columns = 3
    height = 0.6 + 0.2 * -(-len(models) // columns) + 0.21 * len(names)
    figure = Figure(figsize=(HALF * WIDTH, height), layout="constrained")
    axes = figure.subplots()
    for i, scores in enumerate(models.values()):
        colour, marker, *_ = STYLES[i % len(STYLES)]
        shift = 0.5 * ((i + 0.5) / len(models) - 0.5)  # so that equal scores do not cover each other
        y = np.arange(len(names)) + shift
        values = [np.nan if score is None else score for score in scores.values()]
        axes.plot(values, y, marker, color=colour, markersize=4)
    any_model = next(iter(models.values()))
    ticks = [shorten(name) + (" (no images)" if score is None else "") for name, score in any_model.items()]
    axes.set_yticks(range(len(names)), ticks)
    axes.set(ylim=(len(names) - 0.5, -0.5), xlabel=metric)
    set_plain_style(axes)
    figure.legend(
        axes.lines,
        list(map(shorten, models)),  # given here, as matplotlib leaves out names that begin with "_"
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=8,
        handletextpad=0,
        columnspacing=1,
    )
    save_figure(figure, path)


def save_robustness(path: Path, models: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Writes accuracy by strength of the corruption, one panel per kind and one line per model.

    Args:
        path: to write.
        models: {name: {kind: [accuracy at strength 0 (clean), 1, 2, …]}}, the same kinds in each.
    """
    kinds = list(next(iter(models.values())))
    columns = min(len(kinds), 5)
    rows = -(-len(kinds) // columns)
    figure = Figure(figsize=(WIDTH, 0.5 + 1.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, kind in zip(panels.flat, kinds, strict=False):
        for i, accuracy in enumerate(models.values()):
            colour, marker, line, _ = STYLES[i % len(STYLES)]
            axes.plot(
                range(len(accuracy[kind])),
                accuracy[kind],
                color=colour,
                marker=marker,
                linestyle=line,
                markersize=3.5,
                linewidth=1.2,
            )
        axes.set_title(kind.replace("_", " "), fontsize=8.5)
        axes.set_ylim(0, 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        set_plain_style(axes)
    for axes in panels.flat[len(kinds) :]:
        axes.set_visible(False)
    figure.supxlabel("strength (0: clean)", fontsize=8.5)
    figure.supylabel("accuracy", fontsize=8.5)
    figure.legend(
        panels.flat[0].lines,
        list(map(shorten, models)),
        loc="outside upper left",
        ncols=min(len(models), 4),
        frameon=False,
        fontsize=8,
    )
    save_figure(figure, path)


def save_mistakes(path: Path, mistakes: Sequence[tuple[Image.Image, Image.Image | None, str, str, float]]) -> None:
    """Writes misclassified images in a row, and below each its heat map if there is one.

    Args:
        path: to write.
        mistakes: up to 8 of (image, image with a heat map or None, true label, predicted label, its probability).
    """
    rows = 2 if any(overlay for _, overlay, *_ in mistakes) else 1
    figure = Figure(figsize=(WIDTH, 0.4 + 0.84 * rows), layout="constrained")
    panels = figure.subplots(rows, MAX_MISTAKES, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for (image, overlay, label, predicted, probability), [top, *below] in zip(mistakes, panels.T, strict=False):
        top.imshow(np.asarray(image), interpolation="nearest")
        top.set_title(f"{shorten(label, 15)}\n→ {shorten(predicted, 15)}\n{probability:.0%}", fontsize=6)
        if overlay:
            below[0].imshow(np.asarray(overlay), interpolation="nearest")
    save_figure(figure, path, dpi=120)  # 96 pixels per image, as a PDF stores them uncompressed


def save_pictures(
    path: Path, groups: Sequence[tuple[str, Sequence[tuple[Image.Image, str]]]], columns: int, title: str
) -> None:
    """Writes a contact sheet: groups of images with captions, `columns` groups per row.

    Args:
        path: the PNG to write.
        groups: (heading, [(image, caption of two lines)]), all groups of the same length.
        columns: groups per row.
        title: title of the sheet.
    """
    n = len(groups[0][1])
    near, far = 0.06, 0.2  # inches between the images of a group, and between groups
    side = (WIDTH - far * (columns + 1) - near * columns * (n - 1)) / (columns * n)
    above, below, top = 0.2, 0.38, 0.4  # inches for the heading, the caption and the title
    step_x, step_y = n * side + (n - 1) * near + far, above + side + below
    height = top + step_y * -(-len(groups) // columns)
    figure = Figure(figsize=(WIDTH, height))
    figure.text(far / WIDTH, 1 - 0.25 / height, title, fontsize=9, va="center")
    for i, (heading, pictures) in enumerate(groups):
        left, y = far + step_x * (i % columns), height - top - step_y * (i // columns)
        figure.text(left / WIDTH, (y - above / 2) / height, heading, fontsize=7, fontweight="bold", va="center")
        for k, (picture, caption) in enumerate(pictures):
            x, bottom = left + k * (side + near), y - above - side
            axes = figure.add_axes((x / WIDTH, bottom / height, side / WIDTH, side / height))
            axes.imshow(np.asarray(picture), interpolation="nearest")
            axes.set_axis_off()
            lines = "\n".join(shorten(line) for line in caption.splitlines())
            figure.text(x / WIDTH, (bottom - 0.04) / height, lines, fontsize=6.5, va="top", linespacing=1.1)
    save_figure(figure, path)


def save_architecture(path: Path, layers: Sequence[Layer], name: str, input_shape: Sequence[int]) -> None:
    """Writes a model's layers as boxes from top to bottom, with their output shapes and shares of the parameters.

    The figure is half as wide as the text of a page.
    """
    total = sum(layer.n_parameters for layer in layers)
    height, step, right = 0.23, 0.3, 2.36  # inches: height of a box, distance between boxes, and their right edge
    top = 0.62 + step * len(layers)
    figure = Figure(figsize=(HALF * WIDTH, top))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, HALF * WIDTH), ylim=(0, top))
    axes.set_axis_off()
    axes.text(0.05, top - 0.12, f"{shorten(name)}: {total:,} parameters", fontsize=8, fontweight="bold", va="center")
    y, gap = top - 0.36, 0.07
    axes.text(right / 2, y, "image " + " × ".join(map(str, input_shape)), ha="center", va="center", fontsize=7)
    for layer in layers:
        middle = y - step
        axes.annotate(
            "", (right / 2, middle + height / 2), (right / 2, y - gap), arrowprops={"arrowstyle": "->", "shrinkB": 0}
        )
        box = matplotlib.patches.Rectangle(
            (0.05, middle - height / 2), right - 0.05, height, facecolor="#EAF3FA", edgecolor=BLUE, linewidth=0.7
        )
        axes.add_patch(box)
        times = f" × {layer.repeats}" if layer.repeats > 1 else ""
        axes.text(0.1, middle + 0.053, f"{layer.kind}{times}", fontsize=6.5, fontweight="bold", va="center")
        parts = layer.parts if len(layer.parts) <= 60 else layer.parts[:59] + "…"
        axes.text(0.1, middle - 0.055, parts, fontsize=5, va="center")
        axes.text(right + 0.06, middle + 0.053, " × ".join(map(str, layer.shape)), fontsize=6.5, va="center")
        share = layer.n_parameters / total
        axes.add_patch(
            matplotlib.patches.Rectangle(
                (right + 0.06, middle - 0.1), 0.45 * share, 0.08, facecolor=ORANGE, linewidth=0
            )
        )
        axes.text(right + 0.09 + 0.45 * share, middle - 0.06, f"{share:.1%}", fontsize=5.5, va="center")
        y, gap = middle, height / 2
    save_figure(figure, path)


def set_plain_style(axes: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    """Sets small tick labels, a faint grid behind the data, and no frame at the top and on the right."""
    axes.tick_params(labelsize=7.5)
    axes.grid(axis=grid, alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
