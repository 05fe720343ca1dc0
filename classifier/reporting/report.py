"""The report of an evaluation: one content, told as report.md, report.pdf and slides.pptx, with its figures beside.

    pages.write(Path("report"), {"models/cnn": predictor}, splits)  # after evaluation.json and timing.json are written
    there

Every number comes from evaluation.json, timing.json, or run.json and metrics.jsonl beside the weights; sentences that
judge are chosen by these numbers. What a file lacks is left out. The same files give the same bytes.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import numpy as np
import typst
from PIL import Image, ImageOps

from classifier.data.loaders import image_batches
from classifier.data.splits import Splits
from classifier.errors import ModelError
from classifier.evaluation.corruptions import KINDS
from classifier.files import replacing, write_text
from classifier.models import processor as processors
from classifier.models.predictor import Predictor
from classifier.reporting import architecture, card, slides
from classifier.reporting import figures as plots
from classifier.reporting.blocks import Block, Commands, Picture, Section, Table

FORMATS = ("md", "pdf", "pptx")
DATE = datetime(2000, 1, 1, tzinfo=UTC)  # in the files: the true one would differ on every run
TALLEST = 1.25  # height of a picture, of the text's width: a page's text is 1.5
MAX_ROWS = 30  # of a table of classes
LONG = 20  # rows of a table that may go on on the next page
SAMPLES = 10  # images a class
SCORES = {"max_probability": "top probability", "energy": "energy", "neighbours": "nearest neighbours"}
Look = Callable[[Predictor, Image.Image], Image.Image]


@dataclass(frozen=True)
class Measured:
    """A model, and what the files say of it."""

    name: str
    slug: str  # in file names
    evaluation: dict
    timing: dict
    runs: list[dict]  # run.json of each stage, the first one first; [] where there is none
    history: list[dict] = field(repr=False)  # the lines of metrics.jsonl
    predictor: Predictor

    @property
    def start(self) -> str | None:
        """What the weights were before the first stage; None where no file tells."""
        return (self.runs[0]["settings"].get("model") or "random weights") if self.runs else None

    @property
    def spent(self) -> str:
        """The time of training, over all stages, in words; empty where a stage doesn't tell."""
        return card.spent(self.runs)

    @property
    def latency(self) -> float | None:
        """Milliseconds of an answer, the median; None where it was not timed."""
        return self.timing["latency_ms"]["p50"] if self.timing else None


def write(
    output_dir: Path,
    predictors: Mapping[str, Predictor],
    splits: Splits | None = None,
    *,
    look: Look | None = None,
    command: str | None = None,
    formats: Sequence[str] = FORMATS,
) -> None:
    """Writes the report of `output_dir`'s evaluation.json beside it.

    Args:
        output_dir: with evaluation.json, and timing.json if it was timed; gets report.md, report.pdf, slides.pptx,
        figures/.
        predictors: {folder or Hub id: the model}, those of evaluation.json.
        splits: with the test split that was measured, and train, for pictures of both; None: no pictures.
        look: gives an image as a model saw it with a heat map over it, to be shown with mistakes.
        command: that made evaluation.json.
        formats: which of `FORMATS`.

    Raises:
        ModelError: evaluation.json or a model's record is missing or lacks what its script writes, or there is no such
            format.
    """
    if unknown := set(formats) - set(FORMATS):
        raise ModelError(f"no format {', '.join(sorted(unknown))}: choose from {', '.join(FORMATS)}")
    evaluation, timing = (card.read(output_dir / f"{name}.json") for name in ("evaluation", "timing"))
    if not evaluation:
        raise ModelError(f"no evaluation.json in {output_dir}: run evaluate.py first")
    try:
        models = read_models(evaluation, timing, predictors)
        sections = build(output_dir / "figures", evaluation, timing, models, splits, look, command)
    except KeyError as error:
        raise ModelError(f"a record of {', '.join(predictors)} has no {error}: train or evaluate again") from error
    title = f"Image classification: {evaluation['dataset']}"
    subtitle = (
        f"{joined([model.name for model in models])}, measured on {evaluation['n']:,} images of {evaluation['split']}"
    )
    if "md" in formats:
        write_text(output_dir / "report.md", markdown(title, subtitle, sections))
    if "pdf" in formats:
        with replacing(output_dir / "report.pdf") as temporary:
            source = typeset(title, subtitle, sections).encode()
            temporary.write_bytes(typst.compile(source, root=str(output_dir), format="pdf", timestamp=DATE))
    if "pptx" in formats:
        slides.write(output_dir / "slides.pptx", title, subtitle, sections, output_dir / "figures", DATE)


def read_models(evaluation: dict, timing: dict, predictors: Mapping[str, Predictor]) -> list[Measured]:
    """The models of an evaluation with their records, in its order."""
    timings = {each["model"]: each for each in timing.get("models", [])}
    folders = {predictor.name: (Path(path), predictor) for path, predictor in predictors.items()}
    found = []
    for i, each in enumerate(evaluation["models"]):
        folder, predictor = folders[each["model"]]
        lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").is_file() else []
        slug = re.sub(r"[^\w.-]+", "_", each["model"])
        slug = f"{slug}_{i}" if slug in {other.slug for other in found} else slug
        runs = card.stages_of(card.read(folder / "run.json"))
        history = [json.loads(line) for line in lines]
        found.append(Measured(each["model"], slug, each, timings.get(each["model"], {}), runs, history, predictor))
    return found


# --- Content ---------------------------------------------------------------------------------------------------------


def build(
    figures: Path,
    evaluation: dict,
    timing: dict,
    models: list[Measured],
    splits: Splits | None,
    look: Look | None,
    command: str | None,
) -> list[Section]:
    """All sections, and their figures drawn. Arguments as `write`."""
    best, reasons = choose(models, evaluation.get("comparisons") or [])
    made = [
        summary(best, reasons),
        about_data(figures, evaluation, models, splits),
        about_pixels(models),
        about_architecture(figures, models),
        about_training(figures, models),
        about_results(models, evaluation),
        about_confusion(figures, models, best),
        about_classes(figures, models, best),
        about_calibration(figures, models),
        about_robustness(figures, models),
        about_strangers(models),
        about_mistakes(figures, models, best, splits, look, evaluation["n"]),
        about_transfer(models, evaluation.get("comparisons") or [], timing),
        about_choice(models, evaluation, best, reasons, timing),
        about_lessons(models),
        about_repeating(models, evaluation, command),
    ]
    return [
        replace(
            section, blocks=[fitted(figures, each) if isinstance(each, Picture) else each for each in section.blocks]
        )
        for section in made
        if section
    ]


def fitted(figures: Path, picture: Picture) -> Picture:
    """The picture, narrower if it would be taller than a page."""
    with Image.open(figures / f"{picture.name}.png") as image:
        return replace(picture, width=min(picture.width, TALLEST * image.width / image.height))


def summary(best: Measured, reasons: list[str]) -> Section:
    """What to take away, before all else: the choice, and what else the numbers say of the chosen one."""
    found = [hardest(best)]
    if "ece" in best.evaluation:
        found.append(calibration_of(best))
    if best.evaluation.get("corrupted"):
        found.append(weakness(best.name, best.evaluation["corrupted"]))
    return Section("Summary", [*reasons, *found])


def about_data(figures: Path, evaluation: dict, models: list[Measured], splits: Splits | None) -> Section:
    """Images and classes of each split."""
    first = models[0].evaluation["per_class"]
    names = list(first)
    tested = np.array([found["n"] for found in first.values()])
    known = next(
        (model.runs[-1]["data"] for model in models if model.runs and "counts" in model.runs[-1]["data"]), None
    )
    counts = {}
    if (
        known
        and known.get("labels", names) == names
        and all(len(each) == len(names) for each in known["counts"].values())
    ):
        counts = {split: np.array(each) for split, each in known["counts"].items()}
    counts["test"] = tested
    revision = f" at revision {evaluation['dataset_revision']}" if evaluation.get("dataset_revision") else ""
    sentences = [f"The data set is {evaluation['dataset']}{revision}, with {plural(len(names), 'class', 'classes')}."]
    sentences.append(joined([f"{each.sum():,} images of {split}" for split, each in counts.items()]) + " were used.")
    if "train" in counts:
        low, high = counts["train"].min(), counts["train"].max()
        equal = low == high
        sentences.append(
            f"Each class has {low:,} training images."
            if equal
            else f"Classes have {low:,} ({names[counts['train'].argmin()]}) to "
            f"{high:,} ({names[counts['train'].argmax()]}) training images."
        )
        sentences.append("Settings and epochs were chosen on validation, not on test.")
    plots.save_classes(figures / "classes", counts, names)
    bars = Picture("classes", "Images of each class in each split.", 0.62)
    blocks: list[Block] = [bars]
    if splits and splits.train is not None:
        images, labels = samples(splits)
        plots.save_samples(figures / "samples", images, labels, splits.labels)
        blocks.insert(0, Picture("samples", "Training images, a row a class.", 0.7))
    return Section("Data", sentences, blocks, blocks[:1])


def about_pixels(models: list[Measured]) -> Section:
    """What happens to an image before the network."""
    rows = []
    for model in models:
        processor = model.predictor.processor
        mean, std = (", ".join(f"{value:.3f}" for value in values) for values in processors.mean_std(processor))
        side = processors.size_of(processor)
        kernel = "bicubic" if processors.is_bicubic(processor) else "bilinear"
        views = model.evaluation.get("views", 1)
        rows.append(
            (model.name, f"{side} × {side}", kernel, f"{processors.crop_pct_of(processor):.2f}", mean, std, f"{views}")
        )
    table = Table(
        ("model", "pixels", "resized", "crop keeps", "mean (R, G, B)", "standard deviation", "views"),
        rows,
        "What reaches each network. Mean and deviation are in units of the brightest value, 255.",
    )
    sentences = [
        "An image is decoded to upright 8-bit RGB and prepared by the processor that is saved beside the weights, "
        "the same in "
        "training, evaluation and application.",
    ]
    if several := [
        model for model in models if model.evaluation.get("views", 1) > 1 and "accuracy_one_view" in model.evaluation
    ]:
        sentences += [
            f"{model.name} averages the probabilities of {model.evaluation['views']} views of an image: "
            f"{percent(model.evaluation['accuracy'])} right, "
            f"and {percent(model.evaluation['accuracy_one_view'])} with one view."
            for model in several
        ]
    return Section("Preprocessing", sentences, [table])


def about_architecture(figures: Path, models: list[Measured]) -> Section:
    """A diagram of each model."""
    blocks = []
    for model in models:
        layers, side = architecture.trace(model.predictor), processors.size_of(model.predictor.processor)
        plots.save_architecture(figures / f"architecture_{model.slug}", layers, model.name, (3, side, side))
        kind = type(model.predictor.model).__name__
        caption = f"{model.name}: {kind}. Right: shape of each output, and share of the parameters."
        blocks.append(Picture(f"architecture_{model.slug}", caption, 0.5 if len(models) > 1 else 0.62))
    sentences = [f"{model.name} has {model.evaluation['n_parameters']:,} parameters." for model in models]
    sentences.append(
        "The diagrams are traced from a forward pass; equal blocks that follow each other are counted (×)."
    )
    return Section("Architecture" if len(models) == 1 else "Architectures", sentences, blocks, blocks[:3])


def about_training(figures: Path, models: list[Measured]) -> Section | None:
    """Settings and curves."""
    trained = [model for model in models if model.runs]
    if not trained:
        return None
    columns = [settings(model) for model in trained]
    names = list(dict.fromkeys(name for column in columns for name in column))
    table = Table(
        ("setting", *(model.name for model in trained)),
        [(name, *(column.get(name, "–") for column in columns)) for name in names],
        "How each model was trained"
        + ("; of several stages, the last." if any(len(m.runs) > 1 for m in trained) else "."),
    )
    sentences, blocks = [], [table]
    for model in trained:
        run = model.runs[-1]
        line = f"{model.name} started from {Path(model.start).name}"
        line += f" and trained for {model.spent}" if model.spent else ""
        if run.get("validation"):
            line += f"; {percent(run['validation']['accuracy'])} of validation were right"
        sentences.append(f"{line}.")
        if model.history:
            plots.save_curves(figures / f"curves_{model.slug}", model.history)
            last = model.history[-1]
            caption = f"{model.name}: loss and accuracy by epoch, {plural(len(model.history), 'epoch')}"
            if {"train_accuracy", "validation_accuracy"} <= last.keys():
                caption += (
                    f"; the last had {percent(last['train_accuracy'])} of (augmented) training images right, and "
                )
                caption += f"{percent(last['validation_accuracy'])} of validation"
            blocks.append(Picture(f"curves_{model.slug}", f"{caption}."))
    ranked = sorted(trained, key=lambda model: -model.evaluation["accuracy"])
    drawn = {block.name: block for block in blocks if isinstance(block, Picture)}
    curves = [drawn[name] for model in ranked if (name := f"curves_{model.slug}") in drawn]
    return Section("Training", sentences, blocks, curves[:2] or [table])


def settings(model: Measured) -> dict[str, str]:
    """The settings of a model's last stage, as a table's cells by name."""
    run = model.runs[-1]
    recipe, flags = dict(run.get("recipe") or {}), run["settings"]
    found = {"starts from": Path(model.start).name}
    sizes = recipe.pop("sizes", None)
    epochs = flags.get("num_train_epochs") or (sum(each for each, _ in sizes) if sizes else None)
    epochs = recipe.pop("epochs", epochs)
    if epochs is not None:
        found["epochs"] = f"{epochs:g}"
    if sizes:
        scale = epochs / sum(each for each, _ in sizes)  # some runs recorded shares
        found["epochs at pixels a side"] = ", ".join(f"{scale * each:.3g} at {size}" for each, size in sizes)
    found["batch size"] = str(recipe.pop("batch_size", None) or flags.get("per_device_train_batch_size") or "–")
    found["learning rate"] = str(recipe.pop("learning_rate", None) or flags.get("learning_rate") or "–")
    patience = flags.get("patience")
    found["early stopping"] = f"after {plural(patience, 'epoch')} without gain" if patience else "none"
    if run.get("best_epoch"):
        found["epoch kept"] = str(run["best_epoch"])
    if run.get("averaged"):
        found["weights"] = f"mean of {plural(sum(row['taken'] for row in run['averaged']['models']), 'stage')}"
    for name, value in recipe.items():
        if value is not None and name not in ("image_size",):
            found[name.replace("_", " ")] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    if run.get("images_seen"):
        found["images seen"] = f"{run['images_seen']:,}"
    found["time"] = card.duration(run["train_seconds"]) if run.get("train_seconds") else "–"
    machine = run["machine"]
    found["machine"] = machine["accelerator"] or f"{plural(machine['threads'], 'thread')}, {machine['processor']}"
    found["seed"] = str(flags.get("seed", "–"))
    return found


def about_results(models: list[Measured], evaluation: dict) -> Section:
    """Every measure of every model."""
    found = [model.evaluation for model in models]

    def row(name: str, of: Callable[[dict], str | None]) -> tuple[str, ...]:
        return (name, *(of(each) or "–" for each in found))

    rows = [row("accuracy", lambda m: percent(m["accuracy"]))]
    rows.append(row("95% interval", lambda m: span(m["accuracy_ci95"])))
    for metric, name in (("precision", "precision"), ("recall", "recall"), ("f1", "F1")):
        rows.append(row(f"{name}, macro", lambda m, metric=metric: f"{m[metric]:.4f}"))
    for metric, name in (("precision", "precision"), ("recall", "recall"), ("f1", "F1")):
        rows.append(
            row(
                f"{name}, weighted",
                lambda m, metric=metric: f"{m['weighted'][metric]:.4f}" if "weighted" in m else None,
            )
        )
    for k in dict.fromkeys(k for each in found for k in each.get("top_k_accuracy", {})):
        rows.append(
            row(
                f"top-{k} accuracy",
                lambda m, k=k: percent(m["top_k_accuracy"][k]) if k in m.get("top_k_accuracy", {}) else None,
            )
        )
    for metric, name in (("nll", "NLL (nats)"), ("brier", "Brier score (0 to 2)"), ("ece", "ECE (15 bins)")):
        rows.append(row(name, lambda m, metric=metric: f"{m[metric]:.4f}" if metric in m else None))
        if any(each.get("before_temperature") for each in found):
            rows.append(
                row(
                    f"{name.split(' (')[0]} before temperature",
                    lambda m, metric=metric: (
                        f"{m['before_temperature'][metric]:.4f}" if m.get("before_temperature") else None
                    ),
                )
            )
    rows = [each for each in rows if set(each[1:]) != {"–"}]
    table = Table(
        ("measure", *(model.name for model in models)),
        rows,
        f"On {evaluation['n']:,} test images. Macro: mean over classes; weighted: by their images. "
        "Intervals are bootstrapped over images.",
    )
    blocks: list[Block] = [table]
    sentences = [
        f"{model.name} is right on {percent(model.evaluation['accuracy'])} (95% interval "
        f"{span(model.evaluation['accuracy_ci95'])})."
        for model in models
    ]
    if comparisons := evaluation.get("comparisons"):
        blocks.append(
            Table(
                ("models", "difference", "95% interval", "only first right", "only second right", "McNemar p", "agree"),
                [
                    (
                        " – ".join(each["models"]),
                        points(each["difference"]),
                        " to ".join(points(value) for value in each["difference_ci95"]),
                        f"{each['only_a_right']:,}",
                        f"{each['only_b_right']:,}",
                        f"{each['p_value']:.2g}",
                        percent(each["agreement"]),
                    )
                    for each in comparisons
                ],
                "Accuracy of two models on the same images, in percentage points; the interval is paired.",
            )
        )
    if evaluation.get("bf16"):
        sentences.append("All of it was computed in bfloat16, which moves probabilities in their third digit.")
    if average := evaluation.get("average"):
        top = max(models, key=lambda model: model.evaluation["accuracy"])
        apart = average["accuracy_ci95"][0] > top.evaluation["accuracy_ci95"][1]
        below = average["accuracy"] <= top.evaluation["accuracy"]
        verdict = "no more than" if below else "more than" if apart else "more than, though with overlapping intervals,"
        sentences.append(
            f"The mean of all models' probabilities is right on {percent(average['accuracy'])} "
            f"({span(average['accuracy_ci95'])}): {verdict} {top.name} alone."
        )
    return Section("Results", sentences, blocks, [replace(table, rows=short(rows))])


def short(rows: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """The rows of results that a slide has place for."""
    kept = ("accuracy", "95% interval", "precision, macro", "recall, macro", "F1, macro", "F1, weighted")
    more = ("NLL (nats)", "Brier score (0 to 2)", "ECE (15 bins)", "ECE before temperature")
    return [row for row in rows if row[0] in kept + more or row[0].startswith("top-")]


def about_confusion(figures: Path, models: list[Measured], best: Measured) -> Section:
    """A matrix of each model, and its most frequent mistakes."""
    sentences, blocks = [], []
    for model in models:
        names = list(model.evaluation["per_class"])
        plots.save_confusion(figures / f"confusion_{model.slug}", np.array(model.evaluation["confusion_matrix"]), names)
        caption = f"{model.name}: images by true and predicted class."
        blocks.append(Picture(f"confusion_{model.slug}", caption, 0.68))
        if confused := model.evaluation.get("confused"):
            most = joined([f"{each['label']} for {each['predicted']} ({each['n']:,})" for each in confused[:3]])
            sentences.append(f"{model.name} most often takes {most}.")
    shown = [block for block in blocks if block.name == f"confusion_{best.slug}"]
    return Section("Confusion", sentences, blocks, shown)


def about_classes(figures: Path, models: list[Measured], best: Measured) -> Section:
    """F1 of each class."""
    scores = {
        model.name: {name: found["f1"] for name, found in model.evaluation["per_class"].items()} for model in models
    }
    plots.save_class_scores(figures / "class_f1", scores, "F1")
    n = len(scores[best.name])
    few = f", the {plots.MAX_BAR_ROWS} of {n} classes with the lowest" if n > plots.MAX_BAR_ROWS else ""
    picture = Picture("class_f1", f"F1 of each class{few}.", 0.9)
    classes = best.evaluation["per_class"]
    rows = sorted(classes.items(), key=lambda item: item[1]["f1"])[:MAX_ROWS]
    table = Table(
        ("class", "precision", "recall", "F1", "images"),
        [
            (name, *(f"{found[key]:.4f}" for key in ("precision", "recall", "f1")), f"{found['n']:,}")
            for name, found in rows
        ],
        f"{best.name}, by F1" + (f"; the lowest {MAX_ROWS} of {len(classes)}." if len(classes) > MAX_ROWS else "."),
    )
    return Section("Classes", [hardest(model) for model in models], [picture, table])


def hardest(model: Measured) -> str:
    """The classes of highest and lowest F1, in words."""
    classes = model.evaluation["per_class"]
    low, high = (pick(classes, key=lambda name: classes[name]["f1"]) for pick in (min, max))
    if classes[low]["f1"] == classes[high]["f1"]:
        return f"{model.name} has an F1 of {classes[low]['f1']:.4f} on every class."
    lowest, highest = (f"{name} ({classes[name]['f1']:.4f})" for name in (low, high))
    return f"{model.name}'s F1 is lowest on {lowest} and highest on {highest}."


def about_calibration(figures: Path, models: list[Measured]) -> Section | None:
    """Whether probabilities can be believed."""
    told = [model for model in models if "reliability" in model.evaluation]
    if not told:
        return None
    bins = {}
    for model in told:
        before = model.evaluation.get("before_temperature")
        bins[model.name] = (model.evaluation["reliability"], before["reliability"] if before else None)
    plots.save_reliability(figures / "reliability", bins)
    picture = Picture(
        "reliability", "Accuracy by confidence, in 15 bins of equal width; below, how many images are in each."
    )
    return Section("Calibration", [calibration_of(model) for model in told], [picture], [picture])


def calibration_of(model: Measured) -> str:
    """What the temperature did to a model's ECE, in words."""
    found, before = model.evaluation, model.evaluation.get("before_temperature")
    if not before:
        return f"{model.name}: ECE {found['ece']:.4f}; no temperature is recorded."
    told = f"{model.name}: the temperature of {found['temperature']:.3f}, fitted on validation"
    change = "lowers" if found["ece"] < before["ece"] else "does not lower"
    if abs(found["ece"] - before["ece"]) < 5e-4:
        return f"{told}, leaves ECE at {found['ece']:.4f}."
    return (
        f"{told}, {change} ECE, "
        f"from {before['ece']:.4f} to {found['ece']:.4f}, and takes NLL from {before['nll']:.4f} to {found['nll']:.4f}."
    )


def about_robustness(figures: Path, models: list[Measured]) -> Section | None:
    """Accuracy on corrupted images."""
    told = {model.name: model.evaluation["corrupted"] for model in models if model.evaluation.get("corrupted")}
    if not told:
        return None
    plots.save_robustness(figures / "robustness", told)
    n = min(found["n"] for found in told.values())
    picture = Picture("robustness", f"Accuracy on {n:,} test images by strength of each corruption.")
    kinds = list(next(iter(told.values()))["accuracy"])
    table = Table(
        ("corruption at the highest strength", "which is", *told),
        [("none", "–", *(percent(found["clean"]) for found in told.values()))]
        + [
            (
                kind.replace("_", " "),
                f"{KINDS[kind].strengths[-1]:.3g} ({KINDS[kind].unit.split(',')[0]})" if kind in KINDS else "–",
                *(percent(found["accuracy"][kind][-1]) for found in told.values()),
            )
            for kind in kinds
        ],
        f"Accuracy on {n:,} images.",
    )
    return Section("Robustness", [weakness(name, found) for name, found in told.items()], [picture, table], [picture])


def weakness(name: str, found: dict) -> str:
    """Which corruption harms a model most, and which least, at the highest strength, in words."""
    last = {kind: values[-1] for kind, values in found["accuracy"].items()}
    worst, mildest = min(last, key=last.__getitem__), max(last, key=last.__getitem__)
    return (
        f"{name}: {percent(found['clean'])} of {found['n']:,} clean images; at the highest strength "
        f"{percent(last[worst])} "
        f"under {worst.replace('_', ' ')}, the worst, and {percent(last[mildest])} under {mildest.replace('_', ' ')}, "
        "the mildest."
    )


def about_strangers(models: list[Measured]) -> Section | None:
    """How well images of no class are told."""
    told = [model for model in models if model.evaluation.get("strangers")]
    if not told:
        return None
    scores = list(told[0].evaluation["strangers"])
    overall = Table(
        ("model", *(SCORES.get(score, score) for score in scores)),
        [(model.name, *(two(mean_of(model, score)) for score in scores)) for model in told],
        "AUROC / FPR95, means over all sets. AUROC: 0.5 is chance, 1 perfect. FPR95: fraction of strangers that pass "
        "for known "
        "where 95% of test images do.",
    )
    blocks = [overall]
    for model in told:
        found = model.evaluation["strangers"]
        rows = [(name.replace("_", " "), *(two(found[score][name]) for score in scores)) for name in found[scores[0]]]
        caption = f"{model.name}: AUROC / FPR95 by set and score."
        blocks.append(Table(("strangers", *(SCORES.get(score, score) for score in scores)), rows, caption))
    sentences = []
    for model in told:
        score = max(scores, key=lambda score: mean_of(model, score)["auroc"])
        sets = model.evaluation["strangers"][score]
        worst = min(sets, key=lambda name: sets[name]["auroc"])
        text = f"{model.name} tells images of no class best by {SCORES.get(score, score)}, and of these the set "
        text += f"“{worst.replace('_', ' ')}” worst "
        text += f"(AUROC {sets[worst]['auroc']:.3f}{', below chance' if sets[worst]['auroc'] < 0.5 else ''})."
        bad = [SCORES.get(s, s) for s in scores if mean_of(model, s)["auroc"] < 0.5]
        sentences.append(text + (f" By {joined(bad)} its mean is below chance: don't use that." if bad else ""))
    return Section("Images of no class", sentences, blocks, [overall])


def mean_of(model: Measured, score: str) -> dict[str, float]:
    """AUROC and FPR95 of a score, means over the sets of strangers."""
    sets = model.evaluation["strangers"][score].values()
    return {metric: float(np.mean([each[metric] for each in sets])) for metric in ("auroc", "fpr95")}


def two(found: dict) -> str:
    """AUROC and FPR95 in a cell."""
    return f"{found['auroc']:.3f} / {found['fpr95']:.3f}"


def about_mistakes(
    figures: Path, models: list[Measured], best: Measured, splits: Splits | None, look: Look | None, n: int
) -> Section | None:
    """The most confident mistakes as images."""
    told = [model for model in models if model.evaluation.get("mistakes")]
    if not told or splits is None or splits.test is None:
        return None
    wanted = sorted({each["image"] for model in told for each in model.evaluation["mistakes"]})
    images = dict(zip(wanted, images_at(splits, wanted, n), strict=True))
    sentences, blocks = [], []
    for model in told:
        pictures = []
        for each in model.evaluation["mistakes"]:
            image = images[each["image"]]
            heat = look(model.predictor, image) if look else None
            pictures.append((image, heat, each["label"], each["predicted"], each["probability"]))
        plots.save_mistakes(figures / f"mistakes_{model.slug}", pictures)
        where = "; below, where it looked" if any(heat for _, heat, *_ in pictures) else ""
        caption = f"{model.name}: its most confident mistakes, true → predicted class and its probability{where}."
        blocks.append(Picture(f"mistakes_{model.slug}", caption))
        first = model.evaluation["mistakes"][0]
        sentences.append(
            f"{model.name}'s most confident mistake is {first['label']} for {first['predicted']}, at a probability of "
            f"{first['probability']:.3f}."
        )
    shown = [block for block in blocks if block.name == f"mistakes_{best.slug}"] or blocks[:1]
    return Section("Mistakes", sentences, blocks, shown)


def about_transfer(models: list[Measured], comparisons: list[dict], timing: dict) -> Section | None:
    """Fine-tuning against training from scratch, where there are runs of both."""
    scratch, tuned = (
        [model for model in models if model.runs and (model.start == "random weights") == wanted]
        for wanted in (True, False)
    )
    if not scratch or not tuned:
        return None
    rows = []
    for model in scratch + tuned:
        flops = model.timing.get("flops") or model.runs[-1].get("inference_flops")
        work = [run.get("train_flops") for run in model.runs]
        rows.append(
            (
                model.name,
                Path(model.start).name,
                percent(model.evaluation["accuracy"]),
                model.spent or "–",
                f"{card.si(sum(work))}FLOP" if all(work) else "–",
                f"{model.evaluation['n_parameters']:,}",
                f"{card.si(flops)}FLOP" if flops else "–",
                f"{model.latency:.1f} ms" if model.latency else "–",
            )
        )
    header = ("model", "starts from", "accuracy", "training", "its work", "parameters", "an answer", "latency")
    table = Table(header, rows, "Accuracy and cost. Training does not count what the pre-trained weights cost others.")
    best_scratch, best_tuned = (max(each, key=lambda model: model.evaluation["accuracy"]) for each in (scratch, tuned))
    sentences = [difference(model, best_scratch, comparisons) for model in tuned]
    if best_scratch.spent and best_tuned.spent:
        machines = {json.dumps(run["machine"]) for model in (best_scratch, best_tuned) for run in model.runs}
        times = f"Fine-tuning {best_tuned.name} took {best_tuned.spent}, training {best_scratch.name} from scratch "
        times += best_scratch.spent
        times += "" if len(machines) == 1 else "; the machines differ, so compare the work rather than the time"
        sentences.append(f"{times}.")
    if best_scratch.latency and best_tuned.latency:
        faster, slower = sorted((best_scratch, best_tuned), key=lambda model: model.latency)
        sentences.append(
            f"{faster.name} answers in {faster.latency:.1f} ms, {slower.name} in {slower.latency:.1f} ms (median, "
            "one image)."
        )
    return Section("Transfer learning and training from scratch", sentences, [table], [table])


def about_choice(
    models: list[Measured], evaluation: dict, best: Measured, reasons: list[str], timing: dict
) -> Section | None:
    """Cost beside accuracy, and the model to use."""
    rows = []
    for model in models:
        cost = model.timing
        rows.append(
            (
                model.name,
                percent(model.evaluation["accuracy"]),
                f"{model.evaluation['n_parameters']:,}",
                f"{card.si(cost['flops'])}FLOP" if cost else "–",
                f"{cost['latency_ms']['p50']:.1f} / {cost['latency_ms']['p95']:.1f}" if cost else "–",
                " / ".join(f"{each:,.1f}" for each in cost["images_per_second"].values()) if cost else "–",
                f"{cost['peak_megabytes']:,}" if cost.get("peak_megabytes") else "–",
            )
        )
    batches = next((list(model.timing["images_per_second"]) for model in models if model.timing), [])
    header = ("model", "accuracy", "parameters", "an image", "ms, p50 / p95", "images a second", "MB, peak")
    caption = "Cost of an answer"
    if timing:
        machine = timing["machine"]
        place = machine["accelerator"] or f"{plural(machine['threads'], 'thread')} of {machine['processor']}"
        caption += f" on {place}, by PyTorch; images a second in batches of {' / '.join(batches)}"
    table = Table(header, rows, f"{caption}.")
    rule = (
        "Rule: of the models whose accuracy can't be told from the highest (the paired 95% interval of the "
        "difference includes "
        "0), the one with the lowest latency, or else the fewest parameters."
    )
    title = "Which model" if len(models) > 1 else "Cost"
    return Section(title, [*reasons, rule] if len(models) > 1 else [], [table], [table])


def about_lessons(models: list[Measured]) -> Section | None:
    """What holds across the models."""
    if len(models) == 1:
        return None
    found = [model.evaluation for model in models]
    sentences = []
    lowest = {min(each["per_class"], key=lambda label: each["per_class"][label]["f1"]) for each in found}
    if len(lowest) == 1:
        sentences.append(f"{lowest.pop()} has the lowest F1 of every model.")
    pairs = [{frozenset((pair["label"], pair["predicted"])) for pair in each.get("confused", [])} for each in found]
    if common := set.intersection(*pairs):
        sentences.append(f"All models confuse {joined(sorted('/'.join(sorted(pair)) for pair in common)[:3])}.")
    columns = {"accuracy": [percent(each["accuracy"]) for each in found]}
    if all(each.get("corrupted") for each in found):
        clean = [each["corrupted"]["clean"] for each in found]
        kept = [float(np.mean(list(each["corrupted"]["accuracy"].values()))) for each in found]
        columns["corrupted, mean"] = list(map(percent, kept))
        most, least = int(np.argmax(kept)), int(np.argmin(kept))
        if most != least:
            sentences.append(
                f"Over all corruptions and strengths, {models[most].name} is right most often, on "
                f"{percent(kept[most])}, and "
                f"{models[least].name} least, on {percent(kept[least])}: the same images, clean, put "
                f"them {points(clean[most] - clean[least])} points apart, corrupted {points(kept[most] - kept[least])}."
            )
    if all(each.get("strangers") for each in found):
        told = [
            max((mean_of(model, score)["auroc"], score) for score in model.evaluation["strangers"]) for model in models
        ]
        columns["strangers, AUROC"] = [f"{auroc:.3f} ({SCORES.get(score, score)})" for auroc, score in told]
        top = max(range(len(told)), key=told.__getitem__)
        by = SCORES.get(told[top][1], told[top][1])
        sentences.append(f"{models[top].name} tells strangers best, by {by}: a mean AUROC of {told[top][0]:.3f}.")
    if all("ece" in each for each in found):
        columns["ECE"] = [f"{each['ece']:.4f}" for each in found]
    if all(model.latency for model in models):
        columns["latency"] = [f"{model.latency:.1f} ms" for model in models]
        right = max(range(len(models)), key=lambda i: found[i]["accuracy"])
        fast = min(range(len(models)), key=lambda i: models[i].latency)
        if right != fast:
            sentences.append(
                f"{models[fast].name} answers in {models[fast].latency / models[right].latency:.2f} of the time of "
                f"{models[right].name}, the most accurate, and is right on "
                f"{points(gap(models, right, fast), sign=False)} "
                "points fewer."
            )
    rows = list(zip((model.name for model in models), *columns.values(), strict=True))
    table = Table(("model", *columns), rows, "The models side by side.")
    return Section("What was learnt", sentences, [table], [table])


def gap(models: list[Measured], a: int, b: int) -> float:
    """Accuracy of one model less that of another."""
    return models[a].evaluation["accuracy"] - models[b].evaluation["accuracy"]


def about_repeating(models: list[Measured], evaluation: dict, command: str | None) -> Section | None:
    """The commands that made all this."""
    lines: list[str] = []
    used: dict[str, list[str]] = {}  # versions, and the models whose last training had these
    for model in models:
        for run in model.runs:
            for each in filter(None, (run, run.get("averaged"))):
                commit = each.get("calibrated", each).get("commit") or ""  # where the same training ends so calibrated
                checkout = f"git checkout {commit.rstrip('+')}" if commit else ""
                if checkout and checkout != next((line for line in reversed(lines) if line.startswith("git ")), None):
                    lines.append(checkout)
                again = card.portable(each["command"])
                if again not in lines:
                    lines.append(again)
        if model.runs:
            versions = ", ".join(f"{name} {version}" for name, version in model.runs[-1]["versions"].items())
            used.setdefault(f"{versions}; Python {model.runs[-1]['machine']['python']}", []).append(model.name)
    if command:
        lines += ["git switch main"] * any(line.startswith("git ") for line in lines) + [card.portable(command)]
    if not lines:
        return None
    changed = [
        f"stage {i} of {model.name}"
        for model in models
        for i, run in enumerate(model.runs, 1)
        if (run.get("commit") or "").endswith("+")
    ]
    sentences = [f"The last training of {joined(names)} used {versions}." for versions, names in used.items()]
    if changed:
        sentences.append(f"Files differed from the commit when {joined(changed)} was trained.")
    return Section("How to repeat this", sentences, [Commands(lines)], [Commands(lines)])


# --- Judgement -------------------------------------------------------------------------------------------------------


def choose(models: list[Measured], comparisons: list[dict]) -> tuple[Measured, list[str]]:
    """The model to use, and why: see the rule in `about_choice`."""
    top = max(models, key=lambda model: model.evaluation["accuracy"])
    if len(models) == 1:
        return top, [
            f"{top.name} is right on {percent(top.evaluation['accuracy'])} of test images (95% interval "
            f"{span(top.evaluation['accuracy_ci95'])})."
        ]
    others = [model for model in models if model is not top]
    told = {model.name: compared(top, model, comparisons) for model in others}
    low = top.evaluation["accuracy_ci95"][0]
    level = [top]
    for model in others:  # without a paired comparison, their own intervals have to do
        found = told[model.name]
        if found[1][0] <= 0 if found else model.evaluation["accuracy_ci95"][1] >= low:
            level.append(model)
    timed = all(model.latency for model in level)
    best = min(level, key=lambda model: model.latency if timed else model.evaluation["n_parameters"])
    reasons = [
        f"{top.name} has the highest accuracy, {percent(top.evaluation['accuracy'])} (95% interval "
        f"{span(top.evaluation['accuracy_ci95'])})."
    ]
    reasons += [difference(top, model, comparisons) for model in others]
    why = "lowest latency" if timed else "fewest parameters"
    if len(level) == 1:
        reasons.append(f"{best.name} is the best: no other comes near enough for its cost to matter.")
    elif best is top:
        reasons.append(f"{best.name} is the one to use: it also has the {why} of the models that can't be told apart.")
    else:
        reasons.append(
            f"{best.name} is the one to use: it can't be told from {top.name} in accuracy and has the {why}."
        )
    return best, reasons


def compared(a: Measured, b: Measured, comparisons: list[dict]) -> tuple[float, tuple[float, float]] | None:
    """Accuracy of `a` less that of `b`, and its interval; None where they were not compared."""
    for each in comparisons:
        if each["models"] == [a.name, b.name]:
            return each["difference"], tuple(each["difference_ci95"])
        if each["models"] == [b.name, a.name]:
            low, high = each["difference_ci95"]
            return -each["difference"], (-high, -low)
    return None


def difference(a: Measured, b: Measured, comparisons: list[dict]) -> str:
    """The difference of two models' accuracy, and whether it can be believed, in words."""
    found = compared(a, b, comparisons)
    if found is None:
        return f"{a.name} and {b.name} were not compared image by image."
    value, (low, high) = found
    interval = f"{points(low)} to {points(high)}"
    if low > 0 or high < 0:
        return (
            f"{a.name} is {'above' if value > 0 else 'below'} {b.name} by {points(abs(value), sign=False)} points; "
            "the paired "
            f"95% interval, {interval}, excludes 0."
        )
    return (
        f"{a.name} and {b.name} can't be told apart by these images: they differ by {points(value)} points, and the "
        "paired 95% "
        f"interval, {interval}, includes 0."
    )


# --- Pictures of the data --------------------------------------------------------------------------------------------


def samples(splits: Splits) -> tuple[np.ndarray, np.ndarray]:
    """The first training images of each class, uint8 (N, 3, side, side), and their labels (N,)."""
    labels = splits.class_indices["train"]
    first = [np.flatnonzero(labels == c)[:SAMPLES] for c in range(min(len(splits.labels), plots.MAX_SAMPLE_ROWS))]
    part = splits.select("train", np.sort(np.concatenate(first)))
    images, kept = [], []
    for batch, batch_labels in image_batches("train", part, 64):
        images += batch
        kept += batch_labels
    side = min(64, int(np.median([min(image.size) for image in images])))
    squares = [np.asarray(ImageOps.fit(image, (side, side))).transpose(2, 0, 1) for image in images]
    return np.stack(squares), np.array(kept)


def images_at(splits: Splits, wanted: Sequence[int], n: int) -> list[Image.Image]:
    """Test images by their places among the `n` readable ones, which `wanted` has in rising order."""
    if len(splits.test) == n:
        part = splits.select("test", np.array(wanted))
        return [image for images, _ in image_batches("test", part, 64) for image in images]
    found, seen = [], 0  # some are unreadable: places can't be told without reading all before them
    for images, _ in image_batches("test", splits, 64):
        found += [images[i - seen] for i in wanted if seen <= i < seen + len(images)]
        seen += len(images)
    return found


# --- Words and numbers -----------------------------------------------------------------------------------------------


def percent(value: float) -> str:
    """A fraction as percent."""
    return f"{value:.2%}"


def span(interval: Sequence[float]) -> str:
    """An interval of fractions as percent."""
    return f"{interval[0]:.2%} to {interval[1]:.2%}"


def points(value: float, sign: bool = True) -> str:
    """A difference of fractions in percentage points."""
    return f"{100 * value:+.2f}" if sign else f"{100 * value:.2f}"


def plural(n: int, one: str, many: str | None = None) -> str:
    """A number of things."""
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"


def joined(words: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


# --- Markdown and PDF ------------------------------------------------------------------------------------------------


def markdown(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The report in Markdown, its figures as PNG."""
    parts = [f"# {card.escape(title)}", card.escape(subtitle)]
    for section in sections:
        parts.append(f"## {section.title}")
        if section.title == "Summary":
            parts.append("\n".join(f"- {card.escape(sentence)}" for sentence in section.sentences))
        elif section.sentences:
            parts.append(" ".join(map(card.escape, section.sentences)))
        for block in section.blocks:
            if isinstance(block, Table):
                rows = [[card.escape(cell) for cell in row] for row in block.rows]
                parts.append(card.table([card.escape(cell) for cell in block.header], rows))
                parts.append(f"*{card.escape(block.caption)}*")
            elif isinstance(block, Picture):
                caption = card.escape(block.caption)
                parts.append(f"![{caption}](figures/{block.name}.png)")
                parts.append(f"*{caption}*")
            else:
                parts.append("\n".join(["```bash", *block.lines, "```"]))
    return "\n\n".join(parts) + "\n"


STYLE = """
#set page(paper: "a4", margin: (x: 2cm, top: 2cm, bottom: 2.2cm), numbering: "1")
#set text(font: "Libertinus Serif", size: 10pt, lang: "en")
#set par(justify: true, leading: 0.6em)
#set heading(numbering: "1")
#show heading: set block(above: 1.4em, below: 0.7em, sticky: true)
#show figure.where(kind: table): set figure.caption(position: top)
#show figure.caption: set text(size: 9pt)
#show figure.caption: set align(left)
#show figure: set block(above: 1.2em, below: 1.2em, breakable: false)
#show raw: set text(size: 8pt)
#set table(stroke: none, inset: (x: 5pt, y: 3.2pt))
#show table: set text(size: 8.5pt)
"""


def typeset(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The report in Typst, its figures as SVG; whatever comes from files is in string literals."""
    lines = [STYLE, f"#set document(title: {quoted(title)}, date: none)"]
    lines.append(
        f'#text(size: 18pt, weight: "bold", {quoted(title)})\n\n#text(size: 11pt, fill: luma(80), {quoted(subtitle)})\n'
    )
    for section in sections:
        if section is sections[-1]:
            lines.append("#place.flush()")  # no figure after the commands at the end
        lines.append(f"#heading({quoted(section.title)})")
        if section.title == "Summary":
            lines.append(f"#list({', '.join(f'text({quoted(sentence)})' for sentence in section.sentences)})")
        elif section.sentences:
            lines.append(f"#par(text({quoted(' '.join(section.sentences))}))")
        for narrow, group in groupby(section.blocks, lambda block: isinstance(block, Picture) and block.width <= 0.5):
            cells = [typeset_block(block, 2 * block.width if narrow else None) for block in group]
            lines += (
                [f"#grid(columns: 2, gutter: 8pt, {', '.join(cells)})"] if narrow else [f"#{cell}" for cell in cells]
            )
    return "\n".join(lines)


def typeset_block(block: Block, width: float | None) -> str:
    """A block as Typst code; `width` is a picture's in its cell, by default its own."""
    if isinstance(block, Commands):
        return f'raw({quoted(chr(10).join(block.lines), lines=True)}, block: true, lang: "bash")'
    caption = f"caption: text({quoted(block.caption)})"
    if isinstance(block, Picture):
        placed = "" if width else ", placement: auto"  # or pages end in gaps where a figure has no place
        size = f"width: {100 * (width or block.width):g}%"
        image = f"image({quoted(f'figures/{block.name}.svg')}, {size}, alt: {quoted(block.caption)})"
        return f"figure({image}, {caption}{placed})"
    n = len(block.header)
    align = f"align: ({', '.join(['left'] + ['right'] * (n - 1))},)"
    head = ", ".join(f"strong({quoted(cell)})" for cell in block.header)
    cells = ", ".join(f"text({quoted(cell)})" for row in block.rows for cell in row)
    rules = "table.hline(stroke: 0.8pt)", "table.hline(stroke: 0.4pt)"
    table = f"table(columns: {n}, {align}, {rules[0]}, table.header({head}), {rules[1]}, {cells}, {rules[0]})"
    figure = f"figure({table}, {caption}, kind: table)"
    return f"[#show figure: set block(breakable: true)\n#{figure}]" if len(block.rows) > LONG else figure


def quoted(text: str, lines: bool = False) -> str:
    """A Typst string literal; on one line, and without control characters, unless `lines`."""
    text = text if lines else " ".join(text.split())
    text = "".join(c for c in text if c.isprintable() or c == "\n")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
