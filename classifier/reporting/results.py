"""The results of an evaluation, as the report uses them.

    results = read_results(Path("report"), {"models/cnn": predictor})
    results.models[0].accuracy

A result that a file lacks is None or empty.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from classifier.errors import ModelError
from classifier.models.predictor import Predictor
from classifier.records import (
    Evaluation,
    Machine,
    ModelEvaluation,
    ModelTiming,
    OodResult,
    RunRecord,
    Timing,
)
from classifier.reporting import card
from classifier.reporting.formatting import plural
from classifier.runs import RunFolder

RANDOM_WEIGHTS = "random weights"

Interval = tuple[float, float]


@dataclass(frozen=True)
class ModelResult:
    """A model with its evaluation, its timing and the records of its training.

    Attributes:
        slug: the name as a part of file names, unique among the models of a report.
        evaluation: the model's entry in evaluation.json.
        timing: None if the model was not timed.
        stages: the runs of training, the first one first; [] if there is no run.json.
        history: the lines of metrics.jsonl, one per epoch.
        predictor: the model itself.
    """

    slug: str
    evaluation: ModelEvaluation = field(repr=False)
    timing: ModelTiming | None
    stages: list[RunRecord] = field(repr=False)
    history: list[dict] = field(repr=False)
    predictor: Predictor = field(repr=False)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.evaluation.model

    @property
    def accuracy(self) -> float:
        """The fraction of test images that are classified correctly."""
        return self.evaluation.accuracy

    @property
    def reliability(self) -> tuple[dict, dict | None] | None:
        """The bins of the reliability diagram, and those before temperature scaling."""
        if not self.evaluation.reliability:
            return None
        before = self.evaluation.before_temperature
        return self.evaluation.reliability.to_json(), before.reliability.to_json() if before else None

    @property
    def ood(self) -> dict[str, dict[str, OodResult]]:
        """{score: {out-of-distribution set: how well the score detects it}}."""
        return self.evaluation.ood or {}

    @property
    def ood_score(self) -> str:
        """The score that page, API and report use for this model: a key of `logit_scores.SCORES`."""
        return self.predictor.ood_score

    def mean_ood(self, score: str) -> OodResult:
        """AUROC and FPR95 of a score, as means over the out-of-distribution sets."""
        rows = self.ood[score].values()
        auroc, fpr95 = (float(np.mean([getattr(row, name) for row in rows])) for name in ("auroc", "fpr95"))
        return OodResult(auroc=auroc, fpr95=fpr95)

    @property
    def initial_weights(self) -> str | None:
        """What the first stage started from, without its folder or user; None without a run.json."""
        return Path(self.stages[0].start or RANDOM_WEIGHTS).name if self.stages else None

    @property
    def training_time(self) -> str:
        """The time of all stages as text; empty if a stage has none."""
        return card.spent(self.stages)

    @property
    def training_flops(self) -> float | None:
        """Floating-point operations of all stages; None if a stage has none."""
        flops = [stage.train_flops for stage in self.stages if stage.train_flops]
        return sum(flops) if flops and len(flops) == len(self.stages) else None

    @property
    def inference_flops(self) -> float | None:
        """Floating-point operations per image."""
        if self.timing:
            return self.timing.flops
        return self.stages[-1].inference_flops if self.stages else None

    @property
    def latency(self) -> float | None:
        """The median time for one image in milliseconds."""
        return self.timing.latency_ms.p50 if self.timing else None

    @property
    def class_counts(self) -> dict[str, np.ndarray] | None:
        """{split: training and validation images per class, int (C,)}; None if not recorded or for other classes."""
        data, labels = (self.stages[-1].data if self.stages else None), list(self.evaluation.per_class)
        if data is None or not data.counts or (data.labels or labels) != labels:
            return None
        if any(len(numbers) != len(labels) for numbers in data.counts.values()):
            return None
        return {split: np.array(numbers) for split, numbers in data.counts.items()}


@dataclass(frozen=True)
class Results:
    """An evaluation, and what is known of each of its models.

    Attributes:
        evaluation: evaluation.json.
        models: in the order of the evaluation.
        machine: where the models were timed; None if they were not.
    """

    evaluation: Evaluation
    models: list[ModelResult]
    machine: Machine | None

    @property
    def most_accurate(self) -> ModelResult:
        """The model with the highest accuracy."""
        return max(self.models, key=lambda model: model.accuracy)

    def difference(self, a: ModelResult, b: ModelResult) -> tuple[float, Interval] | None:
        """The accuracy of `a` minus that of `b` and its paired 95% interval; None if they were not compared."""
        for row in self.evaluation.comparisons or []:
            if row.models == (a.name, b.name):
                return row.difference, row.difference_ci95
            if row.models == (b.name, a.name):
                low, high = row.difference_ci95
                return -row.difference, (-high, -low)
        return None


def read_results(output_dir: Path, predictors: Mapping[str, Predictor]) -> Results:
    """Reads evaluation.json, timing.json if it exists, and the records beside each model's weights.

    Args:
        output_dir: with evaluation.json.
        predictors: {folder or Hub id: the model}, all models of evaluation.json.

    Raises:
        ModelError: there is no evaluation.json, or a file is not JSON or lacks a key.
    """
    if not (output_dir / "evaluation.json").is_file():
        raise ModelError(f"no evaluation.json in {output_dir}: run evaluate.py first")
    evaluation = Evaluation.read(output_dir / "evaluation.json")
    timing = Timing.read(output_dir / "timing.json") if (output_dir / "timing.json").is_file() else None
    timings = {row.model: row for row in timing.models} if timing else {}
    folders = {predictor.name: (RunFolder(Path(path)), predictor) for path, predictor in predictors.items()}
    models: list[ModelResult] = []
    for i, row in enumerate(evaluation.models):
        folder, predictor = folders[row.model]
        slug = re.sub(r"[^\w.-]+", "_", row.model)
        slug = f"{slug}_{i}" if slug in {model.slug for model in models} else slug
        models.append(ModelResult(slug, row, timings.get(row.model), folder.stages, folder.history, predictor))
    return Results(evaluation, models, timing.machine if timing else None)


def describe_machine(machine: Machine) -> str:
    """The accelerator of a machine, or else its threads and processor."""
    return machine.accelerator or f"{plural(machine.threads, 'thread')} of {machine.processor}"
