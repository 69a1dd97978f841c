"""The cross-entropy of logits that are enlarged to the size of the labels, without keeping the enlarged logits.

With 150 classes, the enlarged logits of one image of 512 pixels take 150 MiB, and passes over them cost more than a
small backbone. On a CPU, a few rows at a time are therefore enlarged, turned into losses and gradients, and reduced
again, all in the cache. For rows R and columns C of the enlargement, and p the softmax of x = R l C,

    loss = sum over pixels of logsumexp(x) - x[label]        dloss/dl = R^T (p - onehot(label)) C^T
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .fast_path import is_transformed

CHUNK_SIZE = 2**20  # numbers of the enlarged logits that are worked on at a time: 4 MiB


def enlarged_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """The mean cross-entropy of `logits (B, K, h, w)`, enlarged bilinearly, over the pixels of `labels (B, H, W)`.

    Pixels of `ignore_index` do not count. The loss is 0 if there is no other pixel.
    """
    if logits.device.type == "cpu" and not torch.compiler.is_compiling() and not is_transformed():
        with torch.autocast("cpu", enabled=False):  # which would round the enlarged logits to half precision
            loss: Any = EnlargedCrossEntropy.apply(logits, labels, ignore_index)
        return loss
    return reference_loss(logits, labels, ignore_index)


def reference_loss(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """The same in PyTorch's own operations."""
    height, width = labels.shape[1:]
    enlarged = F.interpolate(logits.float(), size=(height, width), mode="bilinear", align_corners=False)
    total = F.cross_entropy(enlarged, labels, ignore_index=ignore_index, reduction="sum")
    return total / (labels != ignore_index).sum().clamp(min=1)


class EnlargedCrossEntropy(torch.autograd.Function):
    """Computes the gradient together with the loss. Gradients that are to be differentiated come from the reference."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
        grad = torch.zeros_like(logits, dtype=torch.float32)
        total = logits.new_zeros((), dtype=torch.float64)
        (batch_size, classes, small_height, small_width), (height, width) = logits.shape, labels.shape[1:]
        rows = enlargement(small_height, height)
        columns = enlargement(small_width, width).T.contiguous()  # (w, W)
        step = max(1, CHUNK_SIZE // (classes * width))
        for image in range(batch_size):
            for start in range(0, height, step):
                stop = min(start + step, height)
                low, part = nonzero_columns(rows[start:stop])
                source = logits[image, :, low].float().transpose(0, 1)
                x = torch.matmul(combine_rows(part, source), columns)  # (n, K, W)
                total += loss_to_gradient_(x, labels[image, start:stop], ignore_index)
                reduced = combine_rows(part.T, torch.matmul(x, columns.T))
                grad[image, :, low] += reduced.transpose(0, 1)
        count = max(1, int((labels != ignore_index).sum()))
        ctx.save_for_backward(logits, labels, (grad / count).to(logits.dtype))
        ctx.ignore_index = ignore_index
        return (total / count).float()

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels, grad = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return grad * grad_loss.to(grad.dtype), None, None
        loss = reference_loss(logits, labels, ctx.ignore_index)
        return *torch.autograd.grad(loss, logits, grad_loss, create_graph=True), None, None


def combine_rows(weights: Tensor, x: Tensor) -> Tensor:
    """Rows `(n, K, w)` of `weights (n, l)` and rows `x (l, K, w)`, as one product instead of one for each class."""
    return torch.mm(weights, x.flatten(1)).view(weights.shape[0], *x.shape[1:])


def loss_to_gradient_(x: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """The sum of the losses of logits `x (n, K, W)`, which are overwritten by the gradient of that sum."""
    known = (labels != ignore_index)[:, None]
    target = torch.where(known, labels[:, None], 0)
    normaliser = x.logsumexp(1, keepdim=True)
    losses = torch.where(known, normaliser - x.gather(1, target), 0)
    weight = known.to(x.dtype)
    x.sub_(normaliser).exp_().mul_(weight)
    x.scatter_add_(1, target, -weight)
    return losses.sum(dtype=torch.float64)


def enlargement(small: int, large: int, device: torch.device | None = None) -> Tensor:
    """The matrix `(large, small)`, float32, of the bilinear enlargement of a line."""
    identity = torch.eye(small, dtype=torch.float32, device=device)[None]
    return F.interpolate(identity, size=large, mode="linear", align_corners=False)[0].T.contiguous()


def nonzero_columns(rows: Tensor) -> tuple[slice, Tensor]:
    """The range of the columns of a part of the matrix that are not all zero, and the part's values there."""
    used = rows.any(dim=0).nonzero()
    low = slice(int(used[0]), int(used[-1]) + 1)
    return low, rows[:, low].contiguous()
