"""Eager inference and training step of the classifier against Transformers' own and timm's, float32, in one run.

python -m benchmarks.classifier --sizes atto tiny --batch_sizes 1 8
"""

from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from benchmarks.measure import alternate, parse_arguments, report, speed_up
from hf_convnextv2 import ConvNextV2Config, ConvNextV2ForImageClassification

LIBRARIES = ("ours", "transformers", "timm")


def create_model(library: str, size: str) -> nn.Module:
    """The same architecture, with 1,000 classes and GRN switched on by non-zero weights."""
    torch.manual_seed(0)
    config = ConvNextV2Config.from_size(size, num_labels=1000)
    if library == "timm":
        model: nn.Module = timm.create_model(f"convnextv2_{size}", num_classes=1000)
    elif library == "transformers":
        stock_config = transformers.ConvNextV2Config.from_dict(config.to_dict())
        model = transformers.ConvNextV2ForImageClassification(stock_config)
    else:
        model = ConvNextV2ForImageClassification(config)
    for name, parameter in model.named_parameters():
        if "grn" in name:
            nn.init.normal_(parameter, std=0.5)
    return model


def prepare(library: str, size: str, what: str, batch_size: int, image_size: int) -> Callable[[], object]:
    """A call of the forward pass, or of forward, backward and forgetting the gradients."""
    model, pixel_values = create_model(library, size), torch.randn(batch_size, 3, image_size, image_size)
    labels = torch.arange(batch_size)

    def logits() -> Tensor:
        output = model(pixel_values)
        return output if isinstance(output, Tensor) else output.logits

    def inference() -> None:
        with torch.inference_mode():
            logits()

    def training() -> None:
        F.cross_entropy(logits(), labels).backward()
        model.zero_grad()

    model.train(what == "training")
    return training if what == "training" else inference


def main() -> None:
    args = parse_arguments(str(__doc__), sizes=["atto", "tiny"], batch_sizes=[1, 8], image_size=224)
    rows: list[dict[str, object]] = []
    for size in args.sizes:
        for batch_size in args.batch_sizes:
            for what in ("inference", "training"):
                case = (size, what, batch_size, args.image_size)
                results = alternate({library: (prepare, library, *case) for library in LIBRARIES}, args.rounds)
                ours, stock = results["ours"], results["transformers"]
                row: dict[str, object] = {"size": size, "batch": batch_size, "what": what}
                row["images/s"] = batch_size / min(ours.seconds)
                row["times Transformers"] = speed_up(stock, ours)
                row["times timm"] = speed_up(results["timm"], ours)
                row["memory / Transformers'"] = ours.peak_memory / stock.peak_memory
                rows.append(row)
    report(rows, args.output)


if __name__ == "__main__":
    main()
