"""Compiled contenders: each in a process of its own, so that they compile at the same time, and then take turns."""

import argparse
import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.gpu.contenders import GRAPHS, Case, contenders
from benchmarks.gpu.measuring import peak, repeated
from benchmarks.gpu.precision import allow_tf32
from benchmarks.shared.measure import seconds_of

CONTEXT: Any = multiprocessing.get_context("spawn")


class Contender:
    """A compiled call in a process of its own."""

    def __init__(self, name: str, case: Case, settings: argparse.Namespace, threads: int):
        self.name, (self.connection, remote) = name, CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_serve, args=(remote, name, case, settings, threads), daemon=True)
        self.process.start()
        remote.close()
        self.compiled: dict[str, Any] | None = None

    def wait(self, seconds: float) -> dict[str, Any]:
        """What the first call took and the peak memory of the second, or an `error`."""
        if self.compiled is None:
            if not self.connection.poll(max(0.0, seconds)):
                return {"error": None}
            try:
                self.compiled = self.connection.recv()
            except (EOFError, ConnectionError):
                self.compiled = {"error": self.how_it_ended()}
        return self.compiled or {}

    def seconds(self, at_most: float) -> float:
        """The seconds of some calls, now; an error if they take too long or the process ends."""
        self.connection.send(None)
        if not self.connection.poll(max(0.0, at_most)):
            raise TimeoutError
        return self.connection.recv()

    def how_it_ended(self) -> str:
        self.process.join()
        return f"exit status {self.process.exitcode}"

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


def compile_together(cases: list[Case], settings: argparse.Namespace) -> dict[Case, dict[str, Contender]]:
    """Start the contenders of all cases."""
    names = {case: list(contenders(case, settings, "compiled")) for case in cases}
    count = sum(len(of_case) for of_case in names.values())
    threads = max(1, len(os.sched_getaffinity(0)) // max(1, count))
    return {
        case: {name: Contender(name, case, settings, threads) for name in of_case} for case, of_case in names.items()
    }


def wait_for(running: dict[str, Contender], seconds_left: Callable[[], float]) -> dict[str, dict[str, Any]]:
    """What became of each contender, those that are still compiling at the end with an `error` of None."""
    return {name: contender.wait(seconds_left()) for name, contender in running.items()}


def take_turns(
    running: list[Contender], rounds: int, warm_up: int, seconds_left: Callable[[], float]
) -> tuple[dict[str, list[float]], dict[str, str | None]]:
    """The seconds of each contender in each round, and why some ended before, None if they were late."""
    seconds: dict[str, list[float]] = {contender.name: [] for contender in running}
    ended: dict[str, str | None] = {}
    for index in range(warm_up + rounds):
        for contender in [each for each in running if each.name not in ended]:
            try:
                spent = contender.seconds(seconds_left())
            except TimeoutError:
                ended[contender.name] = None
            except (EOFError, ConnectionError):
                ended[contender.name] = contender.how_it_ended()
            else:
                seconds[contender.name] += [spent] if index >= warm_up else []
    return {name: values for name, values in seconds.items() if name not in ended}, ended


def _serve(connection: Connection, name: str, case: Case, settings: argparse.Namespace, threads: int) -> None:
    """Compile, report, and then answer each message with the seconds of `settings.calls` calls."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = str(threads)
    allow_tf32(True, settings.device)
    try:
        start = time.monotonic()
        call = contenders(case, settings, "compiled")[name]()
        call()
        if settings.device == "cuda":
            torch.cuda.synchronize()
        spent = time.monotonic() - start
        call()  # a CUDA graph is recorded in the second call
        memory = None if name == GRAPHS else peak(call, settings.device)
        connection.send({"seconds": spent, "peak": memory})
    except Exception as error:  # of one contender: the others go on
        connection.send({"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]})
        return
    several = repeated(call, settings.calls)
    with contextlib.suppress(EOFError):
        while True:
            connection.recv()
            connection.send(seconds_of(several) / settings.calls)
