"""Ends a script on an error: with one line if the user can solve the problem, with a traceback otherwise."""

import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

TRACEBACK = "CONVNEXTV2_TRACEBACK"  # environment variable: show the traceback of every error
INTERRUPTED = 130  # a shell's exit code for SIGINT
LAUNCHER_SECONDS = 10.0  # time for the launcher to end the other training processes of a failed run
LESS_MEMORY = (
    "Give smaller `--per_device_train_batch_size` and larger `--gradient_accumulation_steps`, or "
    "`--activation_checkpointing true`; in an evaluation smaller `--per_device_eval_batch_size`."
)
CHECKOUT = Path(__file__).resolve().parents[2]
OURS = tuple(CHECKOUT / name for name in ("training", "conversion", "hf_convnextv2"))
LOST_PEER = re.compile(r"closed by peer|reset by peer|Broken pipe|NCCL|Gloo|TCPStore")  # of torch.distributed
WORKER = re.compile(r"Caught \w+ in DataLoader worker process \d+\.")
FRAME = re.compile(r'\s*File "(?P<file>.+)", line \d+, in ')


@contextmanager
def told_in_a_line() -> Iterator[None]:
    """On an error that our code raised on purpose or the system raised, exit with code 1 and one line on stderr.

    Only one of several training processes prints the line. When a process ends, its launcher ends the others. A process
    that may have failed for the same reason, or because another one ended, first gives the launcher time to do so.
    """
    try:
        yield
    except KeyboardInterrupt:  # all training processes receive it
        if is_first_process():
            end("interrupted", INTERRUPTED)
        sys.exit(INTERRUPTED)
    except Exception as error:
        message = None if os.environ.get(TRACEBACK) else message_for_user(error)
        if message is not None:
            end(f"error: {message}", 1)
        if not is_first_process() or LOST_PEER.search(str(error)):
            time.sleep(LAUNCHER_SECONDS)
        raise


def end(text: str, code: int) -> NoReturn:
    """Write the program's name and a text to stderr, and exit; all but the first training process wait before that."""
    if not is_first_process():
        time.sleep(LAUNCHER_SECONDS)
    print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True)
    sys.exit(code)


def is_first_process() -> bool:
    """Whether this is the first training process on this machine, by the launcher's variable; needs no import."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def message_for_user(error: Exception) -> str | None:
    """The message of an error that our code raised on purpose or the system raised (a file, a disk); None for a bug."""
    if WORKER.match(str(error)):  # PyTorch passes a data loader worker's error on as text
        return message_of_worker(str(error))
    if type(error).__name__ == "OutOfMemoryError":  # of torch, which is not imported here
        return f"{str(error).partition('. ')[0]}. {LESS_MEMORY}"
    is_told = isinstance(error, OSError) or is_of_ours(error)
    return (str(error) or type(error).__name__) if is_told else None


def is_of_ours(error: BaseException) -> bool:
    """Whether our own code raised an error on purpose."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return is_deliberate(last.filename, last.line)


def message_of_worker(report: str) -> str | None:
    """As `message_for_user`, from the traceback text that PyTorch makes of an error in a data loader worker."""
    lines = report.splitlines()
    last = max((number for number, line in enumerate(lines) if FRAME.match(line)), default=None)
    if last is None:
        return None
    frame, source, *rest = lines[last:]
    found = FRAME.match(frame)
    while rest and rest[0].startswith("    "):  # the rest of the statement, and marks below it
        rest.pop(0)
    kind, _, message = "\n".join(rest).strip().partition(": ")
    told = kind.endswith("OSError") or (found is not None and is_deliberate(found["file"], source.strip()))
    return message if told and message else None


def is_deliberate(file: str, source: str | None) -> bool:
    """Whether this line of a file is a `raise` statement in our own code."""
    return (source or "").startswith("raise ") and any(Path(file).is_relative_to(folder) for folder in OURS)
