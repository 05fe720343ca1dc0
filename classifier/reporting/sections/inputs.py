"""Sections on what goes into a model, and what it consists of: data, preprocessing, architectures."""

from pathlib import Path

import numpy as np
from PIL import ImageOps

from classifier.data.loaders import image_batches
from classifier.data.splits import Splits
from classifier.models import processor as processors
from classifier.reporting import architecture, figures
from classifier.reporting.blocks import HALF, Block, FigureBlock, Section, TableBlock
from classifier.reporting.formatting import join_words, percent, plural
from classifier.reporting.results import ModelResult, Results

SAMPLES = 8  # images of each class


def data(folder: Path, results: Results, splits: Splits | None) -> Section:
    """The number of images of each class in each split, training images of each class, and what is done to an image."""
    models, evaluation = results.models, results.evaluation
    labels = list(models[0].evaluation.per_class)
    counts = next((model.class_counts for model in models if model.class_counts), {})
    counts = counts | {"test": np.array([scores.n for scores in models[0].evaluation.per_class.values()])}
    revision = f" at revision {evaluation.dataset_revision}" if evaluation.dataset_revision else ""
    numbers = join_words([f"{numbers.sum():,} in {split}" for split, numbers in counts.items()])
    sentences = [
        f"The dataset is {evaluation.dataset}{revision} with {plural(len(labels), 'class', 'classes')}.",
        f"Number of images used: {numbers}.",
    ]
    if "train" in counts:
        sentences.append("Settings and epochs were chosen on the validation split, not on the test split.")
    is_balanced = all(numbers.min() == numbers.max() for numbers in counts.values())
    if is_balanced:
        each = join_words([f"{numbers[0]:,} images in {split}" for split, numbers in counts.items()])
        sentences.append(f"Each class has {each}.")
    elif "train" in counts:
        fewest, most = counts["train"].argmin(), counts["train"].argmax()
        low, high = counts["train"][fewest], counts["train"][most]
        sentences.append(
            f"Classes have between {low:,} ({labels[fewest]}) and {high:,} ({labels[most]}) training images."
        )
    sentences += describe_preprocessing(models)
    blocks: list[Block] = []
    if splits and splits.train is not None:
        images, image_labels = training_samples(splits)
        figures.save_samples(folder / "samples", images, image_labels, splits.labels, columns=SAMPLES)
        blocks.append(FigureBlock("samples", "Training images, one row per class.", 0.38))
    if not is_balanced:
        figures.save_classes(folder / "classes", counts, labels)
        blocks.append(FigureBlock("classes", "Number of images of each class in each split.", HALF))
    return Section("Data and preprocessing", sentences, [*blocks, preprocessing_table(models)], blocks)


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


def describe_preprocessing(models: list[ModelResult]) -> list[str]:
    """What is done to every image, and which models see several views of it."""
    sentences = [
        "Every image is decoded to upright 8-bit RGB and prepared by the processor that is saved with the weights. "
        "Training, evaluation and application do this in the same way."
    ]
    return sentences + [
        f"{model.name} averages the probabilities of {model.evaluation.views} views of each image: its accuracy is "
        f"{percent(model.accuracy)}, and {percent(model.evaluation.accuracy_one_view)} with a single view."
        for model in models
        if (model.evaluation.views or 1) > 1 and model.evaluation.accuracy_one_view is not None
    ]


def preprocessing_table(models: list[ModelResult]) -> TableBlock:
    """The input of each network."""
    rows = []
    for model in models:
        processor = model.predictor.processor
        side = processors.size_of(processor)
        interpolation = "bicubic" if processors.is_bicubic(processor) else "bilinear"
        mean, std = (", ".join(f"{value:.3f}" for value in values) for values in processors.mean_std(processor))
        crop = f"{processors.crop_pct_of(processor):.2f}"
        views = str(model.evaluation.views or 1)
        rows.append((model.name, f"{side} × {side}", interpolation, crop, mean, std, views))
    header = ("model", "input size", "interpolation", "crop", "mean (R, G, B)", "standard deviation", "views")
    caption = (
        "Input of each network. Size in pixels; crop: the fraction of the resized image that is kept. Pixel values "
        "from 0 to 1 are normalized with the mean and the standard deviation."
    )
    return TableBlock(header, rows, caption)


def architectures(folder: Path, models: list[ModelResult]) -> Section:
    """A diagram of each model."""
    blocks = []
    for model in models:
        layers, side = architecture.trace(model.predictor), processors.size_of(model.predictor.processor)
        name = f"architecture_{model.slug}"
        figures.save_architecture(folder / name, layers, model.name, (3, side, side))
        kind = type(model.predictor.model).__name__
        blocks.append(FigureBlock(name, f"{model.name}: {kind}.", HALF))
    sentences = [
        "A diagram shows the layers that an image passes through; consecutive blocks of equal shape are drawn once, "
        "with their number (×).",
        "To the right of a layer are the shape of its output and its share of the parameters.",
    ]
    return Section("Architecture" if len(models) == 1 else "Architectures", sentences, blocks, blocks[:3])
