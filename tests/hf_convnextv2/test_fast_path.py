"""Parameters are read past the modules only where a call gives the same: a change to a model counts, as in stock."""

import pytest
import torch
import transformers
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from hf_convnextv2 import ConvNextV2ForImageClassification
from hf_convnextv2.precision import cast_for_autocast
from tests.small_models import assert_close, awake, difference, small_config

STAGE = "convnextv2.encoder.stages.1"
BLOCK = f"{STAGE}.layers.0"


def both():
    """Transformers' classifier and ours with the same weights."""
    config = small_config(num_labels=7)
    ours = awake(ConvNextV2ForImageClassification(config)).train()
    stock_config = transformers.ConvNextV2Config.from_dict(config.to_dict())
    stock = transformers.ConvNextV2ForImageClassification(stock_config).train()
    stock.load_state_dict(ours.state_dict())
    return stock, ours


def replace(model, name, make):
    parent, _, child = name.rpartition(".")
    torch.manual_seed(0)
    setattr(model.get_submodule(parent), child, make(model.get_submodule(name)))


def set_fields(name, **fields):
    return lambda model: [setattr(model.get_submodule(name), field, value) for field, value in fields.items()]


def circular(conv):
    new = nn.Conv2d(conv.in_channels, conv.out_channels, 7, padding=3, groups=conv.groups, padding_mode="circular")
    new.load_state_dict(conv.state_dict())
    return new


EDITS = {
    "a stride of one": set_fields(f"{STAGE}.downsampling_layer.1", stride=(1, 1)),
    "a dilation": set_fields(f"{BLOCK}.dwconv", dilation=(2, 2), padding=(6, 6)),
    "a dilation between stages": set_fields(f"{STAGE}.downsampling_layer.1", dilation=(2, 2)),
    "circular padding": lambda model: replace(model, f"{BLOCK}.dwconv", circular),
    "an overlapping downsampling": lambda model: replace(
        model, f"{STAGE}.downsampling_layer.1", lambda conv: nn.Conv2d(conv.in_channels, conv.out_channels, 3, 2, 1)
    ),
    "a smaller kernel": lambda model: replace(
        model, f"{BLOCK}.dwconv", lambda conv: nn.Conv2d(*2 * [conv.in_channels], 4, padding="same", groups=conv.groups)
    ),
    "a norm without parameters": lambda model: replace(
        model, f"{BLOCK}.layernorm", lambda norm: nn.LayerNorm(norm.normalized_shape, elementwise_affine=False)
    ),
    "a norm without a bias": lambda model: replace(
        model, f"{BLOCK}.layernorm", lambda norm: nn.LayerNorm(norm.normalized_shape, bias=False)
    ),
    "a linear layer without a bias": lambda model: replace(
        model, f"{BLOCK}.pwconv1", lambda linear: nn.Linear(linear.in_features, linear.out_features, bias=False)
    ),
    "a convolution without a bias": lambda model: replace(
        model, f"{BLOCK}.dwconv", lambda conv: nn.Conv2d(*2 * [conv.in_channels], 7, 1, 3, 1, conv.groups, bias=False)
    ),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("edit", EDITS)
def test_a_changed_layer_computes_what_stocks_changed_layer_computes(edit, grad):
    stock, ours = both()
    pixel_values = torch.randn(2, 3, 64, 96)
    with torch.set_grad_enabled(grad):
        before = ours(pixel_values).logits
        for model in (stock, ours):
            EDITS[edit](model)
        expected, found = stock(pixel_values).logits, ours(pixel_values).logits
    assert_close(found, expected)
    assert difference(found.detach(), before.detach()) > 1e-3  # the control: the edit does something
    if grad:
        expected.square().sum().backward()
        found.square().sum().backward()
        for (name, parameter), other in zip(ours.named_parameters(), stock.parameters(), strict=True):
            assert difference(parameter.grad, other.grad) < 1e-4, name


@pytest.mark.parametrize("grad", [True, False])
def test_a_hook_of_all_modules_sees_and_changes_what_it_does_in_stock(grad):
    stock, ours = both()
    pixel_values = torch.randn(2, 3, 64, 64)
    calls = []

    def halve(module, _, output):
        calls.append(module)
        return output / 2 if isinstance(module, nn.Linear) else None

    found, linears = [], []
    with torch.set_grad_enabled(grad):
        plain = ours(pixel_values).logits
        handle = register_module_forward_hook(halve)
        for model in (stock, ours):
            calls.clear()
            found.append(model(pixel_values).logits.detach())
            linears.append(sum(isinstance(module, nn.Linear) for module in calls))
        handle.remove()
    assert_close(found[1], found[0])
    assert linears[0] == linears[1] > 1
    assert difference(found[1], plain.detach()) > 1e-2


class Logits(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values).logits


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("grad", [True, False])
def test_a_trace_holds_for_other_batches_than_its_example(grad, monkeypatch):
    monkeypatch.setattr("hf_convnextv2.chunks.CHUNK_SIZE", 1000)  # images are worked on one after the other
    _, ours = both()
    ours.eval()
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(Logits(ours), torch.randn(4, 3, 64, 64))
        for batch in (1, 2, 4, 9):
            pixel_values = torch.randn(batch, 3, 64, 64)
            assert_close(traced(pixel_values), ours(pixel_values).logits)


def test_no_images_give_no_logits_and_no_gradients():
    _, ours = both()
    logits = ours(torch.randn(0, 3, 64, 64)).logits
    assert logits.shape == (0, 7)
    logits.sum().backward()
    assert all(not parameter.grad.any() for parameter in ours.parameters() if parameter.grad is not None)
    with torch.no_grad():
        assert ours(torch.randn(0, 3, 64, 64)).logits.shape == (0, 7)


def test_shapes_are_known_without_data():
    _, ours = both()
    assert ours.to("meta")(torch.randn(2, 3, 64, 64, device="meta")).logits.shape == (2, 7)


def test_autocast_leaves_float64_alone():
    with torch.autocast("cpu", torch.bfloat16):
        kinds = [torch.float64, torch.float32, torch.bfloat16]
        found = cast_for_autocast(*(torch.zeros(1, dtype=kind) for kind in kinds))
    assert [tensor.dtype for tensor in found if tensor is not None] == [torch.float64, torch.bfloat16, torch.bfloat16]
