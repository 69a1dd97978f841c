"""Frozen features of every layer: k nearest neighbours and a linear probe, by block and pooling, on labelled images."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.analysis.blocks import Block, all_blocks, chosen_blocks, last_of_stages, outputs_seen
from training.analysis.drawing import save_layers
from training.analysis.subject import Subject
from training.comparison.frozen import (
    NEIGHBOURS,
    PROBE,
    Features,
    features_by,
    frozen_answers,
    pixel_answers,
    pixel_statistics,
)
from training.comparison.images import load_labelled
from training.comparison.intervals import balanced_mean
from training.console.bars import Phase
from training.prediction.pooling import pools_of
from training.settings.analysis import LAYERS, AnalyzeSettings
from training.settings.comparison import CompareDataSettings
from training.settings.pooling import PoolingSettings

METHODS = (PROBE, NEIGHBOURS)
# Of the images, what both analyses of labelled and of other images share.
SHARED = (
    "dataset_name",
    "dataset_config_name",
    "dataset_revision",
    "image_column",
    "background",
    "num_workers",
    "seed",
)


class Layers:
    """The accuracies of methods without fine-tuning on the pooled outputs of blocks."""

    name = LAYERS

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        model, settings = subject.encoder.model, subject.settings
        self.blocks = chosen_blocks(model, settings.analysis.blocks, last_of_stages(all_blocks(model)))
        self.images = load_labelled(labelled_data(settings), subject.encoder.num_channels)

    def measure(self) -> dict[str, Any]:
        """The accuracies of every block, pooling and method, as layers.json has them."""
        model, processor = self.subject.encoder
        poolings, splits = self.subject.settings.layers.pooling, {"train": self.images.train, "test": self.images.test}
        embed = partial(pooled_outputs, blocks=self.blocks, pools=pools_of(PoolingSettings(pooling=poolings)))
        found = features_by(model, processor, splits, self.subject.settings.data.num_workers, embed)
        names = [(block.name, pooling) for block in self.blocks for pooling in poolings]
        rows = []
        with Phase("Fitting", len(names), " layers") as phase:
            for (block, pooling), features in zip(names, self.divided(found, len(poolings)), strict=True):
                answers = frozen_answers(features, self.everything, self.subject.seed)
                figures = {method: self.figures_of(answers[method]) for method in METHODS}
                rows.append({"block": block, "pooling": pooling, "features": features["train"][0].shape[1], **figures})
                phase.update(1)
        return {
            "images": {
                "train": len(self.images.train),
                "test": len(self.images.test),
                "held_out": self.images.held_out,
                "classes": self.images.names,
            },
            "layers": rows,
            "pixels": self.figures_of(self.answers_by_pixels()),
        }

    @property
    def everything(self) -> np.ndarray:
        """The numbers of all images to fit on."""
        return np.arange(len(self.images.train))

    def divided(self, features: Features, num_poolings: int) -> list[Features]:
        """The features of each block and pooling, out of those of all together."""
        widths = [width for width in self.widths for _ in range(num_poolings)]
        parts = {split: values.split(widths, dim=1) for split, (values, _) in features.items()}
        return [
            {split: (parts[split][index], labels) for split, (_, labels) in features.items()}
            for index in range(len(widths))
        ]

    @property
    def widths(self) -> list[int]:
        """The channels of each block's output."""
        hidden_sizes = self.subject.encoder.model.config.hidden_sizes
        return [hidden_sizes[block.stage - 1] for block in self.blocks]

    def answers_by_pixels(self) -> np.ndarray:
        """The answers of a control: a logistic regression on the mean, deviation and histogram of the pixels."""
        channels = self.subject.encoder.num_channels
        splits = {"train": self.images.train, "test": self.images.test}
        found = {split: pixel_statistics(images, channels) for split, images in splits.items()}
        return pixel_answers(found, self.everything, self.subject.seed)

    def figures_of(self, answers: np.ndarray) -> dict[str, float]:
        """Both accuracies of predicted classes."""
        labels = np.array(self.images.test["label"][:])
        right = (answers == labels).astype(float)
        return {"accuracy": float(right.mean()), "balanced_accuracy": balanced_mean(labels, right)}

    def save_picture(self, found: dict[str, Any], file: Path) -> None:
        """Draw the balanced accuracy of each method against the blocks."""
        save_layers(found, METHODS, file)

    def sentence(self, found: dict[str, Any]) -> str:
        """What was measured, in words."""
        lines = []
        for method in METHODS:
            best = max(found["layers"], key=lambda row: row[method]["balanced_accuracy"])
            accuracy = best[method]["balanced_accuracy"]
            lines.append(f"- {method}: {accuracy:.1%} at most, with block {best['block']}, {best['pooling']}")
        pixels = found["pixels"]["balanced_accuracy"]
        lines.append(f"- control, a logistic regression on statistics of the pixels: {pixels:.1%}")
        return "\n".join([f"Balanced accuracy on frozen features, {self.images.held_out}:", *lines])


def labelled_data(settings: AnalyzeSettings) -> CompareDataSettings:
    """The settings with which the labelled images are read."""
    data, layers = settings.data, settings.layers
    shared = {name: getattr(data, name) for name in SHARED}
    names = ("label_column", "train_split", "eval_split", "train_val_split")
    return CompareDataSettings(**shared, **{name: getattr(layers, name) for name in names})


def pooled_outputs(
    model: nn.Module, pixel_values: Tensor, blocks: list[Block], pools: list[Callable[[Tensor], Tensor]]
) -> Tensor:
    """The outputs of the blocks, pooled in each way, one after the other: `(B, all of their features)`."""
    found: list[Tensor] = []

    def see(features: Tensor) -> None:
        maps = features.float().mT[..., None]  # (B, C, N, 1)
        found.extend(pool(maps) for pool in pools)

    with outputs_seen(model, blocks, pixel_values, see):
        model(pixel_values)
    return torch.cat(found, dim=1)
