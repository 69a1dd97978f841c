"""Turns a decoded image into model input: torchvision's transforms in training, the image processor in evaluation."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2.functional import resize_image, to_pil_image
from torchvision.tv_tensors import Image, Mask

from training.data.decoding import Enough
from training.settings.augmentation import (
    AugmentationSettings,
    FinetuneAugmentationSettings,
    SegmentAugmentationSettings,
)

Transform = Callable[[Tensor], Tensor]
CROP_ASPECT_RATIOS = (3 / 4, 4 / 3)  # width / height of a crop


def pretraining_transform(augmentation: AugmentationSettings, image_size: int, processor: Any) -> Transform:
    """Random crop, flip (paper, A.1, and the official code) and normalisation: `(C, H, W)` to `(C, size, size)`."""
    return v2.Compose([*crop_and_flip(augmentation, image_size), *normalise(processor)])


def enough_for_crops(augmentation: AugmentationSettings, image_size: int) -> Enough | None:
    """The image size at which even the smallest and most elongated crop has `image_size` pixels on each side."""
    if not augmentation.reduced_decoding:
        return None
    return Enough(image_size, image_size**2 / (augmentation.crop_scale[0] * CROP_ASPECT_RATIOS[0]))


def finetuning_transform(augmentation: FinetuneAugmentationSettings, image_size: int, processor: Any) -> Transform:
    """Random crop, flip, RandAugment, normalisation and erasing with noise: `(C, H, W)` to `(C, size, size)`."""
    steps = crop_and_flip(augmentation, image_size)
    if augmentation.randaugment_num_ops:
        randaugment = v2.RandAugment(
            augmentation.randaugment_num_ops,
            augmentation.randaugment_magnitude,
            interpolation=InterpolationMode.BILINEAR,
        )
        steps += [v2.Lambda(to_bytes), randaugment]
    steps += normalise(processor)
    if augmentation.random_erasing:
        steps.append(v2.RandomErasing(augmentation.random_erasing, value="random"))  # type: ignore[arg-type]
    return v2.Compose(steps)


def to_bytes(image: Tensor) -> Tensor:
    """A crop as uint8, which RandAugment's posterize and equalize need.

    Bicubic crops of floats overshoot [0, 1]: these values would wrap around. Of uint8, torchvision clips them itself.
    """
    clipped = Image(image.clamp(0, 1)) if image.is_floating_point() else image
    return v2.functional.to_dtype(clipped, torch.uint8, scale=True)


class ResizeTogether(v2.Resize):
    """Resizes an image with its boxes and masks, so that the pixels of a mask lie where those of the image do.

    A number is taken of the mask's pixel in whose middle the new one's lies (NEAREST_EXACT). torchvision's own `Resize`
    takes NEAREST for masks whatever it is given, which moves them by up to half a pixel to the right and below.
    """

    def __init__(self, size: int | Sequence[int]) -> None:
        super().__init__(size, InterpolationMode.BILINEAR, antialias=True)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """As torchvision calls it: `inpt` is one of the inputs."""
        if not isinstance(inpt, Mask):
            return super().transform(inpt, params)
        masks = inpt.as_subclass(Tensor).unsqueeze(-3)  # a channel each
        resized = resize_image(masks, self.size, InterpolationMode.NEAREST_EXACT, antialias=False)
        return Mask(resized.squeeze(-3))


class RandomShorterSide:
    """Resizes images so that their shorter side is exactly one of `sizes`, drawn at random.

    torchvision's `RandomShortestSize` rounds down, which may leave a pixel less than the crop needs.
    """

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes

    def __call__(self, *images: Tensor) -> Any:
        size = self.sizes[int(torch.randint(len(self.sizes), ()))]
        return ResizeTogether(size)(*images)


class SegmentationTransform:
    """Random scale, crop and flip of an image and its labels, then changes of the image's colours and normalisation.

    The crop always lies in the image: padding would change the features, since GRN computes its statistics over the
    whole input.
    """

    def __init__(self, augmentation: SegmentAugmentationSettings, image_size: int, processor: Any) -> None:
        smallest, largest = (round(scale * image_size) for scale in augmentation.scale_range)
        sizes = list(range(smallest, largest + 1))  # of the shorter side
        self.geometry = v2.Compose(
            [
                RandomShorterSide(sizes),
                v2.RandomCrop(image_size),
                v2.RandomHorizontalFlip(augmentation.horizontal_flip),
            ]
        )
        share = augmentation.photometric_distortion
        self.colors = v2.Compose([*distortions(share), *normalise(processor)])

    def __call__(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """`(C, H, W)` and `(H, W)` to `(C, size, size)` and `(size, size)`."""
        image, labels = self.geometry(Image(image), Mask(labels))
        return self.colors(image), labels.as_subclass(Tensor)


def distortions(share: float) -> list[v2.Transform]:
    """Changes of brightness, contrast, saturation and hue, each with a probability of `share`."""
    if not share:
        return []
    changes: list[dict[str, Any]] = [
        {"brightness": (0.875, 1.125)},
        {"contrast": (0.5, 1.5)},
        {"saturation": (0.5, 1.5)},
        {"hue": (-0.05, 0.05)},
    ]
    return [v2.RandomApply([v2.ColorJitter(**change)], share) for change in changes]


class PairEvaluationTransform:
    """Applies the saved image processor to an image, as a pipeline does, and leaves its labels as they are."""

    def __init__(self, processor: Any) -> None:
        self.transform = EvaluationTransform(processor)

    def __call__(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """`(C, H, W)` and `(H, W)` to `(C, h, w)` and `(H, W)`."""
        return self.transform(image), labels


def crop_and_flip(augmentation: AugmentationSettings, image_size: int) -> list[v2.Transform]:
    """The geometric transforms, for images `(C, H, W)` with any number of channels."""
    scale = (augmentation.crop_scale[0], augmentation.crop_scale[1])
    settings: dict[str, Any] = {"interpolation": InterpolationMode.BICUBIC, "antialias": True}
    crop = v2.RandomResizedCrop(image_size, scale, CROP_ASPECT_RATIOS, **settings)
    return [v2.Lambda(Image), crop, v2.RandomHorizontalFlip(augmentation.horizontal_flip)]


def normalise(processor: Any) -> list[v2.Transform]:
    """Convert to float in [0, 1], subtract the mean, divide by the standard deviation, and return a plain tensor."""
    to_float = v2.ToDtype(torch.float32, scale=True)
    return [to_float, v2.Normalize(processor.image_mean, processor.image_std), v2.ToPureTensor()]


class EvaluationTransform:
    """Applies the saved image processor exactly as a pipeline does, to images with any number of channels."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.takes_pictures = hasattr(processor, "val_transforms")  # timm's, in Transformers' wrapper

    def __call__(self, image: Tensor) -> Tensor:
        """`(C, H, W)` to `(C, size, size)`."""
        if self.takes_pictures:
            picture = to_pil_image((255 * image).round().byte() if image.is_floating_point() else image)
            return self.processor(picture, return_tensors="pt")["pixel_values"][0]
        settings: dict[str, Any] = {"input_data_format": "channels_first", "do_convert_rgb": False}
        if image.is_floating_point() and scales_to_one(self.processor):
            settings["do_rescale"] = False  # floats are scaled already
        elif image.is_floating_point():
            image = 255 * image  # the range that the processor was made for
        return self.processor(image, return_tensors="pt", **settings)["pixel_values"][0]


def scales_to_one(processor: Any) -> bool:
    """Whether an image processor normalises values in [0, 1]: not so of those in [0, 255], or [0, 2]."""
    if getattr(processor, "do_rescale", True):
        return math.isclose(getattr(processor, "rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-4)
    return not getattr(processor, "do_normalize", False) or max(np.ravel(processor.image_std)) <= 1


class BatchMixer:
    """Applies mixup or cutmix to a batch (`pixel_values`, `labels`), drawn with the seed of the first sample.

    Labels `(B,)` are class numbers; 0/1 targets and values `(B, num_labels)` are mixed as they are.
    """

    def __init__(self, mixup: float, cutmix: float, num_labels: int) -> None:
        mixes: list[v2.Transform] = []
        if mixup:
            mixes.append(v2.MixUp(alpha=mixup, num_classes=num_labels))
        if cutmix:
            mixes.append(v2.CutMix(alpha=cutmix, num_classes=num_labels))
        self.mix = v2.RandomChoice(mixes) if mixes else None

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Class numbers become probabilities `(B, num_labels)` if anything is mixed."""
        if self.mix is None:
            return batch
        pixel_values, labels = self.mix(batch["pixel_values"], batch["labels"])
        return {**batch, "pixel_values": pixel_values, "labels": labels}
