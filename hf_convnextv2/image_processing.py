"""Transformers' image processor with the settings that ConvNeXt V2 is trained and measured with."""

from typing import Any

from transformers import ConvNextImageProcessor
from transformers.image_utils import PILImageResampling
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .configuration_convnextv2 import ConvNextV2Config


def create_image_processor(config: ConvNextV2Config, **overrides: Any) -> Any:
    """A `ConvNextImageProcessor` for images of `config.image_size` pixels and `config.num_channels` channels.

    Below 384 pixels: shortest edge to `image_size / 0.875`, centre crop; from 384: warped to a square, no crop.
    ImageNet's mean and standard deviation; for other than 3 channels, their average for each channel. Three-channel
    models convert any image to RGB.
    """
    channels = config.num_channels
    mean, std = list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)
    if channels != 3:
        mean, std = [sum(mean) / 3] * channels, [sum(std) / 3] * channels
    size = config.image_size if isinstance(config.image_size, int) else min(config.image_size)
    settings: dict[str, Any] = {
        "size": {"shortest_edge": size},
        "crop_pct": 224 / 256,
        "resample": PILImageResampling.BICUBIC,
        "image_mean": mean,
        "image_std": std,
        "do_convert_rgb": channels == 3,
    }
    return ConvNextImageProcessor(**{**settings, **overrides})
