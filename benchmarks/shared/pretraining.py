"""An FCMAE step in three forms: packed visible cells, masked-dense, dense, with the same GELU + GRN; or two precisions.

Masked-dense is the dense encoder, multiplied by the mask before and after every convolution and inside GRN. Dense
computes all cells, as the classifier's encoder does, and has the same cost.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.shared.classifiers import wake_grn
from benchmarks.shared.measure import Call
from hf_convnextv2 import ConvNextV2FCMAEConfig, ConvNextV2ForPreTraining
from hf_convnextv2.chunks import split_into_chunks
from hf_convnextv2.fused_mlp import FusedMLP
from hf_convnextv2.masking import visible_ids
from hf_convnextv2.packing import one_view
from tests import masked_dense

NUM_VIEWS = 4


def fused_mlp(x: Tensor, layer: Any, visible: Tensor) -> Tensor:
    """The package's fused MLP with the mask inside GRN. The mask is an input channel that carries the first bias.

    This is the cheapest way: hidden positions are zero before GELU, and so they add nothing to GRN's energy.
    """
    up, grn, down = layer.pwconv1, layer.grn, layer.pwconv2
    x = torch.cat([x * visible, visible.expand(*x.shape[:-1], 1)], dim=-1).flatten(1, 2)
    weight, no_bias = torch.cat([up.weight, up.bias[:, None]], dim=1), torch.zeros_like(up.bias)
    parameters = (weight, no_bias, grn.weight.view(-1), grn.bias.view(-1), down.weight, down.bias, None, None, 0.0)
    chunks = split_into_chunks(((x.shape[0], x.shape[1]),), weight)
    rows: Any = FusedMLP.apply(x.flatten(0, 1), chunks, None, None, *parameters)
    return rows.view(*visible.shape[:3], -1)


def prepare(
    name: str, size: str, batch_size: int, image_size: int = 224, mask_ratio: float = 0.6, device: str = "cpu"
) -> Call:
    """A call that runs forward and backward and drops the gradients: "packed encoder", "masked-dense step" and so on.

    "step on views" uses `NUM_VIEWS` complementary views of each image, the others use one view.
    """
    torch.manual_seed(0)
    sets: dict[str, Any] = {"num_visible_sets": NUM_VIEWS} if name == "step on views" else {"mask_ratio": mask_ratio}
    model: Any = ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig.from_size(size, **sets)).train()
    model.to(device)
    pixel_values = torch.randn(batch_size, 3, image_size, image_size, device=device)
    grid = (image_size // model.config.cell_size,) * 2
    noise = torch.rand(batch_size, grid[0] * grid[1], device=device)
    masked, _ = model.random_masking(noise)
    masked = masked[:batch_size]
    visible = one_view(visible_ids(masked, int((~masked[0]).sum())))
    forward: dict[str, Callable[[], Tensor]] = {
        "packed encoder": lambda: model.forward_encoder(pixel_values, visible, grid)[0][-1].square().mean(),
        "masked-dense encoder": lambda: masked_dense.encode(model, pixel_values, masked, fused_mlp)[-1].square().mean(),
        "dense encoder": lambda: model.convnextv2(pixel_values).last_hidden_state.square().mean(),
        "packed step": lambda: model(pixel_values, noise=noise).loss,
        "step on views": lambda: model(pixel_values, noise=noise).loss,
        "masked-dense step": lambda: masked_dense.step(model, pixel_values, masked, fused_mlp),
    }

    def call() -> None:
        forward[name]().backward()
        model.zero_grad()

    return call


def steps_by_precision(size: str, batch: int, image_size: int) -> dict[str, Call]:
    """A step of FCMAE without its optimizer, in "float32" and under "autocast", of the same model."""
    torch.manual_seed(0)
    model: Any = ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig.from_size(size)).train()
    wake_grn(model)
    pixel_values = torch.randn(batch, 3, image_size, image_size)

    def step(enabled: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = model(pixel_values).loss
        loss.backward()
        model.zero_grad()

    return {"float32": lambda: step(False), "autocast": lambda: step(True)}
