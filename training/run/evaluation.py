"""Evaluations of a classifier in the course of its training."""

from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from training.evaluation.metrics import Evaluator
from training.run.training_run import TrainingRun


class PeriodicEvaluation:
    """Evaluates every `interval` optimizer steps (None: after each epoch) and at the end, if there is a loader.

    A stop does not wait for an evaluation: the checkpoint goes first, and the resumed run begins with the evaluation.
    """

    def __init__(
        self, run: TrainingRun, evaluator: Evaluator, loader: DataLoader[Any] | None, interval: int | None
    ) -> None:
        self.run, self.evaluator, self.interval = run, evaluator, interval
        self.loader: Any = run.accelerator.prepare(loader) if loader is not None else None
        self.results: dict[str, Any] = {}
        if loader is not None and run.put_off:
            self.results = evaluator(run.accelerator, self.model, self.loader)
            run.logged.write_evaluation(self.results)
            run.put_off = False

    @property
    def model(self) -> nn.Module:
        """What is evaluated: the averaged weights if there are any."""
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
            run.logged.write_evaluation(found)
        else:
            run.interrupt()

    def at_end(self, final: nn.Module) -> dict[str, Any]:
        """The figures of the final model: those of the last step, unless a stop or a resume came between."""
        put_off = self.run.put_off
        if self.loader is not None and (put_off or not self.results):
            self.results = self.evaluator(self.run.accelerator, final, self.loader)
            if put_off:
                self.run.logged.write_evaluation(self.results)
        return self.results
