"""Calls that are recorded once as a CUDA graph, without compiling, and then replayed.

The processor launches one graph instead of thousands of kernels, so that the time is that of the GPU alone, whatever
the processor.
"""

from collections.abc import Callable

import torch

from benchmarks.shared.measure import Call

WARM_UP = 3  # calls, in which kernels are chosen and workspaces are made


def capture(call: Call, pool: object) -> Call:
    """The call's graph, in a pool of memory that it shares with others which are never replayed at the same time."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        call()
    return graph.replay


def captured(makers: dict[str, Callable[[], Call]], device: str) -> dict[str, Callable[[], Call]]:
    """What makes the graph of each call; on a processor, which has no graphs, the call itself."""
    if device != "cuda":
        return makers
    pool = torch.cuda.graph_pool_handle()
    return {name: lambda make=make: capture(make(), pool) for name, make in makers.items()}
