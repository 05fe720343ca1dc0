"""Figures of a run. Colours are Okabe and Ito's, which the colour-blind can tell apart."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from classifier.files import replacing

BLUE, ORANGE = "#0072B2", "#D55E00"


def save_figure(figure: Figure, path: Path) -> None:
    """Writes `figure` as PNG at 150 dots an inch, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)


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
