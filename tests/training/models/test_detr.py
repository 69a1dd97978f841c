"""Transformers' own detectors on a backbone of this package."""

from dataclasses import replace

import pytest
import torch
from torch.nn.modules.module import Module

from tests.photographs import message_of
from training.models.detection import create_detector
from training.models.detr import HYBRID
from training.settings.model import DetectorSettings


@pytest.mark.parametrize("architecture", HYBRID)
@pytest.mark.parametrize("size", [64, 36, 72, 60, 80])
def test_sizes_whose_maps_do_not_double_are_refused(architecture, size):
    """What Transformers computes with them ends in an error about shapes, which is the control."""
    settings = DetectorSettings(image_size=size, architecture=architecture, decoder_hidden_size=32)
    if size in (64, 36):
        create_detector(settings, ["a"]).eval()(pixel_values=torch.zeros((1, 3, size, size)))
        return
    message = message_of(lambda: create_detector(settings, ["a"]))
    assert message.startswith(f"`image_size` (={size}) must give `architecture` {architecture} maps each twice")
    model = create_detector(replace(settings, image_size=64), ["a"]).eval()
    with pytest.raises(RuntimeError):
        model(pixel_values=torch.zeros((1, 3, size, size)))


def loss_and_gradients(model: Module, count: int) -> tuple[float, set[str]]:
    """The loss of two images with `count` objects each, and the names of the parameters that get a gradient."""
    torch.manual_seed(1)  # of the noise
    images = torch.randn((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    label = {"class_labels": torch.zeros(count, dtype=torch.int64), "boxes": torch.full((count, 4), 0.3)}
    model.zero_grad(set_to_none=True)
    loss = model(pixel_values=images, labels=[label, label]).loss
    loss.backward()
    return loss.item(), {name for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("architecture", HYBRID)
def test_every_parameter_has_a_gradient_in_a_batch_without_objects_as_ddp_needs(architecture):
    model = create_detector(DetectorSettings(image_size=64, architecture=architecture, decoder_hidden_size=32), ["a"])
    model.train()
    for module in model.modules():  # the same statistics and paths in each call
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    ours = {count: loss_and_gradients(model, count) for count in (2, 0)}
    assert ours[0][1] == ours[2][1] == {name for name, weight in model.named_parameters() if weight.requires_grad}
    model._forward_hooks.clear()  # Transformers' own
    stock = {count: loss_and_gradients(model, count) for count in (2, 0)}
    assert [loss for loss, _ in ours.values()] == [loss for loss, _ in stock.values()]
    assert ours[0][1] - stock[0][1] == {"model.denoising_class_embed.weight"}  # the control
