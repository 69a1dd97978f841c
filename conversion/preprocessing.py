"""Resolution, image processor and class names of a checkpoint: as stored beside it, as the table says, or asked for."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import ConvNextImageProcessor

from conversion.publishing.wording import sides
from conversion.sources import Source
from hf_convnextv2 import ConvNextV2Config, create_image_processor

DEFAULT_SIZE = 224
IMAGENET_CLASSES = 1000


def image_size_of(source: Source) -> int | None:
    """Side in pixels of the images that the checkpoint is for; None if nothing tells, since no weight depends on it."""
    if source.checkpoint is not None:
        return source.checkpoint.image_size
    stored: Any = source.processor.get("size")
    if isinstance(stored, dict):
        stored = stored.get("shortest_edge") or min(
            (stored[s] for s in ("height", "width") if s in stored), default=None
        )
    if isinstance(stored, int):
        return stored
    timm_size = source.timm_settings.get("input_size")
    stored = timm_size[-1] if timm_size else source.arguments.get("input_size")
    stored = stored or source.provenance.get("image_size") or source.config.get("image_size")
    return min(sides(stored)) if stored else None


def image_processor_of(source: Source, config: ConvNextV2Config) -> Any:
    """The image processor with the statistics stored in the source, or ImageNet's; resize and crop by resolution."""
    try:
        return _image_processor_of(source, config)
    except (StrictDataclassError, TypeError, AttributeError) as error:
        raise ValueError(
            f"The image processor beside the weights is not valid: {' '.join(str(error).split())}"
        ) from error


def _image_processor_of(source: Source, config: ConvNextV2Config) -> Any:
    height, width = sides(config.image_size or DEFAULT_SIZE)
    size, is_square = min(height, width), height == width
    stored = dict(source.processor)
    is_stock = str(stored.get("image_processor_type", "")).startswith("ConvNextImageProcessor")
    if is_stock and is_square and source.checkpoint is None:
        if image_size_of(source) != size:
            stored |= {"size": {"shortest_edge": size}, "crop_pct": 224 / 256}
        return ConvNextImageProcessor.from_dict(stored)
    overrides: dict[str, Any] = {
        name: stored[name] for name in ("image_mean", "image_std") if len(stored.get(name, [])) == config.num_channels
    }
    timm_settings = source.timm_settings
    for name, theirs in {"image_mean": "mean", "image_std": "std", "crop_pct": "crop_pct"}.items():
        if theirs in timm_settings and (is_square or name != "crop_pct"):
            overrides.setdefault(name, timm_settings[theirs])
    return create_image_processor(config, **overrides)


def class_names(source: Source, num_labels: int, labels: Path | None) -> tuple[dict[int, str] | None, str]:
    """Names of the classes by number, and where they are from; None: as the configuration has them.

    Raises:
        ValueError: if a file of labels does not name as many classes as the head has.
    """
    if labels is not None:
        names = _read_labels(labels)
        if sorted(names) != list(range(num_labels)):
            raise ValueError(f"`--labels` (={labels}, {len(names)} names) must name the head's {num_labels} classes.")
        return names, f"from {labels.name}"
    stored: dict[str, str] = source.config.get("id2label") or {}
    if stored and not all(name == f"LABEL_{number}" for number, name in stored.items()):
        return None, "as stored"
    settings = source.timm_settings
    listed = settings.get("label_names")
    if listed and len(listed) == num_labels:
        descriptions = settings.get("label_descriptions") or {}
        return {i: descriptions.get(name, name) for i, name in enumerate(listed)}, "as stored"
    if num_labels == IMAGENET_CLASSES:
        from timm.data.imagenet_info import ImageNetInfo

        info = ImageNetInfo("imagenet-1k")
        return {i: info.index_to_description(i) for i in range(num_labels)}, "ImageNet-1k's, as there are 1,000"
    return None, "numbered: the source does not name them (see --labels)"


def _read_labels(file: Path) -> dict[int, str]:
    """JSON (a list, or numbers to names) or one name a line."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"`--labels` (={file}) must be a text file: {error}") from error
    try:
        found = json.loads(text) if file.suffix == ".json" else [line for line in text.splitlines() if line.strip()]
        pairs = found.items() if isinstance(found, dict) else enumerate(found)
        return {int(number): str(name).strip() for number, name in pairs if str(name).strip()}
    except (ValueError, TypeError) as error:
        raise ValueError(f"`--labels` (={file}) must be a list of names or map numbers to names: {error}") from error
