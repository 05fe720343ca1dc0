"""Accuracy, precision, recall and F1, macro and per class, and the confusion matrix."""

import datasets
import evaluate
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support


class Classification(evaluate.Metric):
    """Computes {"accuracy", "precision", "recall", "f1", "per_class": {the last three: a list}, "confusion_matrix"}.

    All are fractions except the matrix of counts, whose rows are true classes and whose columns are predicted ones. A
    class that is never predicted has precision 0. A class without images has None for each, and is left out of the
    macro means. `evaluate.load` of this file's path gives the same metric.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions, references: class indices, (N,) each",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions, references, labels=None):
        *scores, counts = precision_recall_fscore_support(references, predictions, labels=labels, zero_division=0)
        per_class = {
            name: [value if n else None for value, n in zip(values.tolist(), counts, strict=True)]
            for name, values in zip(("precision", "recall", "f1"), scores, strict=True)
        }
        present = {name: [value for value in values if value is not None] for name, values in per_class.items()}
        macro = {name: sum(values) / len(values) for name, values in present.items()}
        matrix = confusion_matrix(references, predictions, labels=labels).tolist()
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            **macro,
            "per_class": per_class,
            "confusion_matrix": matrix,
        }
