"""Transformers' image processors with the settings that the models are trained and measured with, and their inverse."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import ConvNextImageProcessor, ViTImageProcessor
from transformers.image_utils import PILImageResampling
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .configuration_convmae import ConvMAEConfig
from .configuration_convnextv2 import ConvNextV2Config
from .images import MODES
from .shared_config import height_and_width


def create_image_processor(config: ConvNextV2Config | ConvMAEConfig, **overrides: Any) -> Any:
    """A `ConvNextImageProcessor` for images of `config.image_size` pixels and `config.num_channels` channels.

    Below 384 pixels: shortest edge to `image_size / 0.875`, centre crop; from 384: warped to a square, no crop.
    ImageNet's mean and standard deviation; for other than 3 channels, their average for each channel. Three-channel
    models convert any image to RGB.

    `ConvNextImageProcessor` makes squares only. For an `image_size` of unequal height and width this is a
    `ViTImageProcessor`, which warps the whole image to them, and which Transformers loads without this package too.

    Raises:
        ValueError: if `crop_pct` is given for images that are not square.
    """
    channels = config.num_channels
    height, width = height_and_width(config.image_size)
    settings: dict[str, Any] = {
        "resample": PILImageResampling.BICUBIC,
        **imagenet_statistics(channels),
        "do_convert_rgb": channels == 3,
    }
    if height == width:
        square: dict[str, Any] = {"size": {"shortest_edge": height}, "crop_pct": 224 / 256}
        return ConvNextImageProcessor(**{**square, **settings, **overrides})
    if "crop_pct" in overrides:
        raise ValueError(
            f"`crop_pct` (={overrides['crop_pct']}) must not be given with `image_size` (={[height, width]}): an image "
            "is warped to other sides than a square's, not cropped."
        )
    oblong: dict[str, Any] = {"size": {"height": height, "width": width}}
    return ViTImageProcessor(**{**oblong, **settings, **overrides})


def imagenet_statistics(num_channels: int) -> dict[str, list[float]]:
    """`image_mean` and `image_std` of ImageNet; for other than 3 channels, their average for each channel."""
    mean, std = list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)
    if num_channels != 3:
        mean, std = [sum(mean) / 3] * num_channels, [sum(std) / 3] * num_channels
    return {"image_mean": mean, "image_std": std}


def to_image(pixel_values: Tensor, processor: Any) -> list[Image.Image]:
    """Pictures of `pixel_values (B, C, H, W)`, or of one `(C, H, W)`: what `processor` did to their values, undone.

    Their mode is "L", "RGB" or "RGBA", for 1, 3 or 4 channels. Values beyond black and white are cut.

    Raises:
        ValueError: for another number of channels; choose some of them.
    """
    batch = pixel_values.detach().float().cpu()
    if batch.ndim == 3:
        batch = batch[None]
    if batch.ndim != 4 or batch.shape[1] not in MODES:
        raise ValueError(
            f"`pixel_values` (of shape {tuple(pixel_values.shape)}) must have 1, 3 or 4 channels to be a picture. "
            "Choose some, e.g. `pixel_values[:, :3]`, and the same of `image_mean` and `image_std`."
        )
    if processor.do_normalize:
        mean, std = (torch.as_tensor(values).view(-1, 1, 1) for values in (processor.image_mean, processor.image_std))
        batch = batch * std + mean
    if processor.do_rescale:
        batch = batch / processor.rescale_factor
    mode = MODES[batch.shape[1]]
    arrays = batch.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    if mode == "L":
        arrays = arrays[..., 0]
    return [Image.fromarray(array, mode) for array in arrays]
