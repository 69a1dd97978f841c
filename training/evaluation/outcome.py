"""What an evaluation protocol gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Outcome(NamedTuple):
    """The figures that a protocol measured, its report as text, and a function that writes its files into a folder.

    The report is empty if the figures say all.
    """

    results: dict[str, Any]
    report: str = ""
    save: Callable[[Path], None] = lambda folder: None
