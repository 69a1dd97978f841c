"""How long the message takes that training processes exchange after a step, by their number: here, threads."""

import statistics
import threading
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.shared.measure import Row

FLAGS = 3


def measure_messages(counts: list[int], rounds: int) -> list[Row]:
    """Milliseconds of an all-reduce of three numbers by gloo, over the loopback of this machine."""
    rows: list[Row] = []
    for count in counts:
        seconds = seconds_of_messages(count, rounds)
        row: Row = {"processes": count, "ms": 1000 * statistics.median(seconds)}
        rows.append(row | {"ms for each process": 1000 * statistics.median(seconds) / count})
        print(rows[-1], flush=True)
    return rows


def seconds_of_messages(count: int, rounds: int) -> list[float]:
    """Seconds of each message, as the first of the processes sees them."""
    store: Any = dist.HashStore()  # type: ignore[reportPrivateImportUsage]
    seconds: list[float] = []
    barrier = threading.Barrier(count)

    def exchange(rank: int) -> None:
        group: Any = dist.ProcessGroupGloo(store, rank, count, timedelta(minutes=2))
        for _ in range(rounds):
            message = torch.zeros(FLAGS, dtype=torch.int32)
            barrier.wait()
            start = time.perf_counter()
            options = dist.AllreduceOptions()
            options.reduceOp = dist.ReduceOp.MAX
            group.allreduce([message], options).wait()
            if rank == 0:
                seconds.append(time.perf_counter() - start)
        barrier.wait()  # no connection is closed while another process still uses it

    threads = [threading.Thread(target=exchange, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds
