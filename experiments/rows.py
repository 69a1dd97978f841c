"""The rows of a study in a JSON file, which a command that is started again goes on with."""

from pathlib import Path
from statistics import mean, stdev
from threading import Lock
from typing import Any

from conversion.files import read_json, write_json

Row = dict[str, Any]


def spread(values: list[float]) -> str:
    """Mean and standard deviation of shares, in %; of one value itself, and empty for none."""
    if not values:
        return ""
    return f"{100 * mean(values):.1f}" + (f" ± {100 * stdev(values):.1f}" if len(values) > 1 else "")


class Rows:
    """Rows that are told apart by some of their values; the file is whole whenever it is read.

    head: what stands in the file before the rows.
    """

    def __init__(self, file: Path, keys: tuple[str, ...]) -> None:
        self.file, self.keys, self.lock = file, keys, Lock()
        found = read_json(file)
        self.rows: list[Row] = found.pop("rows", [])
        self.head: Row = found

    def find(self, **values: Any) -> Row | None:
        """The first row with these values."""
        return next((row for row in self.rows if values.items() <= row.items()), None)

    def add(self, row: Row) -> None:
        """Write a row, in place of one with the same key if there is one."""
        with self.lock:
            key = {name: row[name] for name in self.keys}
            self.rows = [other for other in self.rows if not key.items() <= other.items()] + [row]
            self.write()

    def state(self, **values: Any) -> None:
        """Write values in front of the rows."""
        with self.lock:
            self.head |= values
            self.write()

    def keep(self, **values: Any) -> None:
        """Write values that all rows depend on.

        Raises:
            SystemExit: if the file has rows of other values.
        """
        before = {name: self.head.get(name) for name in values}
        if self.rows and before != values:
            raise SystemExit(f"{self.file} holds rows of {before}, not of {values}. Give these a file of their own.")
        self.state(**values)

    def write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.file, {**self.head, "rows": self.rows})
