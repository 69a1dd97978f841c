"""Writes the tables of docs/scale.md: those that are computed, and those that `benchmarks.scale` has measured.

python -m benchmarks.scale_page
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.at_scale.arithmetic import TABLES
from benchmarks.shared.measure import Row

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/scale.md"
MEASURED = ROOT / "docs/benchmarks/scale.json"
TABLE = re.compile(r"(<!-- (computed|measured): (\w+) -->\n).*?(<!-- end -->)", re.S)


def main() -> None:
    PAGE.write_text(filled(PAGE.read_text()))


def filled(page: str) -> str:
    """The page with its tables written anew."""
    parts = json.loads(MEASURED.read_text())["parts"]
    rows: dict[str, Callable[[str], list[Row]]] = {
        "computed": lambda name: TABLES[name](),
        "measured": lambda name: parts[name]["rows"],
    }
    return TABLE.sub(lambda found: f"{found[1]}\n{as_table(rows[found[2]](found[3]))}\n{found[4]}", page)


def as_table(rows: list[Row]) -> str:
    """The rows in Markdown; numbers stand at the right."""
    lines = [list(rows[0]), ["---" if name_column(rows, name) else "---:" for name in rows[0]]]
    lines += [[shown(value) for value in row.values()] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def name_column(rows: list[Row], name: str) -> bool:
    """Whether a column holds names."""
    return not any(character.isdigit() for row in rows for character in str(row[name]))


def shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    main()
