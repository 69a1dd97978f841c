"""What the command prints: a line for each row as it comes, and Markdown tables. It can fail without any harm."""

import contextlib
import json
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from benchmarks.shared.measure import Ratio, Row


def harmless(show: Callable[..., None]) -> Callable[..., None]:
    """The function without its errors: what cannot be shown costs its own lines, and not what was found."""

    @wraps(show)
    def shown(*arguments: Any) -> None:
        try:
            show(*arguments)
        except Exception as error:
            with contextlib.suppress(Exception):  # of a closed terminal
                print(f"{show.__name__}: {error!r}", file=sys.stderr, flush=True)

    return shown


@harmless
def print_lines(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


@harmless
def print_row(seconds: float, name: str, row: Row) -> None:
    """A row as one line, with the seconds since the command's start."""
    values = ", ".join(f"{key} {as_text(value)}" for key, value in row.items())
    print(f"[{seconds:5.1f} s] {name}: {values}", flush=True)


@harmless
def print_part(name: str, part: dict[str, Any]) -> None:
    print(f"\n## {name}, {part['seconds']:.0f} s\n\n{tables(part['rows'])}\n", flush=True)
    if part["error"]:
        print(f"failed: {part['error']}\n", flush=True)


def tables(rows: list[Row]) -> str:
    """Rows as Markdown tables, one for each set of columns."""
    kinds: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        kinds.setdefault(tuple(row), []).append(row)
    blocks = []
    for columns, of_kind in kinds.items():
        lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(as_text(value) for value in row.values()) + " |" for row in of_kind]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def as_text(value: Any) -> str:
    """A value of any kind in a cell of a table."""
    if isinstance(value, dict) and tuple(value) == Ratio._fields:
        return str(Ratio(**value))
    if isinstance(value, dict | list):
        return json.dumps(value, default=str).replace("|", "/")
    if isinstance(value, bool) or not isinstance(value, float):
        return "" if value is None else str(value).replace("|", "/")
    if abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.1e}"
