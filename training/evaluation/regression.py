"""Evaluates a model that predicts values."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from torch import Tensor, nn
from torch.utils.data import DataLoader

from conversion.model_folder import PER_VALUE
from training.data.value_scale import Scale
from training.evaluation.loop import logits_of, pass_over
from training.evaluation.per_class import remove_figures
from training.evaluation.tables import align, write_csv

FIGURES = ("mae", "rmse", "r2")
COLUMNS = ("value", "images", "mean", "std", *FIGURES)


class RegressionEvaluator:
    """Measures errors of values. `rows` holds the figures of each value of the last evaluation."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.rows: list[dict[str, Any]] = []

    def __call__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        loader: DataLoader[Any],
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any]:
        """`eval_mae`, `eval_rmse` and `eval_r2` over all processes, and the same of each value if there are several.

        Of several values, the first two are means over values that may have different units. R2 is left out if it is
        not defined. A model under training also has `eval_loss`, the squared error of standardised values. The result
        is empty if `is_stopped` becomes true after a batch, in all processes.
        """
        answers, references = [], []

        def measure(batch: dict[str, Any]) -> tuple[Tensor, ...]:
            return logits_of(accelerator, model, batch), batch["labels"].to(accelerator.device)

        def add(logits: Tensor, labels: Tensor) -> None:
            answers.append(logits.cpu().double())
            references.append(labels.cpu().double())

        if not pass_over(accelerator, model, loader, measure, add, is_stopped):
            return {}
        found, true = torch.cat(answers).numpy(), torch.cat(references).numpy()
        scale = Scale.of(accelerator.unwrap_model(model).config)
        results: dict[str, Any] = {}
        if scale is not None:  # of a model under training
            results["eval_loss"] = float(np.square(found - true).mean())
            found, true = (values * scale.std + scale.mean for values in (found, true))
        self.rows = value_table(true, found, self.names)
        return results | regression_figures(self.rows)

    def in_words(self, results: dict[str, Any]) -> str:
        """The results as one line of text."""
        words = [
            f"mean absolute error {results['eval_mae']:.4g}",
            f"root mean squared error {results['eval_rmse']:.4g}",
        ]
        words += [f"R2 {results['eval_r2']:.3f}"] if "eval_r2" in results else []
        words += [f"loss {results['eval_loss']:.4f}"] if "eval_loss" in results else []
        several = f" (means over {len(self.names)} values)" if len(self.names) > 1 else ""
        return f"{', '.join(words)}{several}, {results['eval_samples']:,} images"

    def report(self) -> str:
        """The table of the values as text."""
        headings = {"mean": "mean", "std": "deviation", "mae": "MAE", "rmse": "RMSE", "r2": "R2"}
        cells = [
            [row["value"], *("-" if row[key] is None else f"{row[key]:.4g}" for key in headings)] for row in self.rows
        ]
        return align([["value", *headings.values()], *cells])

    def save(self, folder: Path) -> None:
        """Write the table into a folder. Without an evaluation, delete the figures of an earlier run."""
        remove_figures(folder)
        if self.rows:
            write_csv(folder / PER_VALUE, self.rows, COLUMNS)


def value_table(true: np.ndarray, found: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each value, from what is true and what was found, `(N, V)` float64.

    Mean and standard deviation are those of the images. R2 is None if the value is the same in all images.
    """
    rows = []
    for column, name in enumerate(names):
        references, answers = true[:, column], found[:, column]
        varies = len(references) > 1 and np.ptp(references) > 0
        rows.append(
            {
                "value": name,
                "images": len(references),
                "mean": float(references.mean()),
                "std": float(references.std()),
                "mae": float(mean_absolute_error(references, answers)),
                "rmse": float(root_mean_squared_error(references, answers)),
                "r2": float(r2_score(references, answers)) if varies else None,
            }
        )
    return rows


def regression_figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of an evaluation from those of each value."""
    results: dict[str, Any] = {"eval_samples": rows[0]["images"]}
    for figure in FIGURES:
        known = {row["value"]: row[figure] for row in rows if row[figure] is not None}
        if known:
            results[f"eval_{figure}"] = float(np.mean(list(known.values())))
        if len(rows) > 1:
            results |= {f"eval_{figure}_{name}": value for name, value in known.items()}
    return results
