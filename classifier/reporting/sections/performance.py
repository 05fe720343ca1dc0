"""Sections on the quality of the predictions: metrics, confusions, calibration, robustness, out-of-distribution."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from classifier.data.loaders import image_batches
from classifier.data.splits import Splits
from classifier.errors import first_few
from classifier.evaluation.corruptions import KINDS
from classifier.models.predictor import Predictor
from classifier.records import Comparison, CorruptedAccuracy, Ensemble, ModelEvaluation, OodResult
from classifier.reporting import figures
from classifier.reporting.blocks import HALF, Block, FigureBlock, Section, TableBlock, figures_of_models
from classifier.reporting.formatting import fraction, join_words, percent, percent_interval, plural, points
from classifier.reporting.results import ModelResult, Results

MAX_CLASSES = 16  # in the figure and the table of classes
SCORES = {  # of out-of-distribution detection: how tables and sentences call them
    "max_probability": "highest probability",
    "energy": "energy",
    "gen": "GEN",
    "fdbd": "fDBD",
    "neighbours": "nearest neighbours",
    "nnguide": "NNGuide",
    "vim": "ViM",
    "mahalanobis": "Mahalanobis",
    "relative_mahalanobis": "relative Mahalanobis",
}
SCORE_TERMS = {
    "max_probability": "the highest probability",
    "energy": "the energy (the log-sum-exp of the outputs)",
    "gen": "GEN (an entropy of the probabilities)",
    "fdbd": "fDBD (the distance to the boundaries between classes)",
    "neighbours": "the similarity of its features to those of the nearest training images (nearest neighbours)",
    "nnguide": "NNGuide (the energy times such a similarity)",
    "vim": "ViM (the energy minus the part of its features that is outside of the space of training features)",
    "mahalanobis": "the Mahalanobis distance of its features to the nearest class",
    "relative_mahalanobis": "that distance relative to the one to all training images (relative Mahalanobis)",
}
# Settings of recipes, and the corruptions that a model then sees in training, by the ends of their names.
SEEN = {"noise": ("noise",), "degraded": ("noise", "blur", "contrast")}
SEEN_TERMS = {"noise": "noise", "blur": "blur", "contrast": "low contrast"}
SLIDE_METRICS = (
    "accuracy",
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
    models, evaluation = results.models, results.evaluation
    rows = metric_rows([model.evaluation for model in models])
    table = TableBlock(("metric", *(model.name for model in models)), rows, f"Metrics on {evaluation.n:,} test images.")
    blocks: list[Block] = [table]
    if evaluation.comparisons:
        blocks.append(comparison_table(evaluation.comparisons))
    sentences = [
        "Precision is the fraction of the images predicted as a class that belong to it, recall the fraction of the "
        "images of a class that are predicted as it, and F1 their harmonic mean.",
        describe_macro(models[0].evaluation),
    ]
    titles = {row[0] for row in rows}
    if "F1, weighted" in titles:
        sentences.append("Weighted values are means over classes that count each class by its number of test images.")
    if any(title.startswith("top-") for title in titles):
        sentences.append("Top-k accuracy counts an image as correct if its class is among the k most probable ones.")
    if "NLL (nats)" in titles:
        sentences.append(
            "NLL (negative log-likelihood, the cross-entropy) and the Brier score (the squared error of the "
            "probabilities) are 0 if every image gets probability 1 for its class; lower is better."
        )
    if evaluation.bf16:
        sentences.append("The evaluation ran in bfloat16, which changes the third digit of probabilities.")
    if evaluation.average:
        sentences.append(describe_average(evaluation.average, results.most_accurate))
    on_slide = [row for row in rows if row[0] in SLIDE_METRICS or row[0].startswith("top-")]
    return Section("Results", sentences, blocks, [replace(table, rows=on_slide)])


def describe_macro(evaluation: ModelEvaluation) -> str:
    """Which classes the macro values are means over."""
    if absent := evaluation.absent:
        return (
            f"No test image is of {first_few(absent)}: macro values are means over the other "
            f"{plural(len(evaluation.f1_of_classes), 'class', 'classes')}."
        )
    return "Macro values are means over classes."


def metric_rows(models: list[ModelEvaluation]) -> list[tuple[str, ...]]:
    """A row for each metric that at least one model has."""

    def row(title: str, values: Sequence[float | None], form: str = ".4f") -> tuple[str, ...]:
        return (title, *("–" if value is None else f"{value:{form}}" for value in values))

    rows = [row("accuracy", [model.accuracy for model in models], ".2%")]
    per_class = (("precision", "precision"), ("recall", "recall"), ("f1", "F1"))
    macro = [row(f"{title}, macro", [getattr(model, key) for model in models]) for key, title in per_class]
    weighted = [
        row(f"{title}, weighted", [getattr(model.weighted, key, None) for model in models]) for key, title in per_class
    ]
    rows += macro
    if [cells[1:] for cells in macro] != [cells[1:] for cells in weighted]:  # equal if all classes have as many images
        rows += weighted
    for k in dict.fromkeys(k for model in models for k in model.top_k_accuracy):
        rows.append(row(f"top-{k} accuracy", [model.top_k_accuracy.get(k) for model in models], ".2%"))
    for key, title in (("nll", "NLL (nats)"), ("brier", "Brier score (0 to 2)"), ("ece", "ECE (15 bins)")):
        rows.append(row(title, [getattr(model, key) for model in models]))
        before = f"{title.split(' (')[0]} before temperature scaling"
        rows.append(row(before, [getattr(model.before_temperature, key, None) for model in models]))
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
    caption = (
        "Difference in accuracy of two models on the same images, in percentage points. McNemar p: the probability of "
        "a difference at least as large between equally accurate models. Agreement: the fraction of images with the "
        "same predicted class."
    )
    return TableBlock((*header, "agreement"), rows, caption)


def describe_average(average: Ensemble, best: ModelResult) -> str:
    """How the mean of all models' probabilities compares with the best model."""
    if average.accuracy <= best.accuracy:
        comparison = f"not higher than that of {best.name} alone"
    elif average.accuracy_ci95[0] > best.evaluation.accuracy_ci95[1]:
        comparison = f"higher than that of {best.name} alone"
    else:
        comparison = f"higher than that of {best.name} alone, but the intervals overlap"
    return (
        "Averaging the probabilities of all models gives an accuracy of "
        f"{percent(average.accuracy)} (95% interval {percent_interval(average.accuracy_ci95)}), {comparison}."
    )


def confusion(folder: Path, models: list[ModelResult]) -> Section | None:
    """Which classes are confused: as matrices, or with many classes as a table of the most frequent confusions.

    None with many classes if no class is confused.
    """
    sentences = []
    for model in models:
        if pairs := [f"{pair.label} as {pair.predicted} ({pair.n:,})" for pair in model.evaluation.confused[:3]]:
            sentences.append(f"The most frequent confusions of {model.name} are {join_words(pairs)}.")
    labels = list(models[0].evaluation.per_class)
    blocks: list[Block]
    if len(labels) <= figures.MAX_MATRICES_NAMES:
        matrices = {model.name: np.array(model.evaluation.confusion_matrix) for model in models}
        caption = "Number of test images by true class (row) and predicted class (column)."
        if len(models) == 1:
            figures.save_confusion(folder / "confusion", matrices[models[0].name], labels)
            blocks = [FigureBlock("confusion", caption, 0.6)]
        else:
            save = partial(figures.save_confusion_of_models, labels=labels)
            blocks = figures_of_models(folder, "confusion", matrices, save, f"{caption} Empty cells are 0.")
    else:
        rows = [
            (model.name, pair.label, pair.predicted, f"{pair.n:,}")
            for model in models
            for pair in model.evaluation.confused
        ]
        if not rows:
            return None
        header = ("model", "true class", "predicted class", "images")
        blocks = [TableBlock(header, rows, "The most frequent confusions.")]
    return Section("Confused classes", sentences, blocks, blocks[:1])


def classes(folder: Path, models: list[ModelResult], best: ModelResult) -> Section:
    """F1 of each class."""
    per_class, f1 = best.evaluation.per_class, best.evaluation.f1_of_classes
    lowest = [*sorted(f1, key=f1.__getitem__), *best.evaluation.absent][:MAX_CLASSES]
    scores = {model.name: {label: model.evaluation.per_class[label].f1 for label in lowest} for model in models}
    figures.save_class_scores(folder / "class_f1", scores, "F1")
    few = (
        f"; the {MAX_CLASSES} of {len(per_class)} classes with the lowest F1 of {best.name}"
        if len(per_class) > MAX_CLASSES
        else ""
    )
    figure = FigureBlock("class_f1", f"F1 of each class{few}.", HALF)
    rows = [
        (label, fraction(row.precision), fraction(row.recall), fraction(row.f1), f"{row.n:,}" if row.n else "no images")
        for label, row in ((label, per_class[label]) for label in lowest)
    ]
    table = TableBlock(("class", "precision", "recall", "F1", "images"), rows, f"Classes by F1 of {best.name}{few}.")
    return Section("Classes", [describe_classes(model) for model in models], [figure, table], [figure])


def describe_classes(model: ModelResult) -> str:
    """The classes with the lowest and the highest F1."""
    f1 = model.evaluation.f1_of_classes
    low, high = min(f1, key=f1.__getitem__), max(f1, key=f1.__getitem__)
    if f1[low] == f1[high]:
        return f"The F1 of {model.name} is {f1[low]:.4f} for every class."
    return f"The F1 of {model.name} is lowest for {low} ({f1[low]:.4f}) and highest for {high} ({f1[high]:.4f})."


def calibration(folder: Path, models: list[ModelResult]) -> Section | None:
    """Reliability diagrams and the effect of temperature scaling; None if there are no bins."""
    bins = {model.name: reliability for model in models if (reliability := model.reliability)}
    if not bins:
        return None
    caption = (
        "Reliability diagrams: the accuracy of images by the probability of their predicted class (confidence), in 15 "
        "bins of equal width, and below, the fraction of images in each bin. A calibrated model is on the diagonal."
    )
    blocks = figures_of_models(folder, "reliability", bins, figures.save_reliability, caption)
    sentences = [
        "A model is calibrated if its probabilities agree with how often it is right: of the images that it classifies "
        "with a probability of 0.8, it classifies four out of five correctly.",
        "Temperature scaling divides the outputs of a trained model by a number, the temperature, that is fitted on "
        "the validation split; it changes the probabilities, but not which class is predicted.",
    ]
    sentences += [describe_calibration(model.evaluation) for model in models if model.name in bins]
    return Section("Calibration", sentences, blocks, blocks[:1])


def describe_calibration(model: ModelEvaluation) -> str:
    """The effect of temperature scaling on the ECE."""
    ece, before = model.ece, model.before_temperature
    assert ece is not None  # it is computed from the bins
    if before is None:
        return f"{model.model} has an ECE of {ece:.4f}; no temperature is recorded."
    scaling = f"For {model.model}, the temperature {model.temperature:.3f}"
    if abs(ece - before.ece) < 5e-4:
        return f"{scaling} leaves the ECE at {ece:.4f}."
    return f"{scaling} {'lowers' if ece < before.ece else 'raises'} the ECE from {before.ece:.4f} to {ece:.4f}."


def robustness(folder: Path, models: list[ModelResult]) -> Section | None:
    """Accuracy on corrupted images; None if it was not measured."""
    by_model = {model.name: result for model in models if (result := model.evaluation.corrupted)}
    if not by_model:
        return None
    by_strength = {
        name: {kind: [result.clean, *values] for kind, values in result.accuracy.items()}
        for name, result in by_model.items()
    }
    figures.save_robustness(folder / "robustness", by_strength)
    n = min(result.n for result in by_model.values())
    figure = FigureBlock("robustness", f"Accuracy on {n:,} test images by kind and strength of the corruption.")
    rows = [("none", *(percent(result.clean) for result in by_model.values()))]
    for kind in next(iter(by_strength.values())):
        rows.append((kind.replace("_", " "), *(percent(result.strongest[kind]) for result in by_model.values())))
    rows.append(("all, at all strengths", *(mean_cell(result) for result in by_model.values())))
    interval = ", with its 95% interval" if all(result.mean_ci95 for result in by_model.values()) else ""
    caption = (
        f"Accuracy on {n:,} test images at the highest strength of each corruption. The last row is the mean over all "
        f"corruptions and strengths{interval}."
    )
    table = TableBlock(("corruption", *by_model), rows, caption)
    sentences = [
        f"Accuracy was measured again on {n:,} test images that were corrupted, for example by noise or blur, with "
        "increasing strength."
    ]
    if all(result.accuracy.keys() == KINDS.keys() for result in by_model.values()):
        sentences.append(
            "Kinds and strengths are those of CIFAR-10-C (arXiv:1903.12261). The images are made here and are not the "
            "published files, so accuracies can differ a little from those that are measured on these."
        )
    sentences += [describe_robustness(name, result) for name, result in by_model.items()]
    sentences += compare_robustness(by_model)
    for model in models:
        seen = seen_corruptions(stage.recipe for stage in model.stages)
        if seen and model.name in by_model:
            sentences.append(describe_seen(model.name, seen, by_model[model.name]))
    return Section("Robustness", sentences, [table, figure], [figure])


def describe_robustness(name: str, result: CorruptedAccuracy) -> str:
    """The most and the least harmful corruption at the highest strength; `name` is the model's."""
    accuracy = result.strongest
    worst, mildest = min(accuracy, key=accuracy.__getitem__), max(accuracy, key=accuracy.__getitem__)
    return (
        f"Under the strongest corruptions, the accuracy of {name} is lowest for {worst.replace('_', ' ')} "
        f"({percent(accuracy[worst])}) and highest for {mildest.replace('_', ' ')} ({percent(accuracy[mildest])}); "
        f"without corruption it is {percent(result.clean)}."
    )


def mean_cell(result: CorruptedAccuracy) -> str:
    """The mean accuracy over all corruptions and strengths, with its interval if that is known."""
    return percent(result.mean) + (f" ({percent_interval(result.mean_ci95)})" if result.mean_ci95 else "")


def seen_corruptions(recipes: Iterable[dict]) -> tuple[str, ...]:
    """What kinds of corruptions, by the ends of their names, a model saw in training by its stages' recipes."""
    return max((seen for recipe in recipes for name, seen in SEEN.items() if recipe.get(name)), key=len, default=())


def describe_seen(name: str, seen: tuple[str, ...], result: CorruptedAccuracy) -> str:
    """What a model that was trained with some kinds of corruptions reaches on the others; `name` is the model's."""
    others = {kind: values for kind, values in result.accuracy.items() if not kind.endswith(seen)}
    terms = join_words([SEEN_TERMS[each] for each in seen])
    mean = percent(replace(result, accuracy=others).mean)
    return f"{name} saw {terms} in training. Over the other corruptions, its mean accuracy is {mean}."


def compare_robustness(corrupted: dict[str, CorruptedAccuracy]) -> list[str]:
    """The models with the highest and the lowest mean accuracy on corrupted images, as a sentence; [] if it is equal.

    `corrupted` is {name: accuracy}.
    """
    (best, most), *_ = ranked = sorted(corrupted.items(), key=lambda item: -item[1].mean)
    worst, least = ranked[-1]
    if most.mean == least.mean:
        return []
    return [
        f"Over all corruptions and strengths, {best} has the highest mean accuracy ({percent(most.mean)}) and {worst} "
        f"the lowest ({percent(least.mean)}). Their difference is {points(most.mean - least.mean)} percentage points; "
        f"on the same images without corruption it is {points(most.clean - least.clean)}."
    ]


def photographs(models: list[ModelResult]) -> Section | None:
    """Accuracy and out-of-distribution detection on photographs; None if they were not measured."""
    measured = {model.name: model.evaluation.photographs for model in models if model.evaluation.photographs}
    if not measured:
        return None
    rows = [
        (
            name,
            each.folder,
            f"{each.n:,} + {each.n_none:,}",
            f"{percent(each.accuracy)} ({percent_interval(each.accuracy_ci95)})",
            "–" if each.kept is None else percent(each.kept),
            "–" if each.flagged is None else percent(each.flagged),
        )
        for name, results in measured.items()
        for each in results
    ]
    table = TableBlock(
        ("model", "photographs", "of a class + of none", "accuracy (95% interval)", "kept", "flagged"),
        rows,
        "Photographs. Kept: the fraction of those of a class that count as in-distribution. Flagged: the fraction of "
        "those of none that count as out-of-distribution.",
    )
    sentences = [
        "Photographs as users send them differ from the test images, in size and in what they show. The size to which "
        "they are reduced and the threshold of the out-of-distribution score may have been chosen on the same ones."
    ]
    for name, results in measured.items():
        hardest = min(results, key=lambda each: each.accuracy)
        sentences.append(
            f"{name} labels {percent(hardest.accuracy)} of the {plural(hardest.n, 'photograph')} of a class in "
            f"“{hardest.folder}” correctly."
        )
    return Section("Photographs", sentences, [table])


def out_of_distribution(models: list[ModelResult]) -> Section | None:
    """How well images of none of the classes are detected; None if it was not measured."""
    models = [model for model in models if model.ood]
    if not models:
        return None
    scores = list(models[0].ood)
    titles = {score: SCORES.get(score, score) for score in scores}
    overall = TableBlock(
        ("score", *(model.name for model in models)),
        [(title, *(ood_cell(model.mean_ood(score)) for model in models)) for score, title in titles.items()],
        "AUROC / FPR95 by score, means over all OOD sets. AUROC: the probability that a test image has a higher score "
        "than an OOD image; 0.5 is chance, 1 is perfect. FPR95: the fraction of OOD images that are accepted if 95% of "
        "the test images are; 0 is perfect.",
    )
    in_use = {model.name: model.ood[model.ood_score] for model in models}
    rows = [
        (name.replace("_", " "), *(ood_cell(sets[name]) for sets in in_use.values()))
        for name in next(iter(in_use.values()))
    ]
    by_set = TableBlock(("set", *in_use), rows, "AUROC / FPR95 by set, by the score that each model uses.")
    sentences = [
        "Out-of-distribution (OOD) images show none of the classes, so a model should reject them.",
        "It rejects an image if its score is low. The scores are "
        f"{join_words([SCORE_TERMS.get(score, score) for score in scores])}.",
        "Page, API and classifier.predict use the one that is stored with each model; it needs only the logits. The "
        "others show what could be gained.",
    ]
    sentences += [describe_ood(model) for model in models]
    return Section("Out-of-distribution images", sentences, [overall, by_set], [overall])


def describe_ood(model: ModelResult) -> str:
    """A model's hardest set by the score in use, its best score, and the scores that are worse than chance."""
    score = model.ood_score
    sets = model.ood[score]
    hardest = min(sets, key=lambda name: sets[name].auroc)
    below = ", below chance" if sets[hardest].auroc < 0.5 else ""
    text = (
        f"{model.name} uses the {SCORES[score]}. Its mean AUROC is {model.mean_ood(score).auroc:.3f}; the hardest set "
        f"is “{hardest.replace('_', ' ')}” (AUROC {sets[hardest].auroc:.3f}{below})."
    )
    best = max(model.ood, key=lambda name: model.mean_ood(name).auroc)
    if best != score:
        text += f" The highest is {model.mean_ood(best).auroc:.3f}, by {SCORES.get(best, best)}."
    bad = [SCORES.get(name, name) for name in model.ood if model.mean_ood(name).auroc < 0.5]
    return text + (f" Its mean AUROC by {join_words(bad)} is below chance: do not use that score." if bad else "")


def ood_cell(scores: OodResult) -> str:
    """AUROC and FPR95 in one cell of a table."""
    return f"{scores.auroc:.3f} / {scores.fpr95:.3f}"


def mistakes(
    folder: Path, results: Results, best: ModelResult, splits: Splits | None, heat_map: HeatMap | None
) -> Section | None:
    """The most confident mistakes as images; None without mistakes or without the test split."""
    shown = {model.slug: model.evaluation.mistakes[: figures.MAX_MISTAKES] for model in results.models}
    models = [model for model in results.models if shown[model.slug]]
    if not models or splits is None or splits.test is None:
        return None
    indices = sorted({mistake.image for mistakes in shown.values() for mistake in mistakes})
    images = dict(zip(indices, load_test_images(splits, indices, results.evaluation.n), strict=True))
    sentences, blocks = [], {}
    for model in models:
        name = f"mistakes_{model.slug}"
        tiles = []
        for mistake in shown[model.slug]:
            image = images[mistake.image]
            overlay = heat_map(model.predictor, image) if heat_map else None
            tiles.append((image, overlay, mistake.label, mistake.predicted, mistake.probability))
        figures.save_mistakes(folder / name, tiles)
        caption = f"The most confident mistakes of {model.name}: true → predicted class, and its probability"
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
