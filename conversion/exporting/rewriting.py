"""Operations written so that an exported file is right for every size of images.

- What PyTorch decomposes adaptive average pooling into depends on whether the size is a multiple of the bins: a file
  that is traced at one size fails at others. As a product with a matrix of bins it does not depend on it.
- UPerNet's head chooses between two ways of the same result by the size; a file has the plain one.
- Transformers reserves memory for four times the images that are traced: with ExecuTorch, larger ones of those that
  are allowed fail in the flattened maps of a block. A cap that is never reached leaves the bounds that are given.
- ExecuTorch fails at what PyTorch's own attention leaves in another order in memory. Attention in single steps, which
  is what it makes of the other, keeps the order.
- ONNX has no stable sort of its own, and the exporter's replacement cannot be translated. Ranks found by comparing all
  pairs need none.

B batch, C channels, H W height and width, S bins of a side, L numbers that are sorted.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_convnextv2 import convmae_layers, upernet


@contextmanager
def rewritten(format: str) -> Iterator[None]:
    """Within the block, these operations are computed by what stands here, for files of the format."""
    patches: list[tuple[Any, str, Any]] = [
        (nn.AdaptiveAvgPool2d, "forward", lambda self, x: pool_by_products(x, self.output_size)),
        (Tensor, "argsort", argsort_by_comparison),
        (upernet, "pays", lambda *sizes: False),
    ]
    if format == "executorch":
        from transformers.exporters import exporter_executorch  # needs ExecuTorch

        patches.append((exporter_executorch, "_MAX_DIM_FLOOR", sys.maxsize))
        in_steps = dict.fromkeys(convmae_layers.ATTENTION, convmae_layers.eager_attention)
        patches.append((convmae_layers, "ATTENTION", in_steps))
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in patches]
    for owner, name, replacement in patches:
        setattr(owner, name, replacement)
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def pool_by_products(x: Tensor, bins: int) -> Tensor:
    """`nn.AdaptiveAvgPool2d(bins)` of `(B, C, H, W)`, as two products: `(B, C, S, S)`."""
    return pooling_matrix(x.shape[2], bins, x) @ x @ pooling_matrix(x.shape[3], bins, x).mT


def pooling_matrix(size: int, bins: int, like: Tensor) -> Tensor:
    """`(S, size)`: the share of each position in the average of each bin, which may overlap the next one."""
    numbers, positions = torch.arange(bins, device=like.device)[:, None], torch.arange(size, device=like.device)
    starts, ends = numbers * size // bins, ((numbers + 1) * size + bins - 1) // bins
    inside = ((positions >= starts) & (positions < ends)).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


def argsort_by_comparison(x: Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """`x.argsort(dim=1, stable=True)` of `(B, L)`, ascending: equal numbers keep their order."""
    assert x.ndim == 2 and dim in (1, -1) and not descending
    places = torch.arange(x.shape[1], device=x.device)
    own, other = x[:, :, None], x[:, None, :]
    comes_first = (other < own) | ((other == own) & (places < places[:, None]))  # (B, L, L)
    ranks = comes_first.to(torch.int64).sum(dim=2)
    return ((ranks[:, None, :] == places[:, None]).to(torch.int64) * places).sum(dim=2)
