"""Fraction of predictions that are right."""

import datasets
from sklearn.metrics import accuracy_score

import evaluate


class Accuracy(evaluate.Metric):
    """{"accuracy": float in [0, 1]}."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions, references: class indices, (N,) each",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions, references):
        return {"accuracy": float(accuracy_score(references, predictions))}
