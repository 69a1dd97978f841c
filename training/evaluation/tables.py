"""Tables with a row for each class, as text and as a file."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conversion.files import write_text

MOST_PRINTED, WORST_PRINTED = 20, 10  # up to 20 classes are all printed; of more, only the 10 worst
Rows = Sequence[Mapping[str, Any]]


def write_csv(file: Path, rows: Rows, columns: Sequence[str]) -> None:
    """Write a table with a header atomically. Values that are None become empty fields."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(file, text.getvalue())


def format_table(rows: Rows, headings: Mapping[str, str], worst_by: str) -> str:
    """The table as text: all classes if they are few, else those that are there with the lowest `worst_by`.

    Args:
        headings: of each column. The first holds a number of images, pixels or objects, the others shares.
    """
    title, amount = "class", next(iter(headings))
    if len(rows) > MOST_PRINTED:
        title = f"the {WORST_PRINTED} worst of {len(rows):,} classes"
        there = (row for row in rows if row[amount])
        rows = sorted(there, key=lambda row: row[worst_by] or 0.0)[:WORST_PRINTED]
    table = [[title, *headings.values()]]
    for row in rows:
        cells = [f"{row[key]:,}" if key == amount else percent(row[key]) for key in headings]
        table.append([row["class"], *cells])
    return align(table)


def align(table: Sequence[Sequence[str]]) -> str:
    """A table of text with a heading for each column. The first column holds names, which are cut to 40 letters."""
    table = [[" ".join(name.split())[:40], *cells] for name, *cells in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for label, *cells in table:
        aligned = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([f"{label:{widths[0]}}", *aligned]))
    return "\n".join(lines)


def percent(share: float | None) -> str:
    """A share as the text of a percentage; a dash where there is none."""
    return "-" if share is None else f"{100 * share:.1f} %"
