"""Evaluation of a model during its training."""

from collections.abc import Callable
from typing import Any, Protocol

from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from training.run.training_run import TrainingRun


class Evaluator(Protocol):
    """Computes the metrics of a model on a loader; `in_words` puts them into a line of text."""

    def __call__(
        self, accelerator: Accelerator, model: nn.Module, loader: DataLoader[Any], is_stopped: Callable[[], bool] = ...
    ) -> dict[str, Any]: ...

    def in_words(self, results: dict[str, Any]) -> str: ...


class PeriodicEvaluation:
    """Evaluates every `interval` optimizer steps (None: after each epoch) and at the end, if there is a loader.

    A stop signal skips or cancels the evaluation: the run saves a checkpoint and ends, and the resumed run begins with
    the evaluation.
    """

    def __init__(
        self, run: TrainingRun, evaluator: Evaluator, loader: DataLoader[Any] | None, interval: int | None
    ) -> None:
        self.run, self.evaluator, self.interval = run, evaluator, interval
        self.loader: Any = run.accelerator.prepare(loader) if loader is not None else None
        self.results: dict[str, Any] = {}
        if loader is not None and run.put_off:
            self.evaluate_first()

    def evaluate_first(self) -> None:
        """Run the evaluation that the previous run skipped at its stop. A stop meanwhile ends the run unchanged."""
        run = self.run
        with run.logged.paused():
            self.results = self.evaluator(run.accelerator, self.model, self.loader, run.stop.is_asked)
        if not self.results:
            run.leave()
        run.logged.write_evaluation(self.results, self.evaluator.in_words(self.results))
        run.put_off = False

    @property
    def model(self) -> nn.Module:
        """The model to evaluate: the averaged weights if there are any, else the trained ones."""
        return self.run.model if self.run.ema is None else self.run.ema.module

    def after_step(self) -> None:
        """Evaluate if it is due after this step, unless the run is to stop."""
        run = self.run
        if self.loader is None or not run.is_due(self.interval):
            return
        if run.stopped:
            run.put_off = True
            return
        run.logged.check_finite()
        with run.logged.paused():
            found = self.evaluator(run.accelerator, self.model, self.loader, run.stop.is_asked)
        if found:
            self.results = found
            run.logged.write_evaluation(found, self.evaluator.in_words(found))
        else:
            run.interrupt()

    def at_end(self, final: nn.Module) -> dict[str, Any]:
        """The metrics of the final model.

        They are those of the evaluation after the last step. If a stop cancelled it, or this process made none since
        the run resumed, the model is evaluated now.
        """
        put_off = self.run.put_off
        if self.loader is not None and (put_off or not self.results):
            self.results = self.evaluator(self.run.accelerator, final, self.loader)
            if put_off:
                self.run.logged.write_evaluation(self.results, self.evaluator.in_words(self.results))
        return self.results
