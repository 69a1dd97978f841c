"""Stopping on a signal: what is trained is saved first, in every process after the same step, and it is said."""

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

PATIENCE = 1.0  # seconds that a stop leaves to a batch that is waited for
SAME_SIGNAL = 2.0  # seconds within which a signal is the same one, passed on by a launcher
Item = TypeVar("Item")


class WaitEnded(BaseException):
    """Raised out of a wait by a signal; no library takes it for an error of its own."""


class StopSignal:
    """Notes SIGTERM, SIGHUP or Ctrl-C, for every process to stop after the same step; a second Ctrl-C acts at once.

    Launchers pass on signals that the process got itself, so that the same one comes twice.
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
        """Note the signal; end the program if it is a Ctrl-C some time after the first."""
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
        """Once a stop is asked for, wait only a little longer for the batch that a step begins with."""
        if self.waits and self.received_at is not None:
            self.timer = threading.Timer(PATIENCE, self.wake)
            self.timer.daemon = True
            self.timer.start()

    def wake(self) -> None:
        """Send the main thread a signal, which ends the system call that it waits in, if it still does."""
        if self.waits and hasattr(signal, "pthread_kill"):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        elif self.waits:
            _thread.interrupt_main(signal.SIGTERM)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a wait for a batch; `WaitEnded` if a stop is asked for before anything of the step is done.

        Several processes wait all the same: the others may have begun the step.
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
        """The batches of a step; none if the wait for the first was ended by a stop, and `gave_up` then."""
        self.at_start = True
        try:
            for batch in batches:
                self.at_start = False
                yield batch
        except WaitEnded:
            return

    def after_step(self, late: bool) -> tuple[bool, bool]:
        """Whether to stop, and whether any process finds a checkpoint `late`; the same in all processes."""
        stopped, now_late = self.agree(self.received_at is not None, late)
        save, self.late = self.late or now_late, False
        if stopped:
            self.agree.finish()
        return stopped, save

    def is_asked(self) -> bool:
        """Whether to stop in the middle of what follows a step; the same in all processes."""
        stopped, self.late = self.after_step(False)
        return stopped

    def close(self) -> None:
        """Note no more signals: what follows the steps is ended by one."""
        self.agree.finish()
        end_at_once(AFTER)


def leave_run(accelerator: Accelerator, checkpoints: Checkpoints, step: int, save: Callable[[int], None]) -> NoReturn:
    """End a run that was stopped after this step, with a checkpoint, and say how to go on."""
    if step and checkpoints.saved_step != step:
        save(step)
    if accelerator.is_main_process:
        saved = f"Saved {checkpoints.folder / f'checkpoint-{step}'}; {GO_ON}."
        print(saved if step else f"Stopped {BEFORE}", flush=True)
    end_training(accelerator)
    sys.exit(STOPPED)
