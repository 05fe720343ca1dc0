"""The results of an evaluation, as the report uses them.

    results = read_results(Path("report"), {"models/cnn": predictor})
    results.models[0].accuracy

The rest of the report does not know the keys of evaluation.json, timing.json, run.json and metrics.jsonl: only this
module reads them. A result that a file lacks is None or empty.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from classifier.errors import ModelError
from classifier.models.predictor import Predictor
from classifier.reporting import card
from classifier.reporting.formatting import plural

RANDOM_WEIGHTS = "random weights"

Interval = tuple[float, float]


@dataclass(frozen=True)
class ClassScores:
    """Precision, recall and F1 (fractions) of a class, and its number of test images."""

    precision: float
    recall: float
    f1: float
    n: int


@dataclass(frozen=True)
class Mistake:
    """A test image with a wrong prediction; `image` is its index among the readable ones."""

    image: int
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class Confusion:
    """How many test images of class `label` were predicted as `predicted`."""

    label: str
    predicted: str
    n: int


@dataclass(frozen=True)
class OodScores:
    """How well a score separates an out-of-distribution set from the test split."""

    auroc: float
    fpr95: float


@dataclass(frozen=True)
class CorruptionResult:
    """Accuracy on `n` test images, clean and at each strength (1, 2, …) of each kind of corruption."""

    n: int
    clean: float
    accuracy: dict[str, list[float]]

    @property
    def mean(self) -> float:
        """The mean accuracy over all kinds and strengths."""
        return float(np.mean(list(self.accuracy.values())))

    @property
    def strongest(self) -> dict[str, float]:
        """The accuracy at the highest strength of each kind."""
        return {kind: values[-1] for kind, values in self.accuracy.items()}


@dataclass(frozen=True)
class Timing:
    """The cost of inference: FLOP per image, latency of one image in ms, images per second by batch size, MB."""

    flops: float
    p50: float
    p95: float
    images_per_second: dict[str, float]
    peak_megabytes: int | None


@dataclass(frozen=True)
class Comparison:
    """Two models on the same test images; `difference` is the accuracy of the first minus that of the second."""

    first: str
    second: str
    difference: float
    interval: Interval
    only_first_correct: int
    only_second_correct: int
    p_value: float
    agreement: float


@dataclass(frozen=True)
class Stage:
    """One run of training, with the content of its run.json."""

    record: dict

    @property
    def settings(self) -> dict:
        """The flags of the command."""
        return self.record["settings"]

    @property
    def recipe(self) -> dict:
        """The values of the recipe; {} where the command has none."""
        return self.record.get("recipe") or {}

    @property
    def initial_weights(self) -> str:
        """The name of the model that training started from, without its folder or user."""
        return Path(self.settings.get("model") or RANDOM_WEIGHTS).name

    @property
    def steps(self) -> list[tuple[str, str]]:
        """Commit ("" if unknown) and command of the run, and of the averaging of its weights if there was one."""
        records = [self.record, *filter(None, [self.record.get("averaged")])]
        # A model that was calibrated again is reproduced by the commit of that calibration.
        commits = [((record.get("calibrated") or record).get("commit") or "").rstrip("+") for record in records]
        return [(commit, card.portable(record["command"])) for commit, record in zip(commits, records, strict=True)]

    @property
    def has_uncommitted_changes(self) -> bool:
        """Whether the code of the run differed from its commit."""
        return (self.record.get("commit") or "").endswith("+")

    @property
    def n_averaged(self) -> int:
        """How many stages the saved weights are the mean of; 0 if they were not averaged."""
        averaged = self.record.get("averaged")
        return sum(row["taken"] for row in averaged["models"]) if averaged else 0

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose weights were saved."""
        return self.record.get("best_epoch")

    @property
    def images_seen(self) -> int | None:
        """Training images over all epochs."""
        return self.record.get("images_seen")

    @property
    def seconds(self) -> float | None:
        """The time of training."""
        return self.record.get("train_seconds")

    @property
    def flops(self) -> float | None:
        """Floating-point operations of training."""
        return self.record.get("train_flops")

    @property
    def validation_accuracy(self) -> float | None:
        """The accuracy of the saved weights on the validation split."""
        return self.record["validation"]["accuracy"] if self.record.get("validation") else None

    @property
    def machine(self) -> dict:
        """The machine of the run, as in run.json."""
        return self.record["machine"]

    @property
    def software(self) -> str:
        """The versions of the libraries and of Python."""
        versions = ", ".join(f"{name} {version}" for name, version in self.record["versions"].items())
        return f"{versions}; Python {self.machine['python']}"


@dataclass(frozen=True)
class ModelResult:
    """A model with its evaluation, its timing and the records of its training.

    Attributes:
        name: as evaluation.json has it.
        slug: the name as a part of file names, unique among the models of a report.
        evaluation: the model's entry in evaluation.json.
        timing: None if the model was not timed.
        stages: the runs of training, the first one first; [] if there is no run.json.
        history: the lines of metrics.jsonl, one per epoch.
        predictor: the model itself.
    """

    name: str
    slug: str
    evaluation: dict = field(repr=False)
    timing: Timing | None
    stages: list[Stage] = field(repr=False)
    history: list[dict] = field(repr=False)
    predictor: Predictor = field(repr=False)

    @property
    def accuracy(self) -> float:
        """The fraction of test images that are classified correctly."""
        return self.evaluation["accuracy"]

    @property
    def accuracy_interval(self) -> Interval:
        """The 95% interval of the accuracy."""
        low, high = self.evaluation["accuracy_ci95"]
        return low, high

    @property
    def n_parameters(self) -> int:
        """Parameters of the model."""
        return self.evaluation["n_parameters"]

    @property
    def views(self) -> int:
        """Views of each image whose probabilities the model averages."""
        return self.evaluation.get("views") or 1

    @property
    def accuracy_one_view(self) -> float | None:
        """The accuracy with a single view, if the model averages several."""
        return self.evaluation.get("accuracy_one_view")

    @cached_property
    def per_class(self) -> dict[str, ClassScores]:
        """The scores of each class, in the order of the labels."""
        return {
            label: ClassScores(scores["precision"], scores["recall"], scores["f1"], scores["n"])
            for label, scores in self.evaluation["per_class"].items()
        }

    def metric(self, name: str) -> float | None:
        """A metric by its key: precision, recall, f1 (macro means), nll, brier or ece."""
        return self.evaluation.get(name)

    def weighted(self, name: str) -> float | None:
        """Precision, recall or F1 as a mean over classes, weighted by their number of images."""
        return (self.evaluation.get("weighted") or {}).get(name)

    def uncalibrated(self, name: str) -> float | None:
        """The nll, brier or ece before temperature scaling."""
        return (self.evaluation.get("before_temperature") or {}).get(name)

    @property
    def top_k_accuracy(self) -> dict[str, float]:
        """{k: accuracy}."""
        return self.evaluation.get("top_k_accuracy") or {}

    @property
    def temperature(self) -> float | None:
        """The temperature that is folded into the weights."""
        return self.evaluation.get("temperature")

    @property
    def reliability(self) -> tuple[dict, dict | None] | None:
        """The bins of the reliability diagram, and those before temperature scaling."""
        if not self.evaluation.get("reliability"):
            return None
        before = self.evaluation.get("before_temperature")
        return self.evaluation["reliability"], before["reliability"] if before else None

    @property
    def confusion_matrix(self) -> np.ndarray:
        """Counts (C, C): a row is the true class, a column the predicted one."""
        return np.array(self.evaluation["confusion_matrix"])

    @cached_property
    def confusions(self) -> list[Confusion]:
        """The most frequent confusions, most frequent first."""
        return [Confusion(row["label"], row["predicted"], row["n"]) for row in self.evaluation.get("confused") or []]

    @cached_property
    def mistakes(self) -> list[Mistake]:
        """The most confident mistakes, most confident first."""
        return [
            Mistake(row["image"], row["label"], row["predicted"], row["probability"])
            for row in self.evaluation.get("mistakes") or []
        ]

    @cached_property
    def corruptions(self) -> CorruptionResult | None:
        """Accuracy on corrupted images."""
        result = self.evaluation.get("corrupted")
        return CorruptionResult(result["n"], result["clean"], result["accuracy"]) if result else None

    @cached_property
    def ood(self) -> dict[str, dict[str, OodScores]]:
        """{score: {out-of-distribution set: how well the score detects it}}."""
        return {
            score: {name: OodScores(row["auroc"], row["fpr95"]) for name, row in sets.items()}
            for score, sets in (self.evaluation.get("strangers") or {}).items()
        }

    def mean_ood(self, score: str) -> OodScores:
        """AUROC and FPR95 of a score, as means over the out-of-distribution sets."""
        rows = self.ood[score].values()
        return OodScores(float(np.mean([row.auroc for row in rows])), float(np.mean([row.fpr95 for row in rows])))

    @property
    def initial_weights(self) -> str | None:
        """What the first stage of training started from; None without a run.json."""
        return self.stages[0].initial_weights if self.stages else None

    @property
    def training_time(self) -> str:
        """The time of all stages as text; empty if a stage has none."""
        return card.spent([stage.record for stage in self.stages])

    @property
    def training_flops(self) -> float | None:
        """Floating-point operations of all stages; None if a stage has none."""
        flops = [stage.flops for stage in self.stages]
        return sum(flops) if flops and all(flops) else None

    @property
    def inference_flops(self) -> float | None:
        """Floating-point operations per image."""
        if self.timing:
            return self.timing.flops
        return self.stages[-1].record.get("inference_flops") if self.stages else None

    @property
    def latency(self) -> float | None:
        """The median time for one image in milliseconds."""
        return self.timing.p50 if self.timing else None

    @property
    def class_counts(self) -> dict[str, np.ndarray] | None:
        """{split: training and validation images per class, int (C,)}; None if not recorded or for other classes."""
        data = self.stages[-1].record["data"] if self.stages else {}
        labels = list(self.per_class)
        counts = data.get("counts")
        if not counts or (data.get("labels") or labels) != labels:
            return None
        if any(len(numbers) != len(labels) for numbers in counts.values()):
            return None
        return {split: np.array(numbers) for split, numbers in counts.items()}


@dataclass(frozen=True)
class Results:
    """An evaluation: its models in order, and what holds for all of them.

    Attributes:
        n: readable images of the test split.
        average: accuracy and 95% interval of the mean of all models' probabilities, if there are several models.
        machine: where the models were timed; None if they were not.
    """

    dataset: str
    revision: str | None
    split: str
    n: int
    bf16: bool
    models: list[ModelResult]
    comparisons: list[Comparison]
    average: tuple[float, Interval] | None
    machine: dict | None

    @property
    def most_accurate(self) -> ModelResult:
        """The model with the highest accuracy."""
        return max(self.models, key=lambda model: model.accuracy)

    def difference(self, a: ModelResult, b: ModelResult) -> tuple[float, Interval] | None:
        """The accuracy of `a` minus that of `b` and its paired 95% interval; None if they were not compared."""
        for row in self.comparisons:
            if (row.first, row.second) == (a.name, b.name):
                return row.difference, row.interval
            if (row.first, row.second) == (b.name, a.name):
                low, high = row.interval
                return -row.difference, (-high, -low)
        return None


def read_results(output_dir: Path, predictors: Mapping[str, Predictor]) -> Results:
    """Reads evaluation.json, timing.json if it exists, and the records beside each model's weights.

    Args:
        output_dir: with evaluation.json.
        predictors: {folder or Hub id: the model}, all models of evaluation.json.

    Raises:
        ModelError: there is no evaluation.json, or a file is not JSON.
        KeyError: evaluation.json or timing.json lacks a key that evaluate.py writes.
    """
    evaluation, timing = (card.read(output_dir / f"{name}.json") for name in ("evaluation", "timing"))
    if not evaluation:
        raise ModelError(f"no evaluation.json in {output_dir}: run evaluate.py first")
    timings = {row["model"]: _timing(row) for row in timing.get("models") or []}
    folders = {predictor.name: (Path(path), predictor) for path, predictor in predictors.items()}
    models: list[ModelResult] = []
    for i, row in enumerate(evaluation["models"]):
        name = row["model"]
        folder, predictor = folders[name]
        slug = re.sub(r"[^\w.-]+", "_", name)
        slug = f"{slug}_{i}" if slug in {model.slug for model in models} else slug
        stages = [Stage(record) for record in card.stages_of(card.read(folder / "run.json"))]
        models.append(ModelResult(name, slug, row, timings.get(name), stages, _history(folder), predictor))
    average = evaluation.get("average")
    return Results(
        dataset=evaluation["dataset"],
        revision=evaluation.get("dataset_revision"),
        split=evaluation["split"],
        n=evaluation["n"],
        bf16=bool(evaluation.get("bf16")),
        models=models,
        comparisons=[_comparison(row) for row in evaluation.get("comparisons") or []],
        average=(average["accuracy"], tuple(average["accuracy_ci95"])) if average else None,
        machine=timing.get("machine"),
    )


def _history(folder: Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _timing(row: dict) -> Timing:
    latency = row["latency_ms"]
    return Timing(row["flops"], latency["p50"], latency["p95"], row["images_per_second"], row.get("peak_megabytes"))


def _comparison(row: dict) -> Comparison:
    first, second = row["models"]
    low, high = row["difference_ci95"]
    correct = row["only_a_right"], row["only_b_right"]
    return Comparison(first, second, row["difference"], (low, high), *correct, row["p_value"], row["agreement"])


def describe_machine(machine: dict) -> str:
    """The accelerator of a machine, or else its threads and processor."""
    return machine["accelerator"] or f"{plural(machine['threads'], 'thread')} of {machine['processor']}"
