"""Running the training scripts as a user would type them."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

TRAINING = Path(__file__).resolve().parents[1] / "training"


def launch(script: str, recipe: str, *flags: str, at_a_time: int = 1) -> float:
    """Run `training/{script}.py` with a recipe through `accelerate launch`; return the seconds that it took.

    The cores are divided among `at_a_time` runs.
    """
    paths = os.path.relpath(TRAINING / f"{script}.py"), os.path.relpath(TRAINING / f"recipes/{recipe}.yaml")
    # By default, `accelerate launch` uses one core only on a machine without a GPU.
    threads = ["--num_cpu_threads_per_process", str(max((os.cpu_count() or 1) // at_a_time, 1))]
    command = [*threads, paths[0], "--config", paths[1], *flags]
    print(f"\n$ accelerate launch {shlex.join(command)}", flush=True)
    started = time.perf_counter()
    if code := subprocess.run([sys.executable, "-m", "accelerate.commands.launch", *command]).returncode:
        sys.exit(code)  # the script has printed the reason
    return time.perf_counter() - started
