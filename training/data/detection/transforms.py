"""Random transforms of an image and its objects, and what evaluation does to them."""

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import get_size
from torchvision.tv_tensors import BoundingBoxes, Image, Mask

from training.data.decoding import BadImageError
from training.data.detection.objects import Objects
from training.data.transforms import EvaluationTransform, ResizeTogether, distortions, normalise
from training.settings.augmentation import DetectAugmentationSettings

LEAST_SIDE = 1.0  # of the box of an object that a crop leaves over, in pixels
LEAST_CROPPED = 8  # pixels of a side, below which torchvision's crop may divide by zero
LARGEST_SEED = 2**31


class JitterScale:
    """Large-scale jitter (arXiv 2012.07177): a random factor on the size that fits into a square of `size` pixels.

    torchvision's `ScaleJitter` makes long and thin images vanish; here a side has a pixel at least.
    """

    def __init__(self, size: int, scale_range: list[float]) -> None:
        self.size, self.scale_range = size, scale_range

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        height, width = get_size(sample["image"])
        least, most = self.scale_range
        factor = (least + (most - least) * torch.rand(()).item()) * self.size / max(height, width)
        size = [max(1, round(height * factor)), max(1, round(width * factor))]
        return ResizeTogether(size)(sample)


class CropWithObjects:
    """A random crop that keeps some object (SSD: arXiv 1512.02325), of images that leave room for one."""

    def __init__(self) -> None:
        self.crop = v2.RandomIoUCrop()

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        return self.crop(sample) if min(get_size(sample["image"])) >= LEAST_CROPPED else sample


class CropToFit:
    """A random crop of `size` pixels in each direction in which an image is larger; nothing is padded."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        height, width = get_size(sample["image"])
        return v2.RandomCrop((min(height, self.size), min(width, self.size)))(sample)


class DetectionTransform:
    """Random size, crop or square, and flip of an image and its objects; then its colours and normalisation.

    `is_square`: the image becomes a square of `image_size` after a crop that keeps some object (SSD: arXiv 1512.02325);
    otherwise it keeps its shape, and is at most `image_size` high and wide after large-scale jitter (arXiv 2012.07177).
    Objects that the crop leaves nothing of are dropped, and so are crowds.
    """

    def __init__(
        self, augmentation: DetectAugmentationSettings, image_size: int, processor: Any, is_square: bool
    ) -> None:
        square = (image_size, image_size)
        if is_square:
            size: list[Any] = [CropWithObjects(), ResizeTogether(square)]
        else:
            size = [JitterScale(image_size, augmentation.scale_range), CropToFit(image_size)]
        self.geometry = v2.Compose([*size, v2.RandomHorizontalFlip(augmentation.horizontal_flip)])
        self.colors = v2.Compose([*distortions(augmentation.photometric_distortion), *normalise(processor)])

    def __call__(self, image: Tensor, objects: Objects) -> dict[str, Any]:
        """`pixel_values` `(C, h, w)`, `boxes` `(N, 4)` (left, top, right, bottom in pixels), `class_labels` `(N,)`,
        `masks` `(N, h, w)` if there are masks, and `region_seed`, from which an R-CNN draws regions."""
        height, width = image.shape[-2:]
        known = ~objects.crowds
        sample: dict[str, Any] = {
            "image": Image(image),
            "boxes": BoundingBoxes(objects.boxes[known], format="XYXY", canvas_size=(height, width)),  # type: ignore[call-overload]
            "labels": objects.labels[known],
        }
        if objects.masks is not None:
            sample["masks"] = Mask(objects.masks[known])
        sample = self.geometry(sample)
        boxes = sample["boxes"].as_subclass(Tensor)
        kept = ((boxes[:, 2:] - boxes[:, :2]) >= LEAST_SIDE).all(dim=1)
        found = {"boxes": boxes[kept], "class_labels": sample["labels"][kept]}
        if objects.masks is not None:
            masks = sample["masks"].as_subclass(Tensor)[kept]
            shown = (masks > 0).flatten(1).any(dim=1)
            found = {
                "boxes": found["boxes"][shown],
                "class_labels": found["class_labels"][shown],
                "masks": masks[shown],
            }
        seed = torch.randint(LARGEST_SEED, ())
        return {"pixel_values": self.colors(sample["image"]), **found, "region_seed": seed}


def longest_side_of(processor: Any) -> int | None:
    """The longest side in pixels of an image that a processor resizes; None if it does not keep an image's shape."""
    return dict(processor.size).get("max_height")


def vanishes(height: int, width: int, longest_side: int | None) -> bool:
    """Whether less than a pixel is left of the shorter side of an image."""
    return longest_side is not None and min(height, width) * longest_side < max(height, width)


def too_thin_for(longest_side: int | None) -> str:
    """What is wrong with such an image."""
    return f"is too long and thin for `image_size` (={longest_side}): crop it"


class DetectionEvaluationTransform:
    """Applies the saved image processor to an image, as a pipeline does, and leaves its objects as they are."""

    def __init__(self, processor: Any) -> None:
        self.transform, self.longest_side = EvaluationTransform(processor), longest_side_of(processor)

    def __call__(self, image: Tensor, objects: Objects) -> dict[str, Any]:
        """`pixel_values` `(C, h, w)`, `objects`, and the `size` `(H, W)` of the image itself."""
        height, width = image.shape[-2:]
        return {"pixel_values": self.pixel_values(image), "objects": objects, "size": (height, width)}

    def pixel_values(self, image: Tensor) -> Tensor:
        """`(C, H, W)` to `(C, h, w)`.

        Raises:
            BadImageError: for an image so long and thin that the processor would leave nothing of its shorter side.
        """
        height, width = image.shape[-2:]
        if vanishes(height, width, self.longest_side):
            raise BadImageError(f"an image of {width} x {height} pixels {too_thin_for(self.longest_side)}.")
        return self.transform(image)
