"""Sections on how the models were trained, and how to do it again."""

from collections.abc import Iterator
from pathlib import Path

from classifier.records import RunRecord
from classifier.reporting import card, figures
from classifier.reporting.blocks import Block, CommandBlock, Section, TableBlock, figures_of_models
from classifier.reporting.formatting import duration, join_words, percent, plural
from classifier.reporting.results import ModelResult, describe_machine


def training(folder: Path, models: list[ModelResult]) -> Section | None:
    """Settings and learning curves; None if no model has a run.json."""
    trained = [model for model in models if model.stages]
    if not trained:
        return None
    columns = [describe_settings(model) for model in trained]
    names = list(dict.fromkeys(name for column in columns for name in column))
    names.sort(key=lambda name: sum(name not in column for column in columns))  # settings of all models come first
    several = any(len(model.stages) > 1 for model in trained)
    table = TableBlock(
        ("setting", *(model.name for model in trained)),
        [(name, *(column.get(name, "–") for column in columns)) for name in names],
        "Training settings" + ("; of a model trained in several stages, those of the last." if several else "."),
    )
    blocks: list[Block] = [table]
    if histories := {model.name: model.history for model in trained if model.history}:
        caption = "Loss and accuracy by epoch" + ("; of several stages, the last." if several else ".")
        blocks = [*figures_of_models(folder, "curves", histories, figures.save_curves_of_models, caption), table]
    sentences = [describe_training(model) for model in trained]
    return Section("Training", sentences, blocks, blocks[:1])


def describe_training(model: ModelResult) -> str:
    """Initial weights, time of training and validation accuracy in a sentence."""
    facts = [f"started from {model.initial_weights}"]
    if model.training_time:
        facts.append(f"was trained for {model.training_time}")
    if validation := model.stages[-1].validation:
        facts.append(f"reached a validation accuracy of {percent(validation.accuracy)}")
    return f"{model.name} {join_words(facts)}."


def describe_settings(model: ModelResult) -> dict[str, str]:
    """The settings of a model's last stage, {name: value} as cells of a table."""
    stage = model.stages[-1]
    recipe, flags = dict(stage.recipe), stage.settings
    rows = {"initial weights": model.initial_weights or "–"}
    sizes = recipe.pop("sizes", None)  # [[epochs or share of the epochs, image size], …]
    trained = sum(part for part, _ in sizes) if sizes else None  # --max_steps may have ended the run earlier
    epochs = trained if flags.get("max_steps") else flags.get("num_train_epochs") or trained
    epochs = recipe.pop("epochs", epochs)
    if epochs is not None:
        rows["epochs"] = f"{round(epochs, 3):g}"
    if sizes:
        scale = epochs / sum(part for part, _ in sizes)
        rows["epochs by image size"] = ", ".join(f"{scale * part:.3g} at {size}" for part, size in sizes)
    rows["batch size"] = str(recipe.pop("batch_size", None) or flags.get("per_device_train_batch_size") or "–")
    rows["learning rate"] = str(recipe.pop("learning_rate", None) or flags.get("learning_rate") or "–")
    patience = flags.get("patience")
    rows["early stopping"] = f"after {plural(patience, 'epoch')} without improvement" if patience else "none"
    if stage.best_epoch:
        rows["selected epoch"] = str(stage.best_epoch)
    if stage.averaged:
        rows["weights"] = card.describe_average(stage.averaged)
    for name, value in recipe.items():
        if value is not None and name != "image_size":
            rows[name.replace("_", " ")] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    if stage.images_seen:
        rows["images seen"] = f"{stage.images_seen:,}"
    rows["training time"] = duration(stage.train_seconds) if stage.train_seconds else "–"
    rows["machine"] = describe_machine(stage.machine)
    rows["seed"] = str(flags.get("seed", "–"))
    return rows


def reproduction(models: list[ModelResult], command: str | None) -> Section | None:
    """The commands that trained and evaluated the models; None if none is known."""
    lines = list(commands_of([stage for model in models for stage in model.stages]))
    if command:
        lines += ["git switch main"] * any(line.startswith("git ") for line in lines) + [card.portable(command)]
    if not lines:
        return None
    software: dict[str, list[str]] = {}
    for model in models:
        if model.stages:
            software.setdefault(describe_software(model.stages[-1]), []).append(model.name)
    sentences = [
        f"The last stage of {join_words(names)} was trained with {versions}." for versions, names in software.items()
    ]
    changed = [
        f"stage {i} of {model.name}"
        for model in models
        for i, stage in enumerate(model.stages, 1)
        if any(
            (commit or "").endswith("+") for commit in (stage.commit, *(made.commit for made in card.averagings(stage)))
        )
    ]
    if changed:
        sentences.append(
            f"The code differed from the commit below in the training or averaging of {join_words(changed)}."
        )
    block = CommandBlock(lines)
    return Section("Reproduction", sentences, [block], [block])


def describe_software(stage: RunRecord) -> str:
    """The versions of the libraries and of Python."""
    versions = ", ".join(f"{name} {version}" for name, version in stage.versions.items())
    return f"{versions}; Python {stage.machine.python}"


def commands_of(stages: list[RunRecord]) -> Iterator[str]:
    """The commands of all stages in order, each once, after a checkout of their commit where it changes."""
    current, seen = "", set()
    steps = []
    for stage in stages:
        # A model that was calibrated again is reproduced by the commit of that calibration.
        steps.append((stage.calibrated.commit if stage.calibrated else stage.commit, stage.command))
        steps += [(made.commit, made.command) for made in card.averagings(stage)]
    for commit, command in ((commit and commit.rstrip("+"), card.portable(command)) for commit, command in steps):
        if commit and commit != current:
            yield f"git checkout {commit}"
            current = commit
        if command not in seen:
            yield command
            seen.add(command)
