"""A teacher's features of each cell as targets of FCMAE, beside the pixels or in their place (`config.target_type`).

K views of B images, L cells of an image (h * w of them), F channels of the features.
"""

import torch.nn.functional as F
from torch import Tensor

from .masking import masked_mean
from .precision import at_least_float32
from .shared_config import PreTrainingConfig


def check_feature_targets(targets: Tensor | None, config: PreTrainingConfig, batch: int, grid: tuple[int, int]) -> None:
    """Raise a `ValueError` for targets that nothing predicts, or that are not `(B, F, h, w)`."""
    if targets is None:
        return
    if config.feature_target_dim is None:
        raise ValueError("`feature_targets` must be None with `target_type` (='pixel'): nothing predicts them.")
    shape = (batch, config.feature_target_dim, *grid)
    if targets.shape != shape:
        raise ValueError(
            f"`feature_targets` (of shape {tuple(targets.shape)}) must be of shape {shape}: "
            "`feature_target_dim` channels for each cell."
        )


def feature_loss(predicted: Tensor, targets: Tensor, masked: Tensor, config: PreTrainingConfig) -> Tensor:
    """Mean error of the features of the cells that `config.feature_target_on` names; `masked (K * B, L)`.

    `predicted` is `(K * B, L, F)` for hidden cells and `(B, L, F)` for visible ones.
    """
    errors = feature_errors(predicted, targets, config.feature_loss)
    if config.feature_target_on == "masked":
        return masked_mean(errors, masked)
    in_no_view = masked.unflatten(0, (-1, targets.shape[0])).all(dim=0)  # (B, L)
    return masked_mean(errors, ~in_no_view)


def feature_errors(predicted: Tensor, targets: Tensor, kind: str) -> Tensor:
    """Error `(K * B, L)` of predicted features `(K * B, L, F)` of cells whose features are `targets (B, F, h, w)`.

    "smooth_l1" and "mse" are means over the channels, "cosine" is 1 - cosine similarity.
    """
    dtype = at_least_float32(predicted.dtype)
    cells = targets.to(dtype).flatten(2).mT  # (B, L, F)
    views = predicted.to(dtype).unflatten(0, (-1, cells.shape[0]))  # (K, B, L, F)
    cells = cells.expand_as(views)
    if kind == "cosine":
        return (1 - F.cosine_similarity(views, cells, dim=-1)).flatten(0, 1)
    error = F.mse_loss if kind == "mse" else F.smooth_l1_loss
    return error(views, cells, reduction="none").mean(dim=-1).flatten(0, 1)
