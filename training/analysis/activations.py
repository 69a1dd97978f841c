"""Activation maps of a photograph: the channels of some blocks as a grid of small maps (the paper's Figure 3)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.analysis.blocks import Block, chosen_blocks, last_of_stages
from training.analysis.drawing import save_activations
from training.analysis.subject import Subject
from training.evaluation.diversity import by_image, cosine_distances, wide_layers
from training.models.hooks import hooked
from training.settings.analysis import ACTIVATIONS


class Activations:
    """The widest features of some blocks, those of the MLP, for one photograph."""

    name = ACTIVATIONS

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        model, names = subject.encoder.model, subject.settings.analysis.blocks
        last = last_of_stages(chosen_blocks(model, ["all"], []))
        self.blocks = chosen_blocks(model, names, last[-2:-1] or last)
        self.photograph = subject.photograph

    def measure(self) -> dict[str, Any]:
        """The channels that are drawn, and their ranges, as activations.json has them."""
        self.maps = maps_of_blocks(self.subject.encoder.model, self.blocks, self.photograph)
        return {"blocks": [self.figures_of(block, maps) for block, maps in zip(self.blocks, self.maps, strict=True)]}

    def figures_of(self, block: Block, maps: Tensor) -> dict[str, Any]:
        """The figures of a block's maps `(C, H, W)`."""
        channels = spread(len(maps), self.subject.settings.analysis.max_channels)
        shown = maps[channels].flatten(1)
        return {
            "block": block.name,
            "num_channels": len(maps),
            "height": maps.shape[1],
            "width": maps.shape[2],
            "cosine_distance": cosine_distances(maps.permute(1, 2, 0)[None]).item(),
            "channels": channels,  # from 0 on
            "least": shown.amin(dim=1).tolist(),
            "largest": shown.amax(dim=1).tolist(),
        }

    def save_picture(self, found: dict[str, Any], file: Path) -> None:
        """Draw the photograph and a grid of maps for each block."""
        titles = [
            f"block {row['block']}: {len(row['channels'])} of {row['num_channels']} channels" for row in found["blocks"]
        ]
        maps = [each[row["channels"]].numpy() for each, row in zip(self.maps, found["blocks"], strict=True)]
        save_activations(self.photograph, self.subject.encoder.processor, titles, maps, file)

    def sentence(self, found: dict[str, Any]) -> str:
        """What was measured, in words."""
        told = ", ".join(f"{row['block']} ({row['cosine_distance']:.3f})" for row in found["blocks"])
        return f"Activation maps of the photograph, and the mean cosine distance of the channels, of block {told}."


@torch.no_grad()
def maps_of_blocks(model: Any, blocks: list[Block], photograph: Tensor) -> list[Tensor]:
    """The widest features of the blocks for a photograph `(1, C, H, W)`, as maps `(channels, h, w)` on the CPU."""
    found: list[Tensor] = []
    modules = wide_layers(model, [block.module for block in blocks])
    with hooked(modules, lambda features: found.append(by_image(features, model, photograph)[0].float().cpu())):
        hidden_states = model(photograph, output_hidden_states=True).hidden_states
    maps = []
    for block, features in zip(blocks, found, strict=True):
        height, width = hidden_states[block.stage].shape[-2:]
        maps.append(features.unflatten(0, (height, width)).permute(2, 0, 1))
    return maps


def spread(num_channels: int, most: int) -> list[int]:
    """Numbers of `most` channels at most, spread evenly over all."""
    count = min(num_channels, most)
    return [index * num_channels // count for index in range(count)]
