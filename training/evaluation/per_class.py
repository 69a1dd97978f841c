"""Results of a classifier for each class, and its confusions of classes: a table, a list and a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from conversion.model_folder import CONFUSION_MATRIX, CONFUSIONS, MOST_CONFUSED, PER_CLASS, PER_VALUE
from training.evaluation.pictures import save_confusion_matrix, save_most_confused
from training.evaluation.tables import format_table, write_csv

MOST_IN_MATRIX = 50  # classes: a larger confusion matrix is not readable
FIGURES = ("precision", "recall", "f1")


@dataclass
class Answers:
    """The true and the predicted class numbers `(N,)` of the evaluated images."""

    references: np.ndarray
    predictions: np.ndarray

    @property
    def majority_accuracy(self) -> float:
        """The accuracy of always predicting the most frequent class."""
        return float(np.bincount(self.references).max() / len(self.references))


def class_table(answers: Answers, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each class: images, precision, recall and F1 as shares. A share is None if its divisor is zero."""
    labels = range(len(names))
    undefined: Any = np.nan  # scikit-learn's type stubs only allow strings
    columns: Any = precision_recall_fscore_support(
        answers.references, answers.predictions, labels=labels, zero_division=undefined
    )
    rows = []
    for label, name, *shares, images in zip(labels, names, *columns, strict=True):
        figures = {key: None if np.isnan(share) else float(share) for key, share in zip(FIGURES, shares, strict=True)}
        rows.append({"label": label, "class": name, "images": int(images), **figures})
    return rows


def confusions(answers: Answers, names: Sequence[str]) -> list[dict[str, Any]]:
    """For each pair of true and wrongly predicted class, the number of images. The most frequent pair comes first."""
    pairs, counts = np.unique(np.stack((answers.references, answers.predictions)), axis=1, return_counts=True)
    images = np.bincount(answers.references)
    rows = []
    for (true, taken), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
        if true != taken:
            numbers = {"label": true, "taken_label": taken}
            row = {"class": names[true], "taken_for": names[taken], "images": count, "share": count / int(images[true])}
            rows.append({**numbers, **row})
    return sorted(rows, key=lambda row: -row["images"])


def remove_figures(folder: Path) -> None:
    """Delete the figures of each class or value that an earlier evaluation has written into a folder."""
    for file in (PER_CLASS, PER_VALUE, CONFUSIONS, CONFUSION_MATRIX, MOST_CONFUSED):
        (folder / file).unlink(missing_ok=True)


def save_class_figures(folder: Path, answers: Answers | None, names: Sequence[str]) -> None:
    """Write the table, the list of confusions and their picture. Without answers, delete those of an earlier run."""
    remove_figures(folder)
    if answers is None:
        return
    write_csv(folder / PER_CLASS, class_table(answers, names), ("label", "class", "images", *FIGURES))
    confused = confusions(answers, names)
    columns = ("label", "class", "taken_label", "taken_for", "images", "share")
    write_csv(folder / CONFUSIONS, confused, columns)
    if len(names) <= MOST_IN_MATRIX:
        counts = confusion_matrix(answers.references, answers.predictions, labels=range(len(names)))
        save_confusion_matrix(counts, names, folder / CONFUSION_MATRIX)
    elif confused:
        save_most_confused(confused, folder / MOST_CONFUSED)


def table_in_words(answers: Answers, names: Sequence[str]) -> str:
    """The table as text: all classes if they are few, else those with the lowest F1."""
    headings = {"images": "images", "precision": "precision", "recall": "recall", "f1": "F1"}
    return format_table(class_table(answers, names), headings, worst_by="f1")
