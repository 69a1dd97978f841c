"""The resolution and the image processor of a checkpoint: as stored beside it, as the table says, or as asked for."""

from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import ConvNextImageProcessor

from conversion.checkpoint_reader import StoredCheckpoint
from conversion.command_line import one_line
from hf_convnextv2 import ConvNextV2Config, create_image_processor
from hf_convnextv2.shared_config import height_and_width

DEFAULT_SIZE = 224


def image_size_of(source: StoredCheckpoint) -> int | None:
    """Side in pixels of the images that the checkpoint is for; None if nothing tells, since no weight depends on it."""
    if source.official is not None:
        return source.official.image_size
    side = _shortest_side(source.processor.get("size"))
    if side is not None:
        return side
    timm_size = source.timm_settings.get("input_size")
    stored = timm_size[-1] if timm_size else source.arguments.get("input_size")
    stored = stored or source.provenance.get("image_size") or source.config.get("image_size")
    return min(height_and_width(stored)) if stored else None


def _shortest_side(size: Any) -> int | None:
    """The shortest side that the `size` of a stored image processor names."""
    if isinstance(size, dict):
        sides = [size[name] for name in ("height", "width") if name in size]
        size = size.get("shortest_edge") or min(sides, default=None)
    return size if isinstance(size, int) else None


def image_processor_of(source: StoredCheckpoint, config: ConvNextV2Config) -> Any:
    """The image processor with the statistics stored in the source, or ImageNet's; resize and crop by resolution."""
    try:
        return _image_processor_of(source, config)
    except (StrictDataclassError, TypeError, AttributeError) as error:
        raise ValueError(f"The image processor beside the weights is not valid: {one_line(error)}") from error


def _image_processor_of(source: StoredCheckpoint, config: ConvNextV2Config) -> Any:
    height, width = height_and_width(config.image_size or DEFAULT_SIZE)
    size, is_square = min(height, width), height == width
    stored = dict(source.processor)
    is_stock = str(stored.get("image_processor_type", "")).startswith("ConvNextImageProcessor")
    if is_stock and is_square and source.official is None:
        if image_size_of(source) != size:
            stored |= {"size": {"shortest_edge": size}, "crop_pct": 224 / 256}
        return ConvNextImageProcessor.from_dict(stored)
    overrides: dict[str, Any] = {}
    for name in ("image_mean", "image_std"):
        if len(stored.get(name, [])) == config.num_channels:
            overrides[name] = stored[name]
    timm_settings = source.timm_settings
    for name, theirs in {"image_mean": "mean", "image_std": "std", "crop_pct": "crop_pct"}.items():
        if theirs in timm_settings and (is_square or name != "crop_pct"):
            overrides.setdefault(name, timm_settings[theirs])
    return create_image_processor(config, **overrides)
