"""What the reconstruction of a hidden cell depends on: its derivative by the pixels of the visible cells.

B images, C channels, H W height and width in pixels, h w the grid of cells, S side of a cell in pixels. The sensitivity
of a cell to another one is the sum of the squared derivatives of all its predicted pixels by all pixels of the other:
the squared Frobenius norm of a block of the Jacobian. It is estimated without bias by derivatives in random directions
of the prediction. With `norm_pix_loss` predictions and their derivatives are those of normalised pixels.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_convnextv2.masked_pretraining import MaskedPreTrainingModel
from training.analysis.drawing import save_context
from training.analysis.subject import Subject
from training.models.families import BY_MODEL_TYPE, chosen_family
from training.models.loading import NOTHING
from training.prediction.models import config_of_model, what_is
from training.run.stored_models import load_weights
from training.settings.analysis import CONTEXT
from training.settings.checks import check
from training.settings.model import ModelSettings

NUM_DIRECTIONS = 16
NUM_IMAGES, BATCH_SIZE = 16, 4  # images whose shares are averaged beside the photograph


class Context:
    """The shares of the visible cells in what the reconstruction of a hidden one depends on."""

    name = CONTEXT

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        stored = config_of_model(subject.settings.model)
        rule = f"hold a pre-training model that predicts pixels for context, but holds a {what_is(stored)}"
        check("model_name_or_path", subject.settings.model.model_name_or_path, can_reconstruct(stored), rule)
        self.photograph = subject.photograph
        self.model = load_pretraining_model(subject.settings.model, self.photograph.device)
        size, side = self.photograph.shape[-2:], self.model.config.cell_size
        fits = not any(length % side for length in size)
        check("image_size", tuple(size), fits, f"be a multiple of {side}, the size of a cell")
        self.grid = (size[0] // side, size[1] // side)
        self.cell = self.chosen_cell()
        self.noise = noise_that_hides(self.cell, self.grid, subject.seed).to(self.photograph.device)

    def chosen_cell(self) -> tuple[int, int]:
        """Row and column, from 0 on, of the hidden cell."""
        asked, (rows, columns) = self.subject.settings.analysis.hidden_cell, self.grid
        if asked is None:
            return rows // 2, columns // 2
        inside = asked[0] <= rows and asked[1] <= columns
        check("hidden_cell", asked, inside, f"be a cell of the grid of {rows} rows and {columns} columns")
        return asked[0] - 1, asked[1] - 1

    def measure(self) -> dict[str, Any]:
        """The shares by cell and by distance, as context.json has them."""
        visible = self.visible_cells()
        shares = self.shares_of(self.photograph)
        others = torch.cat([self.shares_of(images) for images in self.images()])
        return {
            "grid": list(self.grid),
            "cell_size": self.model.config.cell_size,
            "hidden_cell": [self.cell[0] + 1, self.cell[1] + 1],
            "visible": visible.tolist(),
            "photograph": {"shares": shares[0].tolist(), "by_distance": by_distance(shares[0], visible, self.cell)},
            "images": {"number": len(others), "by_distance": by_distance(others.mean(dim=0), visible, self.cell)},
        }

    def images(self) -> Iterator[Tensor]:
        """The images whose shares are averaged."""
        return self.subject.pixel_values(self.subject.encoder.processor, BATCH_SIZE, NUM_IMAGES)

    @torch.no_grad()
    def visible_cells(self) -> Tensor:
        """Which cells the encoder sees, `(h, w)` bool."""
        patches = self.model(self.photograph, noise=self.noise, return_loss=False).mask[0].cpu()
        patches_of_cell = self.model.config.cell_size // self.model.config.target_size
        rows, columns = self.grid
        return ~patches.bool().view(rows, patches_of_cell, columns, patches_of_cell)[:, 0, :, 0]

    def shares_of(self, pixel_values: Tensor) -> Tensor:
        """The share `(B, h, w)` of each cell of images `(B, C, H, W)` in the sum over the cells."""
        generator = torch.Generator().manual_seed(self.subject.seed)
        side, channels = self.model.config.cell_size, pixel_values.shape[1]
        signs = torch.randint(0, 2, (NUM_DIRECTIONS, channels, side, side), generator=generator) * 2.0 - 1
        noise = self.noise.expand(len(pixel_values), -1)
        found = sensitivities(self.model, pixel_values, noise, self.cell, signs.to(pixel_values.device)).cpu()
        return found / found.sum(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(found.dtype).tiny)

    def save_picture(self, found: dict[str, Any], file: Path) -> None:
        """Draw the photograph, what is visible, the shares of the cells, and those by distance."""
        save_context(self.photograph, self.subject.encoder.processor, found, file)

    def sentence(self, found: dict[str, Any]) -> str:
        """What was measured, in words."""
        rows = found["images"]["by_distance"]
        told = ", ".join(f"{row['share']:.0%} at distance {row['distance']}" for row in rows)
        row, column = found["hidden_cell"]
        return (
            f"The reconstruction of the hidden cell in row {row}, column {column} depends on visible cells, mean of "
            f"{found['images']['number']} images: {told} (in cells, along the longer of both ways)."
        )


def can_reconstruct(stored: dict[str, Any]) -> bool:
    """Whether a config.json is that of a pre-training model that predicts pixels."""
    is_pretraining = any(each.endswith("ForPreTraining") for each in stored.get("architectures") or [])
    has_pixels = stored.get("target_type", "pixel") != "feature"
    return stored.get("model_type") in BY_MODEL_TYPE and is_pretraining and has_pixels


def load_pretraining_model(settings: ModelSettings, device: torch.device) -> MaskedPreTrainingModel:
    """The model with its decoder, ready to be evaluated."""
    model: Any = load_weights(chosen_family(settings).pretraining, settings, False, NOTHING)
    return model.to(device).eval().requires_grad_(False)


def noise_that_hides(cell: tuple[int, int], grid: tuple[int, int], seed: int) -> Tensor:
    """Noise `(1, h * w)` of a random mask that hides a cell from the first view."""
    noise = torch.rand(grid, generator=torch.Generator().manual_seed(seed))
    noise[cell] = 2  # above all others
    return noise.view(1, -1)


def sensitivities(
    model: MaskedPreTrainingModel, pixel_values: Tensor, noise: Tensor, cell: tuple[int, int], directions: Tensor
) -> Tensor:
    """How much the reconstruction of a cell depends on each cell: `(B, h, w)`, summed over the directions.

    Args:
        pixel_values: prepared images `(B, C, H, W)`.
        noise: `(B, h * w)`, decides the masks; the reconstruction is that of the first view.
        cell: row and column, from 0 on.
        directions: `(D, C, S, S)`, of the predicted pixels. The unit vectors give the exact sum of squared derivatives;
            D of random signs give D times an unbiased estimate.
    """
    pixel_values = pixel_values.detach().clone().requires_grad_()
    num_images, _, height, width = pixel_values.shape
    side = model.config.cell_size
    logits = model(pixel_values, noise=noise, return_loss=False).logits[:num_images]
    top, left = cell[0] * side, cell[1] * side
    predicted = model.unpatchify(logits, (height, width))[..., top : top + side, left : left + side]
    energy = torch.zeros_like(pixel_values[:, 0])
    for direction in directions:
        (gradient,) = torch.autograd.grad((predicted * direction).sum(), pixel_values, retain_graph=True)
        energy += gradient.square().sum(dim=1)
    return energy.view(num_images, height // side, side, width // side, side).sum(dim=(2, 4))


def by_distance(shares: Tensor, visible: Tensor, cell: tuple[int, int]) -> list[dict[str, Any]]:
    """The sum of the shares `(h, w)` of the visible cells at each distance from a cell, and their number.

    The distance is the larger one of the differences of rows and of columns: that of a square window.
    """
    rows, columns = (torch.arange(length) for length in shares.shape)
    distances = torch.maximum((rows - cell[0]).abs()[:, None], (columns - cell[1]).abs())
    found = []
    for distance in distances[visible].unique().tolist():
        there = visible & (distances == distance)
        found.append(
            {"distance": distance, "visible_cells": int(there.sum()), "share": shares[there].double().sum().item()}
        )
    return found
