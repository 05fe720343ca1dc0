"""Harmonic mean of precision and recall."""

import datasets
from sklearn.metrics import f1_score

import evaluate


class F1(evaluate.Metric):
    """{"f1": float, the macro mean, or a list of a float a class with average=None}."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions, references: class indices, (N,) each",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions, references, labels=None, average="macro"):
        score = f1_score(references, predictions, labels=labels, average=average, zero_division=0)
        return {"f1": score.tolist() if average is None else float(score)}
