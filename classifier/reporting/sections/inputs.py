"""Sections on what goes into a model, and what it consists of: data, preprocessing, architectures."""

from pathlib import Path

import numpy as np
from PIL import ImageOps

from classifier.data.loaders import image_batches
from classifier.data.splits import Splits
from classifier.models import processor as processors
from classifier.reporting import architecture, figures
from classifier.reporting.blocks import Block, FigureBlock, Section, TableBlock
from classifier.reporting.formatting import join_words, percent, plural
from classifier.reporting.results import ModelResult, Results

SAMPLES = 10  # images of each class


def data(folder: Path, results: Results, splits: Splits | None) -> Section:
    """The number of images of each class in each split, and training images of each class."""
    labels = list(results.models[0].per_class)
    counts = next((model.class_counts for model in results.models if model.class_counts), {})
    counts = counts | {"test": np.array([scores.n for scores in results.models[0].per_class.values()])}
    revision = f" at revision {results.revision}" if results.revision else ""
    numbers = join_words([f"{numbers.sum():,} in {split}" for split, numbers in counts.items()])
    sentences = [
        f"The dataset is {results.dataset}{revision} with {plural(len(labels), 'class', 'classes')}.",
        f"Number of images used: {numbers}.",
    ]
    if "train" in counts:
        fewest, most = counts["train"].argmin(), counts["train"].argmax()
        low, high = counts["train"][fewest], counts["train"][most]
        sentences.append(
            f"Each class has {low:,} training images."
            if low == high
            else f"Classes have between {low:,} ({labels[fewest]}) and {high:,} ({labels[most]}) training images."
        )
        sentences.append("Settings and epochs were chosen on the validation split, not on the test split.")
    figures.save_classes(folder / "classes", counts, labels)
    blocks: list[Block] = [FigureBlock("classes", "Number of images of each class in each split.", 0.62)]
    if splits and splits.train is not None:
        images, image_labels = training_samples(splits)
        figures.save_samples(folder / "samples", images, image_labels, splits.labels)
        blocks.insert(0, FigureBlock("samples", "Training images, one row per class.", 0.7))
    return Section("Data", sentences, blocks, blocks[:1])


def training_samples(splits: Splits) -> tuple[np.ndarray, np.ndarray]:
    """The first training images of each class, uint8 (N, 3, side, side), and their labels (N,)."""
    labels = splits.class_indices["train"]
    n_classes = min(len(splits.labels), figures.MAX_SAMPLE_ROWS)
    first = [np.flatnonzero(labels == label)[:SAMPLES] for label in range(n_classes)]
    part = splits.select("train", np.sort(np.concatenate(first)))
    images, image_labels = [], []
    for batch, batch_labels in image_batches("train", part, 64):
        images += batch
        image_labels += batch_labels
    side = min(64, int(np.median([min(image.size) for image in images])))
    squares = [np.asarray(ImageOps.fit(image, (side, side))).transpose(2, 0, 1) for image in images]
    return np.stack(squares), np.array(image_labels)


def preprocessing(models: list[ModelResult]) -> Section:
    """The input of each network."""
    rows = []
    for model in models:
        processor = model.predictor.processor
        side = processors.size_of(processor)
        interpolation = "bicubic" if processors.is_bicubic(processor) else "bilinear"
        mean, std = (", ".join(f"{value:.3f}" for value in values) for values in processors.mean_std(processor))
        crop = f"{processors.crop_pct_of(processor):.2f}"
        rows.append((model.name, f"{side} × {side}", interpolation, crop, mean, std, str(model.views)))
    header = ("model", "input size", "interpolation", "crop", "mean (R, G, B)", "standard deviation", "views")
    table = TableBlock(
        header,
        rows,
        "Input of each network. Size in pixels; crop: the fraction of the resized image that is kept. Mean and "
        "standard deviation are relative to the maximum value, 255.",
    )
    sentences = [
        "Every image is decoded to upright 8-bit RGB and prepared by the processor that is saved with the weights, in "
        "training, evaluation and application alike."
    ]
    sentences += [
        f"{model.name} averages the probabilities of {model.views} views of each image: its accuracy is "
        f"{percent(model.accuracy)}, and {percent(model.evaluation.accuracy_one_view)} with a single view."
        for model in models
        if model.views > 1 and model.evaluation.accuracy_one_view is not None
    ]
    return Section("Preprocessing", sentences, [table])


def architectures(folder: Path, models: list[ModelResult]) -> Section:
    """A diagram of each model."""
    blocks = []
    for model in models:
        layers, side = architecture.trace(model.predictor), processors.size_of(model.predictor.processor)
        name = f"architecture_{model.slug}"
        figures.save_architecture(folder / name, layers, model.name, (3, side, side))
        kind = type(model.predictor.model).__name__
        caption = f"{model.name}: {kind}. On the right, output shapes and shares of the parameters."
        blocks.append(FigureBlock(name, caption, 0.5 if len(models) > 1 else 0.62))
    sentences = [f"{model.name} has {model.n_parameters:,} parameters." for model in models]
    sentences.append(
        "The diagrams are traced from a forward pass; consecutive blocks of equal shape are drawn once, with their "
        "number (×)."
    )
    return Section("Architecture" if len(models) == 1 else "Architectures", sentences, blocks, blocks[:3])
