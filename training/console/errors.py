"""How a script ends on an error: one line for what its user can mend, a traceback for anything else."""

import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

TRACEBACK = "CONVNEXTV2_TRACEBACK"  # environment variable: every error with its traceback
INTERRUPTED = 130  # what a shell makes of SIGINT
LAUNCHER_SECONDS = 10.0  # in which a launcher ends the other training processes of a run that failed
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
    """End the program with exit code 1 and one line on stderr where our code, or the system, refuses something.

    Of several training processes one says it. Once a process has ended, its launcher ends the others: those that may
    have failed for the same reason, or for the end of another one, wait for that first.
    """
    try:
        yield
    except KeyboardInterrupt:  # which all processes get
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
    """Write a line to stderr after the program's name, and end it; not the first training process: after a while."""
    if not is_first_process():
        time.sleep(LAUNCHER_SECONDS)
    print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True)
    sys.exit(code)


def is_first_process() -> bool:
    """Whether this is the first training process on this machine, by what the launcher has set; before any import."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def message_for_user(error: Exception) -> str | None:
    """What to tell of an error that our code raised on purpose, or the system (a file, a disk); None for a bug."""
    if WORKER.match(str(error)):  # a data loader worker hands its error on as text
        return message_of_worker(str(error))
    if type(error).__name__ == "OutOfMemoryError":  # of torch, which is not imported here
        return f"{str(error).partition('. ')[0]}. {LESS_MEMORY}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    is_told = isinstance(error, OSError) or is_deliberate(last.filename, last.line)
    return (str(error) or type(error).__name__) if is_told else None


def message_of_worker(report: str) -> str | None:
    """The same of the traceback that PyTorch makes of an error in a data loader worker."""
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
    """Whether this line of a file is a `raise` of our own."""
    return (source or "").startswith("raise ") and any(Path(file).is_relative_to(folder) for folder in OURS)
