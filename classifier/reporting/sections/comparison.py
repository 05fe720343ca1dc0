"""Sections that compare the models: which one to use, at which cost, and what holds for all of them."""

import json
from dataclasses import dataclass

import numpy as np

from classifier.reporting.blocks import Section, TableBlock
from classifier.reporting.formatting import join_words, percent, percent_interval, plural, points, si
from classifier.reporting.results import RANDOM_WEIGHTS, ModelResult, Results, describe_machine
from classifier.reporting.sections.performance import describe_classes, describe_robustness

RULE = (
    "Rule for this choice: of the models whose accuracy does not differ significantly from the highest, the one with "
    "the lowest latency (time for one image), or the one with the fewest parameters if latencies are unknown."
)


@dataclass(frozen=True)
class Choice:
    """The model to use, and the reasons as sentences, of which the first names it."""

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
    interval = top.evaluation.accuracy_ci95
    accuracy = (
        f"{top.name} classifies {percent(top.accuracy)} of the test images correctly"
        f"{', more than any other model' if others else ''}. With other test images of the same kind, this accuracy "
        f"would vary: its 95% interval is {percent_interval(interval)}."
    )
    if not others:
        return Choice(top, [accuracy])
    candidates = [top]
    for model in others:
        difference = results.difference(top, model)
        if difference[1][0] <= 0 if difference else model.evaluation.accuracy_ci95[1] >= interval[0]:
            candidates.append(model)
    latencies = [model.latency for model in candidates if model.latency]
    timed = len(latencies) == len(candidates)
    costs = latencies if timed else [model.evaluation.n_parameters for model in candidates]
    best = candidates[int(np.argmin(costs))]
    cost = "lowest latency" if timed else "fewest parameters"
    if len(candidates) == 1:
        reason = "its accuracy is significantly higher than that of any other model."
    elif best is top:
        reason = f"it has the highest accuracy, and of the models that do not differ significantly, the {cost}."
    else:
        reason = (
            f"its accuracy does not differ significantly from that of {top.name}, the highest, and of such models it "
            f"has the {cost}."
        )
    differences = [describe_difference(results, top, model) for model in others]
    return Choice(best, [f"{best.name} is recommended: {reason}", accuracy, *differences])


def describe_difference(results: Results, a: ModelResult, b: ModelResult) -> str:
    """The difference in accuracy of two models, and whether it is significant."""
    difference = results.difference(a, b)
    if difference is None:
        return f"{a.name} and {b.name} were not compared on the same images."
    value, (low, high) = difference
    interval = f"{points(low)} to {points(high)}"
    if low > 0 or high < 0:
        return (
            f"{a.name} is {points(abs(value), sign=False)} percentage points {'more' if value > 0 else 'less'} "
            f"accurate than {b.name}. This is significant: the 95% interval of the difference, {interval}, excludes 0."
        )
    return (
        f"The accuracies of {a.name} and {b.name} do not differ significantly: the 95% interval of the difference "
        f"({points(value)} percentage points), {interval}, includes 0."
    )


def summary(results: Results, choice: Choice) -> Section:
    """Which model to choose, what else distinguishes the models, and their main results in a table."""
    models, best = results.models, choice.model
    several = len(models) > 1
    sentences = [*choice.reasons]
    if several:
        sentences.append(RULE)
    columns = {
        "accuracy": [percent(model.accuracy) for model in models],
        "95% interval": [percent_interval(model.evaluation.accuracy_ci95) for model in models],
        "macro F1": [f"{model.evaluation.f1:.4f}" for model in models],
    }
    terms = ["Macro F1: the mean of F1 over classes."]
    f1 = "F1 combines precision and recall; 1 is perfect."
    sentences.append(" ".join([describe_classes(best), f1, *common_weaknesses(models)]))
    if all(model.evaluation.ece is not None for model in models):
        columns["ECE"] = [f"{model.evaluation.ece:.4f}" for model in models]
        terms.append("ECE: expected calibration error; 0 is perfect.")
        sentences.append(
            f"On average, the probabilities of {best.name} differ by {best.evaluation.ece:.4f} from how often it is "
            "right (expected calibration error, ECE)."
        )
    corrupted = {model.name: result for model in models if (result := model.evaluation.corrupted)}
    if len(corrupted) == len(models):
        columns["corrupted"] = [percent(result.mean) for result in corrupted.values()]
        terms.append("Corrupted: the mean accuracy on images with noise, blur and other corruptions.")
    if best.name in corrupted:
        sentences.append(describe_robustness(best.name, corrupted[best.name]))
    of_photographs = {
        model.name: right for model in models if (right := model.evaluation.accuracy_on_photographs) is not None
    }
    if len(of_photographs) == len(models):
        columns["photos"] = [percent(right) for right in of_photographs.values()]
        terms.append("Photos: the accuracy on photographs of a class, of all folders together.")
        sentences.append(
            f"Of {plural(best.evaluation.n_photographs, 'photograph')} as users send them, "
            f"{best.name} labels {percent(of_photographs[best.name])} correctly."
        )
    if all(model.ood for model in models):
        aurocs = [model.mean_ood(model.ood_score).auroc for model in models]
        columns["OOD AUROC"] = [f"{auroc:.3f}" for auroc in aurocs]
        terms.append("OOD AUROC: how well out-of-distribution images are detected.")
        top = int(np.argmax(aurocs))
        sentences.append(
            f"{models[top].name} detects images that show none of the classes (out-of-distribution, OOD)"
            f"{' best,' if several else ''} with an area under the ROC curve (AUROC) of {aurocs[top]:.3f}, where 0.5 "
            "is chance and 1 is perfect."
        )
    columns["parameters"] = [si(model.evaluation.n_parameters).strip() for model in models]
    latencies = {model.name: latency for model in models if (latency := model.latency)}
    if len(latencies) == len(models):
        columns["latency"] = [f"{latency:.1f} ms" for latency in latencies.values()]
        terms.append("Latency: the median time for one image.")
        sentences += compare_latencies(results, latencies)
    rows = list(zip((model.name for model in models), *columns.values(), strict=True))
    title = "All models in comparison." if several else "The main results."
    table = TableBlock(("model", *columns), rows, " ".join([title, *terms]))
    return Section("Summary and choice of a model" if several else "Summary", sentences, [table], [table])


def compare_latencies(results: Results, latencies: dict[str, float]) -> list[str]:
    """How much faster, and less accurate, the fastest model is than the most accurate one, as a sentence.

    `latencies` is {name: milliseconds} of all models. [] if the most accurate model is the fastest.
    """
    best, fastest = results.most_accurate, min(results.models, key=lambda model: latencies[model.name])
    if fastest is best:
        return []
    return [
        f"{fastest.name} is the fastest: it takes {latencies[fastest.name] / latencies[best.name]:.2f} times as long "
        f"as {best.name} and is {points(best.accuracy - fastest.accuracy, sign=False)} percentage points less accurate."
    ]


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
        )
        for model in scratch + tuned
    ]
    header = ("model", "initial weights", "accuracy", "training time", "training compute")
    caption = (
        "Accuracy and cost of training. Compute: floating-point operations (FLOP). Neither time nor compute include "
        "the pre-training of the initial weights."
    )
    table = TableBlock(header, rows, caption)
    best_scratch, best_tuned = (max(models, key=lambda model: model.accuracy) for models in (scratch, tuned))
    sentences = [describe_difference(results, model, best_scratch) for model in tuned]
    if best_scratch.training_time and best_tuned.training_time:
        sentences.append(compare_training_times(best_scratch, best_tuned))
    return Section("Transfer learning and training from scratch", sentences, [table], [table])


def compare_training_times(scratch: ModelResult, tuned: ModelResult) -> str:
    """The times of training, with a warning if they were measured on several machines."""
    machines = {json.dumps(stage.machine.to_json()) for model in (scratch, tuned) for stage in model.stages}
    warning = "" if len(machines) == 1 else "; the machines differ, so compare the compute rather than the time"
    return (
        f"Fine-tuning {tuned.name} took {tuned.training_time}, training {scratch.name} from scratch "
        f"{scratch.training_time}{warning}."
    )


def costs(results: Results) -> Section:
    """Accuracy and the cost of inference."""
    models = results.models
    rows = []
    for model in models:
        flops = f"{si(model.inference_flops)}FLOP" if model.inference_flops else "–"
        cells = [f"{model.evaluation.n_parameters:,}", flops, *["–"] * 3]
        if timing := model.timing:
            speeds = " / ".join(f"{speed:,.1f}" for speed in timing.images_per_second.values())
            memory = f"{timing.peak_megabytes:,}" if timing.peak_megabytes else "–"
            cells[2:] = [f"{timing.latency_ms.p50:.1f} / {timing.latency_ms.p95:.1f}", speeds, memory]
        rows.append((model.name, percent(model.accuracy), *cells))
    header = ("model", "accuracy", "parameters", "compute per image", "latency (ms)", "images per second")
    caption = (
        "Cost of inference. Compute: floating-point operations (FLOP). Latency: time for one image, median / 95th "
        "percentile"
    )
    if results.machine:
        batches = next((" / ".join(model.timing.images_per_second) for model in models if model.timing), "–")
        caption += f". Images per second: at batch sizes {batches}. With PyTorch on {describe_machine(results.machine)}"
    table = TableBlock((*header, "peak memory (MB)"), rows, f"{caption}.")
    return Section("Cost", [], [table], [table])


def common_weaknesses(models: list[ModelResult]) -> list[str]:
    """The class with the lowest F1 and the confusions that all of several models share, as sentences."""
    if len(models) == 1:
        return []
    sentences = []
    scores = [model.evaluation.f1_of_classes for model in models]
    lowest = {min(f1, key=f1.__getitem__) for f1 in scores}
    if len(lowest) == 1:
        sentences.append(f"Every model has its lowest F1 for {lowest.pop()}.")
    pairs = [{frozenset((pair.label, pair.predicted)) for pair in model.evaluation.confused} for model in models]
    if common := set.intersection(*pairs):
        sentences.append(
            f"All models confuse {join_words(sorted(' with '.join(sorted(pair)) for pair in common)[:3])}."
        )
    return sentences
