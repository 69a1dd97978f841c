"""What the benchmarks run on, and which libraries that they can use are not there."""

import argparse
import contextlib
import importlib

import torch

from benchmarks.gpu.rows import Rows
from benchmarks.shared.measure import describe_machine

# Library: what needs it.
OPTIONAL = {"timm": "the comparisons with timm", "datasets": "the part `training`"}


def run(settings: argparse.Namespace, rows: Rows) -> None:
    machine = describe_machine()
    for library in ("triton", "accelerate", "datasets"):
        with contextlib.suppress(ImportError):
            machine[library] = f"{library} {importlib.import_module(library).__version__}"
    if settings.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        machine["capability"] = f"compute capability {properties.major}.{properties.minor}"
        machine["accelerator memory"] = f"{properties.total_memory / 2**30:.0f} GiB on the accelerator"
        machine["cuda"] = f"CUDA {torch.version.cuda}"
    missing = [f"{what}: {library} is not installed" for library, what in OPTIONAL.items() if library not in machine]
    rows.add(machine=machine, left_out=missing)
