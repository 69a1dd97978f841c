"""What training processes tell each other at the end of a step, without waiting for their devices."""

import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

SLOW_STEP = 0.25  # seconds; next to such a step a message between processes takes no time


class Agreement:
    """Flags that any process may raise: all processes see the same ones after the same call.

    They go from processor to processor, whatever connects the devices, while the next step computes, and are read after
    it. Where steps are slow, the answer is waited for at once, so that it never comes later than some tenths of a
    second after the step under way.
    """

    def __init__(self, num_processes: int, timeout: float) -> None:
        self.group: Any = None
        if num_processes > 1:
            self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        self.sent: list[tuple[dist.Work, Tensor]] = []
        self.slow = False
        self.called_at = time.monotonic()

    def __call__(self, *flags: bool) -> tuple[bool, ...]:
        """Whether any process has raised each flag, as of this call or, where steps are fast, of the one before."""
        if self.group is None:
            return flags
        now = time.monotonic()
        message = torch.tensor([*flags, now - self.called_at > SLOW_STEP], dtype=torch.int32)
        self.called_at = now
        work = dist.all_reduce(message, dist.ReduceOp.MAX, group=self.group, async_op=True)
        assert work is not None
        self.sent.append((work, message))
        read = self.read(1 if not self.slow else 0)
        if read:
            self.slow = bool(read[-1][-1])
        return tuple(any(message[place] for message in read) for place in range(len(flags)))

    def read(self, left: int) -> list[list[int]]:
        """The answers to all messages but the last `left`."""
        read = []
        while len(self.sent) > left:
            work, message = self.sent.pop(0)
            work.wait()
            read.append(message.tolist())
        return read

    def finish(self) -> None:
        """Wait for what is under way: every process has sent it."""
        self.read(0)
