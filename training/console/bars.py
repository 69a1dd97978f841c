"""Shows progress: a bar in a terminal, a line at most every 10 seconds elsewhere."""

import os
import sys
import time
from types import TracebackType

import datasets
import huggingface_hub.utils
import transformers
from tqdm import tqdm

from training.console.errors import is_first_process

SECONDS_BETWEEN_LINES = 10.0


def is_terminal() -> bool:
    """Whether stderr is a terminal with a size; in a file, a bar would be one endless line."""
    return sys.stderr.isatty() and min(os.get_terminal_size(sys.stderr.fileno())) > 0


def keep_bars_to_terminals() -> None:
    """Disable the libraries' progress bars outside a terminal, and in all training processes but the first."""
    if not (is_terminal() and is_first_process()):
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
        huggingface_hub.utils.disable_progress_bars()


class Phase:
    """The progress of a phase before the first step, shown by the first training process.

    It counts up to `total`; None means that the total is not known.
    """

    def __init__(self, name: str, total: int | None = None, unit: str = " files") -> None:
        self.name = name
        self.total = total
        self.unit = unit
        self.count = 0
        self.started = self.last_line = time.perf_counter()
        self.prints_lines = is_first_process() and not is_terminal()
        has_bar = is_first_process() and is_terminal()
        self.bar = tqdm(desc=name, total=total, unit=unit, unit_scale=True, dynamic_ncols=True, disable=not has_bar)

    def __enter__(self) -> "Phase":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def update(self, count: int) -> None:
        """Add `count` to the progress."""
        self.count += count
        self.bar.update(count)
        if self.prints_lines and time.perf_counter() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.perf_counter()
            of = "" if self.total is None else f" of {self.total:,} ({self.count / max(self.total, 1):.0%})"
            speed = self.count / (self.last_line - self.started)
            print(f"{self.name}: {self.count:,}{of}{self.unit}, {speed:,.0f} a second", flush=True)
