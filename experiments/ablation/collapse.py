"""Whether features collapse (paper, section 3.1, Figures 3 and 4): how alike the channels of each block are, and how
many are dead.

B images, C channels: the 4C ones in the middle of a block, after GRN or after GELU without it.
"""

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from datasets import Dataset
from torch import Tensor

from training.evaluation.diversity import cosine_distances, wide_layers
from training.models.families import chosen_family
from training.models.hooks import hooked
from training.models.loading import FEATURES
from training.run.monitor import evaluating
from training.run.stored_models import load_processor, load_weights
from training.settings.model import ModelSettings

NUM_IMAGES = 64
DEAD_BELOW = 1e-2  # of the deviation of the channels of a block, in quadratic mean
DIVERSITY, DEAD = "diversity", "dead channels"


def dead_channels(features: Tensor) -> float:
    """The share of the channels of `(B, ..., C)` that hardly change over all positions of all images: dead ones, which
    are 0, and saturated ones.

    The deviation of such a channel is below 1 % of the quadratic mean over all channels.
    """
    variance = features.double().flatten(0, -2).var(dim=0, correction=0)
    return (variance <= DEAD_BELOW**2 * variance.mean()).double().mean().item()


def figures_by_block(encoder: Any, pixel_values: Tensor) -> dict[str, list[float]]:
    """Diversity (the mean cosine distance of the channels) and share of dead channels of each block, on whole images.

    Args:
        encoder: a model with `embeddings` and `encoder`.
    """
    blocks = [block for stage in encoder.encoder.stages for block in stage.layers]
    found: dict[str, list[float]] = {DIVERSITY: [], DEAD: []}

    def measure(features: Tensor) -> None:
        found[DIVERSITY].append(cosine_distances(features).mean().item())
        found[DEAD].append(dead_channels(features))

    with evaluating(encoder), hooked(wide_layers(encoder, blocks), measure):
        encoder(pixel_values)
    return found


def figures_of(folder: Path, images: Dataset, seed: int | None = None) -> dict[str, list[float]]:
    """`figures_by_block` of a stored pre-training model or checkpoint, on the first images, to four decimals.

    With a seed, of the same model at initial weights.
    """
    settings = ModelSettings(model_name_or_path=str(folder))
    family = chosen_family(settings)
    if seed is None:
        encoder = load_weights(family.model, settings, False, FEATURES)
    else:
        set_seed(seed)
        encoder = family.pretraining(family.pretraining_config.from_pretrained(folder)).base_model
    processor = load_processor(settings, None, encoder)
    pictures = [picture.convert("RGB") for picture in images[:NUM_IMAGES]["image"]]
    found = figures_by_block(encoder, processor(pictures, return_tensors="pt")["pixel_values"])
    return {name: [round(value, 4) for value in values] for name, values in found.items()}


def mean_of(figures: dict[str, list[float]], name: str) -> float:
    """The mean over the blocks."""
    return torch.tensor(figures[name], dtype=torch.float64).mean().item()
