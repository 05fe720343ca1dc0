"""Figures of a dataset and of a run. Colours are Okabe and Ito's, which the colour-blind can tell apart."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from classifier.files import replacing

BLUE, ORANGE = "#0072B2", "#D55E00"
COLOURS = {"train": BLUE, "validation": "#E69F00", "test": "#009E73"}
MAX_SAMPLE_ROWS = 20
MAX_CLASS_ROWS = 60


def save_figure(figure: Figure, path: Path, dpi: int = 150) -> None:
    """Writes `figure` as PNG at `dpi` dots an inch, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi)


def save_samples(
    path: Path,
    images: np.ndarray | torch.Tensor,
    labels: np.ndarray | torch.Tensor,
    names: Sequence[str],
    *,
    columns: int = 10,
    seed: int = 0,
) -> None:
    """Writes a grid of images drawn by seed, a row a class, for up to 20 classes.

    Args:
        path: the PNG to write.
        images: uint8 (N, 3, H, W).
        labels: class indices, int (N,).
        names: of the C classes.
        columns: images a class.
        seed: of the draw.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    height, width = images.shape[2:]
    zoom = max(1, round(64 / height))  # whole pixels, so that small images stay sharp
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

    dpi = 100  # the axes below cover exactly the canvas, a pixel a pixel
    left, right, top, bottom = 30 + 10 * max(len(shorten(name)) for name in names[:rows]), 16, 42, 16
    full_width, full_height = canvas.shape[1] + left + right, canvas.shape[0] + top + bottom
    figure = Figure(figsize=(full_width / dpi, full_height / dpi), dpi=dpi)
    axes = figure.add_axes(
        (left / full_width, bottom / full_height, canvas.shape[1] / full_width, canvas.shape[0] / full_height)
    )
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.set_yticks([row * step_y + height * zoom / 2 for row in range(rows)], [shorten(names[row]) for row in range(rows)])
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=11, pad=8)
    axes.spines[:].set_visible(False)
    shown = f"first {rows} of {len(names)} classes" if rows < len(names) else f"{rows} classes"
    axes.set_title(f"{shown}, up to {columns} images of each, {width}×{height} pixels", loc="left", fontsize=11)
    save_figure(figure, path, dpi=100)


def save_classes(path: Path, counts: dict[str, np.ndarray | torch.Tensor], names: Sequence[str]) -> None:
    """Writes the number of images of each class as grouped bars, a colour a split, for up to 60 classes.

    Args:
        path: the PNG to write.
        counts: {split: int (C,)}.
        names: of the C classes.
    """
    rows = min(len(names), MAX_CLASS_ROWS)
    bar = 0.8 / len(counts)  # of the distance between classes
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


def shorten(name: str) -> str:
    """A label of at most 18 characters."""
    return name if len(name) <= 18 else name[:17] + "…"


def save_curves(path: Path, history: list[dict]) -> None:
    """Loss (nats) and validation accuracy by epoch, from the lines of metrics.jsonl."""
    epochs = [line["epoch"] for line in history]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for axes, name, colour, style in (
        (loss, "train_loss", BLUE, "o-"),
        (loss, "validation_loss", ORANGE, "s--"),
        (accuracy, "train_accuracy", BLUE, "o-"),
        (accuracy, "validation_accuracy", ORANGE, "s--"),
    ):
        axes.plot(epochs, [line[name] for line in history], style, color=colour, markersize=4, label=name.split("_")[0])
    loss.set(xlabel="epoch", ylabel="cross-entropy (nats)", title="Loss")
    accuracy.set(xlabel="epoch", ylabel="fraction right", title="Accuracy")
    for axes in (loss, accuracy):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    save_figure(figure, path)


def save_confusion(path: Path, matrix: np.ndarray, labels: list[str]) -> None:
    """A confusion matrix, counts (C, C): a row is the true label, a column the predicted one."""
    n = len(labels)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(1.8 + 0.55 * n, 30)
    figure = Figure(figsize=(side, side * 0.92), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(n), labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(n), labels)
    axes.set(xlabel="predicted", ylabel="true")
    if n <= 40:  # beyond that a cell is too small to write in
        for (row, column), count in np.ndenumerate(matrix):
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count:d}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, shrink=0.8, label="fraction of the true label's images")
    save_figure(figure, path)
