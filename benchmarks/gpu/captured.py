"""Calls that are recorded once as a CUDA graph, without compiling, and then replayed.

The processor launches one graph instead of thousands of kernels, so that the time is that of the GPU alone, whatever
the processor.
"""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.shared.measure import Call

WARM_UP = 3  # calls, in which kernels are chosen and workspaces are made


class Captured:
    """The call's graph, in a pool of memory that it shares with others which are never replayed at the same time.

    It holds the call too: the graph reads the model and the images, but does not keep them.
    """

    def __init__(self, call: Call, pool: Any) -> None:
        self.call, self.graph, stream = call, torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(self.graph, pool=pool, stream=stream):
            call()

    def __call__(self) -> None:
        self.graph.replay()


def captured(makers: dict[str, Callable[[], Call]], device: str) -> dict[str, Callable[[], Call]]:
    """What makes the graph of each call; on a processor, which has no graphs, the call itself."""
    if device != "cuda":
        return makers
    pool = torch.cuda.graph_pool_handle()
    return {name: lambda make=make: Captured(make(), pool) for name, make in makers.items()}
