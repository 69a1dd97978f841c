"""A pre-trained model paints the cells of a visitor's picture that it does not see."""

from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageColor
from transformers import AutoModelForPreTraining

from hf_convnextv2 import to_image
from hf_convnextv2.cell_mask import random_masking
from hf_convnextv2.shared_config import PreTrainingConfig

from .loading import load
from .pictures import open_picture, to_pixel_values
from .settings import FLAGS, PRETRAINED

HIDDEN = "#808080"
LARGEST_SEED = 2**32 - 1


class Reconstruction(NamedTuple):
    """Three pictures of the size that the model gets, and how many of its cells the encoder saw."""

    visible: Image.Image
    painted: Image.Image
    original: Image.Image
    num_visible: int
    num_cells: int


class Reconstructor:
    """The FCMAE or ConvMAE model of a folder or Hub id.

    Raises:
        ValueError: if it is another model, or predicts features alone, which nobody could see.
    """

    def __init__(self, name: str) -> None:
        kind = "a pre-trained model with its decoder (FCMAE or ConvMAE)"
        settings = (PRETRAINED, name, AutoModelForPreTraining, "ForPreTraining", kind, PreTrainingConfig)
        # One set: a visitor chooses how many cells are hidden, which complementary sets leave no choice of.
        self.loaded = load(*settings, num_visible_sets=1)
        config = self.loaded.model.config
        if config.target_type == "feature":
            asked = f"`{PRETRAINED}` or `{FLAGS[PRETRAINED]}` (={name})"
            raise ValueError(f"{asked} must predict pixels, but predicts features alone.")
        self.mask_ratio: float = self.loaded.config.mask_ratio  # as stored: that of all sets
        self.cell_size: int = config.cell_size
        self.is_normalised: bool = config.norm_pix_loss

    @torch.inference_mode()
    def __call__(self, file: str | Path | None, mask_ratio: float, seed: int) -> Reconstruction:
        """Hide a share of the cells of a picture, drawn by the seed, and paint them.

        Raises:
            BadPictureError: if the file is no picture that can be used.
            ValueError: if the share leaves no visible or no hidden cell, or the seed is not one.
        """
        if not 0 <= seed <= LARGEST_SEED:
            raise ValueError(f"The seed (={seed}) must be between 0 and {LARGEST_SEED}.")
        model, processor = self.loaded.model, self.loaded.processor
        pixel_values = to_pixel_values(open_picture(file, processor, self.loaded.num_channels), processor)
        height, width = (side // self.cell_size for side in pixel_values.shape[2:])
        noise = torch.rand(1, height * width, generator=torch.Generator().manual_seed(seed))
        masked, _ = random_masking(noise, 1, mask_ratio)
        pixel_values = pixel_values.to(model.device)
        outputs = model(pixel_values, bool_masked_pos=masked.to(model.device), return_loss=False)
        painted = model.reconstruct(pixel_values, outputs.logits, outputs.mask)
        (original,), (filled,) = to_image(pixel_values, processor), to_image(painted, processor)
        hidden = masked.view(height, width).repeat_interleave(self.cell_size, 0).repeat_interleave(self.cell_size, 1)
        visible = original.copy()
        visible.paste(ImageColor.getcolor(HIDDEN, visible.mode), mask=Image.fromarray(255 * hidden.byte().numpy()))
        return Reconstruction(visible, filled, original, int((~masked).sum()), masked.numel())
