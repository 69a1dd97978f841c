"""Writes the tables in docs/ whose figures are computed, or measured by the benchmarks and the studies.

python -m benchmarks.pages
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.at_scale import arithmetic
from benchmarks.shared import measured_tables
from benchmarks.shared.measure import Row
from experiments import dense_tables, payoff_tables
from experiments.ablation import tables as ablation_tables

DOCS = Path(__file__).parents[1] / "docs"
NAMES = ("ablations", "benchmarks", "convmae", "detection", "exporting")
NAMES += ("payoff", "predicting", "scale", "segmentation")
PAGES = [DOCS / f"{name}.md" for name in NAMES]
AT_SCALE = DOCS / "benchmarks/scale.json"
COMPUTED = {**arithmetic.TABLES, **payoff_tables.PLANNED}
TABLE = re.compile(r"(<!-- (computed|measured): (\w+) -->\n).*?(<!-- end -->)", re.S)


def main() -> None:
    for page in PAGES:
        page.write_text(filled(page.read_text()))


def filled(page: str) -> str:
    """The page with its tables written anew."""
    parts = json.loads(AT_SCALE.read_text())["parts"]
    measured: dict[str, Callable[[], list[Row]]] = {
        name: lambda rows=part["rows"]: rows for name, part in parts.items()
    }
    studies = {**ablation_tables.TABLES, **payoff_tables.MEASURED, **dense_tables.TABLES}
    measured |= {**measured_tables.TABLES, **studies}
    tables = {"computed": COMPUTED, "measured": measured}
    return TABLE.sub(lambda found: f"{found[1]}\n{as_table(tables[found[2]][found[3]]())}\n{found[4]}", page)


def as_table(rows: list[Row]) -> str:
    """The rows in Markdown; numbers stand at the right."""
    lines = [list(rows[0]), ["---:" if holds_numbers(rows, name) else "---" for name in rows[0]]]
    lines += [[shown(value) for value in row.values()] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def holds_numbers(rows: list[Row], name: str) -> bool:
    return any(str(row[name]).lstrip("-")[:1].isdigit() for row in rows)


def shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    main()
