"""Counts of predictions by true and predicted class."""

import datasets
from sklearn.metrics import confusion_matrix

import evaluate


class Confusion(evaluate.Metric):
    """{"confusion_matrix": list of lists of int; a row a true class, a column a predicted one}."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions, references: class indices, (N,) each",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions, references, labels=None):
        return {"confusion_matrix": confusion_matrix(references, predictions, labels=labels).tolist()}
