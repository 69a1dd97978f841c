"""Matrix products of the fused MLP on a CPU, by the faster of the two libraries that PyTorch is built with.

For float32, PyTorch calls MKL, and adds a bias in a pass of its own. On an AMD processor with AVX-512, oneDNN's linear,
which also `torch.compile` calls, was up to 1.4 times as fast for all but narrow matrices, and adds the bias on the way
(`python -m benchmarks.products`). With AVX2 alone it was not faster.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, mm_flop, register_flop_formula

ONEDNN_LINEAR: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
LEAST_WIDTH = 96  # of a matrix that oneDNN is faster for


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`, `(rows, in)` to `(rows, out)`, without gradients; the result may lie in `out`."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and min(weight.shape) >= LEAST_WIDTH and _prefers_onednn():
        return ONEDNN_LINEAR(x, weight, bias, "none", [], "")
    if bias is None:
        return torch.mm(x, weight.T, out=out)
    return torch.addmm(bias, x, weight.T, out=out)


def linear_of_views(x: Tensor, weights: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """The same of views `(B, rows, in)`, each with a weight of its own `(B, out, in)`."""
    if len(x) == 1:
        return linear(x[0], weights[0], bias, out=None if out is None else out[0])[None]
    if bias is None:
        return torch.bmm(x, weights.mT, out=out)
    return torch.baddbmm(bias, x, weights.mT, out=out)


@cache
def _prefers_onednn() -> bool:
    """Whether PyTorch has oneDNN's linear here, and the processor is one that it is faster on."""
    has_wide_vectors = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return ONEDNN_LINEAR is not None and has_wide_vectors and torch.backends.mkldnn.is_available()


def _count(x_shape: list[int], weight_shape: list[int], *_: object, **__: object) -> int:
    """Operations of a product, for `torch.utils.flop_counter`, which does not know this one."""
    return mm_flop(x_shape, weight_shape[::-1])


if ONEDNN_LINEAR is not None and ONEDNN_LINEAR not in flop_registry:
    register_flop_formula(ONEDNN_LINEAR)(_count)
