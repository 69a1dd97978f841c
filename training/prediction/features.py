"""Computes the features of images: pooled maps of one or several stages of an encoder, or the maps themselves."""

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import normalize

from training.data.transforms import EvaluationTransform
from training.prediction.batches import Batch
from training.prediction.encoders import StoredEncoder
from training.prediction.parts import Answer
from training.prediction.pooling import PooledMaps
from training.settings.embedding import FeatureSettings

POOLED = "features"  # the column of pooled features; those of maps are `stage_3`, `stage_4` ...
BLANK = 64  # side in pixels of the image that shows which shapes the features have


class FeatureAnswers:
    """The features of an image: float arrays by their column.

    Pooled features are one vector: those of the first stage in the order of `pooling`, then those of the next one.
    """

    stacks = True

    def __init__(self, encoder: StoredEncoder, settings: FeatureSettings) -> None:
        self.read = PooledMaps(settings, encoder.num_stages)
        self.stages, self.is_pooled = self.read.stages, settings.is_pooled
        self.normalizes, self.dtype = settings.normalize, settings.dtype
        self.transform = EvaluationTransform(encoder.processor)
        self.shapes = self.shapes_of(encoder)

    @torch.no_grad()
    def shapes_of(self, encoder: StoredEncoder) -> dict[str, tuple[int, ...]]:
        """The shape of an image's features in each column, by computing those of a blank image."""
        blank = torch.zeros(encoder.num_channels, BLANK, BLANK, dtype=torch.uint8)
        columns = self.embed(encoder.model.eval(), self.transform(blank)[None])
        return {name: tuple(values.shape[1:]) for name, values in columns.items()}

    def __call__(self, accelerator: Accelerator, model: nn.Module, batch: Batch) -> list[Answer]:
        with accelerator.autocast():
            computed = self.embed(model, batch["pixel_values"].to(accelerator.device))
        columns = {name: values.cpu().numpy() for name, values in computed.items()}
        return [self.answer(dict(zip(columns, each, strict=True))) for each in zip(*columns.values(), strict=True)]

    def embed(self, model: nn.Module, pixel_values: Tensor) -> dict[str, Tensor]:
        """The features by their column, `(B, D)` or `(B, C, H, W)`, of prepared images."""
        maps = self.read.maps(model, pixel_values)
        columns = {f"stage_{stage}": each for stage, each in zip(self.stages, maps, strict=True)}
        if self.is_pooled:
            columns = {POOLED: self.read.pool(maps)}
        if self.normalizes:
            columns = {name: normalize(values, dim=1) for name, values in columns.items()}
        return {name: values.to(getattr(torch, self.dtype)) for name, values in columns.items()}

    def answer(self, columns: dict[str, np.ndarray]) -> Answer:
        """The answer to an image: an error if its features are no numbers, which would spoil every search."""
        if all(np.isfinite(values).all() for values in columns.values()):
            return dict[str, Any](columns)
        return {"error": f"has features that are infinite or not a number in {self.dtype}"}
