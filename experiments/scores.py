"""Metrics of a two-class classifier on held-out images, and comparison of two classifiers."""

import numpy as np
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, roc_auc_score

from training.comparison.intervals import Difference, claim, difference

THRESHOLD = 0.5


def two_class_metrics(labels: np.ndarray, scores: np.ndarray) -> dict[str, float | list[list[int]]]:
    """Metrics for labels (N,) of 0 and 1 and probabilities (N,) of class 1. Rows of the matrix are the true classes."""
    predicted = scores >= THRESHOLD
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "balanced_accuracy": float(balanced_accuracy_score(labels, predicted)),
        "roc_auc": float(roc_auc_score(labels, scores)),
        "confusion_matrix": confusion_matrix(labels, predicted, labels=[0, 1]).tolist(),
    }


def balanced_accuracy_gain(
    labels: np.ndarray, scores: np.ndarray, other: np.ndarray, num_resamples: int = 2000
) -> dict[str, float]:
    """Balanced accuracy of `scores` minus that of `other`, with a 95 % interval from a paired bootstrap of images."""
    first, second = ((some >= THRESHOLD).astype(int)[None] for some in (scores, other))
    return difference(labels, first, second, num_resamples=num_resamples)._asdict()


def verdict(gain: dict[str, float], name: str, other: str) -> str:
    """A statement which of two classifiers is better on these images, no stronger than the interval supports."""
    return claim(Difference(**gain), name, other)
