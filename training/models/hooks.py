"""Access to the outputs of a model's layers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def hooked(modules: list[nn.Module], look: Callable[[Tensor], None]) -> Iterator[None]:
    """Within the block, call `look` with each output of the modules."""

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        look(output)

    handles = [module.register_forward_hook(after) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
