"""Images with objects as samples."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from training.data.decoding import BadImageError
from training.data.detection.objects import Objects
from training.data.detection.reader import ObjectReader
from training.data.samples import Samples, sample_fields
from training.data.sampling import sample_seed, seeded
from training.data.segmentation.pairs import name_of
from training.data.sources import Source
from training.settings.data import ObjectsDataSettings

ObjectsTransform = Callable[[Tensor, Objects], dict[str, Any]]


@dataclass
class DetectionSamples(Samples):
    """Turns a row of a source into an image and its objects."""

    objects_column: str = ""
    reader: ObjectReader | None = None
    transform_objects: ObjectsTransform | None = None

    @property
    def columns(self) -> list[str]:
        return [self.image_column, self.objects_column]

    def __call__(self, row: dict[str, Any], name: str, *key: int) -> dict[str, Any]:
        """Return what the transform makes of the image and its objects, and the sample's seed.

        The transform depends only on the seed and the key. Errors call an image without a path `name`.
        """
        assert self.reader is not None and self.transform_objects is not None
        image, is_transparent = self.decode(row, name)
        height, width = image.shape[-2:]
        objects = self.reader(row[self.objects_column], (height, width), name_of(row[self.image_column], name))
        seed = sample_seed(self.seed, *key)
        with seeded(seed):
            try:
                transformed = self.transform_objects(image, objects)
            except BadImageError as error:
                raise BadImageError(f"{name_of(row[self.image_column], name)}: {error}") from error
        return {"seed": seed, "is_transparent": is_transparent, **transformed}


def detection_samples(
    data: ObjectsDataSettings, source: Source, num_channels: int, reader: ObjectReader, transform: ObjectsTransform
) -> DetectionSamples:
    """Create the samples of a source of images with objects."""
    fields = sample_fields(data, source, num_channels)
    own: dict[str, Any] = {
        "objects_column": data.objects_column,
        "reader": reader,
        "transform_objects": transform,
    }
    return DetectionSamples(**fields, transform=nn.Identity(), **own)
