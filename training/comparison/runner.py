"""Training runs of a study, as many at a time as the cores carry; a stop or an error lets no further one begin."""

import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from training.comparison.launching import launch
from training.comparison.records import Times
from training.console.signals import STOPPED


@dataclass
class Runner:
    """Launches the runs of the study in `output`.

    jobs: runs at a time, which share the cores. lock: a file descriptor that runs keep open. is_over: set by a stop or
    an error.
    """

    output: Path
    times: Times
    jobs: int
    lock: int | None = None
    is_over: Event = field(default_factory=Event)

    def side_by_side(self, tasks: Iterable[Callable[[], object]]) -> None:
        """Call all, as many at a time as there may be runs. After an error or a stop, no further one begins."""
        side_by_side(self.jobs, tasks, self.is_over)

    def launch(self, script: str | Path, recipe: str | Path, folder: Path, *flags: str) -> None:
        """Run a script with its newest checkpoint, if there is one, and note the time that it took.

        Raises:
            ChildProcessError: if the run fails, after it has printed the reason.
        """
        if self.is_over.is_set():
            sys.exit(STOPPED)
        started = time.perf_counter()
        flags = (*flags, f"--output_dir={folder}", "--resume_from_checkpoint=latest")
        try:
            launch(script, recipe, *flags, at_a_time=self.jobs, lock=self.lock)
        except SystemExit as error:
            if self.is_over.is_set():
                raise
            name = f"{script}.py" if isinstance(script, str) else script.name
            reason = f"{name} in {folder} ended with exit code {error.code}; it has said why above"
            raise ChildProcessError(f"{reason}. The same command goes on.") from error
        finally:
            self.times.add(folder.relative_to(self.output).as_posix(), time.perf_counter() - started)


def side_by_side(jobs: int, tasks: Iterable[Callable[[], object]], is_over: Event | None = None) -> None:
    """Call all, as many at a time as there are jobs. After an error `is_over` is set, and no further one begins."""
    failed = Event()

    def call(task: Callable[[], object]) -> None:
        if failed.is_set():
            return
        try:
            task()
        except BaseException:
            failed.set()
            raise

    pool = ThreadPoolExecutor(jobs)
    try:
        done, _ = wait([pool.submit(call, task) for task in tasks], return_when=FIRST_EXCEPTION)
        for each in done:
            each.result()
    except BaseException:
        if is_over is not None:
            is_over.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
