"""The cross-entropy of enlarged logits: the value and the gradients of enlarging first."""

import pytest
import torch
from torch.nn import functional as F

from hf_convnextv2 import enlarged_loss
from hf_convnextv2.enlarged_loss import enlarged_cross_entropy


def case(small=(4, 6), large=(17, 23), classes=5, dtype=torch.float32):
    torch.manual_seed(0)
    logits = (3 * torch.randn(2, classes, *small)).to(dtype).requires_grad_()
    labels = torch.randint(classes, (2, *large))
    labels[:, 0] = 255
    labels[0, :2, :1] = 255
    return logits, labels


def written_out(logits, labels):
    enlarged = F.interpolate(logits.double(), size=labels.shape[1:], mode="bilinear")
    return F.cross_entropy(enlarged, labels, ignore_index=255)


@pytest.mark.parametrize("chunk", [2**20, 5 * 23 * 4, 1])
@pytest.mark.parametrize(
    ("small", "large"), [((4, 6), (17, 23)), ((3, 3), (3, 3)), ((1, 1), (9, 4)), ((8, 8), (32, 32))]
)
def test_loss_and_gradient_are_those_of_enlarging_first(chunk, small, large, monkeypatch):
    monkeypatch.setattr(enlarged_loss, "CHUNK_SIZE", chunk)
    logits, labels = case(small, large)
    loss, expected = enlarged_cross_entropy(logits, labels, 255), written_out(logits, labels)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    (grad,), (wanted,) = torch.autograd.grad(2 * loss, logits), torch.autograd.grad(2 * expected, logits)
    torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-7)


def test_second_derivatives_are_right():
    logits, labels = case()
    found = []
    for loss in (enlarged_cross_entropy(logits, labels, 255), written_out(logits, labels)):
        (grad,) = torch.autograd.grad(loss, logits, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), logits)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-8)


def test_a_batch_without_a_known_pixel_has_the_loss_0_and_no_gradient():
    logits, labels = case()
    loss = enlarged_cross_entropy(logits, torch.full_like(labels, 255), 255)
    loss.backward()
    assert loss == 0 and not logits.grad.any()


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_summed_in_single(autocast):
    logits, labels = case(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = enlarged_cross_entropy(logits, labels, 255)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), written_out(logits, labels), rtol=1e-5, atol=1e-5)
    loss.backward()
    assert logits.grad.dtype == torch.bfloat16
