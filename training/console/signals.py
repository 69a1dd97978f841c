"""Handles the signals that stop a run, and a terminal that closes: SIGHUP arrives, then writing to it fails."""

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, TextIO

STOPPED = 75  # exit code after a signal: EX_TEMPFAIL, "try again"
# Windows has no SIGHUP; there, closing the console or pressing Ctrl-Break sends SIGBREAK.
STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGBREAK") if hasattr(signal, name))
GO_ON = "the same command with --resume_from_checkpoint latest goes on"
BEFORE = "before the first step: there is nothing to save. The same command starts again."
AFTER = f"while the result was being written; {GO_ON}."
GONE = (errno.EIO, errno.EPIPE, errno.EINVAL)  # closed terminal; pipe without a reader; the same on Windows
Handlers = dict[signal.Signals, Any]


@contextmanager
def stoppable() -> Iterator[None]:
    """Wrap a run: outside its steps, a signal ends it with a message, and it survives the loss of its terminal.

    At the end, the former signal handlers are restored.
    """
    before = handle({number: signal.getsignal(number) for number in STOPPING})
    end_at_once(BEFORE)
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = lasting(streams[0]), lasting(streams[1])
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # unwritten text could raise an error when Python exits
        sys.stdout, sys.stderr = streams
        handle(before)


def handled() -> list[signal.Signals]:
    """The signals that stop a run: SIGINT, and each other one that is not ignored, as SIGHUP is under `nohup`."""
    return [number for number in STOPPING if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN]


def handle(handlers: Handlers) -> Handlers:
    """Set the signal handlers, and return the former ones."""
    return {number: signal.signal(number, handler) for number, handler in handlers.items()}


def end_at_once(said: str) -> None:
    """From now on, let a signal end the program: the main process prints `said` and exits with code 75.

    The other training processes end without a message: they may be waiting for the main process inside a library, where
    Python's signal handlers do not run.
    """
    main = int(os.environ.get("RANK", "0")) == 0
    handle(dict.fromkeys(handled(), partial(leave, said) if main else signal.SIG_DFL))


def leave(said: str, number: int, frame: FrameType | None) -> None:
    """End the program; a second signal ends it at once if this handler is blocked."""
    handle(dict.fromkeys(handled(), signal.SIG_DFL))
    say(f"{signal.Signals(number).name} {said}")
    sys.exit(STOPPED)


def say(text: str) -> None:
    """Write directly to stderr, since a signal may have interrupted Python's stream in the middle of a line."""
    with contextlib.suppress(OSError):
        os.write(2, f"\n{text}\n".encode())


class Lasting:
    """A text stream that discards its output once its terminal is closed or its pipe has no reader."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self.outlive(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self.outlive(self.stream.flush)

    def outlive(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except OSError as error:
            if error.errno not in GONE:
                raise
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.stream.fileno())
            os.close(nothing)


def lasting(stream: TextIO) -> TextIO:
    """Wrap a stream in `Lasting`, unless it is wrapped already."""
    return stream if isinstance(stream, Lasting) else Lasting(stream)  # type: ignore[return-value]
