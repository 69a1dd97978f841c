"""Mean losses over many steps, exact to float64 on devices that have none, without a wait in a step."""

from collections.abc import Sequence

import torch
from accelerate.utils import gather_object
from torch import Tensor

AT_ONCE = 1000  # forward passes whose losses lie in one tensor of the device


class Losses:
    """Losses and their parts, summed: those since the last line of the log, this process's own, and all before it.

    They stay on their device, in its float32, until they are asked for, and are summed in float64 on the processor:
    Apple's GPUs and some of Intel's have no float64.
    """

    def __init__(self, num_parts: int, window: Sequence[float] = (), total: Sequence[float] = ()) -> None:
        self.window = list(window) or [0.0] * (2 + num_parts)  # sum and number of losses, sums of their parts
        self.total = list(total) or [0.0] * (2 + num_parts)
        self.waiting: list[Tensor] = []  # each (forward passes, 1 + parts)

    def add(self, loss: Tensor, *parts: Tensor) -> None:
        """Take in the loss of a forward pass, and what it is made of."""
        values = [value.detach().to(torch.promote_types(value.dtype, torch.float32)) for value in (loss, *parts)]
        self.waiting.append(torch.stack(values)[None])
        if len(self.waiting) == AT_ONCE:
            self.waiting = [torch.cat(self.waiting)]

    def since_last_line(self) -> list[float]:
        """Sum and number of this process's losses, and sums of their parts; waits for the device."""
        rows = torch.cat(self.waiting).tolist() if self.waiting else []
        self.waiting = []
        for loss, *parts in rows:
            self.window = [was + new for was, new in zip(self.window, (loss, 1.0, *parts), strict=True)]
        return self.window

    def close_line(self) -> list[float]:
        """The same of all processes together, in all of them; the next line begins anew."""
        everybody = add_up(gather_object([self.since_last_line()]))
        self.total = add_up([self.total, everybody])
        self.window = [0.0] * len(self.window)
        return everybody


def add_up(rows: Sequence[Sequence[float]]) -> list[float]:
    """The sums of the columns, one row after the other."""
    sums = list(rows[0])
    for row in rows[1:]:
        sums = [was + new for was, new in zip(sums, row, strict=True)]
    return sums
