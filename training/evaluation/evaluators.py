"""What evaluates a model, by the problem that it is for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from training.data.problems import Problem
from training.evaluation.metrics import Evaluator
from training.evaluation.multi_label import MultiLabelEvaluator
from training.evaluation.regression import RegressionEvaluator
from training.settings.labels import MULTI_LABEL, REGRESSION


class LabelEvaluator(Protocol):
    """Evaluates a model, and keeps the figures of each class or value of the last evaluation."""

    def __call__(
        self, accelerator: Accelerator, model: nn.Module, loader: DataLoader[Any], is_stopped: Callable[[], bool] = ...
    ) -> dict[str, Any]:
        """The figures of a model on a loader."""
        ...

    def in_words(self, results: dict[str, Any]) -> str:
        """These figures as one line of text."""
        ...

    def report(self) -> str:
        """The figures of each class or value as a table of text."""
        ...

    def save(self, folder: Path) -> None:
        """Write the figures of each class or value into a folder."""
        ...


def create_evaluator(problem: Problem, metrics: list[str] | None) -> LabelEvaluator:
    """What evaluates a model for this problem; `metrics` are further ones of a classifier, by their names."""
    kinds: dict[str, Any] = {MULTI_LABEL: MultiLabelEvaluator, REGRESSION: RegressionEvaluator}
    if problem.type in kinds:
        return kinds[problem.type](problem.names)
    return Evaluator(metrics, problem.names)
