"""What a written file gives beside the model in eager mode: differences, accuracies and times.

B batch.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from conversion.exporting.images import Labelled, prepare, views
from conversion.exporting.models import Subject
from conversion.exporting.programs import smallest_images
from conversion.exporting.record import Comparison, Measured
from conversion.exporting.runtimes import Run

BATCH_SIZES = (1, 3, 8, 2)
# Differences that rounding explains, as shares of the largest value, by the data type of the file. int8 has no such
# bound: what it costs is measured.
TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
LARGEST = float(torch.finfo(torch.float32).max)


def compare(subject: Subject, run: Run, picture: Image.Image, processor: Any, format: str) -> list[Comparison]:
    """The outputs of the file and of the model in float32, for several batches and sizes of images."""
    found = []
    for batch, size in cases(subject, format):
        inputs = subject.inputs(views(picture, batch, size, processor, subject.num_channels))
        found.append(compare_outputs(subject, run(inputs), subject.outputs(inputs), batch, size))
    return found


def cases(subject: Subject, format: str) -> list[tuple[int, tuple[int, int]]]:
    """Batches and sizes of images: the model's own, larger ones, some that are not square, and the smallest.

    The smallest are of one cell where the file takes such, and are left out otherwise.
    """
    (height, width), (down, across) = subject.image_size, subject.cell
    sizes = [
        (height, width),
        (height + 3 * down, width + 3 * across),
        (max(2 * down, height - down), width + 2 * across),
    ]
    if not subject.has_dynamic_sizes:
        sizes = [(height, width)] * len(sizes)
    elif smallest_images(format, subject) is None:
        sizes.append((down, across))
    return list(zip(BATCH_SIZES, sizes, strict=False))


def compare_outputs(
    subject: Subject, found: dict[str, Tensor], expected: dict[str, Tensor], batch: int, size: tuple[int, int]
) -> Comparison:
    """Raises a `ValueError` where the file has other outputs than the model, or other shapes."""
    shapes = [{name: tuple(tensor.shape) for name, tensor in outputs.items()} for outputs in (found, expected)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"The file returns {shapes[0]} for batch {batch} of {size}, the model {shapes[1]}.")
    differences = torch.stack([_difference(found[name].float(), expected[name].float()) for name in expected])
    agreement = None
    if subject.gives_one_class:
        agreement = (found["logits"].argmax(1) == expected["logits"].argmax(1)).float().mean().item()
    return Comparison(batch, *size, differences.max().item(), agreement)  # NaN, if one of them is


def check_comparisons(comparisons: list[Comparison], dtype: str, file: Path) -> None:
    """Raise if a difference is larger than rounding explains, or not a number."""
    tolerance = TOLERANCES.get(dtype, LARGEST)
    bad = [each for each in comparisons if not each.difference <= tolerance]  # also if it is NaN
    if bad:
        raise ValueError(f"{file.name} does not give what the model gives: {bad[0]}, more than {tolerance:.0e}.")


def measure(
    runs: dict[str, Run], subject: Subject, images: Labelled, processor: Any, batch_size: int = 8
) -> dict[str, Measured]:
    """Accuracy and speed of files on the same images, taking turns batch by batch; the first is float32's."""
    answers: dict[str, list[Tensor]] = {name: [] for name in runs}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for start in range(0, len(images.files), batch_size):
        files = images.files[start : start + batch_size]
        pixel_values = torch.cat(
            [prepare(file, processor, subject.num_channels, "--validation_dataset") for file in files]
        )
        inputs = subject.inputs(pixel_values)
        for name, run in runs.items():
            if start == 0:
                run(inputs)  # the first call of a size plans memory
            before = time.perf_counter()
            logits = run(inputs)["logits"]
            seconds[name].append((time.perf_counter() - before) / len(files))
            answers[name].append(logits.argmax(1))
    return summarise(answers, seconds, images.labels)


def summarise(
    answers: dict[str, list[Tensor]], seconds: dict[str, list[float]], labels: Sequence[int]
) -> dict[str, Measured]:
    """The figures of each file."""
    classes = {name: torch.cat(parts) for name, parts in answers.items()}
    reference, expected = next(iter(classes.values())), torch.tensor(labels)
    return {
        name: Measured(
            (own == expected).float().mean().item(), (own == reference).float().mean().item(), median(seconds[name])
        )
        for name, own in classes.items()
    }


def _difference(found: Tensor, expected: Tensor) -> Tensor:
    return (found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
