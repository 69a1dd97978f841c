"""The bound: a call's matrix products and convolutions alone, run again with nothing between them."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
PRODUCTS = {
    *(aten.mm, aten.addmm, aten.addmm_, aten.bmm, aten.baddbmm, aten.linear),
    *(aten.conv2d, aten.convolution, aten.convolution_backward),  # the first in inference mode, where nothing is split
}
Layout = tuple[str, tuple[int, ...], tuple[int, ...], torch.dtype, str]


def products_of(call: Callable[[], object]) -> Callable[[], object]:
    """A call that does the products of `call`, on tensors of the same shapes and strides, and nothing else.

    It is faster than they are inside `call`: what one of them reads may still lie in the cache from its last turn.
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
    """Counts the products by what they were called with."""

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
    """A tensor as its layout, with its place among the arguments, as a product must not write to what it reads."""
    if isinstance(value, Tensor):
        return place, tuple(value.shape), value.stride(), value.dtype, str(value.device)
    return tuple(value) if isinstance(value, list) else value


def _make(described: Any, made: dict[Layout, Tensor]) -> Any:
    """The arguments back from their description; a tensor of a layout is made once."""
    if not isinstance(described, tuple):
        return described
    if len(described) != 5 or not isinstance(described[3], torch.dtype):
        return [_make(value, made) for value in described]
    if described not in made:
        _, shape, stride, dtype, device = described
        length = 1 + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
        made[described] = torch.randn(length, dtype=dtype, device=device).as_strided(shape, stride)
    return made[described]
