"""Rows of a part, written one by one so that a part that is stopped keeps what it has."""

import json
import time
from pathlib import Path
from typing import Any

from benchmarks.shared.measure import Ratio, Row


class Rows:
    """Appends rows to a file of JSON lines, and knows how much time the part has left."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.end = path, time.monotonic() + seconds

    def add(self, **row: Any) -> None:
        plain = {key: value._asdict() if isinstance(value, Ratio) else value for key, value in row.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(plain) + "\n")

    def leave_out(self, what: str) -> None:
        """A row for what there is no time for."""
        self.add(left_out=what, seconds_left=round(self.seconds_left()))

    def seconds_left(self) -> float:
        return self.end - time.monotonic()


def read_rows(path: Path) -> list[Row]:
    """The whole lines of a file that may end in the middle of one."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
