"""Reading from a source that does not answer for a while: again, and on from where it broke off.

Why not `datasets` 5.2 alone: it tries again when a read fails, but not when a file cannot be opened, which fsspec then
calls not found (`tests/training/data/test_retry.py::test_without_it_a_short_absence_ends_the_stream`, which fails once
it is no longer so).
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import fsspec
from aiohttp import ClientError
from httpx2 import HTTPError

WAITS = (1, 2, 5, 10, 20, 30, 60, 60, 60, 60)  # seconds, after failures in a row
Item = TypeVar("Item")
forked_with: list[list[fsspec.AbstractFileSystem]] = []


def keep_for_fork() -> None:
    """Keep a process that is forked now from letting go of the file systems open in this one, as fsspec does there.

    It would end their connections, which are this process's too: its next read would wait for minutes.
    """
    forked_with.append([system for kind in tuple(fsspec.registry.values()) for system in tuple(kind._cache.values())])


if hasattr(os, "register_at_fork"):  # on Windows nothing forks
    os.register_at_fork(before=keep_for_fork, after_in_parent=forked_with.pop)


def read_on(open_at: Callable[[int], Iterable[Item]], name: str) -> Iterator[Item]:
    """Every item of what `open_at` gives from item 0 on; where that fails, of what it gives from there on.

    Raises a `ConnectionError` that says `name` when it failed again after each of the `WAITS`.
    """
    done, failures = 0, 0
    while True:
        try:
            for item in open_at(done):
                yield item
                done, failures = done + 1, 0
            return
        except (OSError, ClientError, HTTPError) as error:
            if is_missing(error):
                raise
            if failures == len(WAITS):
                raise ConnectionError(
                    f"{name} could not be read for {sum(WAITS)} s: {error!r}. When it can be, resume from the last "
                    "checkpoint."
                ) from error
            wait, failures = WAITS[failures], failures + 1
            print(f"Warning: {name} cannot be read ({error!r}). Trying again in {wait} s.", flush=True)
            time.sleep(wait)


def is_missing(error: Exception) -> bool:
    """Whether this machine says that a file is missing or closed to us: what fsspec says of others has no number."""
    return isinstance(error, FileNotFoundError | PermissionError) and error.errno is not None


def read_file(path: str) -> bytes:
    """A file's content: of this machine, or of any place that fsspec knows, also inside an archive there."""
    if "://" not in path:
        return Path(path).read_bytes()
    return next(read_on(lambda _: [read_remote(path)], path))


def read_remote(path: str) -> bytes:
    with fsspec.open(path) as file:  # type: ignore[union-attr]
        return file.read()  # type: ignore[union-attr]
