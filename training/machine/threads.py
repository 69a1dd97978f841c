"""The threads in which a training process computes on a CPU."""

import os
import sys

import torch
from accelerate import Accelerator

from training.console.errors import is_first_process
from training.machine.cores import usable_cores


def fit_threads(accelerator: Accelerator) -> None:
    """Use no more threads than there are cores for each process, and say so if one thread leaves cores idle."""
    if accelerator.device.type != "cpu":
        return
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or accelerator.num_processes)
    cores = max(1, usable_cores() // processes)
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cores:
        torch.set_num_threads(cores)
    if torch.get_num_threads() == 1 < cores and is_first_process():
        print(
            f"One of {cores} cores computes, the default of `accelerate launch`. "
            f"`accelerate launch --num_cpu_threads_per_process {cores}` uses all.",
            file=sys.stderr,
        )
