"""The pictures that a file is checked, calibrated and measured with, as the model's image processor prepares them.

B batch, C channels.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from transformers import AutoImageProcessor
from transformers.models.auto.image_processing_auto import get_image_processor_config

from conversion.command_line import first_line
from conversion.exporting.models import encoder_config
from conversion.model_folder import PROCESSOR
from conversion.split_names import HELD_OUT
from hf_convnextv2 import create_image_processor, open_image
from hf_convnextv2.images import DEFAULT_BACKGROUND

MIN_CALIBRATION, GOOD_CALIBRATION = 8, 100
PHOTOGRAPH = "china.jpg"  # of scikit-learn


@dataclass(frozen=True)
class Labelled:
    """The files of labelled images, with the number of each one's class."""

    files: list[Path]
    labels: list[int]


def load_processor(name: str, model: Any) -> Any:
    """The image processor beside the model, or the one that fits its configuration if there is none.

    Raises:
        ValueError: if there is one that cannot be loaded, or if a model of the Hub may have one that is not here.
    """
    try:
        if get_image_processor_config(name):
            return AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"`model` (={name}) must have a {PROCESSOR} that can be loaded, or none: {first_line(error)}"
        ) from error
    # A Hub that could be asked has left a note of the missing file in the cache.
    if not Path(name).is_dir() and try_to_load_from_cache(name, PROCESSOR) is None:
        raise ValueError(
            f"`model` (={name}) must have its {PROCESSOR}, if it has one, in the cache while the Hub cannot be asked."
        )
    processor = create_image_processor(encoder_config(model.config))
    print(
        f"{name} has no {PROCESSOR}: a {type(processor).__name__} with ImageNet's mean and standard deviation prepares "
        "the images, and is written beside the files.",
        flush=True,
    )
    return processor


def photograph(file: str | Path | None) -> tuple[Image.Image, str]:
    """The picture asked for, else a photograph of scikit-learn, else one that is made here; and what it is."""
    if file is not None:
        return _open(Path(file), "--image"), Path(file).name
    try:
        from sklearn.datasets import load_sample_image
    except ImportError:
        return drawn_picture(), "a picture of circles and noise, drawn here: scikit-learn's photograph is not installed"
    return Image.fromarray(load_sample_image(PHOTOGRAPH)), f"the photograph {PHOTOGRAPH} of scikit-learn"


def drawn_picture(height: int = 427, width: int = 640) -> Image.Image:
    """Coloured circles with noise of every scale: a picture with edges and texture, though of nothing."""
    random = np.random.default_rng(0)
    picture = np.zeros((height, width, 3))
    for power in range(8):
        coarse = random.integers(0, 256, (2 + 2**power, 2 + 2**power, 3)).astype(np.uint8)
        picture += np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)) / 8
    rows, columns = np.mgrid[:height, :width]
    for _ in range(12):
        row, column, radius = (random.integers(0, side) for side in (height, width, height // 3))
        picture[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = random.integers(0, 256, 3)
    return Image.fromarray(picture.astype(np.uint8))


def views(picture: Image.Image, count: int, size: tuple[int, int], processor: Any, num_channels: int) -> Tensor:
    """`(count, C, height, width)`: parts of the picture, one further right than the other, resized to `size`."""
    height, width = size
    scale = 0.8 * min(picture.width / width, picture.height / height)
    across, down = max(1, round(scale * width)), max(1, round(scale * height))
    images = []
    for index in range(count):
        share = index / max(1, count - 1)
        left, top = round(share * (picture.width - across)), round(share * (picture.height - down))
        part = picture.convert("RGB").crop((left, top, left + across, top + down))
        images.append(torch.from_numpy(np.array(part.resize((width, height), Image.Resampling.BICUBIC))))
    values = torch.stack(images).permute(0, 3, 1, 2).float() / 255
    if num_channels != 3:
        values = values.mean(1, keepdim=True).repeat(1, num_channels, 1, 1)
    if not getattr(processor, "do_normalize", False):
        return values
    mean, std = (torch.tensor(list(each)).view(-1, 1, 1) for each in (processor.image_mean, processor.image_std))
    return (values - mean) / std


def prepare(file: Path, processor: Any, num_channels: int, flag: str) -> Tensor:
    """An image file as the model takes it, `(1, C, height, width)`."""
    background = getattr(processor, "background", None) or DEFAULT_BACKGROUND
    return processor(_open(file, flag, num_channels, background), return_tensors="pt").pixel_values


def calibration_files(folder: str | Path, most: int) -> list[Path]:
    """The images that int8 is calibrated with, evenly chosen among those of the folder.

    Raises:
        ValueError: if there are too few: the ranges of one image are not those of others.
    """
    files = image_files(Path(folder), "--calibration_images")
    if len(files) < MIN_CALIBRATION:
        raise ValueError(
            f"`--calibration_images` (={folder}) must hold at least {MIN_CALIBRATION} images like those that the model "
            f"will see, better {GOOD_CALIBRATION} or more, but holds {len(files)}: the ranges of the numbers are taken "
            "from them, and one image does not show them."
        )
    places = np.linspace(0, len(files) - 1, min(most, len(files))).round().astype(int)
    return [files[place] for place in places]


def labelled_images(folder: str | Path, id2label: dict[int, str], most: int | None) -> Labelled:
    """The images of `folder/CLASS/` or `folder/SPLIT/CLASS/`, the held-out split if there are several.

    Raises:
        ValueError: if there is no such folder, or a class that the model does not know.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"`--validation_dataset` (={folder}) must be a folder of images, CLASS/1.jpg.")
    root = next((root / name for name in HELD_OUT if (root / name).is_dir()), root)
    numbers = {label: number for number, label in id2label.items()}
    if len(numbers) < len(id2label):
        raise ValueError("`--validation_dataset` must be left out for a model with two classes of one name.")
    classes = sorted(path.name for path in root.iterdir() if path.is_dir())
    unknown = [name for name in classes if name not in numbers]
    if unknown or not classes:
        known = ", ".join(list(numbers)[:5])
        found = f"`{unknown[0]}`" if unknown else "no folder"
        raise ValueError(
            f"`--validation_dataset` (={root}) must have folders named as classes ({known}, ...), but has {found}."
        )
    pairs = [(file, numbers[name]) for name in classes for file in _images_in(root / name)]
    if not pairs:
        raise ValueError(f"`--validation_dataset` (={root}) must hold images, but there is none.")
    places: Sequence[int] = range(len(pairs))
    if most is not None and most < len(pairs):
        places = np.linspace(0, len(pairs) - 1, most).round().astype(int).tolist()
    return Labelled([pairs[place][0] for place in places], [pairs[place][1] for place in places])


def image_files(folder: Path, flag: str) -> list[Path]:
    """All images under a folder, by name."""
    if not folder.is_dir():
        raise ValueError(f"`{flag}` (={folder}) must be a folder of images.")
    return _images_in(folder)


def _images_in(folder: Path) -> list[Path]:
    endings = {ending for ending, format in Image.registered_extensions().items() if format in Image.OPEN}
    return sorted(
        file
        for file in _files_below(folder)
        if file.suffix.lower() in endings and not file.name.startswith(".") and file.is_file()
    )


def _files_below(folder: Path) -> Iterator[Path]:
    """All files, those behind links too; a folder that several links lead to, or one below it, is gone through once."""
    seen = set()
    for place, below, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            below.clear()
            continue
        seen.add(real)
        yield from (Path(place, name) for name in names)


def _open(file: Path, flag: str, num_channels: int = 3, background: str = DEFAULT_BACKGROUND) -> Image.Image:
    try:
        return open_image(file, background, num_channels)
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise ValueError(f"`{flag}` (={file}) must be an image that can be read: {first_line(error)}") from error
