"""Metrics with the interface of `evaluate`. `TopAccuracy` needs no network; any other metric is loaded by name.

The package has its own metric because those of `evaluate` are downloaded, and none of them is a top-5 accuracy.
scikit-learn's `top_k_accuracy_score` rejects our scores for two classes, warns for five classes or fewer, and needs all
scores of all images, where `TopAccuracy` needs five class numbers for each image. torchmetrics 1.9 rejects a top-5
accuracy of fewer than five classes. `tests/training/evaluation/test_alternatives.py` checks the statements about
scikit-learn, and fails when one of them is no longer true.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import torch
from accelerate import Accelerator
from datasets import Features, List, Value
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from training.evaluation.loop import logits_of, pass_over
from training.evaluation.per_class import Answers, save_class_figures, table_in_words
from training.evaluation.tables import percent

AVERAGED = ("f1", "precision", "recall")  # metrics that need the argument `average` for more than two classes


class TopAccuracy(evaluate.Metric):
    """Top-1 and top-5 accuracy: the share of examples whose class is the best, or among the five best, predictions."""

    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": List(Value("int64")), "references": Value("int64")})
        return evaluate.MetricInfo(
            description="Top-1 and top-5 accuracy",
            citation="",
            inputs_description="predictions: class indices, best first; references: class indices",
            features=features,
        )

    def _compute(self, predictions: list[list[int]], references: list[int]) -> dict[str, float]:
        hits = np.asarray(predictions)[:, :5] == np.asarray(references)[:, None]
        return {"accuracy": float(hits[:, 0].mean()), "accuracy_top5": float(hits.any(axis=1).mean())}


class Evaluator:
    """Evaluates a classifier on a loader. Metrics that are given by name are loaded once, before training.

    `answers` holds the true and predicted classes of the last evaluation; `classes` are their names.
    """

    def __init__(self, names: list[str] | None, classes: Sequence[str] = ()) -> None:
        self.answers: Answers | None = None
        self.classes = classes
        self.named: dict[str, Any] = {}
        for name in names or []:
            try:
                self.named[name] = evaluate.load(name)
            except Exception as error:
                raise ValueError(f"`metrics` (={name}) must be a metric that `evaluate.load` finds: {error}") from error

    def __call__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        loader: DataLoader[Any],
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> dict[str, float]:
        """`eval_accuracy`, `eval_accuracy_top5`, `eval_loss` and the metrics asked for, over all processes.

        `eval_majority_accuracy` is the accuracy of always predicting the most frequent class. The result is empty if
        `is_stopped` becomes true after a batch, in all processes.
        """
        metric = TopAccuracy(keep_in_memory=True)
        losses, classes, references = [], [], []

        def measure(batch: dict[str, Any]) -> tuple[torch.Tensor, ...]:
            logits = logits_of(accelerator, model, batch)
            labels = batch["labels"].to(accelerator.device)
            loss = F.cross_entropy(logits, labels, reduction="none")
            return loss, logits.topk(min(5, logits.shape[-1])).indices, labels

        def add(loss: torch.Tensor, ranked: torch.Tensor, labels: torch.Tensor) -> None:
            metric.add_batch(predictions=ranked.cpu(), references=labels.cpu())
            losses.append(loss.cpu())
            classes.append(ranked[:, 0].cpu())
            references.append(labels.cpu())

        if not pass_over(accelerator, model, loader, measure, add, is_stopped):
            return {}
        loss = torch.cat(losses)
        results = {"eval_loss": loss.mean().item(), "eval_samples": len(loss)}
        computed = metric.compute() or {}
        predictions = {"predictions": torch.cat(classes), "references": torch.cat(references)}
        self.answers = Answers(predictions["references"].numpy(), predictions["predictions"].numpy())
        computed["majority_accuracy"] = self.answers.majority_accuracy
        for name, other in self.named.items():
            options = {"average": "macro"} if name in AVERAGED else {}
            computed |= other.compute(**predictions, **options)
        return results | {f"eval_{key}": value for key, value in computed.items()}

    @staticmethod
    def in_words(results: dict[str, Any]) -> str:
        """The results as one line of text."""
        return in_words(results)

    def report(self) -> str:
        """The table of the classes as text."""
        assert self.answers is not None
        return table_in_words(self.answers, self.classes)

    def save(self, folder: Path) -> None:
        """Write the figures of each class into a folder. Without an evaluation, delete those of an earlier run."""
        save_class_figures(folder, self.answers, self.classes)


def in_words(results: dict[str, Any]) -> str:
    """The results of an evaluation as one line of text."""
    majority = f"always the largest class: {percent(results['eval_majority_accuracy'])}"
    words = [f"accuracy {percent(results['eval_accuracy'])} ({majority})"]
    if results["eval_accuracy_top5"] < 1:  # with five classes or fewer it is always 1
        words.append(f"top-5 {percent(results['eval_accuracy_top5'])}")
    told = ("eval_accuracy", "eval_accuracy_top5", "eval_majority_accuracy", "eval_samples")
    others = {key: value for key, value in results.items() if key.startswith("eval_") and key not in told}
    words += [f"{key[5:]} {value:.4f}" for key, value in others.items() if isinstance(value, float)]
    return f"{', '.join(words)}, {results['eval_samples']:,} images"
