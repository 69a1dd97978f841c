"""Adaptive average pooling that is right for images of any size in an exported file.

What PyTorch decomposes `nn.AdaptiveAvgPool2d` into depends on whether the size is a multiple of the bins: a file traced
at one size gives wrong results, or none, at others. As a product with a matrix of bins it does not depend on it.

B batch, C channels, H W height and width, S bins of a side.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class PoolingByProducts(nn.Module):
    """`nn.AdaptiveAvgPool2d(bins)` as two products with matrices that are made of the size of the map."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, C, S, S)`."""
        return pooling_matrix(x.shape[2], self.bins, x) @ x @ pooling_matrix(x.shape[3], self.bins, x).mT


def pooling_matrix(size: int, bins: int, like: Tensor) -> Tensor:
    """`(S, size)`: the share of each position in the average of each bin, which may overlap the next one."""
    numbers, positions = torch.arange(bins, device=like.device)[:, None], torch.arange(size, device=like.device)
    starts, ends = numbers * size // bins, ((numbers + 1) * size + bins - 1) // bins
    inside = ((positions >= starts) & (positions < ends)).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


@contextmanager
def pooled_by_products(model: nn.Module) -> Iterator[None]:
    """Within the block, the adaptive average poolings of the model are products."""
    replaced = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.AdaptiveAvgPool2d) and isinstance(child.output_size, int):
                setattr(parent, name, PoolingByProducts(child.output_size))
                replaced.append((parent, name, child))
    try:
        yield
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)
