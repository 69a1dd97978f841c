"""Retries reads from a remote source that is unavailable for a while, and continues where the read failed.

`datasets` 5.2 alone is not enough: it retries when a read fails, but not when opening a file fails, which fsspec then
reports as "not found". `tests/training/data/test_retry.py::test_without_it_a_short_absence_ends_the_stream` shows this
limit, and fails when it is gone.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import fsspec
from aiohttp import ClientError
from httpx2 import HTTPError

WAITS = (1, 2, 5, 10, 20, 30, 60, 60, 60, 60)  # seconds to wait after each consecutive failure
Item = TypeVar("Item")
forked_with: list[list[fsspec.AbstractFileSystem]] = []


def keep_for_fork() -> None:
    """Keep the open file systems referenced in a forked process, where fsspec drops its own references to them.

    Without a reference, the forked process would close their connections, which it shares with this process. The next
    read of this process would then wait for minutes.
    """
    forked_with.append([system for kind in tuple(fsspec.registry.values()) for system in tuple(kind._cache.values())])


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(before=keep_for_fork, after_in_parent=forked_with.pop)


def read_on(open_at: Callable[[int], Iterable[Item]], name: str) -> Iterator[Item]:
    """Yield all items of `open_at(0)`; after a failure, continue with `open_at(number of items so far)`.

    Raises a `ConnectionError` that names `name` if the read still fails after all `WAITS`.
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
    """Whether a local file is missing or not readable: only errors of this machine have an `errno`, not fsspec's."""
    return isinstance(error, FileNotFoundError | PermissionError) and error.errno is not None


def read_file(path: str) -> bytes:
    """The content of a file, local or at any address that fsspec supports, also inside a remote archive."""
    if "://" not in path:
        return Path(path).read_bytes()
    return next(read_on(lambda _: [read_remote(path)], path))


def read_remote(path: str) -> bytes:
    with fsspec.open(path) as file:  # type: ignore[union-attr]
        return file.read()  # type: ignore[union-attr]
