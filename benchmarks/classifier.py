"""Eager inference and training step of the classifier against Transformers' own and timm's, float32, in one run.

python -m benchmarks.classifier --sizes atto tiny --batch_sizes 1 8
"""

from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from benchmarks.measure import alternate, arguments, report, speed_up
from hf_convnextv2 import ConvNextV2Config, ConvNextV2ForImageClassification


def models(size: str) -> dict[str, nn.Module]:
    """The same architecture from each library, ours first, with GRN switched on by non-zero weights."""
    torch.manual_seed(0)
    ours = ConvNextV2ForImageClassification(ConvNextV2Config.from_size(size, num_labels=1000))
    for name, parameter in ours.named_parameters():
        if "grn" in name:
            nn.init.normal_(parameter, std=0.5)
    stock_config = transformers.ConvNextV2Config.from_dict(ours.config.to_dict())
    stock = transformers.ConvNextV2ForImageClassification(stock_config)
    stock.load_state_dict(ours.state_dict())
    peer = timm.create_model(f"convnextv2_{size}", num_classes=1000)
    return {"ours": ours, "transformers": stock, "timm": peer}


def logits(model: nn.Module, pixel_values: Tensor) -> Tensor:
    output = model(pixel_values)
    return output if isinstance(output, Tensor) else output.logits


def inference(model: nn.Module, pixel_values: Tensor) -> Callable[[], object]:
    model.eval()

    def call() -> None:
        with torch.inference_mode():
            logits(model, pixel_values)

    return call


def training(model: nn.Module, pixel_values: Tensor) -> Callable[[], object]:
    model.train()
    labels = torch.arange(len(pixel_values))

    def call() -> None:
        model.zero_grad()
        F.cross_entropy(logits(model, pixel_values), labels).backward()

    return call


def main() -> None:
    args = arguments(str(__doc__), sizes=["atto", "tiny"], batch_sizes=[1, 8], image_size=224)
    rows: list[dict[str, object]] = []
    for size in args.sizes:
        peers = models(size)
        for batch_size in args.batch_sizes:
            pixel_values = torch.randn(batch_size, 3, args.image_size, args.image_size)
            for what, mode in (("inference", inference), ("training", training)):
                seconds = alternate({name: mode(model, pixel_values) for name, model in peers.items()}, args.rounds)
                row: dict[str, object] = {"size": size, "batch": batch_size, "what": what}
                row["images/s"] = batch_size / min(seconds["ours"])
                for peer in ("transformers", "timm"):
                    low, median, high = speed_up(seconds[peer], seconds["ours"])
                    row[f"times {peer}"] = f"{median:.2f} ({low:.2f} to {high:.2f})"
                rows.append(row)
    report(rows, args.output)


if __name__ == "__main__":
    main()
