"""What was measured with a model: by its training run, and by others with the official checkpoint."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from conversion.analyses import ANALYSIS, CAPTIONS, RECORD
from conversion.checkpoints import Checkpoint
from conversion.families import PRETRAINING
from conversion.files import read_csv, read_json
from conversion.labels import IMAGENET_CLASSES
from conversion.model_folder import (
    CONFUSION_MATRIX,
    MOST_CONFUSED,
    PER_CLASS,
    PER_VALUE,
    PREDICTIONS,
    RESULTS,
    weight_digests,
)
from conversion.publishing.sections.model import ModelSection
from conversion.publishing.wording import format_cell, format_number, format_value

PICTURES = {
    "loss_curves.png": "Loss and learning rate against the step",
    "reconstructions.png": "What the encoder sees, the reconstruction, the original",
    CONFUSION_MATRIX: "True class against predicted class, evaluation images",
    MOST_CONFUSED: "Classes that were taken for another most often, evaluation images",
    PREDICTIONS: "Evaluation images: what is true, and the prediction",
}
ANALYSES = {f"{ANALYSIS}/{name}.png": caption for name, caption in CAPTIONS.items()}


def average_precisions(kind: str, infix: str = "") -> dict[str, str]:
    """Names of COCO's figures, and what they are of boxes or of masks."""
    figures = {
        f"map{infix}": f"{kind} AP, mean over IoUs of 0.50 to 0.95",
        f"map{infix}_50": f"{kind} AP at an IoU of 0.50",
        f"map{infix}_75": f"{kind} AP at an IoU of 0.75",
        f"map{infix}_small": f"{kind} AP of objects below 32 x 32 pixels",
        f"map{infix}_medium": f"{kind} AP of objects between 32 x 32 and 96 x 96 pixels",
        f"map{infix}_large": f"{kind} AP of objects above 96 x 96 pixels",
        f"mar{infix}_100": f"{kind} recall of 100 detections, mean over IoUs of 0.50 to 0.95",
    }
    return {f"eval_{name}": f"{words}, evaluation images" for name, words in figures.items()}


FIGURES = {
    "eval_accuracy": "top-1 accuracy, evaluation images",
    "eval_accuracy_top5": "top-5 accuracy, evaluation images",
    "eval_majority_accuracy": "accuracy of always giving the largest class, evaluation images",
    "eval_mean_average_precision": "mean average precision of the classes, evaluation images",
    "eval_chance_average_precision": "mean average precision of random answers, evaluation images",
    "eval_f1_micro": "F1 of all answers together, evaluation images",
    "eval_f1_macro": "mean F1 of the classes, evaluation images",
    "eval_mae": "mean absolute error, evaluation images",
    "eval_rmse": "root mean squared error, evaluation images",
    "eval_r2": "R2, evaluation images",
    "eval_mean_iou": "mean IoU, evaluation images",
    "eval_mean_accuracy": "mean accuracy of the classes, evaluation images",
    "eval_overall_accuracy": "pixel accuracy, evaluation images",
    **average_precisions("box"),
    **average_precisions("mask", "_mask"),
    "eval_objects": "objects in the evaluation images",
    "eval_loss": "loss, evaluation images",
    "eval_samples": "evaluation images",
    "train_loss": "training loss, mean of the run",
    "train_samples": "training images",
    "train_runtime": "training time in seconds",
    "images_per_second": "images per second",
    "total_steps": "optimizer steps",
    "epoch": "epochs",
}
NO_METRICS = {"eval_loss", "eval_samples", "eval_runtime", "eval_majority_accuracy", "eval_objects"}
NO_METRICS |= {"eval_chance_average_precision"}
OF_VALUES = ("mae", "rmse", "r2")  # which are means where there are several values
OF_A_VALUE = ("eval_mae_", "eval_rmse_", "eval_r2_")  # which a table of their own shows
MOST_CLASSES = 10  # in the table of a card
# Of each class: the column that counts, and the figure by which classes are sorted.
SORTED_BY = {"classifier": ("images", "f1"), "segmenter": ("pixels", "iou"), "detector": ("objects", "ap")}


@dataclass(frozen=True)
class ResultsSection:
    """What a card says of figures and pictures."""

    folder: Path
    model: ModelSection
    official: Checkpoint | None  # which the model is

    @cached_property
    def measured(self) -> dict[str, float]:
        """What the run measured."""
        results = {name: value for name, value in read_json(self.folder / RESULTS).items() if is_figure(value)}
        if len(self.model.labels) <= 5:
            results.pop("eval_accuracy_top5", None)  # always 1
        return {name: value for name, value in results.items() if not name.startswith(OF_A_VALUE)}

    @property
    def metrics(self) -> dict[str, float]:
        """The figures that the front matter holds."""
        if self.model.kind in PRETRAINING:
            return {"loss": self.measured["train_loss"]} if "train_loss" in self.measured else {}
        names = [name for name in self.measured if name.startswith("eval_") and name not in NO_METRICS]
        return {name.removeprefix("eval_"): self.measured[name] for name in names}

    @property
    def reported(self) -> list[float]:
        """Top-1 and top-5 accuracy of the official checkpoint, in %, as timm measured them."""
        if self.official is None or self.model.kind != "classifier" or len(self.model.labels) != IMAGENET_CLASSES:
            return []
        has_its_resolution = self.model.config.image_size == self.official.image_size
        return self.official.accuracy.get("timm", []) if has_its_resolution else []

    @property
    def figures(self) -> list[tuple[str, str]]:
        """Names and values of what the run measured."""
        return [
            (self.in_words(name, FIGURES.get(name, name)), format_value(value)) for name, value in self.measured.items()
        ]

    def in_words(self, name: str, words: str) -> str:
        """What a figure is; of the errors of several values, that it is a mean over them."""
        count, (what, *of) = len(self.model.labels), words.split(", ")
        if not (self.model.is_regression and count > 1 and name.removeprefix("eval_") in OF_VALUES):
            return words
        return ", ".join([what, f"mean over the {count} values, each in its own unit", *of])

    @cached_property
    def per_class(self) -> list[dict[str, str]]:
        """Figures of each class as text; of many classes, those with the lowest F1, IoU or AP."""
        rows = read_csv(self.folder / PER_CLASS)
        if len(rows) > MOST_CLASSES:
            amount, figure = ("images", "ap") if self.model.is_multi_label else SORTED_BY[self.model.kind]
            there = [row for row in rows if row[amount] != "0"]
            rows = sorted(there, key=lambda row: float(row[figure] or 0))
        return [{column: format_cell(column, value) for column, value in row.items()} for row in rows[:MOST_CLASSES]]

    @property
    def per_value(self) -> list[dict[str, str]]:
        """Figures of each value that is predicted, as text."""
        rows = read_csv(self.folder / PER_VALUE)[:MOST_CLASSES]
        return [
            {
                column: format_cell(column, text) if column == "value" else format_number(text)
                for column, text in row.items()
            }
            for row in rows
        ]

    @property
    def pictures(self) -> list[tuple[str, str]]:
        """The pictures that are there, and what they show."""
        known = {**PICTURES, **analyses_of(self.folder)}
        return [(file, caption) for file, caption in known.items() if (self.folder / file).exists()]


def analyses_of(folder: Path) -> dict[str, str]:
    """Pictures that an analysis of the weights in the folder may have, and what they show; none if it is of others."""
    analysed = read_json(folder / ANALYSIS / RECORD).get("weights")
    return ANALYSES if analysed and analysed == weight_digests(folder) else {}


def is_figure(value: Any) -> bool:
    """Whether a result is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
