"""The table of operations: each has its kind, and the kinds make up the step."""

import time

import pytest
import torch
from torch import nn

from benchmarks.operations import KINDS, OTHERS, WHOLE, compare, milliseconds


@pytest.mark.parametrize("what, names", [("training", ("ours", "Transformers")), ("step", ("float32", "autocast"))])
def test_the_kinds_of_a_step_are_all_found_and_are_no_more_than_the_whole(what, names):
    rows = {row["operations"]: row for row in compare(what, "atto", 2, 64, 1)}
    assert list(rows) == [*KINDS, OTHERS, WHOLE]
    for column in (f"{name}, ms" for name in names):
        assert all(rows[kind][column] > 0 for kind in KINDS)
        assert sum(rows[kind][column] for kind in (*KINDS, OTHERS)) < rows[WHOLE][column]


def test_an_operation_counts_for_its_kind_alone():
    x, layer = torch.randn(256, 256), nn.Linear(256, 256, bias=False)
    with torch.no_grad():
        spent = milliseconds(lambda: (layer(x), time.sleep(0.05)))
    assert spent["matrix products"] > 0 and spent[WHOLE] > 50 > sum(spent[kind] for kind in KINDS)
    assert {kind for kind in KINDS if spent[kind]} == {"matrix products"}
