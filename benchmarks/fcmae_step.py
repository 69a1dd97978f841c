"""A pre-training step of the packed FCMAE against masked-dense and a full dense pass, float32, in one run.

    python -m benchmarks.fcmae_step --sizes atto tiny

Masked-dense is the dense encoder with the mask multiplied before and after every convolution and inside GRN, with the
same GELU + GRN and the same decoder. Dense sees all cells: what the classifier's encoder costs, and what 2.58 (49 of
19 cells at 224 pixels and 60 %) is the bound against.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import alternate, parse_arguments, report, speed_up
from hf_convnextv2 import ConvNextV2FCMAEConfig, ConvNextV2ForPreTraining
from hf_convnextv2.grn import _ResponseMLP
from tests import masked_dense

COMPARISONS = (
    ("encoder, against masked-dense", "masked-dense encoder", "packed encoder"),
    ("encoder, against dense", "dense encoder", "packed encoder"),
    ("whole step, against masked-dense", "masked-dense step", "packed step"),
)


def fused_mlp(x: Tensor, layer: Any, visible: Tensor) -> Tensor:
    """The package's fused MLP with the mask inside GRN, at the least cost: as a channel that carries the first bias.

    Hidden positions are zero before GELU and so in the energy.
    """
    up, grn, down = layer.pwconv1, layer.grn, layer.pwconv2
    x = torch.cat([x * visible, visible.expand(*x.shape[:-1], 1)], dim=-1).flatten(1, 2)
    weight, no_bias = torch.cat([up.weight, up.bias[:, None]], dim=1), torch.zeros_like(up.bias)
    rows: Any = _ResponseMLP.apply(x, weight, no_bias, grn.weight.view(-1), grn.bias.view(-1), down.weight, down.bias)
    return rows.view(*visible.shape[:3], -1)


def prepare(name: str, size: str, batch_size: int, image_size: int) -> Callable[[], object]:
    """A call of forward, backward and forgetting the gradients, of the encoder or of the whole step."""
    torch.manual_seed(0)
    model = ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig.from_size(size)).train()
    pixel_values = torch.randn(batch_size, 3, image_size, image_size)
    masked, _ = model.random_masking(torch.rand(batch_size, (image_size // model.config.cell_size) ** 2))
    num_visible = int((~masked[0]).sum())
    forward: dict[str, Callable[[], Tensor]] = {
        "packed encoder": lambda: model.forward_encoder(pixel_values, masked, num_visible)[0][-1].square().mean(),
        "masked-dense encoder": lambda: masked_dense.encode(model, pixel_values, masked, fused_mlp)[-1].square().mean(),
        "dense encoder": lambda: model.convnextv2(pixel_values).last_hidden_state.square().mean(),
        "packed step": lambda: model(pixel_values, bool_masked_pos=masked).loss,
        "masked-dense step": lambda: masked_dense.step(model, pixel_values, masked, fused_mlp),
    }

    def call() -> None:
        forward[name]().backward()
        model.zero_grad()

    return call


def main() -> None:
    args = parse_arguments(str(__doc__), sizes=["atto", "tiny"], batch_size=8, image_size=224)
    names = dict.fromkeys(name for _, *pair in COMPARISONS for name in pair)
    rows: list[dict[str, object]] = []
    for size in args.sizes:
        case = (size, args.batch_size, args.image_size)
        results = alternate({name: (prepare, name, *case) for name in names}, args.rounds)
        for what, slow, fast in COMPARISONS:
            row: dict[str, object] = {"size": size, "what": what}
            row["images/s"] = args.batch_size / min(results[fast].seconds)
            row["times as fast"] = speed_up(results[slow], results[fast])
            row["memory ratio"] = results[fast].peak_memory / results[slow].peak_memory
            rows.append(row)
    report(rows, args.output)


if __name__ == "__main__":
    main()
