"""How far a phase before the first step has come: a bar in a terminal, a line now and then elsewhere."""

import time
from types import TracebackType

from tqdm import tqdm

from training.run.errors import is_first_process
from training.run.progress import is_terminal

SECONDS_BETWEEN_LINES = 10.0


class Phase:
    """Counts up to `total`, or without end where that is None; the first training process shows it."""

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
        """So many more."""
        self.count += count
        self.bar.update(count)
        if self.prints_lines and time.perf_counter() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.perf_counter()
            of = "" if self.total is None else f" of {self.total:,} ({self.count / max(self.total, 1):.0%})"
            speed = self.count / (self.last_line - self.started)
            print(f"{self.name}: {self.count:,}{of}{self.unit}, {speed:,.0f} a second", flush=True)
