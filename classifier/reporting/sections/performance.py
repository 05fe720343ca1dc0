"""Sections on the quality of the predictions: metrics, confusions, calibration, robustness, out-of-distribution."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from classifier.data.loaders import image_batches
from classifier.data.splits import Splits
from classifier.evaluation.corruptions import KINDS
from classifier.models.predictor import Predictor
from classifier.records import Comparison, CorruptedAccuracy, OodResult
from classifier.reporting import figures
from classifier.reporting.blocks import Block, FigureBlock, Section, TableBlock
from classifier.reporting.formatting import join_words, percent, percent_interval, points
from classifier.reporting.results import Interval, ModelResult, Results

MAX_CLASSES = 30  # rows of the table of classes
SCORES = {"max_probability": "maximum probability", "energy": "energy", "neighbours": "nearest neighbours"}
SLIDE_METRICS = (
    "accuracy",
    "95% interval",
    "precision, macro",
    "recall, macro",
    "F1, macro",
    "F1, weighted",
    "NLL (nats)",
    "Brier score (0 to 2)",
    "ECE (15 bins)",
    "ECE before temperature scaling",
)

HeatMap = Callable[[Predictor, Image.Image], Image.Image | None]


def metrics(results: Results) -> Section:
    """All metrics of all models, and the paired comparisons."""
    models = results.models
    rows = metric_rows(models)
    table = TableBlock(
        ("metric", *(model.name for model in models)),
        rows,
        f"Metrics on {results.n:,} test images. Macro: mean over classes; weighted: mean over classes, weighted by "
        "their number of images. The interval is bootstrapped over images.",
    )
    blocks: list[Block] = [table]
    if results.comparisons:
        blocks.append(comparison_table(results.comparisons))
    sentences = [
        f"The accuracy of {model.name} is {percent(model.accuracy)} (95% interval "
        f"{percent_interval(model.accuracy_interval)})."
        for model in models
    ]
    if results.bf16:
        sentences.append("The evaluation ran in bfloat16, which changes the third digit of probabilities.")
    if results.average:
        sentences.append(describe_average(results.average, results.most_accurate))
    on_slide = [row for row in rows if row[0] in SLIDE_METRICS or row[0].startswith("top-")]
    return Section("Results", sentences, blocks, [replace(table, rows=on_slide)])


def metric_rows(models: list[ModelResult]) -> list[tuple[str, ...]]:
    """A row for each metric that at least one model has."""

    def row(title: str, values: Sequence[float | None], form: str = ".4f") -> tuple[str, ...]:
        return (title, *("–" if value is None else f"{value:{form}}" for value in values))

    rows = [row("accuracy", [model.accuracy for model in models], ".2%")]
    rows.append(("95% interval", *(percent_interval(model.accuracy_interval) for model in models)))
    per_class = (("precision", "precision"), ("recall", "recall"), ("f1", "F1"))
    rows += [row(f"{title}, macro", [model.metric(key) for model in models]) for key, title in per_class]
    rows += [row(f"{title}, weighted", [model.weighted(key) for model in models]) for key, title in per_class]
    for k in dict.fromkeys(k for model in models for k in model.evaluation.top_k_accuracy):
        rows.append(row(f"top-{k} accuracy", [model.evaluation.top_k_accuracy.get(k) for model in models], ".2%"))
    for key, title in (("nll", "NLL (nats)"), ("brier", "Brier score (0 to 2)"), ("ece", "ECE (15 bins)")):
        rows.append(row(title, [model.metric(key) for model in models]))
        before = f"{title.split(' (')[0]} before temperature scaling"
        rows.append(row(before, [model.uncalibrated(key) for model in models]))
    return [cells for cells in rows if set(cells[1:]) != {"–"}]


def comparison_table(comparisons: list[Comparison]) -> TableBlock:
    """The accuracy of each two models on the same images."""
    header = ("models", "difference", "95% interval", "only first correct", "only second correct", "McNemar p")
    rows = [
        (
            " – ".join(row.models),
            points(row.difference),
            " to ".join(map(points, row.difference_ci95)),
            f"{row.only_a_right:,}",
            f"{row.only_b_right:,}",
            f"{row.p_value:.2g}",
            percent(row.agreement),
        )
        for row in comparisons
    ]
    caption = "Difference in accuracy of two models on the same images, in percentage points, with a paired interval."
    return TableBlock((*header, "agreement"), rows, caption)


def describe_average(average: tuple[float, Interval], best: ModelResult) -> str:
    """How the mean of all models' probabilities, with its accuracy and 95% interval, compares with the best model."""
    accuracy, interval = average
    if accuracy <= best.accuracy:
        comparison = f"not higher than that of {best.name} alone"
    elif interval[0] > best.accuracy_interval[1]:
        comparison = f"higher than that of {best.name} alone"
    else:
        comparison = f"higher than that of {best.name} alone, but the intervals overlap"
    return (
        "Averaging the probabilities of all models gives an accuracy of "
        f"{percent(accuracy)} ({percent_interval(interval)}), {comparison}."
    )


def confusion(folder: Path, models: list[ModelResult], best: ModelResult) -> Section:
    """The confusion matrix of each model, and its most frequent confusions."""
    sentences, blocks = [], {}
    for model in models:
        name = f"confusion_{model.slug}"
        figures.save_confusion(folder / name, model.confusion_matrix, list(model.per_class))
        blocks[model.name] = FigureBlock(name, f"{model.name}: number of images by true and predicted class.", 0.68)
        if model.confusions:
            pairs = [f"{pair.label} predicted as {pair.predicted} ({pair.n:,})" for pair in model.confusions[:3]]
            sentences.append(f"The most frequent confusions of {model.name}: {join_words(pairs)}.")
    return Section("Confusion", sentences, list(blocks.values()), [blocks[best.name]])


def classes(folder: Path, models: list[ModelResult], best: ModelResult) -> Section:
    """F1 of each class."""
    scores = {model.name: {label: scores.f1 for label, scores in model.per_class.items()} for model in models}
    figures.save_class_scores(folder / "class_f1", scores, "F1")
    n = len(best.per_class)
    few = f", for the {figures.MAX_BAR_ROWS} of {n} classes with the lowest F1" if n > figures.MAX_BAR_ROWS else ""
    figure = FigureBlock("class_f1", f"F1 of each class{few}.", 0.9)
    lowest = sorted(best.per_class.items(), key=lambda item: item[1].f1)[:MAX_CLASSES]
    table = TableBlock(
        ("class", "precision", "recall", "F1", "images"),
        [(label, f"{row.precision:.4f}", f"{row.recall:.4f}", f"{row.f1:.4f}", f"{row.n:,}") for label, row in lowest],
        f"{best.name}: classes by F1" + (f", the lowest {MAX_CLASSES} of {n}." if n > MAX_CLASSES else "."),
    )
    return Section("Classes", [describe_classes(model) for model in models], [figure, table])


def describe_classes(model: ModelResult) -> str:
    """The classes with the lowest and the highest F1."""
    f1 = {label: scores.f1 for label, scores in model.per_class.items()}
    low, high = min(f1, key=f1.__getitem__), max(f1, key=f1.__getitem__)
    if f1[low] == f1[high]:
        return f"The F1 of {model.name} is {f1[low]:.4f} for every class."
    return f"The F1 of {model.name} is lowest for {low} ({f1[low]:.4f}) and highest for {high} ({f1[high]:.4f})."


def calibration(folder: Path, models: list[ModelResult]) -> Section | None:
    """Reliability diagrams and the effect of temperature scaling; None if there are no bins."""
    bins = {model.name: reliability for model in models if (reliability := model.reliability)}
    if not bins:
        return None
    figures.save_reliability(folder / "reliability", bins)
    caption = "Accuracy by confidence in 15 bins of equal width, and below, the fraction of images in each bin."
    figure = FigureBlock("reliability", caption)
    sentences = [describe_calibration(model) for model in models if model.name in bins]
    return Section("Calibration", sentences, [figure], [figure])


def describe_calibration(model: ModelResult) -> str:
    """The effect of temperature scaling on ECE and NLL."""
    ece, before = model.metric("ece"), model.uncalibrated("ece")
    assert ece is not None  # it is computed from the bins
    if before is None:
        return f"{model.name} has an ECE of {ece:.4f}; no temperature is recorded."
    scaling = f"{model.name}: temperature scaling with T = {model.temperature:.3f}, fitted on the validation split,"
    if abs(ece - before) < 5e-4:
        return f"{scaling} leaves the ECE at {ece:.4f}."
    return (
        f"{scaling} {'lowers' if ece < before else 'raises'} the ECE from {before:.4f} to {ece:.4f} and changes the "
        f"NLL from {model.uncalibrated('nll'):.4f} to {model.metric('nll'):.4f}."
    )


def robustness(folder: Path, models: list[ModelResult]) -> Section | None:
    """Accuracy on corrupted images; None if it was not measured."""
    by_model = {model.name: result for model in models if (result := model.corruptions)}
    if not by_model:
        return None
    by_strength = {
        name: {kind: [result.clean, *values] for kind, values in result.accuracy.items()}
        for name, result in by_model.items()
    }
    figures.save_robustness(folder / "robustness", by_strength)
    n = min(result.n for result in by_model.values())
    figure = FigureBlock("robustness", f"Accuracy on {n:,} test images by kind and strength of the corruption.")
    rows = [("none", "–", *(percent(result.clean) for result in by_model.values()))]
    for kind in next(iter(by_strength.values())):
        strength = f"{KINDS[kind].strengths[-1]:.3g} ({KINDS[kind].unit.split(',')[0]})" if kind in KINDS else "–"
        values = [percent(result.strongest[kind]) for result in by_model.values()]
        rows.append((kind.replace("_", " "), strength, *values))
    caption = f"Accuracy on {n:,} test images at the highest strength of each corruption."
    table = TableBlock(("corruption", "highest strength", *by_model), rows, caption)
    sentences = [describe_robustness(name, result) for name, result in by_model.items()]
    return Section("Robustness", sentences, [figure, table], [figure])


def describe_robustness(name: str, result: CorruptedAccuracy) -> str:
    """The most and the least harmful corruption at the highest strength; `name` is the model's."""
    accuracy = result.strongest
    worst, mildest = min(accuracy, key=accuracy.__getitem__), max(accuracy, key=accuracy.__getitem__)
    return (
        f"On {result.n:,} images, the accuracy of {name} is {percent(result.clean)} without corruption; at the "
        f"highest strength it is lowest under {worst.replace('_', ' ')} ({percent(accuracy[worst])}) and highest under "
        f"{mildest.replace('_', ' ')} ({percent(accuracy[mildest])})."
    )


def out_of_distribution(models: list[ModelResult]) -> Section | None:
    """How well images of none of the classes are detected; None if it was not measured."""
    models = [model for model in models if model.ood]
    if not models:
        return None
    scores = list(models[0].ood)
    titles = [SCORES.get(score, score) for score in scores]
    overall = TableBlock(
        ("model", *titles),
        [(model.name, *(ood_cell(model.mean_ood(score)) for score in scores)) for model in models],
        "AUROC / FPR95 by score, means over all out-of-distribution sets. AUROC: 0.5 is chance, 1 is perfect. FPR95: "
        "the fraction of out-of-distribution images that are accepted at the threshold that accepts 95% of the test "
        "images.",
    )
    blocks = [overall]
    for model in models:
        rows = [
            (name.replace("_", " "), *(ood_cell(model.ood[score][name]) for score in scores))
            for name in model.ood[scores[0]]
        ]
        blocks.append(TableBlock(("set", *titles), rows, f"{model.name}: AUROC / FPR95 by set and score."))
    return Section("Out-of-distribution images", [describe_ood(model) for model in models], blocks, [overall])


def best_ood_score(model: ModelResult) -> str:
    """The score with the highest mean AUROC."""
    return max(model.ood, key=lambda score: model.mean_ood(score).auroc)


def describe_ood(model: ModelResult) -> str:
    """The best score of a model, its hardest set, and the scores that are worse than chance."""
    best = best_ood_score(model)
    sets = model.ood[best]
    hardest = min(sets, key=lambda name: sets[name].auroc)
    below = ", below chance" if sets[hardest].auroc < 0.5 else ""
    text = (
        f"{model.name} detects out-of-distribution images best by {SCORES.get(best, best)}; the hardest set is "
        f"“{hardest.replace('_', ' ')}” (AUROC {sets[hardest].auroc:.3f}{below})."
    )
    bad = [SCORES.get(score, score) for score in model.ood if model.mean_ood(score).auroc < 0.5]
    return text + (f" Its mean AUROC is below chance by {join_words(bad)}: do not use that." if bad else "")


def ood_cell(scores: OodResult) -> str:
    """AUROC and FPR95 in one cell of a table."""
    return f"{scores.auroc:.3f} / {scores.fpr95:.3f}"


def mistakes(
    folder: Path, results: Results, best: ModelResult, splits: Splits | None, heat_map: HeatMap | None
) -> Section | None:
    """The most confident mistakes as images; None without mistakes or without the test split."""
    models = [model for model in results.models if model.evaluation.mistakes]
    if not models or splits is None or splits.test is None:
        return None
    indices = sorted({mistake.image for model in models for mistake in model.evaluation.mistakes})
    images = dict(zip(indices, load_test_images(splits, indices, results.n), strict=True))
    sentences, blocks = [], {}
    for model in models:
        name = f"mistakes_{model.slug}"
        tiles = []
        for mistake in model.evaluation.mistakes:
            image = images[mistake.image]
            overlay = heat_map(model.predictor, image) if heat_map else None
            tiles.append((image, overlay, mistake.label, mistake.predicted, mistake.probability))
        figures.save_mistakes(folder / name, tiles)
        caption = f"{model.name}: the most confident mistakes, with true → predicted class and its probability"
        has_maps = any(overlay for _, overlay, *_ in tiles)
        caption += "; below, heat maps of the image regions that the prediction depends on." if has_maps else "."
        blocks[model.name] = FigureBlock(name, caption)
        first = model.evaluation.mistakes[0]
        sentences.append(
            f"The most confident mistake of {model.name} is {first.label} predicted as {first.predicted}, with a "
            f"probability of {first.probability:.3f}."
        )
    on_slide = blocks.get(best.name, next(iter(blocks.values())))
    return Section("Mistakes", sentences, list(blocks.values()), [on_slide])


def load_test_images(splits: Splits, indices: Sequence[int], n: int) -> list[Image.Image]:
    """Test images by their ascending indices among the `n` readable ones."""
    if len(splits["test"]) == n:
        part = splits.select("test", list(indices))
        return [image for images, _ in image_batches("test", part, 64) for image in images]
    selected, start = [], 0  # Some images are unreadable, so an index is only known after reading all images before it.
    for images, _ in image_batches("test", splits, 64):
        selected += [images[i - start] for i in indices if start <= i < start + len(images)]
        start += len(images)
    return selected
