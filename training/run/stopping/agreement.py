"""Flags that training processes exchange at the end of a step, without waiting for their devices."""

import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

SLOW_STEP = 0.25  # seconds; compared with such a step, the time of a message between processes is negligible


class Agreement:
    """Flags that any training process may set. After the same call, all processes see the same flags.

    The flags are exchanged between the CPUs (gloo) while the devices compute the next step, and are read after that
    step. If steps are slow, the call waits for the answer, so that a flag is seen at most some tenths of a second after
    the current step.
    """

    def __init__(self, num_processes: int, timeout: float) -> None:
        self.group: Any = None
        if num_processes > 1:
            self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        self.sent: list[tuple[dist.Work, Tensor]] = []
        self.slow = False
        self.called_at = time.monotonic()

    def __call__(self, *flags: bool) -> tuple[bool, ...]:
        """Whether any process has set each flag: in this call, or in the previous one if steps are fast."""
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
        """Wait for the answers to all messages but the last `left`, and return them."""
        read = []
        while len(self.sent) > left:
            work, message = self.sent.pop(0)
            work.wait()
            read.append(message.tolist())
        return read

    def finish(self) -> None:
        """Wait for all pending messages. Every process has sent them, so the wait ends."""
        self.read(0)
