"""What the paper compares GRN with in its place (arXiv 2301.00808, Table 2d): LRN, BatchNorm and LayerNorm.

N maps, or visible cells of all images; C channels: 4 times those of the block. Each takes `(N, H, W, C)` and, as GRN
does, the groups of rows that share statistics, which none of them needs. The paper gives no settings of theirs: the
affine of BatchNorm and LayerNorm starts at 1 and 0, and nothing is added to their outputs.
"""

from torch import Tensor, nn
from torch.nn.functional import avg_pool1d

from hf_convnextv2.groups import Groups

LRN_SIZE, LRN_ALPHA, LRN_BETA, LRN_K = 5, 1e-4, 0.75, 2.0  # AlexNet's; its alpha is of the sum, not of the mean


class LocalResponseNorm(nn.Module):
    """Divide each channel by a power of the energy of its neighbours, position by position."""

    def __init__(self, dim: int):
        super().__init__()

    def forward(self, x: Tensor, groups: Groups | None = None) -> Tensor:
        """`(N, H, W, C)` to the same shape."""
        squares = x.float().square().reshape(-1, 1, x.shape[-1])
        sums = LRN_SIZE * avg_pool1d(squares, LRN_SIZE, stride=1, padding=LRN_SIZE // 2)  # zeros beyond the channels
        return x * (LRN_K + LRN_ALPHA * sums).pow(-LRN_BETA).view(x.shape).to(x.dtype)


class BatchNorm(nn.BatchNorm1d):
    """Normalise each channel over all positions of a batch; in pre-training, over its visible ones."""

    def __init__(self, dim: int):
        super().__init__(dim)

    def forward(self, input: Tensor, groups: Groups | None = None) -> Tensor:
        """`(N, H, W, C)` to the same shape."""
        return super().forward(input.reshape(-1, input.shape[-1])).view(input.shape)


class LayerNorm(nn.LayerNorm):
    """Normalise each position over its channels."""

    def __init__(self, dim: int):
        super().__init__(dim, eps=1e-6)

    def forward(self, input: Tensor, groups: Groups | None = None) -> Tensor:
        """`(N, H, W, C)` to the same shape."""
        return super().forward(input)
