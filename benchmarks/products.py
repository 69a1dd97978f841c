"""The matrix products of a block's MLP in float32 on a CPU: by MKL, as PyTorch calls it, and by oneDNN.

    python -m benchmarks.products --sizes atto tiny base --batch_size 8

For each stage: out and back of the 4C-wide middle, forwards with their biases and backwards without, on the rows that
the fused MLP works on at a time.
"""

from typing import Any

import torch
from torch import Tensor

from benchmarks.shared.measure import Call, Row, alternate, apart, parse_arguments, report, times_as_fast
from hf_convnextv2 import ConvNextV2Config
from hf_convnextv2.chunks import split_into_chunks
from hf_convnextv2.products import ONEDNN_LINEAR


def main() -> None:
    args = parse_arguments(str(__doc__), sizes=["atto", "tiny", "base"], batch_size=8, image_size=224)
    if ONEDNN_LINEAR is None:
        raise SystemExit("This PyTorch is built without oneDNN.")
    rows: list[Row] = []
    for size in args.sizes:
        rows += apart(compare, size, args.batch_size, args.image_size, args.rounds)
        print(*rows[-4:], sep="\n", flush=True)
    report(rows, args.output)


@torch.no_grad()
def compare(size: str, batch_size: int, image_size: int, rounds: int) -> list[Row]:
    """A row for each stage: how many times as fast oneDNN is."""
    config = ConvNextV2Config.from_size(size)
    found: list[Row] = []
    for dim, stride in zip(config.hidden_sizes, config.strides, strict=True):
        up, down = torch.randn(4 * dim, dim), torch.randn(dim, 4 * dim)
        groups = ((batch_size, (image_size // stride) ** 2),)
        num_rows = split_into_chunks(groups, up)[0].num_rows
        narrow, wide = torch.randn(num_rows, dim), torch.randn(num_rows, 4 * dim)
        products = {
            "up": (narrow, up, torch.randn(4 * dim)),
            "down": (wide, down, torch.randn(dim)),
            "back through down": (narrow, down.T, None),
            "back through up": (wide, up.T, None),
        }
        row: Row = {"size": size, "channels": dim, "rows": num_rows}
        for name, product in products.items():
            seconds = alternate({"MKL": by_mkl(*product), "oneDNN": by_onednn(*product)}, rounds, warm_up=3)
            row[f"{name}, times MKL"] = times_as_fast(seconds["MKL"], seconds["oneDNN"])
        found.append(row)
    return found


def by_mkl(x: Tensor, weight: Tensor, bias: Any) -> Call:
    """`x @ weight.T + bias` into memory that is there."""
    out = x.new_empty(len(x), len(weight))
    if bias is None:
        return lambda: torch.mm(x, weight.T, out=out)
    return lambda: torch.addmm(bias, x, weight.T, out=out)


def by_onednn(x: Tensor, weight: Tensor, bias: Any) -> Call:
    """The same in fresh memory, which is the only way."""
    return lambda: ONEDNN_LINEAR(x, weight, bias, "none", [], "")


if __name__ == "__main__":
    main()
