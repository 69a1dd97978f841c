"""The tables of what pre-training gains in docs/segmentation.md and docs/detection.md.

Their figures are those of the `report.json` files that `make demo-dense` writes to out/segmentation, out/trees and
out/cells; copies of them are in docs/benchmarks.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from conversion.files import read_json
from experiments.rows import Row, spread

MEASURED = Path(__file__).parents[1] / "docs/benchmarks"
SHARES = {"0.1": "10 % of the labels", "1": "all labels"}


def table(file: str, figures: dict[str, str]) -> list[Row]:
    """A row for each start and each method without a network.

    figures: keys of the report, with what the columns of their figures begin with.
    """
    report = read_json(MEASURED / file)
    (methods, *_) = [report[figure] for figure in figures]
    return [
        {"Start": method}
        | {
            f"{name}{labels}": f"{spread(of_share(report[figure][method], share))} %"
            for figure, name in figures.items()
            for share, labels in SHARES.items()
        }
        for method in methods
    ]


def of_share(cases: dict[str, float], share: str) -> list[float]:
    """The figures of the cases, `share-seed`, with this share of the labels: of a method without chance, one."""
    found = [value for case, value in cases.items() if case.split("-")[0] == share]
    return found if len(set(found)) > 1 else found[:1]


TABLES: dict[str, Callable[[], list[Row]]] = {
    "climate_zones": partial(table, "climate_zones.json", {"mean_iou": ""}),
    "tree_crowns": partial(table, "tree_crowns.json", {"box AP": ""}),
    "cells": partial(table, "cells.json", {"box AP": "boxes, ", "mask AP": "masks, "}),
}
