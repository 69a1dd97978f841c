"""The classifier in the three libraries, with the same architecture, and the calls that are timed."""

from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from benchmarks.shared.measure import Call
from hf_convnextv2 import ConvNextV2Config, ConvNextV2ForImageClassification
from hf_convnextv2.configuration_convnextv2 import V1_LAYER_SCALE

V1_BLOCKS: dict[str, Any] = {"use_grn": False, "layer_scale_init_value": V1_LAYER_SCALE}


def create_model(library: str, size: str, blocks: str = "V2") -> nn.Module:
    """A classifier of 1,000 classes with GRN switched on by non-zero weights: "ours", "transformers" or "timm".

    blocks: those of ConvNeXt "V2" or "V1", which has LayerScale and no GRN.
    """
    torch.manual_seed(0)
    v1 = V1_BLOCKS if blocks == "V1" else {}
    config = ConvNextV2Config.from_size(size, num_labels=1000, **v1)
    model: Any
    if library == "timm":
        import timm  # imported here: the GPU's benchmarks run without it

        model = timm.create_model(f"{'convnext' if v1 else 'convnextv2'}_{size}", num_classes=1000)
    elif library == "transformers":
        model = stock_classifier(config)
    else:
        model = ConvNextV2ForImageClassification(config)
    wake_grn(model)
    return model


def stock_classifier(config: ConvNextV2Config) -> Any:
    """Transformers' classifier of the same architecture, with random weights."""
    name = "ConvNext" if config.is_convnext_v1 else "ConvNextV2"
    stock_config = getattr(transformers, f"{name}Config").from_dict(config.to_dict())
    return getattr(transformers, f"{name}ForImageClassification")(stock_config)


def wake_grn(model: nn.Module) -> None:
    """Give GRN weights that are not zero: with zeros, its statistics would not matter."""
    for name, parameter in model.named_parameters():
        if ".grn." in name:
            nn.init.normal_(parameter, std=0.5)


def prepare(
    library: str,
    size: str,
    what: str,
    batch_size: int,
    image_size: int = 224,
    device: str = "cpu",
    dtype: str = "float32",
    compiled: bool = False,
    blocks: str = "V2",
) -> Call:
    """A call of "inference", of a "training" step without its optimizer, or of one with "checkpointing"."""
    model = create_model(library, size, blocks).to(device, getattr(torch, dtype))
    model.train(what != "inference")
    if what == "checkpointing":
        model.gradient_checkpointing_enable()  # type: ignore[operator]
    pixel_values = torch.randn(batch_size, 3, image_size, image_size, device=device, dtype=getattr(torch, dtype))
    labels = torch.arange(batch_size, device=device)
    forward: Any = torch.compile(model, fullgraph=True) if compiled else model

    def logits() -> Tensor:
        output = forward(pixel_values)
        return output if isinstance(output, Tensor) else output.logits

    def inference() -> None:
        with torch.inference_mode():
            logits()

    def training() -> None:
        F.cross_entropy(logits().float(), labels).backward()
        model.zero_grad()

    return inference if what == "inference" else training
