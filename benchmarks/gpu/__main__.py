"""Show on a CUDA GPU that the package is right and fast, in a few minutes.

    python -m benchmarks.gpu --minutes 8 --output docs/benchmarks/gpu.json

It needs a checkout, torch, Transformers, Accelerate and Pillow, and downloads nothing. Parts: `kernels` (each group of
Triton kernels next to the plain form), `correct` (losses and gradients against float64 on the processor, plain
masked-dense code and Transformers), `speed` (next to the peers and to a bound), `profile` (kernels of a step) and
`training` (the training script through `accelerate launch`). Each runs in a process of its own and ends within its
share of the time. The output is written with each row, and parts of an earlier run are kept in it. The exit status is 1
if a part fails or finds something wrong.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.printing import print_lines, print_part, print_row
from benchmarks.gpu.processes import Parts, stopped_by_signals
from benchmarks.gpu.results import Results
from benchmarks.gpu.settings import SHARES, create_parser

MACHINE_SECONDS = 180  # a first import of large libraries from a slow disk


def main(arguments: list[str]) -> int:
    """Run the parts one after the other, and return the exit status."""
    parser = create_parser(str(__doc__))
    settings = parser.parse_args(arguments)
    if settings.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "PyTorch finds no CUDA GPU here. `--device cpu`, with smaller sizes, shows that the command works."
        )
    start, results = time.monotonic(), Results(settings.output, settings.parts)
    with stopped_by_signals() as is_stopped, tempfile.TemporaryDirectory() as folder:
        parts = Parts(arguments, settings.device, Path(folder), is_stopped)
        if describe_machine(parts, results):
            run_parts(parts, settings.parts, results, start, 60 * settings.minutes)
        results.write()
        failed = results.failures() + ["stopped by a signal"] * is_stopped()
    print_lines(*(["failed:", *failed] if failed else ["all parts passed"]))
    return 1 if failed else 0


def describe_machine(parts: Parts, results: Results) -> bool:
    """Whether what the benchmarks run on could be described."""
    described = parts.run("machine", MACHINE_SECONDS, lambda part: None)
    if described["error"]:
        results.set("machine", described)
        return False
    (row,) = described["rows"]
    results.describe(**row)
    print_lines(", ".join(results.machine.values()), *results.left_out)
    return True


def run_parts(parts: Parts, names: list[str], results: Results, start: float, seconds: float) -> None:
    """Run the parts until the command is stopped, each for its share of the time that those before it left."""
    left = {name: SHARES[name] for name in names}
    for name in names:
        if parts.is_stopped():
            return
        of_part = max(1.0, (start + seconds - time.monotonic()) * left[name] / sum(left.values()))
        del left[name]
        num_printed = 0

        def follow(part: dict[str, Any], name: str = name) -> None:
            nonlocal num_printed
            results.set(name, part)
            for row in part["rows"][num_printed:]:
                print_row(time.monotonic() - start, name, row)
            num_printed = len(part["rows"])

        print_lines(f"[{time.monotonic() - start:5.1f} s] {name}: {of_part:.0f} s at most")
        print_part(name, parts.run(name, of_part, follow))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
