"""What is analysed: a model or a run, its encoder, and the images that it is shown."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor

from training.data.samples import make_samples
from training.data.transforms import EvaluationTransform
from training.prediction.batches import batches, create_reader
from training.prediction.encoders import StoredEncoder, load_encoder
from training.prediction.images import Images, find_images
from training.prediction.loop import name_bad_images
from training.run.checkpoints import numbered_folders
from training.settings.analysis import AnalyzeSettings
from training.settings.checks import check
from training.settings.model import ModelSettings


@dataclass
class Subject:
    """A model, and the settings of its analysis."""

    settings: AnalyzeSettings  # `model` names a folder that holds a model
    accelerator: Accelerator

    @cached_property
    def encoder(self) -> StoredEncoder:
        """The encoder of the model."""
        return self.load(self.settings.model)

    @property
    def seed(self) -> int:
        """The seed of all that is drawn."""
        return self.settings.data.seed

    @cached_property
    def images(self) -> Images:
        """The images that are drawn of the data set."""
        found = find_images(self.settings.data, self.encoder.num_channels)
        return drawn_images(found, self.settings.analysis.max_images, self.seed)

    @cached_property
    def photograph(self) -> Tensor:
        """The photograph as the encoder sees it, `(1, C, H, W)`, on its device."""
        file = self.settings.analysis.photograph
        if file is None:
            return next(self.pixel_values(self.encoder.processor, 1))
        column, path = self.settings.data.image_column, str(Path(file).expanduser())
        transform = EvaluationTransform(self.encoder.processor)
        samples = make_samples(self.settings.data, self.images.source, self.encoder.num_channels, transform)
        pixels = samples.decode({column: {"path": path, "bytes": None}}, path).pixels
        return transform(pixels)[None].to(self.accelerator.device)

    def load(self, model: ModelSettings) -> StoredEncoder:
        """The encoder of a model, on the device, ready to be evaluated."""
        encoder = load_encoder(model, self.settings.data.background)
        encoder.model.to(self.accelerator.device).eval().requires_grad_(False)
        return encoder

    def pixel_values(self, processor: Any, batch_size: int, most: int | None = None) -> Iterator[Tensor]:
        """The drawn images, or the first `most` of them, prepared by a processor: `(B, C, H, W)`, on the device.

        Images that cannot be read are named and left out.

        Raises:
            ValueError: if none can be read.
        """
        images = self.images if most is None else first_images(self.images, most)
        data = replace(self.settings.data, per_device_eval_batch_size=batch_size)
        reader = create_reader(images, data, self.encoder.num_channels, EvaluationTransform(processor))
        num_bad = num_good = 0
        for batch in batches(self.accelerator, images, reader, data, 0, stacks=True):
            name_bad_images(batch["samples"], num_bad, data.max_bad_images)
            num_bad += sum("error" in sample for sample in batch["samples"])
            if len(batch["pixel_values"]):
                num_good += len(batch["pixel_values"])
                yield batch["pixel_values"].to(self.accelerator.device)
        check("dataset_name", data.dataset_name, num_good > 0, "hold images that can be read")


def drawn_images(images: Images, most: int, seed: int) -> Images:
    """So many of the images, drawn without replacement, in their order; of a stream the first ones."""
    source = images.source
    if not isinstance(source, Dataset) or len(source) <= most:
        return first_images(images, most)
    drawn = np.sort(np.random.default_rng(seed).permutation(len(source))[:most])
    return Images(source.select(drawn), images.root, most)


def first_images(images: Images, most: int) -> Images:
    """The first of the images, so many at most."""
    total = most if images.total is None else min(most, images.total)
    return Images(images.source.take(total), images.root, total)


def newest_model(settings: ModelSettings) -> ModelSettings:
    """The settings with the folder of the model: as given, or the newest checkpoint of a run that has no model yet."""
    folder = Path(settings.model_name_or_path or "").expanduser()
    if not folder.is_dir() or (folder / "config.json").is_file():
        return settings
    checkpoints = numbered_folders(folder)
    rule = "hold a model (config.json), or checkpoints of a run (checkpoint-1000 and so on)"
    check("model_name_or_path", folder, bool(checkpoints), rule)
    return replace(settings, model_name_or_path=str(checkpoints[-1]))
