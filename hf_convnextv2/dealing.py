"""Deals parts of a batch to threads, each of which computes its own from beginning to end.

PyTorch divides every operation among the cores and waits for all of them before the next. A core that other work has
taken then holds up the others at each operation, some ten times in a block. Dealt parts wait for each other once, and
what one operation has written the next finds in the cache of the same core.
"""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

Part = TypeVar("Part")
Result = TypeVar("Result")

MAX_WORKERS = 4  # more would wait for Python's interpreter; beyond that, each has several cores
LEAST_SHARE = 2**16  # numbers of a worker: handing over fewer costs more than it saves
LEAST_PARALLEL = 2**15  # numbers from which on PyTorch divides an operation
LEAST_EFFICIENCY = 0.85  # of cores that are all busy to the end


def num_workers(parts: int, like: Tensor, numbers: int, least: int = 0) -> int:
    """Among how many threads to deal as many `parts` of one size, of `numbers` numbers in all; 1 is not at all.

    A worker gets `least` numbers or more.
    """
    if like.device.type != "cpu" or torch.compiler.is_compiling() or _is_watched():
        return 1
    threads = torch.get_num_threads()
    for workers in range(min(threads, parts, MAX_WORKERS, numbers // max(LEAST_SHARE, least)), 1, -1):
        cores = workers * (threads // workers) / threads
        balance = parts / (workers * math.ceil(parts / workers))
        if cores * balance >= LEAST_EFFICIENCY:
            return workers
    return 1


def deal(work: Callable[[Part], Result], shares: Sequence[Part]) -> list[Result]:
    """`work` of every share, at the same time if there are several. No gradient is recorded in it."""
    if len(shares) == 1:
        return [work(shares[0])]
    is_inference = torch.is_inference_mode_enabled()

    def without_gradients(share: Part) -> Result:
        with torch.inference_mode(is_inference), torch.no_grad():
            return work(share)

    return list(_pool(len(shares), torch.get_num_threads() // len(shares)).map(without_gradients, shares))


def _is_watched() -> bool:
    """Whether a mode sees the operations of this thread, e.g. to count them: it would not see those of another."""
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._len_torch_function_stack() > 0


@cache
def _pool(workers: int, threads: int) -> ThreadPoolExecutor:
    """Threads that divide an operation among as many `threads` each.

    After an operation of the main thread, the threads of its OpenMP go on to spin for milliseconds, on the cores of the
    workers. GNU's OpenMP makes that microseconds in a process with more of its threads than cores: each worker starts
    one that it does not use.
    """
    all_threads, everybody = torch.get_num_threads(), Barrier(workers)

    def start() -> None:
        torch.get_num_threads()  # a new thread takes the number of the process at its first question, once
        torch.set_num_threads(threads + 1)
        torch.zeros(2 * LEAST_PARALLEL).add_(1)
        torch.set_num_threads(threads)
        everybody.wait()

    pool = ThreadPoolExecutor(workers, "convnextv2", start)
    list(pool.map(lambda _: None, range(workers)))
    torch.set_num_threads(all_threads)  # the number of the process, which `start` has set too
    return pool


if hasattr(os, "register_at_fork"):  # a forked process has the pool but none of its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
