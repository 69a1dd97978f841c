"""A part in a process of its own, followed while it runs, and ended when its time is over or the command's is."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.gpu.rows import read_rows

ROOT = Path(__file__).parents[2]
PART = [sys.executable, "-m", "benchmarks.gpu.part"]
SECONDS_TO_END = 0.12  # share of a part's time that it keeps for what it has begun; then it is killed
SECONDS_BETWEEN_LOOKS = 0.25
UNFINISHED = "not finished"  # as the file says if the command is killed meanwhile
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Parts:
    """Runs parts with the same flags, until the command is told to stop."""

    def __init__(self, arguments: list[str], device: str, folder: Path, is_stopped: Callable[[], bool]) -> None:
        self.arguments, self.device, self.folder, self.is_stopped = arguments, device, folder, is_stopped

    def run(self, name: str, seconds: float, follow: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """The rows of a part, and what ended it before its time, if something did; `follow` gets them meanwhile."""
        rows, log, start = self.folder / f"{name}.jsonl", self.folder / f"{name}.log", time.monotonic()
        command = [*PART, name, str(rows), str(seconds * (1 - SECONDS_TO_END)), *self.arguments]

        def found(error: str | None) -> dict[str, Any]:
            return {"seconds": time.monotonic() - start, "error": error, "rows": read_rows(rows)}

        with log.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment(self.device), stdout=file, stderr=file, start_new_session=True
            )
            try:
                while not self.is_stopped() and not ends_within(process, start + seconds):
                    follow(found(UNFINISHED))
                    if time.monotonic() > start + seconds:
                        break
                error = self.reason(process, seconds, log)
            finally:
                kill(process)
        part = found(error)
        follow(part)
        return part

    def reason(self, process: subprocess.Popen[bytes], seconds: float, log: Path) -> str | None:
        """Why a part ended: its signal, or its exit status, and its last line; None if all went well."""
        if process.returncode == 0:
            return None
        if process.returncode is None:
            return "stopped by a signal" if self.is_stopped() else f"stopped after its {seconds:.0f} s"
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        status = process.returncode
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return f"{how}: {lines[-1].strip()[:500]}" if lines else how


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[Callable[[], bool]]:
    """Whether the command was told to stop: the parts must be killed, and the file written, before it ends."""
    seen: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: seen.append(number)) for number in SIGNALS}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def environment(device: str) -> dict[str, str]:
    """Variables for a part: it imports this checkout, and asks for nothing on the network."""
    search_path = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(search_path), "HF_HUB_OFFLINE": "1"}
    return variables | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})  # events would time the GPU


def ends_within(process: subprocess.Popen[bytes], end: float) -> bool:
    """Whether the process ends before the next look, or before `end`."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=max(0.0, min(SECONDS_BETWEEN_LOOKS, end - time.monotonic())))
    return process.returncode is not None


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a part with the processes that it started, some of them in sessions of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):  # it has ended, and its group may have not
        for child in psutil.Process(process.pid).children(recursive=True) if process.returncode is None else []:
            child.kill()
    with contextlib.suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
