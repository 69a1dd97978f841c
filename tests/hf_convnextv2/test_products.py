"""The products of the fused MLP by either library: what they give, where each is called, and that they are counted."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from hf_convnextv2 import products
from hf_convnextv2.grn import ConvNextV2GRN
from hf_convnextv2.products import LEAST_WIDTH, ONEDNN_LINEAR, linear
from tests.hf_convnextv2.test_fused_mlp import fused_and_plain
from tests.small_models import assert_close, awake

WIDE = LEAST_WIDTH + 5


@pytest.fixture(params=[True, False], ids=["oneDNN", "MKL"])
def uses_onednn(request, monkeypatch):
    """The library, whatever the processor."""
    assert ONEDNN_LINEAR is not None
    monkeypatch.setattr(products, "_prefers_onednn", lambda: request.param)
    return request.param


class Calls(TorchDispatchMode):
    """The names of the operations."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("is_turned", [True, False])
@pytest.mark.parametrize("num_rows", [1, 37])
def test_a_product_is_that_of_float64(uses_onednn, has_bias, is_turned, num_rows):
    x = torch.randn(num_rows, WIDE)
    weight = torch.randn(WIDE, WIDE + 8).T if is_turned else torch.randn(WIDE + 8, WIDE)
    bias = torch.randn(WIDE + 8) if has_bias else None
    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    out = torch.full((num_rows, WIDE + 8), torch.nan)
    with Calls() as calls:
        actual, written = linear(x, weight, bias), linear(x, weight, bias, out=out)
    assert ("_linear_pointwise" in calls.names) == uses_onednn
    assert_close(actual.double(), expected)
    assert torch.equal(written, actual)
    assert written is out or uses_onednn


@pytest.mark.parametrize(
    ("width", "dtype"), [(LEAST_WIDTH - 1, torch.float32), (WIDE, torch.float64), (WIDE, torch.bfloat16)]
)
def test_narrow_matrices_and_other_dtypes_stay_with_pytorchs_choice(width, dtype, monkeypatch):
    monkeypatch.setattr(products, "_prefers_onednn", lambda: True)
    with Calls() as calls:
        linear(torch.ones(3, width, dtype=dtype), torch.ones(2 * width, width, dtype=dtype))
    assert calls.names[-1] == "mm"


@pytest.mark.parametrize("shape", [(3, 300, WIDE), (3, 20, WIDE)])  # GRN's scale goes to the weights, or not
def test_the_fused_mlp_has_the_gradients_of_the_formula_by_either_library(uses_onednn, shape, monkeypatch):
    monkeypatch.setattr("hf_convnextv2.chunks.CHUNK_SIZE", 1)  # with one image of the first in a chunk
    layers = {"up": nn.Linear(WIDE, 4 * WIDE), "grn": ConvNextV2GRN(4 * WIDE), "down": nn.Linear(4 * WIDE, WIDE)}
    mlp = awake(nn.ModuleDict(layers), std=0.1)
    with Calls() as calls:
        pairs = list(zip(*fused_and_plain(mlp, torch.randn(shape)), strict=True))
    assert ("_linear_pointwise" in calls.names) == uses_onednn
    for actual, expected in pairs:
        assert_close(actual, expected)


def test_operations_are_counted_by_either_library(uses_onednn):
    x, weight, bias = torch.ones(7, WIDE), torch.ones(WIDE + 8, WIDE), torch.ones(WIDE + 8)
    with FlopCounterMode(display=False) as counter:
        linear(x, weight, bias)
    assert counter.get_total_flops() == 2 * 7 * WIDE * (WIDE + 8)
