"""Sums over all training processes that have a gradient."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes. Every process has the loss of it; averaging their gradients then makes
    that of one process.

    `torch.distributed.nn.functional` has been deprecated for collectives that have no gradients.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        total = input.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return SumOverProcesses.forward(ctx, grad_output)
