"""A training run: everything that all training scripts share, from the output folder to the model card."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from torch import Tensor
from transformers import PreTrainedModel

from conversion.publishing.card import write_card
from training.console.signals import stoppable
from training.data.batches import TrainBatches
from training.data.labels import class_list
from training.data.samples import Batch, Collator, Samples, first_labels
from training.data.sources import Source
from training.evaluation.pictures import save_loss_curves
from training.models.averages import create_ema, final_model, update_average
from training.models.optimizer import can_fuse, create_optimizer, create_schedule, keep_settings
from training.models.teachers import AverageTeacher, FrozenTeacher
from training.run.accelerator import create_accelerator, tell_batch_size
from training.run.checkpoints import Checkpoints, Resumed
from training.run.dry_run import json_alone, learning_rates, print_plan
from training.run.log import TrainingLog
from training.run.output import OutputFolder, save_model
from training.run.plan import Plan, make_plan
from training.run.sharding import adapt_to_sharding
from training.run.stopping.stop import StopSignal, leave_run
from training.run.trackers import end_training, start_trackers
from training.run.trial import Trial, memory
from training.settings.data import TrainingDataSettings
from training.settings.scripts import TrainingSettings


class RunOver(Exception):
    """Nothing is left to do: a dry run has ended, or the output folder already holds the finished run."""


class TrainingRun:
    """Everything around the steps of a training run. The script writes the steps themselves:

        with TrainingRun(settings) as run:
            run.make_plan(num_samples)
            run.prepare(model, processor, decayed)
            run.begin(data, sources, samples, collate)
            for step in run.steps():               # goes on from a checkpoint; saves, and stops on a signal
                for batch in run.batches():        # one for each pass of gradient accumulation, on the device
                    run.backward(run.model(**batch).loss)
                run.update()                       # clip, optimizer, averages, schedule, log
            run.finish(run.final_model(Model), results, add_files)

    In a dry run, the loop takes a few steps, prints the plan and leaves the `with` block. `begin` also leaves the block
    if the output folder already holds the finished run.
    """

    accelerator: Accelerator
    model: Any  # as Accelerate has prepared it

    def __init__(self, settings: TrainingSettings) -> None:
        self.settings, self.record = settings, settings.record()
        self.is_dry = settings.run.dry_run
        self.passes_per_step = settings.schedule.gradient_accumulation_steps
        self.output = OutputFolder(settings)
        self.stack = ExitStack()
        self.step = 0
        self.stopped = self.late = self.interrupted = False
        self.put_off = False  # whether the resumed run has to make the evaluation that is due after this step
        self.weight = 1.0  # of the loss of the pass under way
        self.log: TrainingLog | None = None

    def __enter__(self) -> Self:
        with self.stack:
            self.stack.enter_context(json_alone(self.settings.run))
            self.stack.enter_context(stoppable())
            self.output.check()
            self.accelerator = create_accelerator(self.settings.run, self.passes_per_step, self.settings.data.seed)
            self.stack = self.stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.stack.__exit__(kind, error, trace)
        return kind is RunOver

    @property
    def folder(self) -> Path:
        """The output folder."""
        return self.output.path

    def main_process_first(self) -> AbstractContextManager[None]:
        """Let the main process run a block before the others, so that they find the files that it has cached."""
        return self.accelerator.main_process_first()

    def make_plan(self, num_samples: int | None, num_views: int = 1) -> Plan:
        """Compute the number of steps and the learning rate. `num_samples` is None for a stream of unknown length."""
        images_per_pass, world = self.settings.data.per_device_train_batch_size, self.accelerator.num_processes
        self.plan = make_plan(self.settings.schedule, images_per_pass, num_samples, world, num_views)
        return self.plan

    def prepare(
        self,
        model: PreTrainedModel,
        processor: Any,
        decayed: set[str],
        scale: Callable[[str], float] = lambda name: 1.0,
        teacher: AverageTeacher | FrozenTeacher | None = None,
    ) -> None:
        """Create optimizer, schedule and moving average; prepare them with Accelerate; seed each process differently.

        `decayed` names the parameters with weight decay. `scale` maps a parameter's name to the factor of its learning
        rate.
        """
        plan, settings = self.plan, self.settings
        self.own_model, self.processor, self.teacher = model, processor, teacher
        fused = can_fuse(self.accelerator)
        optimizer = create_optimizer(model, settings.optimizer, plan.learning_rate, decayed, scale, fused)
        rates = (plan.learning_rate, settings.schedule.min_learning_rate, plan.warmup_steps, plan.max_steps)
        self.schedule = create_schedule(optimizer, *rates, settings.schedule.lr_scheduler_type, plan.lr_steps)
        self.ema = create_ema(model, settings.optimizer.ema_decay, self.accelerator)
        self.learning_rates = learning_rates(model, optimizer)  # before `prepare`: sharding hides them
        tell_batch_size(self.accelerator, settings.data.per_device_train_batch_size)
        adapt_to_sharding(self.accelerator, model)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        # The schedule is not prepared: a prepared schedule would step once for each process.
        average = teacher if isinstance(teacher, AverageTeacher) else None
        states = (state for state in (self.schedule, self.ema, average) if state is not None)
        self.accelerator.register_for_checkpointing(*states)
        set_seed(settings.data.seed, device_specific=True)

    def begin(
        self,
        data: TrainingDataSettings,
        sources: Sequence[Source],
        samples: Samples,
        collate: Collator,
        weights: Sequence[float] = (1,),
        eval_source: Source | None = None,
        loss_parts: Sequence[str] = (),
    ) -> None:
        """Load the checkpoint that is asked for, claim the output folder, and start the data loader workers.

        Raises:
            RunOver: if the output folder already holds the finished run.
        """
        # The background may come from the weights that training starts from: record the resolved value.
        self.settings = self.settings.replace(background=data.background)
        self.output, self.record = OutputFolder(self.settings), self.settings.record()
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        feed = partial(TrainBatches, sources, samples, data, collate, rank, world, weights=weights)
        self.sources, self.samples, self.eval_source = sources, samples, eval_source
        if self.is_dry:
            self.train_batches = feed()
            return
        self.end_if_finished()
        start = self.resume()
        self.train_batches = feed(states=start.of("batches"))
        self.log = TrainingLog(
            self.accelerator, self.settings.run, data, self.plan, start, self.train_batches, loss_parts
        )
        self.stop = StopSignal(self.accelerator, self.train_batches, self.settings.run.ddp_timeout)

    def resume(self) -> Resumed:
        """Load the checkpoint that is asked for, and claim the output folder."""
        checkpoints, model, processor = self.settings.checkpoints, self.own_model, self.processor
        self.checkpoints = Checkpoints(
            self.accelerator, self.folder, checkpoints, self.record, model, processor, self.plan
        )
        with keep_settings(self.optimizer, self.schedule):
            start = self.checkpoints.resume()
        self.step = start.step
        self.put_off = any(progress.get("due", {}).get("evaluation") for progress in start.progress)
        if self.accelerator.is_main_process:
            self.output.claim()
        start_trackers(self.accelerator, self.settings.run, self.record.task, self.record.values)
        return start

    def end_if_finished(self) -> None:
        """If the folder already holds the finished run, end, after uploading it again in case the upload failed."""
        if not self.output.holds_all(self.plan.max_steps):
            return
        if self.accelerator.is_main_process:
            print(f"{self.folder} holds the whole run: nothing is left to do.", flush=True)
            self.output.push()
        end_training(self.accelerator)
        raise RunOver

    def steps(self) -> Iterator[int]:
        """Yield the numbers of the optimizer steps to take, counted from 1.

        After a step, save a checkpoint if one is due, and end the program if a stop was asked for.

        Raises:
            RunOver: at the end of a dry run.
        """
        if self.is_dry:
            yield from self.steps_of_trial()
        while self.step < self.plan.max_steps:
            self.step += 1
            self.own_model.train()
            self.put_off = False
            yield self.step
            if self.stopped or self.late or self.checkpoints.is_due(self.step):
                self.save(self.step)
            if self.stopped and (self.step < self.plan.max_steps or self.interrupted):
                self.leave()
        self.stop.close()
        self.logged.check_finite(self.own_model)

    def steps_of_trial(self) -> Iterator[int]:
        """Yield the steps of a dry run, then print the plan and raise `RunOver`."""
        self.own_model.train()
        trial = Trial(self.train_batches, self.plan, self.passes_per_step, self.settings.data.num_workers)
        for self.step in trial.steps():
            yield self.step
        beside = [module for module in (self.ema, self.teacher) if module is not None]
        measured = {"memory": memory(self.model, self.optimizer, beside), **trial.measured}
        described = (self.accelerator, self.record, self.plan, self.sources, self.own_model, self.learning_rates)
        labels = first_labels(self.sources[0], self.samples, class_list(self.own_model.config))
        print_plan(*described, measured, self.eval_source, labels)
        raise RunOver

    def batches(self, count: Callable[[Batch], Tensor] | None = None) -> Iterator[dict[str, Any]]:
        """Yield the batches of one optimizer step, on the device. After the last one, processes average gradients.

        The loss of a step is the mean of those of its passes. With `count`, each weighs as much as it has of what is
        counted, such as pixels with a class: the mean over all of these, whatever the number of passes and processes.
        """
        found: Iterable[Batch] = islice(self.train_batches, self.passes_per_step)
        found = found if self.is_dry else self.stop.batches(found)
        weighted = ((batch, 1.0) for batch in found) if count is None else self.weigh(found, count)
        for batch, weight in weighted:
            self.weight = weight
            with self.accelerator.accumulate(self.model):
                yield send_to_device(batch, self.accelerator.device)  # type: ignore[misc]
        if not self.is_dry and self.stop.gave_up:  # a stop ended the wait for the first batch: skip the step
            leave_run(self.accelerator, self.checkpoints, self.step - 1, self.save)

    def weigh(self, found: Iterable[Batch], count: Callable[[Batch], Tensor]) -> list[tuple[Batch, float]]:
        """The batches of a step with the weights of their losses, whose mean over all passes and processes is 1."""
        batches = list(found)
        if not batches:  # a stop ended the wait for the first one
            return []
        counts = [int(count(batch)) for batch in batches]
        total = self.accelerator.reduce(torch.tensor(sum(counts), device=self.accelerator.device))
        mean = max(1, int(total)) / (len(batches) * self.accelerator.num_processes)  # type: ignore[arg-type]
        return [(batch, number / mean) for batch, number in zip(batches, counts, strict=True)]

    def backward(self, loss: Tensor, parts: Any = None) -> None:
        """Compute the gradients of one pass's loss. `parts` holds the loss's components by name, for the log."""
        loss = loss * self.weight
        self.accelerator.backward(loss)
        if self.log is not None:
            self.log.add(loss, parts)

    def update(self) -> None:
        """Take the optimizer step, then update moving averages, log and schedule, and check for a stop signal."""
        limit = self.settings.optimizer.max_grad_norm  # without a limit, the norm is only computed for the log
        grad_norm = None
        if self.accelerator.sync_gradients:
            grad_norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit or torch.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        update_average(self.ema, self.own_model)
        if isinstance(self.teacher, AverageTeacher):
            self.teacher.update(self.own_model, self.step)  # type: ignore[arg-type]
        if self.log is None:
            return
        # The last group belongs to the head, whose learning rate is not reduced by layer decay.
        self.log.end_step(self.schedule.get_last_lr()[-1], grad_norm)
        self.schedule.step()
        self.stopped, self.late = self.stop.after_step(self.checkpoints.is_late())

    def is_due(self, interval: int | None) -> bool:
        """Whether something done every `interval` steps (None: after each epoch) and after the last step is due now."""
        return self.log is not None and self.plan.is_due(self.step, interval)

    def write(self, figures: Callable[[], dict[str, Any]]) -> None:
        """Log the result of `figures`, and leave the time it takes out of the images per second."""
        with self.logged.paused():
            self.logged.write(figures())

    def leave(self) -> NoReturn:
        """Save a checkpoint after the current step, print how to resume, and end the program."""
        leave_run(self.accelerator, self.checkpoints, self.step, self.save)

    def interrupt(self) -> None:
        """Stop the run because a signal cancelled an evaluation. The resumed run begins with that evaluation."""
        self.stopped = self.put_off = self.interrupted = True

    def save(self, step: int) -> None:
        """Write a checkpoint. Raises a `FloatingPointError` instead if a loss, gradient or weight is not finite."""
        self.logged.check_finite(self.own_model)
        progress = {"batches": self.train_batches.state_dict(), "log": self.logged.state_dict()}
        with self.logged.paused():
            self.checkpoints.save(step, **progress, due={"evaluation": self.put_off})

    def final_model(self, model_class: type[Any]) -> Any:
        """The model to save: the averaged weights if there are any, else the trained ones. Call it in every process."""
        return final_model(model_class, self.accelerator, self.model, self.ema)

    def finish(self, model: Any, results: dict[str, Any], add_files: Callable[[Path], None]) -> None:
        """Write the folder that `from_pretrained` loads, with pictures and model card, and upload it if asked to.

        The main process calls `add_files`, which writes the files that only this task has.
        """
        if self.accelerator.is_main_process:
            save_model(self.folder, model, self.processor, {**results, **self.logged.results()})
            save_loss_curves(self.folder / "metrics.jsonl", self.folder / "loss_curves.png")
            add_files(self.folder)
            write_card(self.folder)
            self.output.push()
        self.accelerator.wait_for_everyone()
        end_training(self.accelerator)

    def say(self, text: str) -> None:
        """Print in the main process."""
        if self.accelerator.is_main_process:
            print(text, flush=True)

    @property
    def logged(self) -> TrainingLog:
        """The log; a dry run has none."""
        assert self.log is not None
        return self.log
