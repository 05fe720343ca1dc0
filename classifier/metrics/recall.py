"""Of the images of a class, the fraction that are predicted as it."""

import datasets
from sklearn.metrics import recall_score

import evaluate


class Recall(evaluate.Metric):
    """{"recall": float, the macro mean, or a list of a float a class with average=None}."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions, references: class indices, (N,) each",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions, references, labels=None, average="macro"):
        score = recall_score(references, predictions, labels=labels, average=average, zero_division=0)
        return {"recall": score.tolist() if average is None else float(score)}
