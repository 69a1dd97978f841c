"""What a classifier that gives several classes, and a model that predicts values, say of an image."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from accelerate import Accelerator
from torch import nn

from training.data.labels import class_list
from training.data.transforms import EvaluationTransform
from training.evaluation.loop import logits_of
from training.prediction.batches import Batch
from training.prediction.finite import finite_answer
from training.prediction.models import StoredModel
from training.prediction.parts import Answer
from training.settings.checks import check
from training.settings.prediction import PredictSettings

SEPARATOR = "|"  # that `str.get_dummies` of pandas splits at


class MultiLabelAnswers:
    """The score of each class, and the classes whose score is at least the threshold, the most probable first.

    The scores are those of Transformers' pipeline. In a table, the classes are joined to a text.
    """

    stacks = True

    def __init__(self, stored: StoredModel, settings: PredictSettings) -> None:
        self.names, self.threshold = class_list(stored.model.config), settings.answers.threshold
        self.transform = EvaluationTransform(stored.processor)
        self.scores = column_names("score_", self.names)
        self.columns = {"labels": pa.string(), **dict.fromkeys(self.scores, pa.float64())}

    def __call__(self, accelerator: Accelerator, model: nn.Module, batch: Batch) -> list[Answer]:
        answers = []
        for scores in logits_of(accelerator, model, batch).sigmoid().tolist():
            order = sorted(range(len(scores)), key=lambda label: -scores[label])
            labels = [self.names[label] for label in order if scores[label] >= self.threshold]
            answer = {"labels": labels, **dict(zip(self.scores, scores, strict=True))}
            answers.append(finite_answer(answer, scores, "scores"))
        return answers

    def rows(self, answer: Answer) -> Iterator[dict[str, Any]]:
        yield {**answer, "labels": SEPARATOR.join(answer["labels"])}


def check_separable(names: list[str], file: str) -> None:
    """Raise if a class has a name that a table could not hold beside others: reading it would give other classes."""
    held = [name for name in names if SEPARATOR in name]
    rule = (
        f"end in .jsonl, since a table separates classes by `{SEPARATOR}`, which the class `{next(iter(held), '')}` has"
    )
    check("output_file", file, not held or Path(file).suffix == ".jsonl", rule)


class ValueAnswers:
    """The values that a model predicts, a column for each."""

    stacks = True

    def __init__(self, stored: StoredModel) -> None:
        self.transform = EvaluationTransform(stored.processor)
        self.names = column_names("", class_list(stored.model.config))
        self.columns = dict.fromkeys(self.names, pa.float64())

    def __call__(self, accelerator: Accelerator, model: nn.Module, batch: Batch) -> list[Answer]:
        values = logits_of(accelerator, model, batch).tolist()
        return [finite_answer(dict(zip(self.names, row, strict=True)), row, "values") for row in values]

    def rows(self, answer: Answer) -> Iterator[dict[str, Any]]:
        yield answer


def column_names(prefix: str, names: list[str]) -> list[str]:
    """Names of columns, which differ from each other and from `image` and `error`: with a number where they do not."""
    taken = len(set(names)) < len(names) or (not prefix and {"image", "error"} & set(names))
    return [f"{prefix}{number}_{name}" if taken else f"{prefix}{name}" for number, name in enumerate(names)]
