"""A classifier as a file of another runtime, for the benchmarks, and crops of photographs as it takes them."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from benchmarks.shared.photographs import photographs
from conversion.exporting.choices import CLASSIFICATION
from conversion.exporting.formats import FORMATS, check_format
from conversion.exporting.models import Subject
from conversion.exporting.precision import check_precision
from conversion.exporting.programs import export_program, size_of, write_program
from conversion.exporting.quantization import quantise
from conversion.exporting.runtimes import Run, open_file

NUM_CALIBRATION = 64  # crops that int8 is calibrated with


class Written(NamedTuple):
    """A file that has been written and read again. size: in bytes."""

    run: Run
    seconds_to_export: float
    size: int

    def logits(self, pixel_values: Tensor) -> Tensor:
        """Of images `(B, 3, H, W)`."""
        return self.run({"pixel_values": pixel_values})["logits"]


def can_run(format: str, dtype: str) -> bool:
    """Whether the packages are installed, and the runtime computes in this data type on this processor."""
    try:
        check_format(format, [dtype])
        check_precision(format, [dtype])
    except (ImportError, ValueError):
        return False
    return True


def write_classifier(model: Any, format: str, dtype: str, pictures: Sequence[Image.Image] | None = None) -> Written:
    """Export the classifier, and open the file with as many threads as PyTorch. pictures: what calibrates int8."""
    subject = Subject("classifier", CLASSIFICATION, model.eval(), (32, 32), (224, 224), 3)
    name = FORMATS[format].files[dtype]
    with tempfile.TemporaryDirectory() as folder:
        file, started = Path(folder) / name, time.perf_counter()
        program = export_program(format, subject, "float32" if dtype == "int8" else dtype)
        if dtype == "int8":
            calibration = list(crops(NUM_CALIBRATION, (224, 224), pictures, seed=1).split(1))
            program = quantise(format, subject, program, calibration, list(FORMATS[format].float_layers))
        write_program(format, program, file)
        seconds = time.perf_counter() - started
        return Written(open_file(format, dtype, file, ["logits"]), seconds, size_of(file))


def crops(count: int, size: tuple[int, int], pictures: Sequence[Image.Image] | None = None, seed: int = 0) -> Tensor:
    """Crops of photographs at random places and of random scales, normalised, `(count, 3, *size)`.

    pictures: the photographs, which take turns; by default those that are installed.
    """
    random, pictures = np.random.default_rng(seed), pictures or photographs()
    height, width = size
    images = []
    for index in range(count):
        picture = pictures[index % len(pictures)]
        scale = random.uniform(0.5, 1) * min(2, picture.width / width, picture.height / height)
        across, down = int(scale * width), int(scale * height)
        left, top = (int(random.integers(side + 1)) for side in (picture.width - across, picture.height - down))
        part = picture.crop((left, top, left + across, top + down)).resize((width, height))
        images.append(torch.from_numpy(np.array(part)))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return (torch.stack(images).permute(0, 3, 1, 2) / 255 - mean) / std
