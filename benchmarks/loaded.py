"""The classifier against Transformers' own beside processes that compute, and in a process whose heap has grown.

    python -m benchmarks.loaded --cases atto:16 tiny:8 atto:1 tiny:1 base:1 --busy 0 1 2

A busy process multiplies matrices on one core for as long as the contenders take turns. "grown" is a process that has
trained both models: its memory allocator then keeps freed memory, and fresh pages cost less.
"""

import contextlib
import multiprocessing
import os
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch

from benchmarks.shared.classifiers import prepare
from benchmarks.shared.measure import Row, alternate, apart, parse_arguments, report, times_as_fast

LIBRARIES = ("ours", "transformers")
STEPS_THAT_GROW_THE_HEAP = 3
MATRIX_SIZE = 512


def main() -> None:
    args = parse_arguments(
        str(__doc__),
        cases=["atto:16", "tiny:8", "atto:1", "tiny:1", "base:1"],
        whats=["inference", "training"],
        busy=[0, 1, 2],
        heaps=["fresh", "grown"],
        image_size=224,
        dtype="float32",
        rounds=7,
    )
    rows: list[Row] = []
    for size, batch_size in (case.split(":") for case in args.cases):
        for what in args.whats:
            for heap in args.heaps:
                case = (size, what, int(batch_size), args.image_size, "cpu", args.dtype)
                rows += apart(compare, case, heap, args.busy, args.rounds)
                print(*rows[-len(args.busy) :], sep="\n", flush=True)
    report(rows, args.output)


def compare(case: tuple, heap: str, numbers: list[int], rounds: int) -> list[Row]:
    """A row for each number of busy processes, all of them in this process."""
    if heap == "grown":
        size, _, *settings = case
        for library in LIBRARIES:
            train = prepare(library, size, "training", *settings)
            for _ in range(STEPS_THAT_GROW_THE_HEAP):
                train()
    calls = {library: prepare(library, *case) for library in LIBRARIES}
    rows = []
    for number in numbers:
        with beside(number):
            seconds = alternate(calls, rounds)
        row: Row = dict(zip(("size", "what", "batch"), case, strict=False))
        row |= {"heap": heap, "busy processes": number, "seconds": median(seconds["ours"])}
        rows.append(row | {"times Transformers": times_as_fast(seconds["transformers"], seconds["ours"])})
    return rows


@contextlib.contextmanager
def beside(number: int) -> Iterator[None]:
    """Processes that compute meanwhile, each on one core, and no faster or slower than any other process."""
    context = multiprocessing.get_context("spawn")
    started = context.Semaphore(0)
    processes = [context.Process(target=_compute, args=(os.getpid(), started), daemon=True) for _ in range(number)]
    for process in processes:
        process.start()
    for _ in processes:
        started.acquire()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _compute(parent: int, started: Any) -> None:
    torch.set_num_threads(1)
    matrix = torch.ones(MATRIX_SIZE, MATRIX_SIZE)
    started.release()
    while os.getppid() == parent:
        torch.mm(matrix, matrix)


if __name__ == "__main__":
    main()
