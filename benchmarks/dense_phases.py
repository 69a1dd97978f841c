"""What the parts of a training step of UPerNet and of Mask R-CNN cost: backbone, neck, heads and loss.

    python -m benchmarks.dense_phases --cases atto tiny --image_size 512 --batch_size 2

A part's cost is the difference between a step, forward and backward, that ends with it and one that ends before it. The
region proposals' own loss is counted with them.
"""

from collections.abc import Iterable
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torchvision.models.detection import roi_heads
from transformers import UperNetConfig

from benchmarks.shared.detectors import STAGES, as_detr_labels, objects_of, our_mask_rcnn
from benchmarks.shared.measure import Call, Row, alternate, apart, parse_arguments, report
from benchmarks.shared.products import products_of
from hf_convnextv2 import ConvNextV2Config
from hf_convnextv2.modeling_rcnn import torchvision_target
from hf_convnextv2.upernet import UperNetForSemanticSegmentation

CLASSES = 150  # of ADE20K
UPERNET_WIDTH = 512
PRODUCTS = "matrix products and convolutions alone"  # of the whole step


def main() -> None:
    args = parse_arguments(str(__doc__), cases=["atto", "tiny"], image_size=512, batch_size=2, device="cpu")
    rows: list[Row] = []
    for size in args.cases:
        for prepare in (upernet_parts, mask_rcnn_parts):
            rows += apart(measure, prepare, size, args.batch_size, args.image_size, args.device, args.rounds)
            print(rows[-1], flush=True)
    report(rows, args.output)


def measure(prepare: Any, size: str, batch_size: int, image_size: int, device: str, rounds: int) -> list[Row]:
    """A row for each part of a step, and one for the products of all: seconds and share."""
    calls = prepare(size, batch_size, image_size, device)
    calls[PRODUCTS] = products_of(list(calls.values())[-1])
    until = {name: median(spent) for name, spent in alternate(calls, rounds, warm_up=1).items()}
    products = until.pop(PRODUCTS)
    before, whole, costs = 0.0, list(until.values())[-1], {}
    for name, spent in until.items():
        costs[name], before = spent - before, spent
    model = "UPerNet" if prepare is upernet_parts else "Mask R-CNN"
    return [
        {"model": model, "size": size, "part": name, "seconds": spent, "share": spent / whole}
        for name, spent in {**costs, PRODUCTS: products}.items()
    ]


def upernet_parts(size: str, batch_size: int, image_size: int, device: str) -> dict[str, Call]:
    """Calls of steps that end with each part of UPerNet."""
    backbone = ConvNextV2Config.from_size(size, out_features=STAGES)
    described: dict[str, Any] = {"hidden_size": UPERNET_WIDTH, "num_labels": CLASSES}
    model: Any = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, **described))
    model = model.to(device).train()
    model.loss_alone = True
    pixel_values = torch.randn(batch_size, 3, image_size, image_size, device=device)
    labels = torch.randint(CLASSES, (batch_size, image_size, image_size), device=device)

    def maps() -> Any:
        return model.backbone(pixel_values).feature_maps

    def neck() -> list[Tensor]:
        return model.decode_head.pyramid(maps())

    def heads() -> list[Tensor]:
        found = maps()
        return [model.decode_head(found), model.auxiliary_head(found)]

    def loss() -> list[Tensor]:
        return [model(pixel_values, labels=labels).loss]

    parts = {"backbone": maps, "pyramid": neck, "heads": heads, "loss": loss}
    return {name: step(model, part) for name, part in parts.items()}


def mask_rcnn_parts(size: str, batch_size: int, image_size: int, device: str) -> dict[str, Call]:
    """Calls of steps that end with each part of Mask R-CNN."""
    model: Any = our_mask_rcnn(size)
    model = model.to(device).train()
    pixel_values = torch.randn(batch_size, 3, image_size, image_size, device=device)
    labels = as_detr_labels(objects_of(batch_size, image_size, device), image_size)
    shape = (image_size, image_size)

    def maps() -> Any:
        return model.backbone(pixel_values).feature_maps

    def pyramids() -> list[Any]:
        return model.pyramids(pixel_values, [shape] * batch_size)

    def neck() -> list[Tensor]:
        return [map_ for pyramid in pyramids() for map_ in pyramid.values()]

    def regions() -> list[Tensor]:
        losses: list[Tensor] = []
        for pyramid, label in zip(pyramids(), labels, strict=True):
            target = torchvision_target(label, *shape, shape)
            losses += model.rpn(model.image_list(pyramid, shape), pyramid, [target])[1].values()
        return losses

    def loss() -> list[Tensor]:
        return [model(pixel_values, labels=labels).loss]

    def heads() -> list[Tensor]:
        with (
            mock.patch.object(roi_heads, "fastrcnn_loss", lambda logits, boxes, *_: (logits.mean(), boxes.mean())),
            mock.patch.object(roi_heads, "maskrcnn_loss", lambda logits, *_: logits.mean()),
        ):
            return loss()

    parts = {"backbone": maps, "pyramid": neck, "region proposals": regions, "heads for boxes and masks": heads}
    return {name: step(model, part) for name, part in {**parts, "losses of the heads": loss}.items()}


def step(model: Any, part: Any) -> Call:
    """A step whose loss is the mean of what the part gives."""

    def call() -> None:
        found: Iterable[Tensor] = part()
        torch.stack([each.mean() for each in found]).sum().backward()
        model.zero_grad()

    return call


if __name__ == "__main__":
    main()
