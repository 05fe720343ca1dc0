"""The model card: README.md of a model's repository, filled in from the records beside the weights.

    card.write(folder, "user/cifar10-cnn")

Every number comes from config.json, the processor's file, run.json, evaluation.json or timing.json; the text is in
templates/card.md. Nothing here asks a server.
"""

import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from classifier import runs
from classifier.errors import ModelError
from classifier.files import read_json, write_text
from classifier.hub import DATASET_ID
from classifier.models.cnn import CifarCnnConfig
from classifier.models.loading import load_processor, read_ood
from classifier.models.processor import pixel_steps, timm_settings
from classifier.records import (
    Averaged,
    Evaluation,
    Exports,
    ModelEvaluation,
    PhotographResult,
    RunRecord,
    Timing,
    Validation,
)
from classifier.reporting.formatting import duration, escape_markdown, fraction, join_words, markdown_table, plural, si
from classifier.runs import RunFolder

TEMPLATE = Path(__file__).parent / "templates/card.md"
MAX_LABELS = 20  # named in the first sentence
MAX_ROWS = 60  # labels in the table of results
MAX_MISTAKES = 5

OOD_SCORES = {  # of the logits: how the card describes them
    "energy": "log Σ exp of its logits",
    "gen": "-Σ (p (1 - p))^0.1 over its (at most 100) highest probabilities p",
    "max_probability": "its highest probability",
}
METRICS = {"accuracy": "Accuracy", "f1": "Macro F1", "precision": "Macro precision", "recall": "Macro recall"}
# Architectures that the pipeline of transformers.js 4 takes, with the processors that they are trained with here.
IN_TRANSFORMERS_JS = {"convnext", "convnextv2", "deit", "dinov2", "dinov2_with_registers", "efficientnet"}
IN_TRANSFORMERS_JS |= {"fastvit", "hiera", "ijepa", "mobilenet_v1", "mobilenet_v2", "mobilenet_v3", "mobilenet_v4"}
IN_TRANSFORMERS_JS |= {"mobilevit", "mobilevitv2", "pvt", "resnet", "segformer", "swin", "vit", "vit_msn"}
# Architectures whose folders, as this project writes them, were loaded with transformers 4.46, 4.48 and 4.57, too.
SINCE_4_46 = {"beit", CifarCnnConfig.model_type, "convnext", "dinov2", "efficientnet", "mobilenet_v1", "mobilenet_v2"}
SINCE_4_46 |= {"resnet", "swin", "vit"}
# Settings that name files, devices and services: they do not change how the weights are trained.
NOT_THE_RECIPE = {"dataset", "model", "output_dir", "init_from", "recipe", "seed", "bf16", "device", "report_to"}
NOT_THE_RECIPE |= {"resume_from_checkpoint", "overwrite_output_dir", "push_to_hub", "validation_fraction"}


def write(folder: Path, repo_id: str | None = None, *, has_onnx: bool = True) -> None:
    """Writes the card as README.md into the folder, whole or not at all. Arguments and errors as in `render`."""
    write_text(folder / "README.md", f"{render(folder, repo_id, has_onnx=has_onnx)}\n")


def render(
    folder: Path,
    repo_id: str | None = None,
    *,
    figures: str = "",
    evaluation: Evaluation | None = None,
    timing: Timing | None = None,
    has_onnx: bool = True,
) -> ModelCard:
    """The card of a model folder.

    Args:
        folder: has config.json; run.json, evaluation.json and timing.json are used where they exist.
        repo_id: `user/name` on the Hub, which the examples load from; `user/<folder's name>` if None.
        figures: path from the card to the folder with the figures, such as "models/cnn/"; "" if that is the card's own.
        evaluation, timing: new results, which will be written into the folder with a confusion matrix; None: those of
            the folder.
        has_onnx: whether the repository will have onnx/model.onnx, which a push adds.

    Raises:
        ModelError: there is no config.json, or a record is not valid JSON or lacks a key.
    """
    config = read_json(folder / "config.json")
    # As it was loaded and not as the file says: files of old versions have other forms, and leave out the defaults.
    # timm's settings are in config.json.
    processor = {} if config.get("model_type") == "timm_wrapper" else load_processor(folder).to_dict()
    run_folder = RunFolder(folder)
    stages, confusion = run_folder.stages, evaluation is not None or (folder / "confusion_matrix.png").is_file()
    evaluation, timing = evaluation or run_folder.evaluation, timing or run_folder.timing
    last = stages[-1] if stages else None
    repo_id = repo_id or f"user/{re.sub(r'[^A-Za-z0-9._-]+', '-', folder.resolve().name)}"
    try:
        names = config.get("label_names") or config["id2label"]  # a list (timm), or a dictionary by index
        labels = names if isinstance(names, list) else [names[str(i)] for i in range(len(names))]
        data = _metadata(repo_id, stages, evaluation)
        ood = read_ood(config)
        js_processor = (folder / "preprocessor_config.json").is_file() or bool(_timm_settings(config))
        base = next((stage.start for stage in stages if stage.start), None)
        return ModelCard.from_template(
            data,
            template_path=str(TEMPLATE),
            name=escape_markdown(repo_id.split("/")[1]),
            repo_id=repo_id,
            n_labels=f"{len(labels):,}",
            labels=_listed(labels),
            facts=_facts(folder, config, evaluation),
            has_code=config["model_type"] == CifarCnnConfig.model_type,
            has_onnx=has_onnx,
            timm=config["model_type"] == "timm_wrapper",
            versions=_versions(config),
            in_transformers_js=js_processor and config["model_type"] in IN_TRANSFORMERS_JS,
            js_processor=js_processor,
            js_size=_size(config, processor),
            pixel_steps=_pixel_steps(config, processor),
            input=_input(config, processor),
            ood_threshold=None if ood.threshold is None else f"{ood.threshold:.3g}",
            ood_resize_to=ood.resize_to,
            ood_score=OOD_SCORES[ood.score],
            reduce_to=config.get("reduce_to"),
            cifar10=any("cifar10" in name for name in _datasets(stages, evaluation)),
            stages="\n".join(f"{i}. {_stage(stage)}" for i, stage in enumerate(stages, 1)),
            validation=_validation(last, last.validation) if last and last.validation else "",
            recipe=_recipe(last) if last else "",
            curves=(folder / "curves.png").is_file(),
            figures=figures,
            evaluation=_results(labels, evaluation, confusion) if evaluation else None,
            cost=_cost(stages, timing),
            exports=_exports(run_folder.exports) if run_folder.exports else None,
            base=_named(base) if base else None,
        )
    except KeyError as error:
        raise ModelError(
            f"config.json or preprocessor_config.json in {folder} has no {error}: fetch or train the model again"
        ) from error


def _metadata(repo_id: str, stages: list[RunRecord], evaluation: Evaluation | None) -> ModelCardData:
    """The card's front matter, which the Hub reads. Local folders are left out: nobody else has them."""
    datasets = _unique(_hub_id(stage.dataset) for stage in stages)
    bases = _unique(_hub_id(stage.start or "") for stage in stages)
    results = []
    if evaluation and (dataset := _hub_id(evaluation.dataset)):
        results = [
            EvalResult(
                task_type="image-classification",
                task_name="Image classification",
                dataset_type=dataset,
                dataset_name=dataset.split("/")[1],
                dataset_split=evaluation.split,
                dataset_revision=evaluation.dataset_revision,
                metric_type=metric,
                metric_name=name,
                metric_value=getattr(evaluation.model, metric),
                metric_args=None if metric == "accuracy" else {"average": "macro"},
            )
            for metric, name in METRICS.items()
        ]
    return ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["vision", "image-classification"],
        datasets=datasets or None,
        base_model=bases[0] if bases else None,
        metrics=list(METRICS) if evaluation else None,
        model_name=repo_id.split("/")[1] if results else None,
        eval_results=results or None,
    )


def _hub_id(name: str) -> str | None:
    """The Hub id in a flag's value, without configuration and revision; None for a folder."""
    match = DATASET_ID.fullmatch(name)
    return match["repo"] if match and not Path(name).exists() else None


def _named(name: str) -> str:
    """A dataset or model in Markdown: a link to the Hub, or the name of a folder without the path to it."""
    repo = _hub_id(name)
    return f"[{escape_markdown(name)}](https://huggingface.co/{repo})" if repo else escape_markdown(Path(name).name)


def _dataset(name: str) -> str:
    return _named(name).replace("huggingface.co/", "huggingface.co/datasets/")


def _datasets(stages: list[RunRecord], evaluation: Evaluation | None) -> list[str]:
    """The names of all datasets, without user or path."""
    names = [stage.dataset for stage in stages] + ([evaluation.dataset] if evaluation else [])
    return _unique(Path(name.partition("@")[0]).name for name in names)


def _facts(folder: Path, config: dict, evaluation: Evaluation | None) -> str:
    """Architecture and size, as a list."""
    lines = [
        f"Architecture: `{config['architectures'][0]}`"
        + (f" of `{config['architecture']}`" if "architecture" in config else "")
    ]
    if evaluation:
        lines[0] += f", {evaluation.model.n_parameters:,} parameters"
    if config.get("views", 1) > 1:
        lines[0] += f"; `forward` averages the probabilities of {config['views']} views of each image"
    weights = folder / "model.safetensors"
    if weights.is_file():
        lines.append(
            f"Weights: `model.safetensors`, {weights.stat().st_size / 1e6:.1f} MB, computed in "
            f"{config.get('dtype', 'float32')}"
        )
    return "\n".join(f"- {line}" for line in lines)


def _versions(config: dict) -> str:
    """The versions of transformers that load the model, in words."""
    if config["model_type"] == "timm_wrapper":
        return "4.48 or later, and `timm`"
    if config["model_type"] in SINCE_4_46:
        return "4.46 or later"
    return f"{config.get('transformers_version', '5')} or later (earlier versions were not tried)"


def _timm_settings(config: dict) -> dict | None:
    """What timm's processor does, see `timm_settings`; None for a model of another library."""
    return timm_settings(config["pretrained_cfg"]) if config["model_type"] == "timm_wrapper" else None


def _size(config: dict, processor: dict) -> str | None:
    """Width and height of a picture from which transformers.js makes the same input as Python; None if there is none.

    The processor doesn't resize it, and the crop's distance from the border is a whole number.
    """
    if "pretrained_cfg" in config:
        processor = _timm_settings(config) or {}
    size, crop = processor.get("size") or {}, processor.get("crop_size") or {}
    edge = size.get("shortest_edge")
    width, height = size.get("width", edge), size.get("height", edge)
    if not width or not height or "crop_pct" in processor:  # ConvNeXt's crop depends on its size
        return None
    odd = (width - crop["width"]) % 2 or (height - crop["height"]) % 2 if processor.get("do_center_crop") else 0
    return None if odd else f"{width}×{height}"


def _input(config: dict, processor: dict) -> str:
    """What the network gets, in words."""
    if cfg := config.get("pretrained_cfg"):
        _, height, width = cfg["input_size"]
        return f"a picture as {width}×{height} pixels"
    size, crop = processor.get("size") or {}, processor.get("crop_size") or {}
    if processor.get("do_center_crop") and crop and crop != size:
        return f"the middle {crop['width']}×{crop['height']} pixels of a resized picture"
    if size.get("height"):
        return f"a picture squashed to {size['width']}×{size['height']} pixels"
    return "a picture resized by its processor"


def _pixel_steps(config: dict, processor: dict) -> str | None:
    """Python code that makes `pixels` (H, W, 3) from the RGB `image` as the saved processor does.

    None for a processor that does more than a few lines can.
    """
    steps = pixel_steps(config, processor)
    if steps is None:
        return None
    lines = []
    if steps.shortest_edge:
        lines.append(f"size = [side * {steps.shortest_edge} // min(image.size) for side in image.size]")
        lines.append(f"image = image.resize(size, Image.Resampling.{steps.resample})")
    elif steps.size:
        lines.append(f"image = image.resize({steps.size}, Image.Resampling.{steps.resample})")
    if steps.crop:
        width, height = steps.crop
        middle = "round(({}) / 2)" if steps.even_crop else "({}) // 2"
        left, top = middle.format(f"image.width - {width}"), middle.format(f"image.height - {height}")
        lines.append(f"left, top = {left}, {top}")
        lines.append(f"image = image.crop((left, top, left + {width}, top + {height}))")
    scaled = "np.asarray(image) / 255" if abs(steps.scale * 255 - 1) < 1e-9 else f"np.asarray(image) * {steps.scale}"
    lines += [
        f"mean = np.array({steps.mean})",
        f"std = np.array({steps.std})",
        f"pixels = ({scaled} - mean) / std  # (height, width, 3)",
    ]
    return "\n".join(lines)


def _stage(stage: RunRecord) -> str:
    """One run in a few sentences."""
    text = f"{_dataset(stage.dataset)}: {stage.data.images:,} images of its train split"
    if counts := stage.data.counts.get("validation"):
        text += f", and {sum(counts):,} held out, class by class, for validation"
    if stage.data.skipped:
        text += f"; {stage.data.skipped:,} unreadable files left out"
    if photographs := (stage.recipe or {}).get("photographs"):
        text += f"; and photographs, {photographs}"
    start = _named(stage.start) if stage.start else "random weights"
    text += f". Started from {'the stage before' if stage.parent else start}"
    text += f", seed {stage.settings['seed']}." if "seed" in stage.settings else "."
    versions = ", ".join(f"{name} {version}" for name, version in stage.versions.items())
    text += f"\n   `{portable(stage.command)}`{_commit(stage.commit)}; Python {stage.machine.python}, {versions}."
    for made in averagings(stage):
        text += f"\n   Its weights were then replaced by the {describe_average(made)}:\n"
        text += f"   `{portable(made.command)}`{_commit(made.commit)}."
    return text


def averagings(stage: RunRecord) -> list[Averaged]:
    """How the weights of a run were averaged, in order; mostly once or not at all."""
    found, made = [], stage.averaged
    while made:
        found.append(made)
        made = made.before
    return found[::-1]


def _commit(commit: str | None) -> str:
    """The commit of a run as the end of a sentence; "" if it is not known."""
    changed = ", with files that differed from it" if (commit or "").endswith("+") else ""
    return f", commit {commit.rstrip('+')}{changed}" if commit else ""


def describe_average(made: Averaged) -> str:
    """Of which weights a model's are the mean, in words."""
    taken = [model.model for model in made.models if model.taken]
    text = f"mean of {join_words(taken)}" if len(taken) > 1 else f"weights of {taken[0]}"
    if made.pretrained and made.pretrained_share:
        text = f"sum of {1 - made.pretrained_share:.0%} of the {text} and {made.pretrained_share:.0%} of the "
        text += f"pre-trained ones of {made.pretrained}"
    return text


def portable(command: str) -> str:
    """The command of a run from its start, with folders outside of the project by their name only."""
    words = [re.sub(r"(?<![^=])/.*?([^/]+)/?$", r"\1", word) for word in runs.from_the_start(shlex.split(command))]
    return shlex.join(["python", *words]).replace("`", "'")


def _validation(run: RunRecord, reached: Validation) -> str:
    """What was chosen on validation, and what the saved model reaches there."""
    text = f"On validation, the saved model labels {reached.accuracy:.2%} of the images right"
    if run.averaged:
        text = f"{_weights(run.averaged, reached)} {text}"
    if run.best_epoch:
        text += f"; its weights are those of epoch {run.best_epoch}, the best on validation"
    if run.calibrated:
        text += f"; the head was calibrated again after commit {run.calibrated.commit[:7]} ({run.calibrated.why})"
    text += "."
    if reached.temperature:
        text += (
            f" A temperature of {reached.temperature:.3f}, fitted on validation, is folded into the last layer, so "
            "probabilities are calibrated however the weights are loaded."
        )
    return f"{text} The test split was not used."


def _weights(averaged: Averaged, reached: Validation) -> str:
    """Of which weights the saved ones are made, and what the single models reach on validation."""
    losses = join_words([f"{model.nll:.4f}" for model in averaged.models if model.taken])
    return (
        f"The saved weights are the {describe_average(averaged)}. On validation, the negative log-likelihood without "
        f"averaging is {losses}, and with it {reached.nll:.4f}."
    )


def _recipe(run: RunRecord) -> str:
    """The training settings as a table."""
    recipe = dict(run.recipe or run.settings)
    rows = []
    if sizes := recipe.pop("sizes", None):
        steps = ", ".join(f"{epochs:g} at {size}×{size}" for epochs, size in sizes)
        rows.append(("epochs, by image size", f"{sum(epochs for epochs, _ in sizes):g}: {steps}"))
    for name, value in recipe.items():
        if name in NOT_THE_RECIPE or name.startswith("hub_") or value is None or value is False:
            continue
        rows.append(
            (f"`{name}`", escape_markdown(", ".join(map(str, value)) if isinstance(value, list) else f"{value}"))
        )
    return markdown_table(("setting", "value"), rows)


def _results(labels: list[str], evaluation: Evaluation, confusion: bool) -> dict:
    """The template's values about the test split; `confusion`: whether there is a figure of the confusion matrix."""
    measured = evaluation.model
    low, high = measured.accuracy_ci95
    interval = f"{low:.2%} to {high:.2%}"
    rows = [("accuracy (95% interval)", f"{measured.accuracy:.2%} ({interval})")]
    over = f" (over {plural(len(measured.f1_of_classes), 'label')} with images)" if measured.absent else ""
    rows += [
        (METRICS[name].replace("Macro", "macro") + over, f"{getattr(measured, name):.4f}")
        for name in ("f1", "precision", "recall")
    ]
    if measured.accuracy_one_view is not None:
        rows.append((f"accuracy with one view instead of {measured.views}", f"{measured.accuracy_one_view:.2%}"))
    if measured.nll is not None:
        rows.append(("negative log-likelihood (nats)", f"{measured.nll:.4f}"))
    if measured.ece is not None:
        rows.append(("expected calibration error", f"{measured.ece:.4f}"))

    classes, heading = list(measured.per_class.items()), "label"
    if len(labels) > MAX_ROWS:
        classes = sorted(classes, key=lambda item: (item[1].f1 is None, item[1].f1 or 0))[:MAX_ROWS]
        heading = f"label (the {MAX_ROWS} of lowest F1)"
    per_class = markdown_table(
        (heading, "precision", "recall", "F1", "images"),
        [
            (
                escape_markdown(label),
                *(fraction(value) for value in (each.precision, each.recall, each.f1)),
                f"{each.n:,}" if each.n else "no images",
            )
            for label, each in classes
        ],
    )
    return {
        "dataset": _dataset(evaluation.dataset),
        "n": f"{evaluation.n:,}",
        "accuracy": f"{measured.accuracy:.2%}",
        "interval": interval,
        "measures": markdown_table(("measure", "value"), rows),
        "photographs": _photographs(measured.photographs),
        "on_photographs": _on_photographs(measured),
        "per_class": per_class,
        "mistakes": _mistakes(np.array(measured.confusion_matrix), labels),
        "confusion": confusion,
    }


def _on_photographs(measured: ModelEvaluation) -> str:
    """How many photographs were measured, and how many were labelled correctly; "" if none were measured."""
    accuracy = measured.accuracy_on_photographs
    if accuracy is None:
        return ""
    return f"{plural(measured.n_photographs, 'photograph')} as users send them **{accuracy:.1%}**"


def _photographs(measured: list[PhotographResult]) -> str:
    """A table of what was measured on photographs; "" if nothing was."""

    def cell(value: float | None, interval: tuple[float, float] | None) -> str:
        return "–" if value is None or interval is None else f"{value:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"

    rows = [
        (
            escape_markdown(each.folder),
            f"{each.n:,} + {each.n_none:,}",
            cell(each.accuracy, each.accuracy_ci95),
            cell(each.kept, each.kept_ci95),
            cell(each.flagged, each.flagged_ci95),
        )
        for each in measured
    ]
    titles = ("photographs", "of a label + of none", "labelled correctly", "of a label, kept", "of none, flagged")
    return markdown_table(titles, rows) if rows else ""


def _mistakes(matrix: np.ndarray, labels: list[str]) -> str:
    """The largest off-diagonal counts of a confusion matrix (C, C), in words."""
    wrong = matrix - np.diag(np.diag(matrix))
    order = [np.unravel_index(i, wrong.shape) for i in np.argsort(-wrong, axis=None, kind="stable")[:MAX_MISTAKES]]
    return ", ".join(
        f"{escape_markdown(labels[t])} taken for {escape_markdown(labels[p])} ({wrong[t, p]:,})"
        for t, p in order
        if wrong[t, p]
    )


def _cost(stages: list[RunRecord], timing: Timing | None) -> str:
    """Time and arithmetic of training, stage by stage, and the arithmetic of an answer."""
    lines = []
    for i, run in enumerate(stages, 1):
        if not run.train_seconds:
            continue
        machine = run.machine
        threads = "1 thread" if machine.threads == 1 else f"{machine.threads} threads"
        place = machine.accelerator or f"{threads} of {machine.processor} ({machine.instructions})"
        precision = "bfloat16" if run.settings.get("bf16") else "float32"
        stage = f", stage {i}" if len(stages) > 1 else ""
        text = f"Training{stage}: {duration(run.train_seconds)} on {escape_markdown(place)}, {precision}"
        if run.images_seen:
            text += f"; {run.images_seen:,} images seen, {run.images_seen / run.train_seconds:,.0f} a second"
        if run.train_flops:
            text += f"; {si(run.train_flops)}FLOP"
        lines.append(text)
    if flops := (timing.model.flops if timing else None) or (stages[-1].inference_flops if stages else None):
        lines.append(f"An answer: {si(flops)}FLOP an image")
    return "\n".join(f"- {line}." for line in lines)


def _exports(found: Exports) -> str:
    """A table of the ONNX files and what they lose, and where their latency was measured."""

    def accuracy(value: float, interval: tuple[float, float]) -> str:
        return f"{value:.2%} ({interval[0]:.2%} to {interval[1]:.2%})"

    rows = [("the weights", accuracy(found.accuracy, found.accuracy_ci95), "", "", f"{found.n_bytes / 1e6:.1f}", "")]
    rows += [
        (
            f"`onnx/{each.file}`",
            accuracy(each.accuracy, each.accuracy_ci95),
            f"{each.changed:.2%}",
            f"{each.max_difference:.2g}",
            f"{each.n_bytes / 1e6:.1f}",
            f"{each.latency_ms:.1f} ms",
        )
        for each in found.exports
    ]
    titles = ("file", "validation accuracy (95% interval)", "other labels", "logits differ by", "MB", "one image")
    place = f"{plural(found.machine.threads, 'thread')} of {escape_markdown(found.machine.processor)}"
    return (
        f"{markdown_table(titles, rows)}\n\nMeasured on {found.n:,} validation images. “Other labels” is the share of "
        "images with another label than the weights give, the difference of logits is the largest, and the latency is "
        f"onnxruntime's, the median, on {place}."
    )


def spent(stages: Sequence[RunRecord]) -> str:
    """How long stages took together, in words, accelerators named; empty where a stage did not record its time."""
    return total_time([(stage.train_seconds, stage.machine.accelerator) for stage in stages])


def total_time(times: Sequence[tuple[float | None, str | None]]) -> str:
    """The sum of (seconds, accelerator or None) for each accelerator, in words; empty where seconds are None."""
    seconds: dict[str, float] = {}
    for each, accelerator in times:
        if not each:
            return ""
        where = f" on {accelerator}" if accelerator else ""
        seconds[where] = seconds.get(where, 0) + each
    return " and ".join(f"{duration(each)}{where}" for where, each in seconds.items())


def _listed(labels: Sequence[str]) -> str:
    names = ", ".join(map(escape_markdown, labels[:MAX_LABELS]))
    return f"{names} and {len(labels) - MAX_LABELS:,} more" if len(labels) > MAX_LABELS else names


def _unique(names: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(filter(None, names)))
