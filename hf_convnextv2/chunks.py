"""How much of a batch the fused MLP works on at a time, so that what one pass writes the next finds in a CPU's cache.

B views, T positions of a view, R rows of all views (B * T of each group), C channels.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .groups import Groups

# Bytes of the middle tensor that are worked on at a time on a CPU: a few times as many fit its cache.
CHUNK_SIZE = 2**22


class Chunk(NamedTuple):
    """Views of one group that are worked on at a time: which of all, and their rows of all."""

    views: slice
    rows: slice
    shape: tuple[int, int]  # B and T

    @property
    def num_rows(self) -> int:
        """B * T."""
        return self.rows.stop - self.rows.start

    def of(self, x: Tensor) -> Tensor:
        """The chunk's part `(B, T, C)` of all rows `(R, C)`."""
        return x[self.rows].view(*self.shape, x.shape[-1])

    def start_of(self, buffer: Tensor) -> Tensor:
        """As many rows as the chunk has, from the start of a buffer, as `(B, T, C)`."""
        return buffer[: self.num_rows].view(*self.shape, buffer.shape[-1])


def split_into_chunks(groups: Groups, up: Tensor) -> list[Chunk]:
    """The views of each group in chunks of one size or nearly; `up (4C, C)` is the weight of the first layer."""
    chunks, view, row = [], 0, 0
    for views, positions in groups:
        step = _views_at_a_time(views, positions, up)
        for start in range(0, views, step):
            num_views = min(step, views - start)
            num_rows = num_views * positions
            chunks.append(Chunk(slice(view, view + num_views), slice(row, row + num_rows), (num_views, positions)))
            view, row = view + num_views, row + num_rows
    return chunks


def _views_at_a_time(views: int, positions: int, up: Tensor) -> int:
    """All views where a kernel's launch costs more than a pass over memory; on a CPU what fits its cache.

    That may be as many bytes as `up` has: of far fewer, reading the weights would cost more than the rest.
    """
    view_size = positions * len(up) * up.itemsize
    if up.device.type != "cpu" or views * view_size <= CHUNK_SIZE:
        return views
    fitting = max(max(CHUNK_SIZE, up.nbytes) // view_size, 1)
    return math.ceil(views / math.ceil(views / fitting))


def chunk_buffer(like: Tensor, chunks: list[Chunk], dtype: torch.dtype | None = None) -> Tensor:
    """Memory for the rows of the largest chunk, as wide as `like (R, C)`."""
    num_rows = max(chunk.num_rows for chunk in chunks)
    return like.new_empty(num_rows, like.shape[1], dtype=dtype)
