"""Images with objects as samples."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from training.data.detection.objects import Objects
from training.data.detection.reader import ObjectReader
from training.data.samples import AnnotatedSamples, sample_fields
from training.data.sources import Source
from training.settings.augmentation import ColorChange
from training.settings.data import ObjectsDataSettings

ObjectsTransform = Callable[[Tensor, Objects], dict[str, Any]]


def detection_samples(
    data: ObjectsDataSettings,
    source: Source,
    num_channels: int,
    reader: ObjectReader,
    transform: ObjectsTransform,
    color_change: ColorChange | None = None,
) -> AnnotatedSamples:
    """Create the samples of a source of images with objects."""
    fields = sample_fields(data, source, num_channels)
    own: dict[str, Any] = {"annotation_column": data.objects_column, "reader": reader, "transform_both": transform}
    return AnnotatedSamples(**fields, **own, transform=nn.Identity(), color_change=color_change)
