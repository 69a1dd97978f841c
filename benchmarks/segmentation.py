"""Training step of UPerNet on our backbone against Transformers' UPerNet on its own.

    python -m benchmarks.segmentation --cases atto:64 atto:512 --batch_size 2

A case is a size and the width of the decode head. The step is forward and backward with both heads and 150 classes.
"""

from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import ConvNextV2Config as StockConfig
from transformers import UperNetConfig
from transformers import UperNetForSemanticSegmentation as StockUperNet

from benchmarks.shared.measure import Call, Row, alternate, apart, parse_arguments, peak_memory, report, times_as_fast
from hf_convnextv2 import ConvNextV2Config
from hf_convnextv2.upernet import UperNetForSemanticSegmentation

CLASSES = 150  # of ADE20K
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def main() -> None:
    args = parse_arguments(
        str(__doc__), cases=["atto:64", "atto:512", "tiny:64"], image_size=512, batch_size=2, device="cpu"
    )
    rows: list[Row] = []
    for size, width in (case.split(":") for case in args.cases):
        settings = (int(width), args.batch_size, args.image_size, args.device)
        rows.append(apart(compare, size, settings, args.rounds))
        print(rows[-1], flush=True)
    report(rows, args.output)


def compare(size: str, settings: tuple[int, int, int, str], rounds: int) -> Row:
    """Compare with Transformers. `settings`: width of the head, batch size, image size and device."""
    cases = {library: (library, size, *settings) for library in ("ours", "transformers")}
    seconds = alternate({library: prepare(*case) for library, case in cases.items()}, rounds, warm_up=1)
    peaks = {library: peak_memory(prepare, *case) for library, case in cases.items()}
    row: Row = {"size": size, "head": settings[0], "batch": settings[1]}
    row["images/s"] = settings[1] / median(seconds["ours"])
    row["times Transformers"] = times_as_fast(seconds["transformers"], seconds["ours"])
    row["peak MiB"] = round(peaks["ours"])
    row["memory / Transformers'"] = peaks["ours"] / peaks["transformers"]
    return row


def prepare(library: str, size: str, width: int, batch_size: int, image_size: int, device: str) -> Call:
    """A call of a training step without its optimizer."""
    model: Any = create_model(library, size, width).to(device).train()
    pixel_values = torch.randn(batch_size, 3, image_size, image_size, device=device)
    labels = torch.randint(CLASSES, (batch_size, image_size, image_size), device=device)

    def training() -> None:
        model(pixel_values, labels=labels).loss.backward()
        model.zero_grad()

    return training


def create_model(library: str, size: str, width: int) -> nn.Module:
    """UPerNet on the backbone of a size."""
    torch.manual_seed(0)
    config = ConvNextV2Config.from_size(size)
    shape: dict[str, Any] = {"hidden_sizes": config.hidden_sizes, "depths": config.depths, "out_features": STAGES}
    backbone = StockConfig(**shape)
    heads: dict[str, Any] = {"hidden_size": width, "auxiliary_channels": width // 2, "num_labels": CLASSES}
    described = UperNetConfig(backbone_config=backbone, **heads)
    if library == "transformers":
        return StockUperNet(described)
    model = UperNetForSemanticSegmentation(described)
    model.loss_alone = True  # as in training
    return model


if __name__ == "__main__":
    main()
