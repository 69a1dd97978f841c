"""Metrics of a two-class classifier on held-out images, and comparison of two classifiers."""

import numpy as np
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, roc_auc_score

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
    random = np.random.default_rng(0)
    members = [np.flatnonzero(labels == label) for label in (0, 1)]
    # Balanced accuracy is the mean of the classes' shares of correct predictions, so resample within each class.
    right, other_right = ((some >= THRESHOLD) == labels for some in (scores, other))
    gains = right.astype(float) - other_right  # (N,), 1 where only the first is right, -1 where only the other is
    resampled = [gains[random.choice(of_class, (num_resamples, len(of_class)))].mean(axis=1) for of_class in members]
    low, high = np.percentile(np.mean(resampled, axis=0), [2.5, 97.5])
    gain = np.mean([gains[of_class].mean() for of_class in members])
    return {"gain": float(gain), "low": float(low), "high": float(high)}


def verdict(gain: dict[str, float], name: str, other: str) -> str:
    """A statement which of two classifiers is better on these images, no stronger than the interval supports."""
    points = {key: f"{100 * value:+.1f}" for key, value in gain.items()}
    interval = f"{points['gain']} points of balanced accuracy, 95 % interval {points['low']} to {points['high']}"
    if gain["low"] <= 0 <= gain["high"]:
        ahead = "neither is ahead" if gain["gain"] == 0 else f"{name if gain['gain'] > 0 else other} is ahead"
        return f"{ahead}, within the noise of these test images ({name} against {other}: {interval})"
    return f"{name if gain['gain'] > 0 else other} won ({name} against {other}: {interval})"
