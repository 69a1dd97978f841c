"""Images per second of the training script's data loader on streamed parquet, beside those of a pre-training step.

    python -m benchmarks.loader --sizes atto --num_workers 1

The images are JPEG photographs, of ImageNet's usual size and of a camera's; "without" decodes them at full size. The
share of a step that waits for data is measured with loader and step on the same cores. With several views of an image,
a batch holds the same number of views from fewer images, and each image is decoded once.
"""

import io
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice, product
from pathlib import Path
from statistics import median
from typing import Any

from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from benchmarks.shared.measure import Row, parse_arguments, report, seconds_of
from benchmarks.shared.photographs import photographs
from hf_convnextv2 import ConvNextV2FCMAEConfig, ConvNextV2ForPreTraining, create_image_processor
from training.data.batches import TrainBatches
from training.data.samples import Batch, Collator, load_images, make_samples
from training.data.transforms import enough_for_crops, pretraining_transform
from training.settings.augmentation import PretrainAugmentationSettings
from training.settings.data import PretrainDataSettings

STORED = {"500 x 375": (500, 375), "2000 x 1500": (2000, 1500)}


def main() -> None:
    args = parse_arguments(
        str(__doc__), sizes=["atto"], views=[1, 4], batch_size=16, num_workers=1, images=1000, image_size=224
    )
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for stored, shape in STORED.items():
            write_photographs(Path(folder, stored), shape, args.images)
            for size, reduced, views in product(args.sizes, (True, False), args.views):
                rows.append(measure(str(Path(folder, stored)), size, stored, reduced, views, args))
    report(rows, args.output)


def write_photographs(folder: Path, shape: tuple[int, int], count: int) -> None:
    """A parquet file of `count` JPEG photographs of `shape` (width, height)."""
    stored = []
    for photograph in photographs():
        buffer = io.BytesIO()
        photograph.resize(shape, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        stored.append({"bytes": buffer.getvalue(), "path": None})
    folder.mkdir()
    images = {"image": list(islice(cycle(stored), count))}
    Dataset.from_dict(images, features=Features({"image": ImageFeature()})).to_parquet(folder / "train.parquet")


def measure(folder: str, size: str, stored: str, reduced: bool, views: int, args: Any) -> Row:
    """Images per second of the loader alone (the other cores are idle), of the step alone, and of both together."""
    config = ConvNextV2FCMAEConfig.from_size(size, image_size=args.image_size, num_visible_sets=views)
    model, batch_size = ConvNextV2ForPreTraining(config).train(), args.batch_size // views
    batches = loader(folder, config, reduced, batch_size, args)
    first = next(batches)
    start = time.perf_counter()
    for _ in range(args.rounds):
        next(batches)
    alone = (time.perf_counter() - start) / args.rounds
    step = median(seconds_of(lambda: run(model, first)) for _ in range(args.rounds))
    waits, steps = [], []
    for _ in range(args.rounds):
        start = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - start)
        run(model, batch)
        steps.append(time.perf_counter() - start)
    row: Row = {"size": size, "photographs": stored, "reduced decoding": "with" if reduced else "without"}
    row["views"] = views
    row["loader alone, images/s"] = batch_size / alone
    row["step alone, images/s"] = batch_size / step
    row["both, images/s"] = batch_size * len(steps) / sum(steps)
    row["both, views/s"] = views * batch_size * len(steps) / sum(steps)
    row["waiting for data"] = f"{sum(waits) / sum(steps):.1%}"
    print(row, flush=True)
    return row


def loader(
    folder: str, model_config: ConvNextV2FCMAEConfig, reduced: bool, batch_size: int, args: Any
) -> Iterator[Batch]:
    """The batches of `training/pretrain.py` with its default transforms."""
    data = PretrainDataSettings(
        dataset_name=folder,
        streaming=True,
        per_device_train_batch_size=batch_size,
        num_workers=args.num_workers,
    )
    augmentation = PretrainAugmentationSettings(reduced_decoding=reduced)
    source = load_images(data, "train", None, 3)
    transform = pretraining_transform(augmentation, args.image_size, create_image_processor(model_config))
    fields: dict[str, Any] = {"num_cells": (args.image_size // model_config.cell_size) ** 2}
    enough = enough_for_crops(augmentation, args.image_size)
    samples = make_samples(data, source, 3, transform, enough=enough, **fields)
    return TrainBatches([source], samples, data, Collator(), 0, 1)


def run(model: ConvNextV2ForPreTraining, batch: Batch) -> None:
    model(pixel_values=batch["pixel_values"], noise=batch["noise"]).loss.backward()
    model.zero_grad()


if __name__ == "__main__":
    main()
