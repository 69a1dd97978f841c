"""One start on a folder of images for `benchmarks.folders`. Writes the seconds of each phase to a file.

python -m benchmarks.shared.folder_phases FOLDER OUTPUT NUM_WORKERS
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from hf_convnextv2 import ConvNextV2FCMAEConfig, ConvNextV2ForPreTraining, create_image_processor
from training.data.batches import TrainBatches
from training.data.samples import Collator, load_images, make_samples
from training.data.sources import load_source
from training.data.transforms import pretraining_transform
from training.run.accelerator import create_accelerator
from training.settings.scripts import PretrainSettings


def main(folder: str, output: str, num_workers: str) -> None:
    """List, check, load and train one step as `training/pretrain.py` does, with a tiny model."""
    settings = PretrainSettings(
        dataset_name=folder,
        output_dir="unused",
        num_workers=int(num_workers),
        image_size=32,
        per_device_train_batch_size=8,
        max_train_steps=1,
        with_tracking=False,
    )
    data = settings.data
    accelerator = create_accelerator(settings.run, 1, data.seed)
    phases: dict[str, float] = {}
    with accelerator.main_process_first(), timed(phases, "rows"):
        load_source(data, "train", None)
    with accelerator.main_process_first(), timed(phases, "check"):
        source = load_images(data, "train", None, 3)
    model_config = ConvNextV2FCMAEConfig(hidden_sizes=[8, 16], depths=[1, 1], decoder_hidden_size=16, image_size=32)
    model = ConvNextV2ForPreTraining(model_config)
    transform = pretraining_transform(settings.augmentation, 32, create_image_processor(model_config))
    fields: dict[str, Any] = {"num_cells": (32 // model_config.cell_size) ** 2}
    samples = make_samples(data, source, 3, transform, **fields)
    with timed(phases, "first batch"):
        rank, world = accelerator.process_index, accelerator.num_processes
        batches = TrainBatches([source], samples, data, Collator(), rank, world)
        batch = next(batches)
    with timed(phases, "first step"):
        model(pixel_values=batch["pixel_values"], noise=batch["noise"]).loss.backward()
    everyone = gather_object([phases])
    if accelerator.is_main_process:
        phases["second process"] = sum(everyone[1][name] for name in ("rows", "check")) if len(everyone) > 1 else 0.0
        Path(output).write_text(json.dumps(phases))
    accelerator.end_training()


@contextmanager
def timed(phases: dict[str, float], name: str) -> Iterator[None]:
    """Record the wall-clock and CPU seconds of the block. CPU seconds include processes that ended within it."""
    wall, before = time.perf_counter(), os.times()
    yield
    after = os.times()
    phases[name] = time.perf_counter() - wall
    phases["processor"] = phases.get("processor", 0.0) + sum(after[:4]) - sum(before[:4])


if __name__ == "__main__":
    main(*sys.argv[1:])
