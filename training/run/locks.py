"""A lock on a folder, so that two commands never write into it at the same time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training.settings.checks import check

LOCK = ".lock"
_held: set[int] = set()


def close_in_child() -> None:
    """Leave the locks to the parent: a data loader worker outlives a killed program for seconds."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=close_in_child)


@contextmanager
def only_one(folder: Path, setting: str = "output_dir", value: Any = None) -> Iterator[int | None]:
    """Lock the folder against a second command, and against runs that a killed command has left; yields a descriptor.

    Programs that are given the descriptor keep the lock. Windows has no such locks, nor have some file systems.

    Raises:
        ValueError: if the folder is locked; it names the setting and its value, by default the folder.
    """
    if os.name == "nt":
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    _held.add(descriptor)
    try:
        rule = "not be in use, but another command, or a run that it has left, is at work there: wait for its end"
        check(setting, value or folder, is_locked(descriptor, folder / LOCK), rule)
        yield descriptor
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def is_locked(descriptor: int, file: Path) -> bool:
    """Lock an open file; False if another command has the lock, or has ended just now and removed the file."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks
    return file.exists() and os.path.samestat(os.fstat(descriptor), file.stat())
