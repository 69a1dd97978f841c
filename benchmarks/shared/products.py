"""The lower bound of a call's time: its matrix products and convolutions alone, run again without other operations."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hf_convnextv2.products import ONEDNN_LINEAR

aten = torch.ops.aten
PRODUCTS = {
    *(aten.mm, aten.addmm, aten.addmm_, aten.bmm, aten.baddbmm, aten.linear, ONEDNN_LINEAR),
    *(aten.conv2d, aten.convolution, aten.convolution_backward),  # the first in inference mode, where nothing is split
}
Layout = tuple[str, tuple[int, ...], tuple[int, ...], torch.dtype, str]


def products_of(call: Callable[[], object]) -> Callable[[], object]:
    """A call that runs only the products of `call`, on tensors of the same shapes and strides.

    The products are faster here than inside `call`: their inputs may still be in the cache from the run before.
    """
    with _Recorder() as recorder:
        call()
    made: dict[Layout, Tensor] = {}
    products = [
        (function, _make(arguments, made), {name: _make(value, made) for name, value in keywords})
        for function, arguments, keywords in recorder.counts.elements()
    ]

    @torch.no_grad()
    def replay() -> None:
        for function, arguments, keywords in products:
            function(*arguments, **keywords)

    return replay


class _Recorder(TorchDispatchMode):
    """Counts the products, grouped by their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[Any, Any, Any]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in PRODUCTS:
            keywords = tuple((name, _describe(value, name)) for name, value in (kwargs or {}).items())
            described = tuple(_describe(value, str(place)) for place, value in enumerate(args))
            self.counts[func, described, keywords] += 1
        return func(*args, **kwargs or {})


def _describe(value: Any, place: str) -> Any:
    """Describe a tensor by its layout and its place among the arguments: a product must not write to its inputs."""
    if isinstance(value, Tensor):
        return place, tuple(value.shape), value.stride(), value.dtype, str(value.device)
    return tuple(value) if isinstance(value, list) else value


def _make(described: Any, made: dict[Layout, Tensor]) -> Any:
    """Create the arguments from their description. Equal descriptions share one tensor."""
    if not isinstance(described, tuple):
        return described
    if len(described) != 5 or not isinstance(described[3], torch.dtype):
        return [_make(value, made) for value in described]
    if described not in made:
        _, shape, stride, dtype, device = described
        length = 1 + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
        made[described] = torch.randn(length, dtype=dtype, device=device).as_strided(shape, stride)
    return made[described]
