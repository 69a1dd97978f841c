"""The log of a run: metrics.jsonl, progress, trackers, and a stop at a loss that is not finite."""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from training.data.batches import TrainBatches
from training.data.decoding import fate_of_transparency
from training.machine.disk import writing
from training.run.checkpoints import Resumed
from training.run.losses import Losses
from training.run.plan import Plan
from training.run.progress import Progress
from training.run.trackers import track
from training.settings.checks import check
from training.settings.data import DataSettings
from training.settings.run import RunSettings

NEVER = torch.iinfo(torch.int32).max


class TrainingLog:
    """Writes metrics.jsonl, the progress and the trackers, and stops the run at a loss that is not finite.

    Losses are copied from the device only when a line is due, so that the other steps do not wait for the device.
    `parts` names the components of the loss that are logged too.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        settings: RunSettings,
        data: DataSettings,
        plan: Plan,
        start: Resumed,
        batches: TrainBatches,
        parts: Sequence[str] = (),
    ) -> None:
        self.accelerator = accelerator
        self.plan = plan
        self.parts = parts
        self.batches = batches
        self.logging_steps = settings.logging_steps
        self.folder = Path(settings.output_dir)
        self.step = self.logged_step = self.start_step = start.step
        window, total = resumed_losses(start.of("log"), accelerator.process_index, accelerator.num_processes)
        self.losses = Losses(len(parts), window, total)
        self.first_bad = torch.full((1,), NEVER, dtype=torch.int32, device=accelerator.device)
        self.started = self.window_started = time.perf_counter()
        self.paused_seconds = self.waited_seconds = 0.0
        self.max_bad_images = data.max_bad_images
        self.fate_of_transparency, self.told_of_transparency = fate_of_transparency(data), False
        self.named = named_before(start.of("batches"))
        self.progress = Progress(plan, start.step, accelerator.is_main_process)

    def add(self, loss: Tensor, outputs: Mapping[str, Tensor] | None = None) -> None:
        """Add the loss of one forward pass of the current step, and its components from the model's outputs."""
        self.losses.add(loss, *(outputs[name] for name in self.parts if outputs is not None))
        self.note_if_bad(loss.detach(), self.step + 1)

    def note_if_bad(self, value: Tensor, step: int) -> None:
        """Remember the first step with a value that is not finite, without waiting for the device."""
        self.first_bad = torch.where(value.isfinite(), self.first_bad, self.first_bad.clamp(max=step))

    def end_step(self, learning_rate: float | Tensor, grad_norm: Tensor | float | None) -> None:
        """Count an optimizer step, and write a line if one is due."""
        self.step += 1
        if isinstance(grad_norm, DTensor):
            grad_norm = grad_norm.full_tensor()
        if grad_norm is not None and self.accelerator.scaler is None:  # a scaler skips steps that overflow
            self.note_if_bad(torch.as_tensor(grad_norm), self.step)
        self.progress.advance()
        if self.step % self.logging_steps and self.step != self.plan.max_steps:
            return
        self.check_finite()
        loss, count, *parts = self.losses.close_line()
        now = time.perf_counter()
        images = (self.step - self.logged_step) * self.plan.total_batch_size
        waited = (self.batches.seconds_waited - self.waited_seconds) / (now - self.window_started)
        line = {
            "loss": loss / count,
            **{name: part / count for name, part in zip(self.parts, parts, strict=True)},
            "learning_rate": float(learning_rate),
            "grad_norm": None if grad_norm is None else float(grad_norm),
            "images_per_second": images / (now - self.window_started),
            "data_wait": waited,
            **self.bad_images(),
        }
        self.logged_step, self.window_started, self.waited_seconds = self.step, now, self.batches.seconds_waited
        self.progress.log(line)
        self.write(line)

    def bad_images(self) -> dict[str, int]:
        """Count the bad and transparent images in all processes' streams so far; add new bad ones to bad_images.jsonl.

        A bad image counts once, though several data loader workers may meet it: they read other files in each epoch.

        Raises:
            ValueError: if there are more than `max_bad_images`.
        """
        if not self.batches.readers:
            return {}
        found = gather_object([(self.batches.bad, list(self.batches.problems), self.batches.num_transparent)])
        self.batches.problems.clear()
        problems = {tuple(key): text for _, problems, _ in found for key, text in problems}
        new = [text for key, text in problems.items() if key not in self.named]
        self.named |= problems.keys()
        if new and self.accelerator.is_main_process:
            append(self.folder / "bad_images.jsonl", [json.dumps({"step": self.step, "problem": text}) for text in new])
            self.progress.say("\n".join(f"Skipping a bad image. {text}" for text in new))
        count, most = len(set().union(*(bad for bad, _, _ in found))), self.max_bad_images
        check("max_bad_images", most, count <= most, f"be at least {count}, the bad images so far, to skip them")
        return {"bad_images": count, "transparent_images": self.count_transparent(sum(each[2] for each in found))}

    def count_transparent(self, count: int) -> int:
        """The number of transparent images so far. Prints once how such images are handled."""
        if count and not self.told_of_transparency and self.accelerator.is_main_process:
            images = self.step * self.plan.total_batch_size
            self.progress.say(f"{count:,} of the first {images:,} images are transparent: {self.fate_of_transparency}.")
        self.told_of_transparency = self.told_of_transparency or count > 0
        return count

    def state_dict(self) -> dict[str, Any]:
        """In JSON types: this process's sums since the last line, and all processes' sums up to that line."""
        return {"window": self.losses.since_last_line(), "total": self.losses.total}

    def check_finite(self, model: nn.Module | None = None) -> None:
        """Raise a `FloatingPointError` if a loss, gradient or weight of `model` is NaN or infinite in any process.

        The run calls it before it saves anything.
        """
        if model is not None:
            own = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in model.parameters())
            finite = torch.stack([weight.isfinite().all() for weight in own]).all()
            self.note_if_bad(torch.where(finite, 0.0, torch.nan), self.step)
        first_bad = int(self.accelerator.gather(self.first_bad).min())  # type: ignore[union-attr]
        if first_bad != NEVER:
            raise FloatingPointError(
                f"`loss`, gradient and weights of step {first_bad} must be finite; one is NaN or infinite. Nothing was "
                "saved since: resume from the last checkpoint with a lower learning rate, clipping or another "
                "precision."
            )

    def write(self, values: dict[str, Any]) -> None:
        """Write one line of metrics.jsonl, at full precision, with null for values that are not finite."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        line = {"step": self.step, "epoch": self.plan.epoch(self.step), **finite}
        if self.accelerator.is_main_process:
            append(self.folder / "metrics.jsonl", [json.dumps(line)])
        track(self.accelerator, {k: v for k, v in line.items() if isinstance(v, int | float)}, self.step)

    def write_evaluation(self, results: dict[str, Any], words: str) -> None:
        """Write a line of metrics.jsonl for an evaluation, and print its results, `words`."""
        self.write(results)
        self.progress.say(f"evaluation after step {self.step:,}: {words}")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of this block, an evaluation or a checkpoint, out of the images per second."""
        before = time.perf_counter()
        yield
        seconds = time.perf_counter() - before
        self.window_started += seconds
        self.paused_seconds += seconds

    def results(self) -> dict[str, Any]:
        """Close the progress bar, and return the metrics of this run for all_results.json and the model card.

        `train_runtime` and `images_per_second` count from the last resume.
        """
        self.progress.close()
        seconds = time.perf_counter() - self.started
        images = (self.step - self.start_step) * self.plan.total_batch_size
        loss, count, *_ = self.losses.total
        return {
            "train_loss": loss / count if count else None,
            "train_samples": self.plan.num_samples,
            "train_runtime": seconds,
            "images_per_second": images / (seconds - self.paused_seconds),
            "total_steps": self.step,
            "epoch": self.plan.epoch(self.step),
        }


def named_before(states: list[dict[str, Any]]) -> set[tuple[int, ...]]:
    """The keys of the bad images that are already logged, from the `state_dict` of every process's batches."""
    met = {tuple(key) for state in states for _, _, _, bad in state["readers"] for key in bad}
    return met - {tuple(key) for state in states for key, _ in state["problems"]}


def resumed_losses(states: list[dict[str, Any]], rank: int, num_processes: int) -> tuple[list[float], list[float]]:
    """This process's loss sums since the last line, and all processes' sums up to that line. Empty at the start.

    With another number of processes than before, the main process gets the sums of all since the last line.
    """
    if not states:
        return [], []
    if len(states) == num_processes:
        return states[rank]["window"], states[rank]["total"]
    everybody = [float(sum(column)) for column in zip(*(state["window"] for state in states), strict=True)]
    return everybody if rank == 0 else [], states[0]["total"]


def append(file: Path, lines: list[str]) -> None:
    """Append lines to a log."""
    with writing(file), file.open("a", encoding="utf-8") as log:
        log.writelines(f"{line}\n" for line in lines)
