"""Evaluates a classifier that gives an image any number of classes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from sklearn.metrics import average_precision_score
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from conversion.model_folder import PER_CLASS
from training.evaluation.loop import logits_of, pass_over
from training.evaluation.per_class import remove_figures
from training.evaluation.tables import format_table, percent, write_csv

FIGURES = ("ap", "precision", "recall", "f1")
COLUMNS = ("label", "class", "images", *FIGURES)


class MultiLabelEvaluator:
    """Measures average precision and F1. `rows` holds the figures of each class of the last evaluation."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        self.rows: list[dict[str, Any]] = []

    def __call__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        loader: DataLoader[Any],
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any]:
        """`eval_loss` and the figures of `multi_label_figures`, over all processes.

        The result is empty if `is_stopped` becomes true after a batch, in all processes.
        """
        losses, logits, labels = [], [], []

        def measure(batch: dict[str, Any]) -> tuple[torch.Tensor, ...]:
            answers = logits_of(accelerator, model, batch)
            references = batch["labels"].to(accelerator.device)
            loss = F.binary_cross_entropy_with_logits(answers, references, reduction="none").mean(dim=1)
            return loss, answers, references

        def add(loss: torch.Tensor, answers: torch.Tensor, references: torch.Tensor) -> None:
            for found, part in zip((losses, logits, labels), (loss, answers, references), strict=True):
                found.append(part.cpu())

        if not pass_over(accelerator, model, loader, measure, add, is_stopped):
            return {}
        references = torch.cat(labels).numpy() > 0.5
        scores = torch.cat(logits).numpy()
        self.rows = class_table(references, scores, self.classes)
        figures = multi_label_figures(references, scores, self.rows)
        return {"eval_loss": torch.cat(losses).mean().item(), **figures}

    def in_words(self, results: dict[str, Any]) -> str:
        """The results as one line of text."""
        words = []
        if "eval_mean_average_precision" in results:
            chance = f"by chance: {percent(results['eval_chance_average_precision'])}"
            words.append(f"mean average precision {percent(results['eval_mean_average_precision'])} ({chance})")
        for average in ("micro", "macro"):
            if f"eval_f1_{average}" in results:
                words.append(f"{average} F1 {percent(results[f'eval_f1_{average}'])}")
        return f"{', '.join(words)}, loss {results['eval_loss']:.4f}, {results['eval_samples']:,} images".lstrip(", ")

    def report(self) -> str:
        """The table of the classes as text: all if they are few, else those with the lowest average precision."""
        headings = {"images": "images", "ap": "AP", "precision": "precision", "recall": "recall", "f1": "F1"}
        return format_table(self.rows, headings, worst_by="ap")

    def save(self, folder: Path) -> None:
        """Write the table into a folder. Without an evaluation, delete the figures of an earlier run."""
        remove_figures(folder)
        if self.rows:
            write_csv(folder / PER_CLASS, self.rows, COLUMNS)


def multi_label_figures(references: np.ndarray, scores: np.ndarray, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of an evaluation, from what is true, `(N, C)` bool, logits `(N, C)` and the figures of each class.

    - `eval_mean_average_precision`: the mean over the classes that an image has. The average precision of a class that
      no image has is not defined.
    - `eval_chance_average_precision`: the same mean for random scores, which is that of the classes' shares of images.
    - `eval_f1_micro`: F1 of all answers together. A class is given if its logit is at least 0, its score at least 0.5.
    - `eval_f1_macro`: the mean F1 of the classes that an image has or is given.

    A figure that is not defined, as no image has a class, is left out.
    """
    given = scores >= 0
    of_all = share(2 * (references & given).sum(), references.sum() + given.sum())
    there = [row for row in rows if row["images"]]
    found = {
        "mean_average_precision": [row["ap"] for row in there],
        "chance_average_precision": [row["images"] / len(references) for row in there],
        "f1_micro": [] if of_all is None else [of_all],
        "f1_macro": [row["f1"] for row in rows if row["f1"] is not None],
    }
    means = {f"eval_{name}": float(np.mean(values)) for name, values in found.items() if values}
    return {"eval_samples": len(references), **means}


def class_table(references: np.ndarray, scores: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each class: images, average precision, precision, recall, F1. A figure is None if it is not defined.

    Logits rank the images for the average precision, since many of their sigmoids are 1 after rounding.
    """
    rows = []
    for label, name in enumerate(names):
        true, given = references[:, label], scores[:, label] >= 0
        hits, images, answers = (true & given).sum(), true.sum(), given.sum()
        figures = {
            "ap": float(average_precision_score(true, scores[:, label])) if images else None,
            "precision": share(hits, answers),
            "recall": share(hits, images),
            "f1": share(2 * hits, images + answers),
        }
        rows.append({"label": label, "class": name, "images": int(images), **figures})
    return rows


def share(part: Any, whole: Any) -> float | None:
    """A part of a whole; None if the whole is 0."""
    return float(part / whole) if whole else None
