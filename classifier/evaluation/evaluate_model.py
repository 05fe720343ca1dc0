"""Everything that evaluation.json says of a model: what it predicts for test, out-of-distribution and corrupted images.

    evaluation = evaluate_model(predictor, splits, ood_samples=250, corrupted_samples=1000)

Predictions are cached (`predictions.compute`), so a run that was stopped goes on, and what is random is drawn by seed:
the same model and data give the same evaluation.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from classifier.data.loaders import fingerprint, first_images, image_batches
from classifier.data.splits import Splits, sample_by_class
from classifier.evaluation import corruptions, metrics, ood, ood_scores, predictions
from classifier.evaluation.evaluate_metrics.classification import Classification
from classifier.evaluation.photographs import measure as measure_photographs
from classifier.evaluation.predictions import Predictions
from classifier.models import backbone, processor
from classifier.models.cnn import average_views
from classifier.models.predictor import Predictor
from classifier.records import (
    Calibration,
    ClassMetrics,
    Comparison,
    Confusion,
    CorruptedAccuracy,
    Ensemble,
    Mistake,
    ModelEvaluation,
    OodResult,
    Reliability,
    Weighted,
)
from classifier.runs import RunFolder, sha256

N_MISTAKES = 12  # that are listed
N_CONFUSED = 5  # pairs of labels that are listed
BATCH_SIZE = 64


def evaluate_model(
    predictor: Predictor,
    splits: Splits,
    *,
    ood_samples: int = 0,
    ood_splits: Mapping[str, Splits] | None = None,
    corrupted_samples: int = 0,
    photographs: Sequence[Path] = (),
) -> ModelEvaluation:
    """Measures a model on the test split.

    Args:
        predictor: the model; its labels are those of the data, in any order.
        splits: with test; with train too for the nearest-neighbour score.
        ood_samples: images of each out-of-distribution set that is made; 0: none.
        ood_splits: {name: data set whose test split has images of none of the labels}.
        corrupted_samples: test images to corrupt, drawn by class; 0: none.
        photographs: folders that each have folders named as labels or `none`.

    Raises:
        DataError: no image can be read, or as `photographs.measure`.
        ModelError: the model gave NaN or infinity.
    """
    of_photographs = [  # first, because a file that can't be read ends the evaluation
        measure_photographs(predictor, folder, skip_unreadable=splits.skip_unreadable) for folder in photographs
    ]
    test = predictions_of(predictor, "test", splits)
    run = RunFolder(predictor.folder).run if predictor.folder and predictor.revision == "local" else None
    temperature = run.validation.temperature if run and run.validation else None
    evaluation = ModelEvaluation(
        model=predictor.name,
        revision=predictor.revision,
        n_parameters=predictor.n_parameters,
        **summarize(test, splits.labels, temperature),
        ood=ood_results(predictor, test, splits, ood_samples, ood_splits or {}),
        corrupted=corrupted_accuracy(predictor, splits, corrupted_samples),
        photographs=of_photographs,
    )
    views = getattr(predictor.model.config, "views", 1)
    if views > 1:
        one_view = float((test.views[:, 0].argmax(axis=1) == test.labels).mean())
        evaluation = replace(evaluation, views=views, accuracy_one_view=one_view)
    return evaluation


def predictions_of(predictor: Predictor, split: str, splits: Splits) -> Predictions:
    """The predictions for a split, the logits in the order of the dataset's labels if the model has these labels."""
    computed = predictions.compute(
        predictor,
        lambda: image_batches(split, splits, BATCH_SIZE),
        images=fingerprint(split, splits),
        n=len(splits[split]),
        name=f"{splits.name} {split}",
    )
    return in_label_order(computed, predictor.labels, splits.labels)


def in_label_order(computed: Predictions, own: list[str], wanted: list[str]) -> Predictions:
    """The predictions with logits in the order `wanted`; unchanged if these are other labels than the model's own."""
    if own == wanted or set(own) != set(wanted):
        return computed
    order = [own.index(label) for label in wanted]
    return replace(computed, logits=computed.logits[:, order], views=computed.views[..., order])


def summarize(test: Predictions, names: list[str], temperature: float | None) -> dict:
    """The fields of a `ModelEvaluation` that follow from its predictions for test.

    Args:
        test: logits (N, C) in the order of `names`, and labels (N,).
        names: of the C classes.
        temperature: that was folded into the weights; None if that is not known.
    """
    logits, labels = test.logits, test.labels
    predicted = logits.argmax(axis=1)
    computed = Classification().compute(predictions=predicted, references=labels, labels=list(range(len(names))))
    counts = np.bincount(labels, minlength=len(names))
    columns = computed.pop("per_class")
    per_class = {
        name: ClassMetrics(**{metric: values[i] for metric, values in columns.items()}, n=int(counts[i]))
        for i, name in enumerate(names)
    }
    present = [name for name in names if per_class[name].n]
    weighted = {
        metric: float(np.average([getattr(per_class[name], metric) for name in present], weights=counts[counts > 0]))
        for metric in ("precision", "recall", "f1")
    }
    intervals = metrics.bootstrap(labels, predicted, num_labels=len(present))
    confused = metrics.most_confused(np.array(computed["confusion_matrix"]), N_CONFUSED)
    return {
        **computed,
        **{f"{name}_ci95": tuple(intervals[name]) for name in ("accuracy", "precision", "recall", "f1")},
        "weighted": Weighted(**weighted),
        "per_class": per_class,
        "top_k_accuracy": {str(k): metrics.top_k_accuracy(logits, labels, k) for k in (2, 3, 5) if k < len(names)},
        **vars(calibration(logits, labels)),
        "temperature": temperature,
        "before_temperature": calibration(without_temperature(test, temperature), labels) if temperature else None,
        "mistakes": mistakes(logits, labels, names),
        "confused": [Confusion(label=names[a], predicted=names[b], n=n) for a, b, n in confused],
    }


def without_temperature(test: Predictions, temperature: float) -> np.ndarray:
    """The logits (N, C) before those of each view were divided by the temperature."""
    views = torch.from_numpy(test.views * np.float32(temperature))
    return (views[:, 0] if views.shape[1] == 1 else average_views(views.transpose(0, 1))).numpy()


def calibration(logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """How far the probabilities of (N, C) logits can be relied on."""
    bins = metrics.reliability(logits, labels)
    return Calibration(
        nll=metrics.nll(logits, labels),
        brier=metrics.brier(logits, labels),
        ece=metrics.ece(logits, labels),
        reliability=Reliability(**{name: values.tolist() for name, values in bins._asdict().items()}),
    )


def mistakes(logits: np.ndarray, labels: np.ndarray, names: list[str]) -> list[Mistake]:
    """The wrong predictions with the highest probability."""
    wrong = metrics.most_confident_mistakes(logits, labels, N_MISTAKES)
    predicted = logits[wrong].argmax(axis=1)
    top = np.exp(-metrics.nll_per_image(logits[wrong], predicted))
    return [
        Mistake(image=int(i), label=names[labels[i]], predicted=names[label], probability=float(p))
        for i, label, p in zip(wrong, predicted, top, strict=True)
    ]


def ood_results(
    predictor: Predictor, test: Predictions, splits: Splits, n: int, others: Mapping[str, Splits]
) -> dict[str, dict[str, OodResult]] | None:
    """How well each score separates test images from each out-of-distribution set; None for n = 0.

    The sets are `others`, which have none of the labels, and those that are made, of n images each.
    """
    if not n:
        return None
    side = processor.size_of(predictor.processor)
    key = fingerprint("test", splits)
    made = ood.synthetic_sets(first_images("test", splits, n, side))  # {name: uint8 (N, 3, side, side)}

    def batches(images: np.ndarray) -> Iterator[tuple[list[Image.Image], list[int]]]:
        for i in range(0, len(images), BATCH_SIZE):
            batch = ood.as_pictures(images[i : i + BATCH_SIZE])
            yield batch, [0] * len(batch)

    computed = {
        name: predictions.compute(
            predictor,
            partial(batches, images),
            images=f"{key} {name} {len(images)} of {side}",
            n=len(images),
            name=name,
        )
        for name, images in made.items()
    }
    computed |= {name: predictions_of(predictor, "test", other) for name, other in others.items()}
    training = None
    if splits.train is not None:  # None where the dataset has a test split alone
        training = training_of(predictor, predictions_of(predictor, "train", splits))
    results: dict[str, dict[str, OodResult]] = {}
    for name, score in ood_scores.fit(training).items():
        of_test = score(test.features, test.logits)
        of_sets = {set_name: score(each.features, each.logits) for set_name, each in computed.items()}
        results[name] = {
            set_name: OodResult(auroc=ood.auroc(of_test, each), fpr95=ood.fpr_at(of_test, each))
            for set_name, each in of_sets.items()
        }
    return results


def training_of(predictor: Predictor, train: Predictions) -> ood_scores.Training:
    """What the scores are fitted on: predictions for training images, and the weights of the head."""
    state = {name: tensor.float().cpu().numpy() for name, tensor in backbone.head(predictor.model).state_dict().items()}
    bias = state.get("bias", np.zeros(len(state["weight"])))
    return ood_scores.Training(train.features, train.logits, train.labels, state["weight"], bias)


def corrupted_accuracy(predictor: Predictor, splits: Splits, n: int) -> CorruptedAccuracy | None:
    """Accuracy on `n` test images, clean and at each strength of each corruption; None for n = 0."""
    if not n:
        return None
    labels = splits.class_indices["test"]
    rows = sample_by_class(labels, n, seed=0) if n < len(labels) else np.arange(len(labels))
    part = splits.select("test", rows)
    # Cached predictions are of images as this version of the code corrupts them.
    key = f"{fingerprint('test', part)} {sha256(Path(corruptions.__file__))}"

    def batches(kind: str, strength: int) -> Iterator[tuple[list[Image.Image], list[int]]]:
        for images, batch_labels in image_batches("test", part, BATCH_SIZE):
            for i, image in enumerate(images):  # one after the other: photographs are large
                pixels = torch.from_numpy(np.array(image).transpose(2, 0, 1)[None])
                images[i] = Image.fromarray(corruptions.corrupt(pixels, kind, strength)[0].permute(1, 2, 0).numpy())
            yield images, batch_labels

    def is_right(computed: Predictions) -> np.ndarray:  # bool (N,)
        return computed.logits.argmax(axis=1) == computed.labels

    def is_right_at(kind: str, strength: int) -> np.ndarray:
        computed = predictions.compute(
            predictor,
            partial(batches, kind, strength),
            images=f"{key} {kind} {strength}",
            n=len(rows),
            name=f"{kind} {strength}",
        )
        return is_right(in_label_order(computed, predictor.labels, splits.labels))

    clean = is_right(predictions_of(predictor, "test", part))
    right = {kind: [is_right_at(kind, strength) for strength in range(1, 6)] for kind in corruptions.KINDS}
    of_images = np.mean([each for of_kind in right.values() for each in of_kind], axis=0)  # (N,)
    return CorruptedAccuracy(
        n=len(clean),
        clean=float(clean.mean()),
        accuracy={kind: [float(each.mean()) for each in of_kind] for kind, of_kind in right.items()},
        mean_ci95=metrics.bootstrap_interval(of_images),
    )


def compare_models(tests: Mapping[str, Predictions]) -> list[Comparison]:
    """Each two models on the same images, by their predictions for test."""
    return [
        Comparison(models=(a, b), **metrics.compare(tests[a].logits, tests[b].logits, tests[a].labels))
        for a, b in combinations(tests, 2)
    ]


def ensemble(tests: Mapping[str, Predictions]) -> Ensemble | None:
    """What the mean of all models' probabilities reaches; None for a single model."""
    if len(tests) < 2:
        return None
    labels = next(iter(tests.values())).labels
    right = metrics.ensemble_logits([test.logits for test in tests.values()]).argmax(axis=1) == labels
    return Ensemble(
        models=list(tests),
        accuracy=float(right.mean()),
        accuracy_ci95=metrics.bootstrap_interval(right.astype(float)),
    )
