"""The progress display of a run: a progress bar in a terminal, lines of text anywhere else."""

import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from training.console.bars import is_terminal
from training.run.plan import Plan


class Progress:
    """Shows the steps and epochs of a run that starts after `step` steps, in a bar or in a line for each log entry."""

    def __init__(self, plan: Plan, step: int, is_shown: bool) -> None:
        self.plan = plan
        self.step = self.start_step = step
        self.started = time.monotonic()
        self.is_shown = is_shown
        self.bar: tqdm | None = None
        if is_shown and is_terminal():
            self.bar = tqdm(total=plan.max_steps, initial=step, unit=" steps", dynamic_ncols=True)

    def advance(self) -> None:
        """Count a step."""
        self.step += 1
        if self.bar is not None:
            self.bar.set_description(self.epoch(), refresh=False)
            self.bar.update()

    def log(self, line: Mapping[str, Any]) -> None:
        """Show the loss, the images per second and the share of the time spent waiting for data of a logged line."""
        loss, rate = f"{line['loss']:.4f}", f"{line['images_per_second']:.0f}"
        if self.bar is not None:
            self.bar.set_postfix({"loss": loss, "images/s": rate, "data_wait": f"{line['data_wait']:.0%}"})
            return
        left = (time.monotonic() - self.started) / (self.step - self.start_step) * (self.plan.max_steps - self.step)
        parts = [f"step {self.step:,} of {self.plan.max_steps:,}", self.epoch(), f"loss {loss}", f"{rate} images/s"]
        parts += [f"{100 * line['data_wait']:.0f} % waiting for data", f"{tqdm.format_interval(left)} left"]
        self.say(", ".join(part for part in parts if part))

    def epoch(self) -> str:
        """The number of epochs done and in total. Empty for a stream of unknown length."""
        done, total = self.plan.epoch(self.step), self.plan.epoch(self.plan.max_steps)
        return "" if done is None else f"epoch {done:.2f} of {f'{total:.2f}'.removesuffix('.00')}"

    def say(self, text: str) -> None:
        """Print without breaking the bar, if there is one."""
        if self.bar is not None:
            self.bar.write(text)
        elif self.is_shown:
            print(text, flush=True)

    def close(self) -> None:
        """Close the bar and leave it on the screen."""
        if self.bar is not None:
            self.bar.close()
