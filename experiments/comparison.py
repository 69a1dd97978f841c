"""Pictures of several runs side by side: a logged figure, ROC curves and confusion matrices."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve

from training.evaluation.pictures import COLORS, draw_confusion, label_axes, plot_series, read_metrics, save_figure


def distinct_colors(count: int) -> Sequence[Any]:
    """`count` colors that can be told apart."""
    return COLORS[:count] if count <= len(COLORS) else colormaps["turbo"](np.linspace(0.05, 0.95, count)).tolist()


def save_run_comparison(runs: Mapping[str, Path], key: str, label: str, output: Path) -> None:
    """Draw one logged figure of several runs on the same axes; `runs` maps a name to its `metrics.jsonl`."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for color, (name, metrics_jsonl) in zip(distinct_colors(len(runs)), runs.items(), strict=True):
        lines = read_metrics(metrics_jsonl)
        if not any(line.get(key) is not None for line in lines):
            raise ValueError(f"`runs` must have logged `{key}`, but {name} ({metrics_jsonl}) has not.")
        plot_series(axes, lines, key, name, color)
    label_axes(axes, label)
    save_figure(figure, output)


def save_classifier_comparison(
    labels: np.ndarray, scores: Mapping[str, np.ndarray], class_names: tuple[str, str], output: Path
) -> None:
    """Draw the ROC curves and the confusion matrices of two-class classifiers on the same images.

    `labels` (N,) are 0 or 1; `scores` maps a classifier's name to its probability (N,) of class 1.
    """
    figure = Figure(figsize=(4.2 * (1 + len(scores)), 4), layout="constrained")
    axes = figure.subplots(1, 1 + len(scores))
    for color, (name, score) in zip(distinct_colors(len(scores)), scores.items(), strict=True):
        false_positives, true_positives, _ = roc_curve(labels, score)
        legend = f"{name}: AUC {roc_auc_score(labels, score):.3f}"
        axes[0].plot(false_positives, true_positives, color=color, label=legend)
    axes[0].plot([0, 1], [0, 1], color="0.8", linestyle=":", zorder=0)
    axes[0].set(xlabel="false-positive rate", ylabel="true-positive rate", title=f"ROC of '{class_names[1]}'")
    axes[0].set_aspect("equal")
    axes[0].legend(loc="lower right", frameon=False)
    for axis, (name, score) in zip(axes[1:], scores.items(), strict=True):
        draw_confusion(axis, confusion_matrix(labels, score >= 0.5, labels=[0, 1]), class_names)
        axis.set_title(name)
    save_figure(figure, output)
