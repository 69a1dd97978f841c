"""A model whose answers are known."""

from types import SimpleNamespace

from torch import nn


class Given(nn.Module):
    """A classifier whose logits are the images themselves, with a configuration of these fields."""

    def __init__(self, **config):
        super().__init__()
        self.config = SimpleNamespace(**config)

    def forward(self, pixel_values):
        assert not self.training
        return SimpleNamespace(logits=pixel_values)
