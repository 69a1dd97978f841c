"""Sums of losses over many steps, in float64 even for devices without it, and without waiting for the device."""

from collections.abc import Sequence

import torch
from accelerate.utils import gather_object
from torch import Tensor

AT_ONCE = 1000  # the losses of this many forward passes are joined into one tensor on the device


class Losses:
    """Sums of losses and their components: this process's since the last line of the log, all processes' before it.

    The losses stay on the device in float32 until they are read, and are summed in float64 on the CPU: Apple's GPUs
    and some of Intel's have no float64.
    """

    def __init__(self, num_parts: int, window: Sequence[float] = (), total: Sequence[float] = ()) -> None:
        self.window = list(window) or [0.0] * (2 + num_parts)  # sum and number of losses, sums of their components
        self.total = list(total) or [0.0] * (2 + num_parts)
        self.waiting: list[Tensor] = []  # each (forward passes, 1 + parts)

    def add(self, loss: Tensor, *parts: Tensor) -> None:
        """Add the loss of a forward pass, and its components."""
        values = [value.detach().to(torch.promote_types(value.dtype, torch.float32)) for value in (loss, *parts)]
        self.waiting.append(torch.stack(values)[None])
        if len(self.waiting) == AT_ONCE:
            self.waiting = [torch.cat(self.waiting)]

    def since_last_line(self) -> list[float]:
        """This process's sum and number of losses, and sums of their components. Waits for the device."""
        rows = torch.cat(self.waiting).tolist() if self.waiting else []
        self.waiting = []
        for loss, *parts in rows:
            self.window = [was + new for was, new in zip(self.window, (loss, 1.0, *parts), strict=True)]
        return self.window

    def close_line(self) -> list[float]:
        """The same sums over all processes, returned in every process. The sums since the last line restart at 0."""
        everybody = add_up(gather_object([self.since_last_line()]))
        self.total = add_up([self.total, everybody])
        self.window = [0.0] * len(self.window)
        return everybody


def add_up(rows: Sequence[Sequence[float]]) -> list[float]:
    """The sums of the columns, added row by row."""
    sums = list(rows[0])
    for row in rows[1:]:
        sums = [was + new for was, new in zip(sums, row, strict=True)]
    return sums
