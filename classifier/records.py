"""What the records of a run hold: run.json, evaluation.json and timing.json as dataclasses.

`classifier.runs.RunFolder` reads and writes them. The order of fields is the order of keys in the files.
"""

from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import ClassVar

from classifier.errors import ModelError
from classifier.json_records import OMIT, Record

# --- run.json --------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Machine(Record):
    """What figures were measured on."""

    processor: str
    instructions: str | None = None  # the widest that PyTorch uses, such as AVX512
    threads: int
    accelerator: str | None = None  # None: the CPU alone
    system: str | None = None
    python: str | None = None


@dataclass(kw_only=True)
class StartModel(Record):
    """The weights that a fine-tuning started from."""

    name: str
    revision: str
    initialized: list[str]  # parameters that the weights did not have


@dataclass(kw_only=True)
class DataRecord(Record):
    """The images that a run was trained on."""

    images: int  # of train
    labels: list[str] | None = None
    counts: dict[str, list[int]] = field(default_factory=dict)  # {"train": images of each class, "validation": …}
    skipped: int = 0  # unreadable files
    test_cut: str | None = None  # digest of the test images, where the dataset has no test split and one was cut


@dataclass(kw_only=True)
class Validation(Record):
    """What the saved model reaches on validation."""

    accuracy: float  # 0 to 1
    accuracy_one_view: float | None = field(default=None, metadata=OMIT)
    nll: float | None = None  # nats an image
    temperature: float | None = None  # folded into the weights


@dataclass(kw_only=True)
class AveragedModel(Record):
    """A model that `classifier.average` measured."""

    model: str
    model_sha256: str
    accuracy: float
    nll: float
    taken: bool  # whether it is part of the mean


@dataclass(kw_only=True)
class Averaged(Record):
    """How `classifier.average` made the weights."""

    command: str
    commit: str | None = None
    models: list[AveragedModel]
    before: "Averaged | None" = field(default=None, metadata=OMIT)  # how the first model's weights were made
    pretrained: str | None = field(default=None, metadata=OMIT)  # the pre-trained model, if it is part of the mean
    pretrained_share: float | None = field(default=None, metadata=OMIT)  # of its weights, in (0, 1)


@dataclass(kw_only=True)
class Recalibrated(Record):
    """A later calibration of the head."""

    commit: str
    why: str


@dataclass(kw_only=True)
class RunRecord(Record):
    """run.json: what a training run was and what it reached on validation."""

    remedy: ClassVar[str] = "train the model again"

    command: str
    settings: dict  # the command's flags as they were in force
    started: str | None = field(default=None, metadata=OMIT)  # ISO 8601, UTC
    finished: str | None = field(default=None, metadata=OMIT)  # as `started`; older records have one or the other
    commit: str | None = None  # of the code, with `+` if files differed from it
    versions: dict[str, str]  # of packages
    machine: Machine
    parent: "RunRecord | None" = None  # of the weights that this run started from
    model: StartModel | None = field(default=None, metadata=OMIT)
    data: DataRecord
    recipe: dict = field(default_factory=dict)  # the training settings in force, defaults included
    train_seconds: float | None = None
    images_seen: int | None = None
    train_flops: float | None = None
    inference_flops: float | None = None  # an image
    best_epoch: int | None = None  # whose weights were saved; None: the last one's
    validation: Validation | None = None
    averaged: Averaged | None = field(default=None, metadata=OMIT)
    calibrated: Recalibrated | None = field(default=None, metadata=OMIT)
    model_sha256: str | None = field(default=None, metadata=OMIT)  # digest of the weights, in a record that is a parent

    @property
    def dataset(self) -> str:
        """The Hub id, folder or table that the run was trained on."""
        return self.settings["dataset"]

    @property
    def start(self) -> str | None:
        """The Hub id or folder of the weights that the run started from; None for random weights."""
        return self.settings.get("model")

    @property
    def stages(self) -> "list[RunRecord]":
        """This run and those that its weights came from, the first one first."""
        return [*(self.parent.stages if self.parent else []), self]

    @classmethod
    def from_json(cls, value: object, path: Path, key: str = "", remedy: str = "") -> "RunRecord":
        """As in `Record`; "settings" has to name the dataset."""
        record = super().from_json(value, path, key, remedy)
        if not isinstance(record.settings.get("dataset"), str):
            raise ModelError(f'{path}: "{f"{key}." if key else ""}settings" has no "dataset": {cls.remedy}')
        return record


# --- evaluation.json -------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class ClassMetrics(Record):
    """What was measured on the test images of one class. Fractions; None where the class has no images."""

    precision: float | None
    recall: float | None
    f1: float | None
    n: int  # images


@dataclass(kw_only=True)
class Weighted(Record):
    """Means over classes, weighted by their images."""

    precision: float
    recall: float
    f1: float


@dataclass(kw_only=True)
class Reliability(Record):
    """Images by their top probability, in bins of equal width."""

    count: list[int]
    confidence: list[float]  # the mean top probability
    accuracy: list[float]


@dataclass(kw_only=True)
class Calibration(Record):
    """How far probabilities can be relied on."""

    nll: float  # nats
    brier: float
    ece: float
    reliability: Reliability


@dataclass(kw_only=True)
class Mistake(Record):
    """A test image that was labelled wrong."""

    image: int  # its place among the readable images of test
    label: str
    predicted: str
    probability: float  # of the predicted label


@dataclass(kw_only=True)
class Confusion(Record):
    """How often one label was predicted for another."""

    label: str
    predicted: str
    n: int


@dataclass(kw_only=True)
class OodResult(Record):
    """How well a score separates test images from out-of-distribution ones."""

    auroc: float
    fpr95: float  # fraction of out-of-distribution images that pass where 95% of test images do


@dataclass(kw_only=True)
class CorruptedAccuracy(Record):
    """Accuracy on corrupted test images."""

    n: int  # images
    clean: float
    accuracy: dict[str, list[float]]  # {kind of corruption: accuracy at each strength}
    # Of the mean over all kinds and strengths; evaluations of before it was measured have none.
    mean_ci95: tuple[float, float] | None = field(default=None, metadata=OMIT)

    @property
    def mean(self) -> float:
        """The mean accuracy over all kinds and strengths."""
        return fmean(accuracy for accuracies in self.accuracy.values() for accuracy in accuracies)

    @property
    def strongest(self) -> dict[str, float]:
        """The accuracy at the highest strength of each kind."""
        return {kind: values[-1] for kind, values in self.accuracy.items()}


@dataclass(kw_only=True)
class PhotographResult(Record):
    """What was measured on a folder of photographs. Fractions; None without a threshold or such photographs."""

    folder: str  # its name
    n: int  # photographs of a label
    n_none: int  # photographs of none
    accuracy: float  # of those of a label
    accuracy_ci95: tuple[float, float]
    kept: float | None = None  # of those of a label, how many count as in-distribution
    kept_ci95: tuple[float, float] | None = None
    flagged: float | None = None  # of those of none, how many count as out-of-distribution
    flagged_ci95: tuple[float, float] | None = None
    n_skipped: int = 0  # files that could not be read


@dataclass(kw_only=True)
class ModelEvaluation(Record):
    """What was measured of one model. Fractions, not percent.

    Precision, recall and F1 are means over the classes that have images.
    """

    remedy: ClassVar[str] = "run evaluate.py again"

    model: str
    revision: str
    n_parameters: int
    accuracy: float
    accuracy_ci95: tuple[float, float]
    precision: float
    precision_ci95: tuple[float, float] | None = None
    recall: float
    recall_ci95: tuple[float, float] | None = None
    f1: float
    f1_ci95: tuple[float, float] | None = None
    weighted: Weighted | None = None
    per_class: dict[str, ClassMetrics]
    confusion_matrix: list[list[int]]  # rows are true labels, columns predicted ones
    top_k_accuracy: dict[str, float] = field(default_factory=dict)
    nll: float | None = None
    brier: float | None = None
    ece: float | None = None
    reliability: Reliability | None = None
    temperature: float | None = None  # folded into the weights; None if it is not recorded
    before_temperature: Calibration | None = None
    mistakes: list[Mistake] = field(default_factory=list)  # the most confident ones
    confused: list[Confusion] = field(default_factory=list)  # the most frequent pairs
    views: int | None = field(default=None, metadata=OMIT)  # None: the model sees an image once
    accuracy_one_view: float | None = field(default=None, metadata=OMIT)
    ood: dict[str, dict[str, OodResult]] | None = None  # {score: {set of images: result}}
    corrupted: CorruptedAccuracy | None = None
    photographs: list[PhotographResult] = field(default_factory=list)

    @property
    def accuracy_on_photographs(self) -> float | None:
        """The accuracy on the photographs of all folders together; None if there are none."""
        n = self.n_photographs
        return sum(folder.n * folder.accuracy for folder in self.photographs) / n if n else None

    @property
    def n_photographs(self) -> int:
        """How many photographs of a label all folders have."""
        return sum(folder.n for folder in self.photographs)

    @property
    def f1_of_classes(self) -> dict[str, float]:
        """The F1 of each class that has images."""
        return {label: scores.f1 for label, scores in self.per_class.items() if scores.f1 is not None}

    @property
    def absent(self) -> list[str]:
        """The classes without images."""
        return [label for label, scores in self.per_class.items() if scores.f1 is None]

    @classmethod
    def from_json(cls, value: object, path: Path, key: str = "", remedy: str = "") -> "ModelEvaluation":
        """As in `Record`; evaluations from before the key `ood` call it `strangers`."""
        if isinstance(value, dict) and "strangers" in value:
            value = value | {"ood": value["strangers"]}
        return super().from_json(value, path, key, remedy)


@dataclass(kw_only=True)
class Comparison(Record):
    """Two models on the same images."""

    models: tuple[str, str]
    difference: float  # of accuracy, first minus second
    difference_ci95: tuple[float, float]
    only_a_right: int
    only_b_right: int
    p_value: float  # McNemar's exact test
    agreement: float  # fraction of images with the same predicted label


@dataclass(kw_only=True)
class Ensemble(Record):
    """What the mean of all models' probabilities reaches."""

    models: list[str]
    accuracy: float
    accuracy_ci95: tuple[float, float]


@dataclass(kw_only=True)
class Evaluation(Record):
    """evaluation.json: what evaluate.py measured on one dataset's test split. No timings: it is the same on every run.

    `models` always has one entry per model that was measured together: several in a report's folder, exactly one in a
    model's own folder, where `model` gives it.
    """

    remedy: ClassVar[str] = "run evaluate.py again"

    bf16: bool | None = field(default=None, metadata=OMIT)  # whether it was computed in bfloat16
    dataset: str
    dataset_revision: str | None = None
    split: str
    n: int  # images
    models: list[ModelEvaluation]
    comparisons: list[Comparison] | None = field(default=None, metadata=OMIT)  # of each two; None in a model's folder
    average: Ensemble | None = None  # of all models, where there are several

    @property
    def model(self) -> ModelEvaluation:
        """The one model of a model folder's evaluation."""
        [model] = self.models
        return model

    def to_json(self) -> dict:
        """As in `Record`; a model's folder compares nothing, so it has no "average" either."""
        value = super().to_json()
        if self.comparisons is None:
            del value["average"]
        return value


# --- timing.json -----------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Latency(Record):
    """Milliseconds per prediction, one image at a time."""

    p50: float
    p95: float


@dataclass(kw_only=True)
class ModelTiming(Record):
    """The inference cost of one model."""

    model: str
    flops: float  # an image
    latency_ms: Latency
    images_per_second: dict[str, float]  # {"1": one at a time, "64": in batches}
    peak_megabytes: int | None = None  # of the process; None if the system does not report it


@dataclass(kw_only=True)
class Export(Record):
    """An ONNX file compared with the model that it was made of, on validation images."""

    precision: str
    file: str  # its name in onnx/
    n_bytes: int
    max_difference: float  # of the logits
    changed: float  # fraction of the images with another label than the model gives
    accuracy: float
    accuracy_ci95: tuple[float, float]
    latency_ms: float  # of one image, by onnxruntime: the median


@dataclass(kw_only=True)
class Exports(Record):
    """onnx/exports.json: the ONNX files of a model's folder."""

    remedy: ClassVar[str] = "run `python -m classifier.publish onnx` again"

    n: int  # validation images
    accuracy: float  # of the model
    accuracy_ci95: tuple[float, float]
    n_bytes: int  # of its weights
    exports: list[Export]
    machine: Machine


@dataclass(kw_only=True)
class Timing(Record):
    """timing.json: as evaluation.json, one entry per model that was timed together, exactly one in a model's folder."""

    remedy: ClassVar[str] = "run evaluate.py again"

    machine: Machine
    models: list[ModelTiming]

    @property
    def model(self) -> ModelTiming:
        """The one model of a model folder's timing."""
        [model] = self.models
        return model
