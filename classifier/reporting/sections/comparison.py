"""Sections that compare the models: which one to use, at which cost, and what holds for all of them."""

import json
from dataclasses import dataclass

import numpy as np

from classifier.records import CorruptedAccuracy
from classifier.reporting.blocks import Section, TableBlock
from classifier.reporting.formatting import join_words, percent, percent_interval, points, si
from classifier.reporting.results import RANDOM_WEIGHTS, ModelResult, Results, describe_machine
from classifier.reporting.sections.performance import (
    SCORES,
    best_ood_score,
    describe_calibration,
    describe_classes,
    describe_robustness,
)


@dataclass(frozen=True)
class Choice:
    """The model to use, and the reasons as sentences."""

    model: ModelResult
    reasons: list[str]


def choose(results: Results) -> Choice:
    """The model to use.

    Of the models whose accuracy does not differ significantly from the highest, it is the one with the lowest latency,
    or the one with the fewest parameters if one of them was not timed. Without a paired comparison, the difference
    is significant if the models' own intervals do not overlap.
    """
    top = results.most_accurate
    others = [model for model in results.models if model is not top]
    interval = percent_interval(top.accuracy_interval)
    if not others:
        return Choice(top, [f"{top.name} has an accuracy of {percent(top.accuracy)} (95% interval {interval})."])
    candidates = [top]
    for model in others:
        difference = results.difference(top, model)
        overlap = difference[1][0] <= 0 if difference else model.accuracy_interval[1] >= top.accuracy_interval[0]
        if overlap:
            candidates.append(model)
    latencies = [model.latency for model in candidates if model.latency]
    timed = len(latencies) == len(candidates)
    best = candidates[int(np.argmin(latencies if timed else [model.n_parameters for model in candidates]))]
    cost = "lowest latency" if timed else "fewest parameters"
    reasons = [f"{top.name} has the highest accuracy, {percent(top.accuracy)} (95% interval {interval})."]
    reasons += [describe_difference(results, top, model) for model in others]
    if len(candidates) == 1:
        reasons.append(
            f"{best.name} is recommended: its accuracy is significantly higher than that of any other model."
        )
    elif best is top:
        reasons.append(
            f"{best.name} is recommended: of the models whose accuracy does not differ significantly from the highest, "
            f"it also has the {cost}."
        )
    else:
        reasons.append(
            f"{best.name} is recommended: its accuracy does not differ significantly from that of {top.name}, and of "
            f"such models it has the {cost}."
        )
    return Choice(best, reasons)


def describe_difference(results: Results, a: ModelResult, b: ModelResult) -> str:
    """The difference in accuracy of two models, and whether it is significant."""
    difference = results.difference(a, b)
    if difference is None:
        return f"{a.name} and {b.name} were not compared on the same images."
    value, (low, high) = difference
    interval = f"{points(low)} to {points(high)}"
    if low > 0 or high < 0:
        return (
            f"The accuracy of {a.name} is {points(abs(value), sign=False)} percentage points "
            f"{'higher' if value > 0 else 'lower'} than that of {b.name}; the paired 95% interval, {interval}, "
            "excludes 0."
        )
    return (
        f"The accuracies of {a.name} and {b.name} do not differ significantly: the difference is {points(value)} "
        f"percentage points, and the paired 95% interval, {interval}, includes 0."
    )


def summary(choice: Choice) -> Section:
    """The choice of a model, with the main strengths and weaknesses of that model."""
    best = choice.model
    sentences = [*choice.reasons, describe_classes(best)]
    if best.metric("ece") is not None:
        sentences.append(describe_calibration(best))
    if best.corruptions:
        sentences.append(describe_robustness(best.name, best.corruptions))
    return Section("Summary", sentences)


def transfer(results: Results) -> Section | None:
    """Fine-tuning compared with training from scratch; None unless there are models of both kinds."""
    trained = [model for model in results.models if model.stages]
    scratch = [model for model in trained if model.initial_weights == RANDOM_WEIGHTS]
    tuned = [model for model in trained if model.initial_weights != RANDOM_WEIGHTS]
    if not scratch or not tuned:
        return None
    rows = [
        (
            model.name,
            model.initial_weights or "–",
            percent(model.accuracy),
            model.training_time or "–",
            f"{si(model.training_flops)}FLOP" if model.training_flops else "–",
            f"{model.n_parameters:,}",
            f"{si(model.inference_flops)}FLOP" if model.inference_flops else "–",
            f"{model.latency:.1f} ms" if model.latency else "–",
        )
        for model in scratch + tuned
    ]
    header = ("model", "initial weights", "accuracy", "training time", "compute", "parameters", "per image", "latency")
    caption = (
        "Accuracy and cost. Compute: floating-point operations of training, which, like its time, do not include the "
        "pre-training of the initial weights; per image: those of inference."
    )
    table = TableBlock(header, rows, caption)
    best_scratch, best_tuned = (max(models, key=lambda model: model.accuracy) for models in (scratch, tuned))
    sentences = [describe_difference(results, model, best_scratch) for model in tuned]
    if best_scratch.training_time and best_tuned.training_time:
        sentences.append(compare_training_times(best_scratch, best_tuned))
    if best_scratch.latency and best_tuned.latency:
        faster, slower = best_scratch, best_tuned
        if best_tuned.latency < best_scratch.latency:
            faster, slower = slower, faster
        sentences.append(
            f"The median latency for one image is {faster.latency:.1f} ms for {faster.name} and "
            f"{slower.latency:.1f} ms for {slower.name}."
        )
    return Section("Transfer learning and training from scratch", sentences, [table], [table])


def compare_training_times(scratch: ModelResult, tuned: ModelResult) -> str:
    """The times of training, with a warning if they were measured on several machines."""
    machines = {json.dumps(stage.machine.to_json()) for model in (scratch, tuned) for stage in model.stages}
    warning = "" if len(machines) == 1 else "; the machines differ, so compare the compute rather than the time"
    return (
        f"Fine-tuning {tuned.name} took {tuned.training_time}, training {scratch.name} from scratch "
        f"{scratch.training_time}{warning}."
    )


def costs(results: Results, choice: Choice) -> Section:
    """Accuracy and the cost of inference, and the model to use."""
    models = results.models
    rows = []
    for model in models:
        cells = ["–"] * 4
        if timing := model.timing:
            speeds = " / ".join(f"{speed:,.1f}" for speed in timing.images_per_second.values())
            memory = f"{timing.peak_megabytes:,}" if timing.peak_megabytes else "–"
            latency = f"{timing.latency_ms.p50:.1f} / {timing.latency_ms.p95:.1f}"
            cells = [f"{si(timing.flops)}FLOP", latency, speeds, memory]
        rows.append((model.name, percent(model.accuracy), f"{model.n_parameters:,}", *cells))
    header = ("model", "accuracy", "parameters", "compute per image", "latency (ms)", "images per second")
    caption = "Cost of inference; latency of one image: median / 95th percentile"
    if results.machine:
        batches = next((" / ".join(model.timing.images_per_second) for model in models if model.timing), "–")
        caption += f"; images per second at batch sizes {batches}. With PyTorch on {describe_machine(results.machine)}"
    table = TableBlock((*header, "peak memory (MB)"), rows, f"{caption}.")
    if len(models) == 1:
        return Section("Cost", [], [table], [table])
    rule = (
        "Rule: of the models whose accuracy does not differ significantly from the highest (the paired 95% interval of "
        "the difference includes 0), the one with the lowest latency is recommended, or the one with the fewest "
        "parameters if latencies are unknown."
    )
    return Section("Choice of model", [*choice.reasons, rule], [table], [table])


def findings(results: Results) -> Section | None:
    """What holds across the models; None for a single model."""
    models = results.models
    if len(models) == 1:
        return None
    sentences = common_weaknesses(models)
    columns = {"accuracy": [percent(model.accuracy) for model in models]}
    corrupted = {model.name: result for model in models if (result := model.corruptions)}
    if len(corrupted) == len(models):
        columns["mean accuracy, corrupted"] = [percent(result.mean) for result in corrupted.values()]
        sentences += compare_robustness(corrupted)
    if all(model.ood for model in models):
        scores = [best_ood_score(model) for model in models]
        aurocs = [model.mean_ood(score).auroc for model, score in zip(models, scores, strict=True)]
        titles = [SCORES.get(score, score) for score in scores]
        columns["out-of-distribution AUROC"] = [f"{a:.3f} ({title})" for a, title in zip(aurocs, titles, strict=True)]
        top = int(np.argmax(aurocs))
        sentences.append(
            f"{models[top].name} detects out-of-distribution images best, by {titles[top]}, with a mean AUROC of "
            f"{aurocs[top]:.3f}."
        )
    if all(model.metric("ece") is not None for model in models):
        columns["ECE"] = [f"{model.metric('ece'):.4f}" for model in models]
    latencies = {model.name: latency for model in models if (latency := model.latency)}
    if len(latencies) == len(models):
        columns["latency"] = [f"{latency:.1f} ms" for latency in latencies.values()]
        best, fastest = results.most_accurate, min(models, key=lambda model: latencies[model.name])
        if fastest is not best:
            ratio = latencies[fastest.name] / latencies[best.name]
            sentences.append(
                f"The latency of {fastest.name} is {ratio:.2f} times that of {best.name}, the most accurate model, and "
                f"its accuracy is {points(best.accuracy - fastest.accuracy, sign=False)} percentage points lower."
            )
    rows = list(zip((model.name for model in models), *columns.values(), strict=True))
    table = TableBlock(("model", *columns), rows, "All models in comparison.")
    return Section("Findings", sentences, [table], [table])


def common_weaknesses(models: list[ModelResult]) -> list[str]:
    """The class with the lowest F1 and the confusions that all models share, as sentences."""
    sentences = []
    lowest = {min(model.per_class, key=lambda label: model.per_class[label].f1) for model in models}
    if len(lowest) == 1:
        sentences.append(f"{lowest.pop()} has the lowest F1 with every model.")
    pairs = [{frozenset((pair.label, pair.predicted)) for pair in model.confusions} for model in models]
    if common := set.intersection(*pairs):
        sentences.append(f"All models confuse {join_words(sorted('/'.join(sorted(pair)) for pair in common)[:3])}.")
    return sentences


def compare_robustness(corrupted: dict[str, CorruptedAccuracy]) -> list[str]:
    """The models with the highest and the lowest mean accuracy on corrupted images, as a sentence; [] if it is equal.

    `corrupted` is {name: accuracy} of at least two models.
    """
    (best, most), *_, (worst, least) = sorted(corrupted.items(), key=lambda item: -item[1].mean)
    if most.mean == least.mean:
        return []
    return [
        f"Over all corruptions and strengths, {best} has the highest mean accuracy ({percent(most.mean)}) "
        f"and {worst} the lowest ({percent(least.mean)}): on the same images, their difference is "
        f"{points(most.clean - least.clean)} percentage points without corruption and "
        f"{points(most.mean - least.mean)} with corruption."
    ]
