"""Stopping on a signal: all training processes stop after the same step, save a checkpoint and print a message."""

import _thread
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn, TypeVar

from accelerate import Accelerator

from training.console.signals import AFTER, BEFORE, GO_ON, STOPPED, end_at_once, handle, handled, say
from training.data.batches import TrainBatches
from training.run.checkpoints import Checkpoints
from training.run.stopping.agreement import Agreement
from training.run.trackers import end_training

PATIENCE = 1.0  # seconds that a step still waits for its first batch after a stop signal
SAME_SIGNAL = 2.0  # seconds within which a second signal counts as the first one, passed on by a launcher
Item = TypeVar("Item")


class WaitEnded(BaseException):
    """Raised by a signal to end a wait. It is a `BaseException`, so that no library catches it as an error."""


class StopSignal:
    """Notes SIGTERM, SIGHUP or Ctrl-C, so that all processes stop after the same step. A second Ctrl-C ends at once.

    A launcher may pass on a signal that the training process has also received directly: the same signal then arrives
    twice.
    """

    def __init__(self, accelerator: Accelerator, batches: TrainBatches, timeout: float) -> None:
        self.accelerator = accelerator
        self.agree = Agreement(accelerator.num_processes, timeout)
        self.received_at: float | None = None
        self.waits = self.gave_up = self.at_start = False
        self.late = False
        self.timer: threading.Timer | None = None
        batches.waiting = self.waiting
        handle(dict.fromkeys(handled(), self.receive))

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Note the signal. End the program at a Ctrl-C that comes more than `SAME_SIGNAL` after the first signal.

        Raises:
            WaitEnded: if a step still waits for its first batch `PATIENCE` after the first signal.
            KeyboardInterrupt: at the second Ctrl-C.
        """
        now = time.monotonic()
        if self.received_at is None:
            self.received_at = now
            if self.accelerator.is_main_process:
                say(f"{signal.Signals(number).name}: saving after the step under way. A second Ctrl-C ends at once.")
            self.limit_wait()
        elif self.waits and now - self.received_at >= PATIENCE:
            self.waits, self.gave_up = False, True
            raise WaitEnded
        elif number == signal.SIGINT and now - self.received_at > SAME_SIGNAL:
            end_at_once(AFTER)
            raise KeyboardInterrupt

    def limit_wait(self) -> None:
        """After a stop signal, limit the wait for a step's first batch to `PATIENCE`."""
        if self.waits and self.received_at is not None:
            self.timer = threading.Timer(PATIENCE, self.wake)
            self.timer.daemon = True
            self.timer.start()

    def wake(self) -> None:
        """If the main thread still waits, send it a signal, which ends the system call that it waits in."""
        if self.waits and hasattr(signal, "pthread_kill"):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        elif self.waits:
            _thread.interrupt_main(signal.SIGTERM)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Enclose a wait for a batch. A stop signal ends the wait for the first batch of a step by `WaitEnded`.

        With several training processes, the wait goes on: the others may have begun the step.
        """
        self.waits = self.at_start and self.accelerator.num_processes == 1
        self.limit_wait()
        try:
            yield
        finally:
            self.waits = False
            if self.timer is not None:
                self.timer.cancel()

    def batches(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yield the batches of a step. If a stop ends the wait for the first one, yield none and set `gave_up`."""
        self.at_start = True
        try:
            for batch in batches:
                self.at_start = False
                yield batch
        except WaitEnded:
            return

    def after_step(self, late: bool) -> tuple[bool, bool]:
        """Whether to stop, and whether `late` (a checkpoint is due by the clock) is set in any process.

        All processes get the same answer.
        """
        stopped, now_late = self.agree(self.received_at is not None, late)
        save, self.late = self.late or now_late, False
        if stopped:
            self.agree.finish()
        return stopped, save

    def is_asked(self) -> bool:
        """Whether to stop during the work between two steps, such as an evaluation. The same in all processes."""
        stopped, self.late = self.after_step(False)
        return stopped

    def close(self) -> None:
        """Stop noting signals. After the last step, a signal ends the program at once."""
        self.agree.finish()
        end_at_once(AFTER)


def leave_run(accelerator: Accelerator, checkpoints: Checkpoints, step: int, save: Callable[[int], None]) -> NoReturn:
    """Save a checkpoint if this step has none, print how to resume, and end the program."""
    if step and checkpoints.saved_step != step:
        save(step)
    if accelerator.is_main_process:
        saved = f"Saved {checkpoints.folder / f'checkpoint-{step}'}; {GO_ON}."
        print(saved if step else f"Stopped {BEFORE}", flush=True)
    end_training(accelerator)
    sys.exit(STOPPED)
