"""The loss of the classifier: its kind follows `config.problem_type`, or the labels where that is None."""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig

from .precision import at_least_float32

# Rows of bfloat16 probabilities sum to 1 but for their rounding, of 2^-9 of each.
SUM_TOLERANCE = 1e-2


def classification_loss(
    logits: Tensor, labels: Tensor, config: PreTrainedConfig, label_smoothing: float = 0.0
) -> Tensor:
    """Mean loss of `logits (B, num_labels)`, a scalar of their dtype, of float32 for half precision.

    Raises:
        ValueError: for labels of another shape, float labels that are no probabilities while `config.problem_type` is
            None, or `label_smoothing` of values.
    """
    logits, labels = logits.to(at_least_float32(logits.dtype)), labels.to(logits.device)
    is_multi_label = config.problem_type == "multi_label_classification"
    has_one_value = config.problem_type is None and config.num_labels == 1
    if is_multi_label:
        labels = labels.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, labels)
    if has_one_value or config.problem_type == "regression":
        if label_smoothing:
            raise ValueError(f"`label_smoothing` (={label_smoothing}) must be 0 unless the labels are classes.")
        labels = labels.to(logits.dtype)
        return F.mse_loss(logits.view(labels.shape), labels)
    if labels.is_floating_point():
        labels = labels.to(logits.dtype)
        _check_probabilities(logits, labels, is_guess=config.problem_type is None)
    else:
        _check_indices(logits, labels)
        labels = labels.flatten().long()
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def _check_indices(logits: Tensor, labels: Tensor) -> None:
    """Raise unless `labels` are one integer for each row of `logits (B, num_labels)`."""
    batch = logits.shape[0]
    if labels.shape not in ((batch,), (batch, 1)):
        raise ValueError(
            f"`labels` ({labels.dtype}, of shape {tuple(labels.shape)}) must be class indices of shape "
            f"({batch},). 0/1 targets of several classes are float, with `config.problem_type` "
            "'multi_label_classification'."
        )


def _check_probabilities(logits: Tensor, labels: Tensor, is_guess: bool) -> None:
    """Raise unless `labels` have the shape of `logits (B, num_labels)`.

    With `is_guess`, no configuration says that they are probabilities: raise unless each row sums to 1, for which loss
    is meant could change from batch to batch.
    """
    if labels.shape != logits.shape:
        raise ValueError(
            f"`labels` (float, of shape {tuple(labels.shape)}) must be class probabilities of shape "
            f"{tuple(logits.shape)}; class indices are int64 of shape ({logits.shape[0]},)."
        )
    if not is_guess:
        return
    are_probabilities = ((labels.sum(dim=-1) - 1).abs() <= SUM_TOLERANCE).all() & (labels >= 0).all()
    rule = (
        "`labels` (float) must be class probabilities, of which each row sums to 1, while `config.problem_type` is "
        "None. Set it to 'multi_label_classification' for 0/1 targets, to 'regression' for values, or to "
        "'single_label_classification' to go on all the same."
    )
    if torch.compiler.is_compiling():
        torch.ops.aten._assert_async.msg(are_probabilities, rule)
    elif not are_probabilities:
        raise ValueError(rule)
