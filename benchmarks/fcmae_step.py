"""A pre-training step of the packed FCMAE against masked-dense and a full dense pass, float32, in one run.

    python -m benchmarks.fcmae_step --sizes atto tiny

Masked-dense is the dense encoder with the mask multiplied before and after every convolution and inside GRN, with the
same GELU + GRN and the same decoder. Dense sees all cells: what the classifier's encoder costs, and what 2.58 (49 of
19 cells at 224 pixels and 60 %) is the bound against.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.measure import alternate, arguments, peak_memory, report, speed_up
from hf_convnextv2 import ConvNextV2FCMAEConfig, ConvNextV2ForPreTraining
from hf_convnextv2.layers import _GELUResponseScale
from tests import masked_dense


def lean_response(x: Tensor, grn: nn.Module) -> Tensor:
    rows: Tensor = _GELUResponseScale.apply(x.flatten(1, 2), grn.weight)  # pyright: ignore[reportAssignmentType]
    return rows.view(x.shape)


def contenders(size: str, batch_size: int, image_size: int) -> dict[str, Callable[[], object]]:
    """Forward and backward of encoder and whole step, each the packed and the masked-dense way."""
    torch.manual_seed(0)
    model = ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig.from_size(size)).train()
    pixel_values = torch.randn(batch_size, 3, image_size, image_size)
    num_cells = (image_size // model.config.cell_size) ** 2
    masked, _ = model.random_masking(torch.rand(batch_size, num_cells))
    num_visible = int((~masked[0]).sum())

    def packed_step() -> Tensor:
        loss = model(pixel_values, bool_masked_pos=masked).loss
        assert loss is not None
        return loss

    def backward(forward: Callable[[], Tensor]) -> Callable[[], None]:
        def call() -> None:
            model.zero_grad()
            forward().backward()

        return call

    encoders: dict[str, Callable[[], Tensor]] = {
        "packed": lambda: model.forward_encoder(pixel_values, masked, num_visible)[0][-1].square().mean(),
        "masked-dense": lambda: masked_dense.encode(model, pixel_values, masked, lean_response)[-1].square().mean(),
        "dense": lambda: model.convnextv2(pixel_values).last_hidden_state.square().mean(),
        "packed step": packed_step,
        "masked-dense step": lambda: masked_dense.step(model, pixel_values, masked, lean_response),
    }
    return {name: backward(forward) for name, forward in encoders.items()}


def one(size: str, batch_size: int, image_size: int, name: str) -> Callable[[], object]:
    return contenders(size, batch_size, image_size)[name]


def main() -> None:
    args = arguments(str(__doc__), sizes=["atto", "tiny"], batch_size=8, image_size=224)
    rows: list[dict[str, object]] = []
    for size in args.sizes:
        seconds = alternate(contenders(size, args.batch_size, args.image_size), args.rounds)
        memory = {n: peak_memory(one, size, args.batch_size, args.image_size, n) for n in seconds if n.endswith("step")}
        for part, slow, fast in (
            ("encoder, against masked-dense", "masked-dense", "packed"),
            ("encoder, against dense", "dense", "packed"),
            ("whole step, against masked-dense", "masked-dense step", "packed step"),
        ):
            low, median, high = speed_up(seconds[slow], seconds[fast])
            row: dict[str, object] = {"size": size, "what": part, "milliseconds": min(seconds[fast]) * 1e3}
            row |= {"times as fast": median, "from": low, "to": high}
            row["memory ratio"] = memory[fast] / memory[slow] if fast in memory else "-"
            rows.append(row)
    report(rows, args.output)


if __name__ == "__main__":
    main()
