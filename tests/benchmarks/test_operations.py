"""The table of operations: each has its kind, and the kinds make up the step."""

import time

import torch
from torch import nn

from benchmarks.operations import KINDS, OTHERS, WHOLE, compare, milliseconds


def test_the_kinds_of_a_step_are_all_found_and_are_no_more_than_the_whole():
    rows = {row["operations"]: row for row in compare("atto", 2, 64, 1)}
    assert list(rows) == [*KINDS, OTHERS, WHOLE]
    for library in ("ours, ms", "transformers, ms"):
        assert all(rows[kind][library] > 0 for kind in KINDS)
        assert sum(rows[kind][library] for kind in (*KINDS, OTHERS)) < rows[WHOLE][library]


def test_an_operation_counts_for_its_kind_alone():
    x, layer = torch.randn(256, 256), nn.Linear(256, 256, bias=False)
    with torch.no_grad():
        spent = milliseconds(lambda: (layer(x), time.sleep(0.05)))
    assert spent["matrix products"] > 0 and spent[WHOLE] > 50 > sum(spent[kind] for kind in KINDS)
    assert {kind for kind in KINDS if spent[kind]} == {"matrix products"}
