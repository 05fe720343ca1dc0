"""The model card: README.md of a model's repository, filled from the records beside the weights.

    card.write(folder, "user/cifar10-cnn")

Every number comes from config.json, the processor's file, run.json or evaluation.json; card.md has the words. Nothing
here asks a server.
"""

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from PIL import Image

from classifier import runs
from classifier.errors import ModelError
from classifier.files import write_text
from classifier.hub import HUB_ID
from classifier.models.cnn import CifarCnnConfig

TEMPLATE = Path(__file__).parent / "templates/card.md"
MAX_LABELS = 20  # named in the first sentence
MAX_ROWS = 60  # labels in the table of results
MAX_MISTAKES = 5

METRICS = {"accuracy": "Accuracy", "f1": "Macro F1", "precision": "Macro precision", "recall": "Macro recall"}
# Processors that do nothing but resize, crop, rescale and normalise: NumPy and Pillow can do the same in a few lines.
PLAIN_PROCESSORS = {"ViTImageProcessor", "DeiTImageProcessor", "MobileNetV1ImageProcessor", "MobileNetV2ImageProcessor"}
# Settings that say where files are and what else was done, not how the weights came about.
NOT_THE_RECIPE = {"dataset", "model", "output_dir", "init_from", "recipe", "seed", "bf16", "device", "report_to"}
NOT_THE_RECIPE |= {"resume_from_checkpoint", "overwrite_output_dir", "push_to_hub", "validation_fraction"}


def write(folder: Path, repo_id: str | None = None) -> None:
    """Writes the card as README.md into the folder, whole or not at all. Arguments and errors as `render`."""
    write_text(folder / "README.md", f"{render(folder, repo_id)}\n")


def render(folder: Path, repo_id: str | None = None, *, figures: str = "") -> ModelCard:
    """The card of a model folder.

    Args:
        folder: with config.json; run.json and evaluation.json are told where they are.
        repo_id: `user/name` on the Hub, which the examples load from; `user/<folder's name>` if None.
        figures: what leads from the card to the folder with the figures, such as "models/cnn/"; "" for a card in it.

    Raises:
        ModelError: no config.json, or a record that is not JSON or lacks what its script writes.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"no config.json in {folder}: is it a model folder? Train one, or name another")
    run, evaluation, config, processor = (
        read(folder / name) for name in ("run.json", "evaluation.json", "config.json", "preprocessor_config.json")
    )
    repo_id = repo_id or f"user/{re.sub(r'[^A-Za-z0-9._-]+', '-', folder.resolve().name)}"
    try:
        names = config.get("label_names") or config["id2label"]  # timm's a list, transformers' by index
        labels = names if isinstance(names, list) else [names[str(i)] for i in range(len(names))]
        chain = stages_of(run)
        data = _metadata(repo_id, chain, evaluation)
        base = next((stage["settings"]["model"] for stage in chain if stage["settings"].get("model")), None)
        return ModelCard.from_template(
            data,
            template_path=str(TEMPLATE),
            name=escape(repo_id.split("/")[1]),
            repo_id=repo_id,
            n_labels=f"{len(labels):,}",
            labels=_listed(labels),
            facts=_facts(folder, config, evaluation),
            has_code=config["model_type"] == CifarCnnConfig.model_type,
            timm=config["model_type"] == "timm_wrapper",
            pixel_steps=_pixel_steps(config, processor),
            input=_input(config, processor),
            known_threshold=f"{config['known_threshold']:.2f}" if config.get("known_threshold") else None,
            known_at=config.get("known_at"),
            reduce_to=config.get("reduce_to"),
            cifar10=any("cifar10" in name for name in _datasets(chain, evaluation)),
            stages="\n".join(f"{i}. {_stage(stage)}" for i, stage in enumerate(chain, 1)),
            validation=_validation(run),
            recipe=_recipe(run),
            curves=(folder / "curves.png").is_file(),
            figures=figures,
            evaluation=_results(folder, labels, evaluation) if evaluation else None,
            cost=_cost(chain, read(folder / "timing.json")),
            base=_named(base) if base else None,
        )
    except KeyError as error:
        raise ModelError(f"a JSON file in {folder} has no {error}: train or evaluate the model again") from error


def read(path: Path) -> dict:
    """A JSON file's object; {} where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:  # not UTF-8, or not JSON
        raise ModelError(f"{path} is not valid JSON ({error}): train or evaluate the model again") from error


def stages_of(run: dict) -> list[dict]:
    """run.json of each stage, the first one first."""
    stages = []
    while run:
        stages.insert(0, run)
        run = run.get("parent")
    return stages


def _metadata(repo_id: str, chain: list[dict], evaluation: dict) -> ModelCardData:
    """What the Hub reads, by huggingface_hub's own classes. Folders are not named: they mean nothing to others."""
    datasets = _unique(_hub_id(stage["settings"]["dataset"]) for stage in chain)
    bases = _unique(_hub_id(stage["settings"].get("model") or "") for stage in chain)
    results = []
    if evaluation:
        [measured] = evaluation["models"]
        if dataset := _hub_id(evaluation["dataset"]):
            results = [
                EvalResult(
                    task_type="image-classification",
                    task_name="Image classification",
                    dataset_type=dataset,
                    dataset_name=dataset.split("/")[1],
                    dataset_split=evaluation["split"],
                    dataset_revision=evaluation.get("dataset_revision"),
                    metric_type=metric,
                    metric_name=name,
                    metric_value=measured[metric],
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
    """The Hub id that a flag's value names, without its revision; None for a folder."""
    match = HUB_ID.fullmatch(name)
    return match["repo"] if match and not Path(name).exists() else None


def _named(name: str) -> str:
    """A dataset or model in Markdown: a link to the Hub's, a folder by its name without what leads to it."""
    repo = _hub_id(name)
    return f"[{escape(name)}](https://huggingface.co/{repo})" if repo else escape(Path(name).name)


def _dataset(name: str) -> str:
    return _named(name).replace("huggingface.co/", "huggingface.co/datasets/")


def _datasets(chain: list[dict], evaluation: dict) -> list[str]:
    """Every dataset by its own name, without what leads to it."""
    names = [stage["settings"]["dataset"] for stage in chain] + ([evaluation["dataset"]] if evaluation else [])
    return _unique(Path(name.partition("@")[0]).name for name in names)


def _facts(folder: Path, config: dict, evaluation: dict) -> str:
    """Architecture and size, as a list."""
    lines = [
        f"Architecture: `{config['architectures'][0]}`"
        + (f" of `{config['architecture']}`" if "architecture" in config else "")
    ]
    if evaluation:
        [measured] = evaluation["models"]
        lines[0] += f", {measured['n_parameters']:,} parameters"
    if config.get("views", 1) > 1:
        lines[0] += f"; `forward` averages the probabilities of {config['views']} views of each image"
    weights = folder / "model.safetensors"
    if weights.is_file():
        lines.append(
            f"Weights: `model.safetensors`, {weights.stat().st_size / 1e6:.1f} MB, computed in "
            f"{config.get('dtype', 'float32')}"
        )
    return "\n".join(f"- {line}" for line in lines)


def _input(config: dict, processor: dict) -> str:
    """What reaches the network, in words."""
    if cfg := config.get("pretrained_cfg"):
        _, height, width = cfg["input_size"]
        return f"a picture as {width}×{height} pixels"
    size, crop = processor.get("size") or {}, processor.get("crop_size") or {}
    if processor.get("do_center_crop") and crop and crop != size:
        return f"the middle {crop['width']}×{crop['height']} pixels of a resized picture"
    if "height" in size:
        return f"a picture squashed to {size['width']}×{size['height']} pixels"
    return "a picture resized by its processor"


def _pixel_steps(config: dict, processor: dict) -> str | None:
    """Python that makes `pixels` (H, W, 3) from the RGB `image` as the saved processor does; None for a special
    processor.
    """
    if cfg := config.get("pretrained_cfg"):  # timm's
        _, height, width = cfg["input_size"]
        resample = cfg["interpolation"].upper()
        if (
            cfg.get("crop_mode", "center") != "center"
            or height != width
            or resample not in Image.Resampling.__members__
        ):
            return None
        size, crop, middle = (
            {"shortest_edge": int(height / cfg["crop_pct"])},
            {"height": height, "width": width},
            "round(({}) / 2)",
        )
        scale, mean, std = 1 / 255, cfg["mean"], cfg["std"]
    elif re.sub("(Fast|Pil)$", "", processor.get("image_processor_type", "")) in PLAIN_PROCESSORS:
        size = processor["size"] if processor.get("do_resize", True) else {}
        crop, middle = processor["crop_size"] if processor.get("do_center_crop") else None, "({}) // 2"
        resample = Image.Resampling(processor["resample"]).name
        scale = processor["rescale_factor"] if processor.get("do_rescale", True) else 1
        mean, std = (processor["image_mean"], processor["image_std"]) if processor.get("do_normalize", True) else (0, 1)
    else:
        return None
    lines = []
    if "shortest_edge" in size:
        lines.append(f"size = [side * {size['shortest_edge']} // min(image.size) for side in image.size]")
        lines.append(f"image = image.resize(size, Image.Resampling.{resample})")
    elif size:
        lines.append(f"image = image.resize(({size['width']}, {size['height']}), Image.Resampling.{resample})")
    if crop and crop != size:
        width, height = crop["width"], crop["height"]
        left, top = middle.format(f"image.width - {width}"), middle.format(f"image.height - {height}")
        lines.append(f"left, top = {left}, {top}")
        lines.append(f"image = image.crop((left, top, left + {width}, top + {height}))")
    scaled = "np.asarray(image) / 255" if abs(scale * 255 - 1) < 1e-9 else f"np.asarray(image) * {scale}"
    lines += [
        f"mean = np.array({mean})",
        f"std = np.array({std})",
        f"pixels = ({scaled} - mean) / std  # (height, width, 3)",
    ]
    return "\n".join(lines)


def _stage(stage: dict) -> str:
    """One run in a few sentences."""
    settings, data = stage["settings"], stage["data"]
    start = "the stage before" if stage.get("parent") else settings.get("model")
    text = f"{_dataset(settings['dataset'])}: {data['images']:,} images of its train split"
    if counts := data.get("counts", {}).get("validation"):
        text += f", and {sum(counts):,} held out, class by class, for validation"
    if data.get("skipped"):
        text += f"; {data['skipped']:,} unreadable files left out"
    text += f". Started from {'random weights' if not start else start if stage.get('parent') else _named(start)}"
    text += f", seed {settings['seed']}."
    commit = f", commit {stage['commit'].rstrip('+')}" if stage.get("commit") else ""
    commit += ", with files that differed from it" if (stage.get("commit") or "").endswith("+") else ""
    versions = ", ".join(f"{name} {version}" for name, version in stage["versions"].items())
    return f"{text}\n   `{portable(stage['command'])}`{commit}; Python {stage['machine']['python']}, {versions}."


def portable(command: str) -> str:
    """The command, from the start, with folders outside of the project by their own name only."""
    words = [re.sub(r"(?<![^=])/.*?([^/]+)/?$", r"\1", word) for word in runs.from_the_start(shlex.split(command))]
    return shlex.join(["python", *words]).replace("`", "'")


def _validation(run: dict) -> str:
    """What was chosen on validation, and what came out there."""
    if not run.get("validation"):
        return ""
    found = run["validation"]
    text = f"On validation the saved model gets {found['accuracy']:.2%} right"
    if averaged := run.get("averaged"):
        each = " and ".join(f"{row['nll']:.4f}" for row in averaged["models"] if row["taken"])
        text = "What is saved is the mean of this stage's weights and of earlier ones' "
        text += f"(`{portable(averaged['command'])}`): by itself, each has a negative log-likelihood of {each} on "
        text += "validation, the "
        text += f"mean {found['nll']:.4f}, and {found['accuracy']:.2%} right"
    if run.get("best_epoch"):
        text += f"; its weights are those of epoch {run['best_epoch']}, the best there"
    if again := run.get("calibrated"):
        text += f"; since commit {again['commit'][:7]} {again['why']}, for which the head was calibrated anew"
    if found.get("temperature"):
        text += (
            f", and a temperature of {found['temperature']:.3f}, fitted there, is folded into the last layer, so that"
        )
        text += " probabilities are calibrated however the weights are loaded"
    return f"{text}. The test split was not looked at."


def _recipe(run: dict) -> str:
    """The settings in force, as a table."""
    if not run:
        return ""
    recipe = dict(run.get("recipe") or run["settings"])
    rows = []
    if sizes := recipe.pop("sizes", None):
        steps = ", ".join(f"{epochs:g} at {size}×{size}" for epochs, size in sizes)
        rows.append(("epochs, by image size", f"{sum(epochs for epochs, _ in sizes):g}: {steps}"))
    for name, value in recipe.items():
        if name in NOT_THE_RECIPE or name.startswith("hub_") or value is None or value is False:
            continue
        rows.append((f"`{name}`", escape(", ".join(map(str, value)) if isinstance(value, list) else f"{value}")))
    return table(("setting", "value"), rows)


def _results(folder: Path, labels: list[str], evaluation: dict) -> dict:
    """What card.md says of the test split."""
    [measured] = evaluation["models"]
    low, high = measured["accuracy_ci95"]
    interval = f"{low:.2%} to {high:.2%}"
    rows = [("accuracy (95% interval)", f"{measured['accuracy']:.2%} ({interval})")]
    rows += [
        (METRICS[name].replace("Macro", "macro"), f"{measured[name]:.4f}") for name in ("f1", "precision", "recall")
    ]
    if "accuracy_one_view" in measured:
        rows.append((f"accuracy in one view, instead of {measured['views']}", f"{measured['accuracy_one_view']:.2%}"))
    rows.append(("negative log-likelihood (nats)", f"{measured['nll']:.4f}"))
    if "ece" in measured:
        rows.append(("expected calibration error", f"{measured['ece']:.4f}"))

    classes, heading = measured["per_class"].items(), "label"
    if len(labels) > MAX_ROWS:
        classes, heading = (
            sorted(classes, key=lambda item: item[1]["f1"])[:MAX_ROWS],
            f"label (the {MAX_ROWS} of lowest F1)",
        )
    per_class = table(
        (heading, "precision", "recall", "F1", "images"),
        [
            (escape(label), *(f"{found[name]:.4f}" for name in ("precision", "recall", "f1")), f"{found['n']:,}")
            for label, found in classes
        ],
    )
    return {
        "dataset": _dataset(evaluation["dataset"]),
        "n": f"{evaluation['n']:,}",
        "accuracy": f"{measured['accuracy']:.2%}",
        "interval": interval,
        "measures": table(("measure", "value"), rows),
        "per_class": per_class,
        "mistakes": _mistakes(np.array(measured["confusion_matrix"]), labels),
        "confusion": (folder / "confusion_matrix.png").is_file(),
    }


def _mistakes(matrix: np.ndarray, labels: list[str]) -> str:
    """The largest off-diagonal counts of a confusion matrix (C, C), in words."""
    wrong = matrix - np.diag(np.diag(matrix))
    order = [np.unravel_index(i, wrong.shape) for i in np.argsort(-wrong, axis=None, kind="stable")[:MAX_MISTAKES]]
    return ", ".join(
        f"{escape(labels[t])} taken for {escape(labels[p])} ({wrong[t, p]:,})" for t, p in order if wrong[t, p]
    )


def _cost(chain: list[dict], timing: dict) -> str:
    """Time and arithmetic of training, stage by stage, and of an answer."""
    lines = []
    for i, run in enumerate(chain):
        if not run.get("train_seconds"):
            continue
        machine = run["machine"]
        threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
        place = machine["accelerator"] or f"{threads} of {machine['processor']} ({machine['instructions']})"
        precision = ", bfloat16" if run["settings"].get("bf16") else ", float32"
        stage = f", stage {i + 1}" if len(chain) > 1 else ""
        text = f"Training{stage}: {duration(run['train_seconds'])} on {escape(place)}"
        text += precision
        if run.get("images_seen"):
            text += f"; {run['images_seen']:,} images seen, {run['images_seen'] / run['train_seconds']:,.0f} a second"
        if run.get("train_flops"):
            text += f"; {si(run['train_flops'])}FLOP"
        lines.append(text)
    timed = timing["models"][0] if timing else {}
    if flops := timed.get("flops") or (chain[-1].get("inference_flops") if chain else None):
        lines.append(f"An answer: {si(flops)}FLOP an image")
    return "\n".join(f"- {line}." for line in lines)


def spent(chain: list[dict]) -> str:
    """How long stages took together, in words, those on an accelerator apart; empty where one has no time."""
    if not all(run.get("train_seconds") for run in chain):
        return ""
    seconds: dict[str, float] = {}
    for run in chain:
        where = f" on {run['machine']['accelerator']}" if run["machine"]["accelerator"] else ""
        seconds[where] = seconds.get(where, 0) + run["train_seconds"]
    return " and ".join(f"{duration(each)}{where}" for where, each in seconds.items())


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    return (
        f"{seconds / 3600:.1f} h"
        if seconds >= 7200
        else f"{seconds / 60:.0f} min"
        if seconds >= 120
        else f"{seconds:.0f} s"
    )


def si(value: float) -> str:
    """A count with three digits and its unit's prefix."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:g} "


def _listed(labels: Sequence[str]) -> str:
    names = ", ".join(map(escape, labels[:MAX_LABELS]))
    return f"{names} and {len(labels) - MAX_LABELS:,} more" if len(labels) > MAX_LABELS else names


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of escaped cells."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def escape(text: str) -> str:
    """Text in which Markdown, HTML and tables find nothing of theirs, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>|~#&$!])", r"\\\1", " ".join(text.split()))


def _unique(names: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(filter(None, names)))
