"""What `correct` compares: small models with every parameter awake, their inputs, and other code for the same loss."""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.shared.classifiers import stock_classifier, wake_grn
from hf_convnextv2 import (
    ConvMAEConfig,
    ConvMAEForPreTraining,
    ConvNextV2Config,
    ConvNextV2FCMAEConfig,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
)
from tests import masked_dense

NUM_CLASSES = 100
NUM_SETS = 4
ONE_BLOCK_A_STAGE = [1, 1, 1, 1]
AWAKE_LAYER_SCALE = (0.05, 0.5)  # least and greatest
Loss = Callable[[Any, dict[str, Tensor]], Tensor]


class Subject(NamedTuple):
    """A model in float32 on the processor, its inputs, and its peer: another model, or other code on its parameters."""

    name: str
    model: Any
    inputs: dict[str, Tensor]
    peer_name: str = ""
    peer: Any = None
    peer_loss: Loss | None = None


def model_loss(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    return model(**inputs).loss


def fcmae(settings: argparse.Namespace, size: str, **overrides: Any) -> Subject:
    """FCMAE on one view; with `num_visible_sets` on several, with `feature_target_dim` and a teacher's features."""
    torch.manual_seed(0)
    model: Any = awake(ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig.from_size(size, **overrides)))
    batch, side = settings.correct_batch, settings.correct_image_size
    grid = side // model.config.cell_size
    inputs = {"pixel_values": torch.randn(batch, 3, side, side), "noise": torch.rand(batch, grid * grid)}
    if model.config.feature_target_dim is not None:
        inputs["feature_targets"] = torch.randn(batch, model.config.feature_target_dim, grid, grid)
    name = f"FCMAE {size}"
    if model.config.num_visible_sets > 1:
        name += f", {model.config.num_visible_sets} views"
    if model.config.feature_target_dim is not None:
        name += ", a teacher's features"
    return Subject(name, model, inputs, "masked-dense", model, masked_dense_loss)


def convmae(settings: argparse.Namespace) -> Subject:
    torch.manual_seed(0)
    model: Any = ConvMAEForPreTraining(ConvMAEConfig.from_size("tiny", image_size=settings.correct_image_size))
    batch, side = settings.correct_batch, settings.correct_image_size
    noise = torch.rand(batch, (side // model.config.cell_size) ** 2)
    return Subject("ConvMAE tiny", awake(model), {"pixel_values": torch.randn(batch, 3, side, side), "noise": noise})


def classifier(settings: argparse.Namespace, size: str, **overrides: Any) -> Subject:
    """The classifier, of V2's or V1's blocks, next to that of Transformers with the same weights."""
    torch.manual_seed(0)
    config = ConvNextV2Config.from_size(size, num_labels=NUM_CLASSES, **overrides)
    model: Any = awake(ConvNextV2ForImageClassification(config))
    stock = stock_classifier(config)
    stock.load_state_dict(
        {name.replace(model.base_model_prefix, stock.base_model_prefix): t for name, t in model.state_dict().items()}
    )
    batch, side = settings.correct_batch, settings.correct_image_size
    inputs = {"pixel_values": torch.randn(batch, 3, side, side), "labels": torch.arange(batch)}
    name = f"classifier {size}" + (", V1's blocks" if config.is_convnext_v1 else "")
    return Subject(name, model, inputs, "Transformers", stock.eval(), model_loss)


def awake(model: Any) -> Any:
    """The model with weights of GRN that are not zero, and a LayerScale that lets the blocks count, for inference."""
    wake_grn(model)
    for name, parameter in model.named_parameters():
        if name.endswith("layer_scale_parameter"):
            nn.init.uniform_(parameter, *AWAKE_LAYER_SCALE)
    return model.eval()


def masked_dense_loss(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """The loss of a `ConvNextV2ForPreTraining`, one set of visible cells after the other, by plain dense code."""
    pixel_values = inputs["pixel_values"]
    masked, _ = model.random_masking(inputs["noise"])
    total = pixel_values.new_zeros(())
    for of_set in masked.split(len(pixel_values)):
        maps = masked_dense.encode(model, pixel_values, of_set)
        loss = masked_dense.loss(model, pixel_values, masked_dense.decode(model, maps[-1], of_set), of_set)
        total = total + loss * of_set.sum() / masked.sum()
        if "feature_targets" in inputs:
            total = total + feature_loss(model, maps[-1], inputs["feature_targets"], ~of_set)
    return total


def feature_loss(model: Any, features: Tensor, targets: Tensor, visible: Tensor) -> Tensor:
    """Smooth L1 error of the features that the encoder's head gives of the visible cells of one set."""
    head = model.decoder.pred_feature
    predicted = F.linear(features.permute(0, 2, 3, 1), head.weight, head.bias).flatten(1, 2)
    return model.config.feature_loss_weight * F.smooth_l1_loss(predicted[visible], targets.flatten(2).mT[visible])
