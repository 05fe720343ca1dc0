"""Suspected label errors: confident learning (arXiv:1911.00068) on a linear classifier of a model's features."""

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

FOLDS = 5  # of the cross-validation, and the fewest images of a class whose labels are checked


@dataclass
class LabelErrors:
    """The result of `find_label_errors` on N images."""

    likelier: np.ndarray  # int64 (N,), the class that is more probable than the label; -1 where nothing is suspected
    margins: np.ndarray  # float64 (N,), probability of that class minus probability of the label
    n_checked: int  # images in classes that are large enough


def find_label_errors(features: np.ndarray, labels: np.ndarray) -> LabelErrors:
    """Checks each label, int (N,), by a classifier of features (N, D) that was not trained on its image.

    Classes of fewer than FOLDS images are left out.
    """
    likelier, margins = np.full(len(labels), -1), np.zeros(len(labels))
    rows = np.flatnonzero(np.bincount(labels)[labels] >= FOLDS)
    classes, y = np.unique(labels[rows], return_inverse=True)
    if len(classes) < 2:
        return LabelErrors(likelier, margins, 0)
    probabilities = out_of_sample_probabilities(features[rows], y)
    predicted = confident_learning(probabilities, y)
    suspected = np.flatnonzero(predicted >= 0)
    likelier[rows[suspected]] = classes[predicted[suspected]]
    margins[rows[suspected]] = probabilities[suspected, predicted[suspected]] - probabilities[suspected, y[suspected]]
    return LabelErrors(likelier, margins, len(rows))


def out_of_sample_probabilities(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probabilities (N, C) of each image by a logistic regression fitted on the other folds of a cross-validation."""
    probabilities = np.empty((len(labels), labels.max() + 1))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    for train, held_out in tqdm(folds.split(features, labels), total=FOLDS, unit=" folds", desc="heads"):
        head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        probabilities[held_out] = head.fit(features[train], labels[train]).predict_proba(features[held_out])
    return probabilities


def confident_learning(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The class that each image is counted for, if that is not its label: int64 (N,), -1 elsewhere.

    These are the off-diagonal entries of the confident joint of Northcutt et al. (arXiv:1911.00068, section 3.1). The
    threshold of a class is the mean of its probability over the images with that label; an image counts for the most
    probable of the classes that reach their threshold. As in cleanlab, a label that is also the model's prediction is
    never suspected. (cleanlab's licence, AGPL-3.0, is the reason for not using its code.)

    Args:
        probabilities: out of sample, (N, C).
        labels: int (N,); every class occurs.
    """
    n_classes = probabilities.shape[1]
    thresholds = np.array([probabilities[labels == c, c].mean() for c in range(n_classes)])  # (C,)
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    counted = confident.argmax(axis=1)
    suspected = (confident.max(axis=1) >= 0) & (counted != labels) & (probabilities.argmax(axis=1) != labels)
    return np.where(suspected, counted, -1)
