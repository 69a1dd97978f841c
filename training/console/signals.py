"""Signals that stop a run, and the terminal that may go away: SIGHUP says so, and then writing to it fails."""

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
# Windows has no SIGHUP: there, closing a console or Ctrl-Break is SIGBREAK.
STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGBREAK") if hasattr(signal, name))
GO_ON = "the same command with --resume_from_checkpoint latest goes on"
BEFORE = "before the first step: there is nothing to save. The same command starts again."
AFTER = f"while the result was being written; {GO_ON}."
GONE = (errno.EIO, errno.EPIPE, errno.EINVAL)  # of a closed terminal, of a pipe without a reader, of one on Windows
Handlers = dict[signal.Signals, Any]


@contextmanager
def stoppable() -> Iterator[None]:
    """What a run is wrapped in: outside its steps a signal ends it with a word; its terminal may go away.

    Afterwards signals do what they did before.
    """
    before = handle({number: signal.getsignal(number) for number in STOPPING})
    end_at_once(BEFORE)
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = lasting(streams[0]), lasting(streams[1])
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # what is left would be an error at the very end
        sys.stdout, sys.stderr = streams
        handle(before)


def handled() -> list[signal.Signals]:
    """The signals that stop a run: not SIGHUP where it is ignored, as `nohup` has it."""
    return [number for number in STOPPING if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN]


def handle(handlers: Handlers) -> Handlers:
    """Have signals do this; what they did before is returned."""
    return {number: signal.signal(number, handler) for number, handler in handlers.items()}


def end_at_once(said: str) -> None:
    """Let a signal end the program with exit code 75, and the main process say at which moment.

    The others may be waiting for it inside a library, where Python's handlers do not run: they end without a word.
    """
    main = int(os.environ.get("RANK", "0")) == 0
    handle(dict.fromkeys(handled(), partial(leave, said) if main else signal.SIG_DFL))


def leave(said: str, number: int, frame: FrameType | None) -> None:
    """End the program; a second signal ends it even if this one is held up."""
    handle(dict.fromkeys(handled(), signal.SIG_DFL))
    say(f"{signal.Signals(number).name} {said}")
    sys.exit(STOPPED)


def say(text: str) -> None:
    """Write past Python's streams, which a signal may have interrupted in the middle of a line."""
    with contextlib.suppress(OSError):
        os.write(2, f"\n{text}\n".encode())


class Lasting:
    """A text stream that goes on into nothing once its terminal is closed or its reader has ended."""

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
    """The stream as one that nobody has to read."""
    return stream if isinstance(stream, Lasting) else Lasting(stream)  # type: ignore[return-value]
