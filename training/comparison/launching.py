"""Running the training scripts as a user would type them."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conversion.files import read_json
from conversion.model_folder import RESULTS
from training.machine.cores import usable_cores

TRAINING = Path(__file__).resolve().parents[1]


def launch(script: str | Path, recipe: str | Path, *flags: str, at_a_time: int = 1, lock: int | None = None) -> float:
    """Run a script with a recipe through `accelerate launch`; return the seconds that it took.

    The cores are divided among `at_a_time` runs. A run that fails ends this program too, after printing its reason.

    Args:
        script: the name of a script of `training`, or the path of another one.
        recipe: the name of a recipe of `training/recipes`, or the path of another one.
        lock: a file descriptor that the run keeps open. With it, a signal of the terminal does not reach the run.
    """
    command = arguments(script, recipe, *flags, at_a_time=at_a_time)
    print(f"\n$ accelerate launch {shlex.join(command)}", flush=True)
    started = time.perf_counter()
    apart: dict[str, Any] = {} if lock is None else {"pass_fds": (lock,), "start_new_session": True}
    if code := subprocess.run(launcher(command), **apart).returncode:
        sys.exit(code)  # the script has printed the reason
    return time.perf_counter() - started


def measure(script: str | Path, recipe: str | Path, *flags: str, at_a_time: int = 1) -> dict[str, Any]:
    """What a dry run of the script measures: its plan, the seconds of a step and more, see `--dry_run`."""
    command = arguments(script, recipe, *flags, "--dry_run=true", "--json=true", at_a_time=at_a_time)
    done = subprocess.run(launcher(command), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout[done.stdout.index("{") :])


def arguments(script: str | Path, recipe: str | Path, *flags: str, at_a_time: int = 1) -> list[str]:
    """What follows `accelerate launch`."""
    script = script if isinstance(script, Path) else TRAINING / f"{script}.py"
    # By default, `accelerate launch` uses one core only on a machine without a GPU.
    threads = ["--num_cpu_threads_per_process", str(max(usable_cores() // at_a_time, 1))]
    return [*threads, os.path.relpath(script), "--config", os.path.relpath(recipe_file(recipe)), *flags]


def recipe_file(recipe: str | Path) -> Path:
    """The file of a recipe of `training/recipes`, or of another one."""
    return recipe if isinstance(recipe, Path) else TRAINING / f"recipes/{recipe}.yaml"


def launcher(command: Sequence[str]) -> list[str]:
    """The command as this Python runs it."""
    return [sys.executable, "-m", "accelerate.commands.launch", *command]


def is_finished(folder: Path) -> bool:
    """Whether a run has written all of its model: its results come last."""
    return bool(read_json(folder / RESULTS))
