"""Settings of the random augmentation of training images."""

from dataclasses import dataclass
from typing import NamedTuple

from training.settings.checks import check, check_at_least, check_below_one, check_finite, check_share
from training.settings.fields import recipe


class ColorChange(NamedTuple):
    """The setting that changes the colours of training images, and its value."""

    setting: str
    value: float

    def check_values(self, lowest: float, highest: float, name: str) -> None:
        """Raise if the values of the image `name` are not in [0, 1]."""
        rule = (
            f"be 0 for images with values outside [0, 1], which changes of colours cut off, but {name} holds {lowest:g}"
            f" to {highest:g}. Give `--{self.setting} 0`, or scale the images to [0, 1]"
        )
        check(self.setting, self.value, lowest >= 0 and highest <= 1, rule)


@dataclass(kw_only=True)
class AugmentationSettings:
    """Augmentation of training images."""

    crop_scale: list[float] = recipe(
        [0.08, 1.0], "smallest and largest share of the image area that a random crop covers"
    )
    reduced_decoding: bool = recipe(
        True, "decode JPEG images at 1/2, 1/4 or 1/8 of their size where no crop needs more pixels than that"
    )
    horizontal_flip: float = recipe(0.5, "probability of flipping an image horizontally")

    def __post_init__(self) -> None:
        check_finite(self)
        check_share(self, "horizontal_flip")
        ordered = len(self.crop_scale) == 2 and 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1
        check("crop_scale", self.crop_scale, ordered, "be two numbers, 0 < least <= largest <= 1")


@dataclass(kw_only=True)
class PretrainAugmentationSettings(AugmentationSettings):
    """Augmentation of pre-training images."""

    crop_scale: list[float] = recipe(
        [0.2, 1.0], "smallest and largest share of the image area that a random crop covers"
    )
    num_crops: int = recipe(
        1, "random crops of each image in a batch, each with a mask of its own; an image is read once for all of them"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, ("num_crops",), 1)


@dataclass(kw_only=True)
class SegmentAugmentationSettings:
    """Augmentation of training images and their masks."""

    scale_range: list[float] = recipe(
        [1.0, 2.0], "smallest and largest size of an image whose crop is taken, relative to the size of the crop"
    )
    horizontal_flip: float = recipe(0.5, "probability of flipping an image horizontally")
    photometric_distortion: float = recipe(
        0.5, "probability of changing each of brightness, contrast, saturation and hue; 0 unless images have 3 channels"
    )

    def __post_init__(self) -> None:
        check_finite(self)
        check_share(self, "horizontal_flip", "photometric_distortion")
        ordered = len(self.scale_range) == 2 and 1 <= self.scale_range[0] <= self.scale_range[1]
        check("scale_range", self.scale_range, ordered, "be two numbers, 1 <= smallest <= largest")

    @property
    def color_change(self) -> ColorChange | None:
        """What changes colours, if they are changed."""
        return photometric_change(self.photometric_distortion)


@dataclass(kw_only=True)
class DetectAugmentationSettings:
    """Augmentation of training images and their objects."""

    scale_range: list[float] = recipe(
        [0.1, 2.0],
        "smallest and largest size of an image, relative to that which fits into image_size; what is larger is cropped"
        " (large-scale jitter: arXiv 2012.07177)",
    )
    horizontal_flip: float = recipe(0.5, "probability of flipping an image horizontally")
    photometric_distortion: float = recipe(
        0.0, "probability of changing each of brightness, contrast, saturation and hue; 0 unless images have 3 channels"
    )

    def __post_init__(self) -> None:
        check_finite(self)
        check_share(self, "horizontal_flip", "photometric_distortion")
        ordered = len(self.scale_range) == 2 and 0 < self.scale_range[0] <= self.scale_range[1]
        check("scale_range", self.scale_range, ordered, "be two numbers, 0 < smallest <= largest")

    @property
    def color_change(self) -> ColorChange | None:
        """What changes colours, if they are changed."""
        return photometric_change(self.photometric_distortion)


def photometric_change(share: float) -> ColorChange | None:
    return ColorChange("photometric_distortion", share) if share else None


def check_distortion(share: float, num_channels: int) -> None:
    """Raise if the colours of images that have none are to be changed."""
    rule = f"be 0 for images of {num_channels} channel{'s' * (num_channels > 1)}: only three channels are colours"
    check("photometric_distortion", share, not share or num_channels == 3, rule)


@dataclass(kw_only=True)
class FinetuneAugmentationSettings(AugmentationSettings):
    """Augmentation and label regularisation of fine-tuning."""

    label_smoothing: float = recipe(
        0.0, "share of each label that is spread evenly over all classes; unused in regression"
    )
    mixup: float = recipe(0.0, "alpha of mixup; 0: off")
    cutmix: float = recipe(0.0, "alpha of cutmix; 0: off, as in regression; with mixup, each batch gets one of the two")
    randaugment_num_ops: int = recipe(
        0, "RandAugment operations applied to each image; 0: off; needs images of 1 or 3 channels, floats in [0, 1]"
    )
    randaugment_magnitude: int = recipe(
        9, "strength of RandAugment on torchvision's scale, 0 to 30", unused_with=("randaugment_num_ops", (0,))
    )
    random_erasing: float = recipe(0.0, "probability of erasing a random rectangle of the image")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_below_one(self, "label_smoothing")
        check_share(self, "random_erasing")
        check_at_least(self, ("mixup", "cutmix", "randaugment_num_ops"), 0)
        magnitude = self.randaugment_magnitude
        check("randaugment_magnitude", magnitude, 0 <= magnitude <= 30, "be between 0 and 30")

    @property
    def color_change(self) -> ColorChange | None:
        """What changes colours, if they are changed."""
        count = self.randaugment_num_ops
        return ColorChange("randaugment_num_ops", count) if count else None
