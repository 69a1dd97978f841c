"""The gradients of the fused MLP, a chunk of views at a time.

For one view, with the output h `(T, 4C)` of `up`, GRN's scale s `(4C,)` and bias b, D = `down` and its bias d, the
branch is

    y = gelu(h)        out = (y * s + b) D^T + d

and from z = dL/dout `(T, C)`, already multiplied by the drop path's factor, follow, with u = z D `(T, 4C)`,

    dL/ds = sum over positions of u * y        dL/dD = z^T (y * s) + (sum over positions of z) b^T
    dL/dy = u * s + y * slope                  dL/db = (sum over positions of z) D
    dL/dh = dL/dy * gelu'(h)                   dL/dd = sum over positions of z

The slope is what comes back through s, which depends on y: see `grn_gradients`. Then `up` and the LayerNorm have the
gradients of any linear layer and norm.

There are two ways to compute this. `_through_activations` does it as written, with three passes over `(T, 4C)` for s.
`_through_weights` takes P = z^T y `(C, 4C)` and moves s to the weights,

    dL/ds = sum over rows of P * D        z^T (y * s) = P * s        u * s = z (D * s)

which is less work for a view of more positions than D has rows (`scales_weights`). Without GRN, s is 1 and b is 0:
`_without_grn`.
"""

from typing import Any

import torch
from torch import Tensor

from .chunks import Chunk, chunk_buffer
from .fused_mlp_reference import MLPWeights, scaled_down, scales_weights
from .grn import grn_gradients
from .precision import at_least_float32
from .products import linear, linear_of_views


class _GradientSums:
    """Gradients of the parameters, summed over chunks in GRN's dtype; matrices of a single chunk are in their own.

    is_first: whether no chunk was added yet: the first one writes the matrices, whose numbers do not count before.
    """

    def __init__(self, weights: MLPWeights, num_chunks: int):
        dim, self.dtype = len(weights.down), at_least_float32(weights.up.dtype)
        dtype = weights.up.dtype if num_chunks == 1 else self.dtype
        self.is_first = True
        self.up = torch.empty_like(weights.up, dtype=dtype)
        self.down = torch.empty_like(weights.down, dtype=torch.promote_types(dtype, weights.down.dtype))
        self.up_bias, self.grn = (torch.zeros_like(weights.up[:, 0], dtype=self.dtype) for _ in range(2))
        self.down_bias, self.norm, self.norm_bias = (self.up_bias.new_zeros(dim) for _ in range(3))

    def add(self, total: Tensor, value: Tensor) -> None:
        """Add `value` to `total`, one of the matrices."""
        if self.is_first:
            total.copy_(value)
        else:
            total += value

    def add_product(self, total: Tensor, a: Tensor, b: Tensor) -> None:
        """Add `a @ b` to `total`, one of the matrices."""
        if total.dtype == a.dtype:
            torch.addmm(total, a, b, beta=0 if self.is_first else 1, out=total)
        else:
            self.add(total, torch.mm(a, b))

    def of(self, weights: MLPWeights) -> list[Tensor | None]:
        """The gradient of each of `weights`, in its dtype."""
        grn_bias = None
        if weights.grn_bias is not None:
            down_bias = self.down_bias.to(weights.down.dtype)
            self.down.addr_(down_bias.to(self.down.dtype), weights.grn_bias.to(self.down.dtype))
            grn_bias = down_bias @ weights.down
        sums = (self.up, self.up_bias, self.grn, grn_bias, self.down, self.down_bias, self.norm, self.norm_bias)
        tensors: Any = zip(sums, weights, strict=False)  # the norm's epsilon has none
        grads = [None if t is None else grad.to(t.dtype) for grad, t in tensors]
        return [*grads, None]


def mlp_gradients(
    grad: Tensor,
    x: Tensor,
    chunks: list[Chunk],
    factor: Tensor | None,
    hidden: list[Tensor],
    energy: Tensor | None,
    weights: MLPWeights,
) -> tuple[Tensor, list[Tensor | None]]:
    """Gradients of the input `(R, C)` and of each of `weights`, from that of the output `(R, C)`.

    `hidden` is the output of `up` by chunk `(B, T, 4C)`, `energy (views, 1, 4C)` GRN's, if there is one.
    """
    sums, grad_x = _GradientSums(weights, len(chunks)), torch.empty_like(x)
    activation, grad_activation = (chunk_buffer(weights.up.T, chunks) for _ in range(2))
    products = activation if energy is None else chunk_buffer(weights.up.T, chunks)
    for chunk, h in zip(chunks, hidden, strict=True):
        y, buffer = chunk.start_of(activation), chunk.start_of(grad_activation)
        z = chunk.of(grad)
        if factor is not None:
            z = z * factor[chunk.views]
        sums.down_bias += z.sum(dim=(0, 1), dtype=sums.dtype)
        z = z.to(weights.up.dtype)
        torch.ops.aten.gelu.out(h, out=y)
        if energy is None:
            grad_y = _without_grn(z, y, weights, sums, buffer)
        elif scales_weights(chunk.shape[1], weights):
            grad_y = _through_weights(z, y, energy[chunk.views], weights, sums, buffer)
        else:
            grad_y = _through_activations(z, y, energy[chunk.views], weights, sums, buffer, chunk.start_of(products))
        torch.ops.aten.gelu_backward.grad_input(grad_y, h, grad_input=grad_y)
        grad_x[chunk.rows] = _through_up(grad_y.flatten(0, 1), x[chunk.rows], weights, sums)
        sums.is_first = False
    return grad_x, sums.of(weights)


def _without_grn(z: Tensor, y: Tensor, weights: MLPWeights, sums: _GradientSums, out: Tensor) -> Tensor:
    """dL/dy `(B, T, 4C)`, which may lie in `out`, in a block without GRN; adds to the sum of `down`."""
    rows = z.flatten(0, 1)
    sums.add_product(sums.down, rows.T, y.flatten(0, 1))
    return linear(rows, weights.down.T.to(z.dtype), out=out.flatten(0, 1)).view(y.shape)


def _through_weights(
    z: Tensor, y: Tensor, energy: Tensor, weights: MLPWeights, sums: _GradientSums, out: Tensor
) -> Tensor:
    """dL/dy `(B, T, 4C)`, which may lie in `out`, with GRN's scale multiplied into `down`; adds to the sums of both."""
    products = torch.bmm(z.mT, y)  # (B, C, 4C)
    grad_scale = (products * weights.down).sum(dim=1, keepdim=True, dtype=energy.dtype)
    assert weights.grn is not None
    wide_scale, slope, grad_grn = grn_gradients(grad_scale, energy, weights.grn)
    sums.grn += grad_grn
    sums.add(sums.down, products.mul_(wide_scale).sum(dim=0))
    grad_y = linear_of_views(z, scaled_down(weights, wide_scale).mT, out=out)
    return grad_y.addcmul_(y, slope.to(y.dtype))


def _through_activations(
    z: Tensor, y: Tensor, energy: Tensor, weights: MLPWeights, sums: _GradientSums, out: Tensor, products: Tensor
) -> Tensor:
    """The same with GRN's scale multiplied into the activations `y`, which are overwritten, as are `products`."""
    grad_y = linear(z.flatten(0, 1), weights.down.T.to(z.dtype), out=out.flatten(0, 1)).view(y.shape)
    grad_scale = torch.mul(grad_y, y, out=products).sum(dim=1, keepdim=True, dtype=energy.dtype)
    assert weights.grn is not None
    wide_scale, slope, grad_grn = grn_gradients(grad_scale, energy, weights.grn)
    scale = wide_scale.to(y.dtype)
    sums.grn += grad_grn
    grad_y.mul_(scale).addcmul_(y, slope.to(y.dtype))
    sums.add_product(sums.down, z.flatten(0, 1).T, y.mul_(scale).flatten(0, 1))
    return grad_y


def _through_up(grad: Tensor, x: Tensor, weights: MLPWeights, sums: _GradientSums) -> Tensor:
    """Gradient of the input `(rows, C)` from that of the output `(rows, 4C)` of `up`; adds to the sums of both."""
    # The sum of one chunk is rounded once either way, and takes half the time unless float32 is asked for.
    sums.up_bias += grad.sum(dim=0, dtype=None if sums.up.dtype == grad.dtype else sums.dtype)
    if weights.norm is None:
        sums.add_product(sums.up, grad.T, x)
        return linear(grad, weights.up.T)
    wide, shape, affine = x.to(weights.norm.dtype), x.shape[-1:], (weights.norm, weights.norm_bias)
    rows, mean, deviation = torch.native_layer_norm(wide, shape, *affine, weights.eps)
    sums.add_product(sums.up, grad.T, rows.to(weights.up.dtype))
    grad_rows = linear(grad, weights.up.T).to(wide.dtype)
    wanted = [True, True, True]
    gradients = torch.ops.aten.native_layer_norm_backward(grad_rows, wide, shape, mean, deviation, *affine, wanted)
    grad_x, grad_norm, grad_norm_bias = gradients
    sums.norm += grad_norm
    sums.norm_bias += grad_norm_bias
    return grad_x
