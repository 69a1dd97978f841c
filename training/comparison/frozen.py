"""Methods without fine-tuning, on the frozen features of a model or on simple statistics of the pixels."""

from collections.abc import Iterator, Mapping
from threading import RLock
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor

from hf_convnextv2.images import DEFAULT_BACKGROUND
from training.comparison.subsets import undecoded
from training.data.decoding import decode_image
from training.data.problems import labelled_samples
from training.data.samples import eval_loader
from training.data.sources import array_dtype
from training.data.transforms import EvaluationTransform
from training.evaluation.features import Embed, extract_features, knn_scores, linear_probe_scores
from training.evaluation.loop import logits_of, pass_over
from training.evaluation.whitening import Features, whitened
from training.models.creation import BACKGROUND
from training.models.families import chosen_family
from training.models.loading import FEATURES
from training.prediction.pooling import PooledMaps
from training.run.stored_models import load_classifier, load_processor, load_weights
from training.settings.data import ValidateDataSettings
from training.settings.labels import SINGLE_LABEL
from training.settings.model import ModelSettings
from training.settings.pooling import ReadingSettings

PROBE, NEIGHBOURS = "linear probe", "20 nearest neighbours"
NUM_NEIGHBOURS, TEMPERATURE, STRENGTH = 20, 0.07, 1.0  # as validate.py has them by default
NUM_BINS = 16
# Accelerate keeps one current loader for a whole process, and drops rows of the batch that is the last one of it. To
# load a model, Transformers replaces a method of all models: of two loads at a time, one puts back the replacement.
PASSES = RLock()


def features_of(
    model: ModelSettings, images: Mapping[str, Dataset], num_workers: int = 0, reading: ReadingSettings | None = None
) -> Features:
    """The frozen features of a stored model, and the labels, of the images of each split.

    Images are prepared by the model's own image processor. Their columns are `image` and `label`. Whitening is that of
    the images of the split `train`.
    """
    reading = reading or ReadingSettings()
    with PASSES:
        encoder = load_weights(chosen_family(model).model, model, False, FEATURES)
        embed = PooledMaps(reading, len(encoder.encoder.stages))
        found = features_by(encoder, load_processor(model, None, encoder), images, num_workers, embed)
    return whitened(found, reading.whitened_components)


def features_by(
    encoder: Any, processor: Any, images: Mapping[str, Dataset], num_workers: int, embed: Embed
) -> Features:
    """The frozen features of an encoder, as `embed` makes them, and the labels, of the images of each split."""
    encoder.config.id2label = dict(enumerate(next(iter(images.values())).features["label"].names))
    encoder.config.problem_type = SINGLE_LABEL
    accelerator = Accelerator()
    encoder.to(accelerator.device)
    found = {}
    for split, part in images.items():
        loader = loader_of(part, encoder, processor, num_workers)
        with PASSES:
            found[split] = extract_features(accelerator, encoder, accelerator.prepare(loader), embed)
    return found


def predicted_classes(folder: str, images: Dataset, num_workers: int = 0) -> np.ndarray:
    """The classes `(N,)` that a fine-tuned classifier predicts, of images with the columns `image` and `label`."""
    settings, accelerator = ModelSettings(model_name_or_path=folder), Accelerator()
    with PASSES:
        model: Any = load_classifier(settings, use_ema=False)
    loader = loader_of(images, model, load_processor(settings, None, model), num_workers)
    model.to(accelerator.device)
    found: list[Tensor] = []

    def classes(batch: dict[str, Any]) -> tuple[Tensor]:
        return (logits_of(accelerator, model, batch).argmax(dim=1),)

    with PASSES:
        pass_over(
            accelerator, model, accelerator.prepare(loader), classes, lambda row: found.append(row.cpu()), lambda: False
        )
    return torch.cat(found).numpy()


def loader_of(images: Dataset, model: Any, processor: Any, num_workers: int) -> Any:
    """Batches of images as the model sees them in an evaluation, in order."""
    background = getattr(processor, BACKGROUND, None)
    data = ValidateDataSettings(dataset_name="unused", num_workers=num_workers, background=background)
    part = undecoded(images)
    return eval_loader(part, labelled_samples(data, part, model.config, EvaluationTransform(processor)), data)


def pixel_statistics(
    images: Dataset, num_channels: int = 1, background: str = DEFAULT_BACKGROUND
) -> tuple[Tensor, Tensor]:
    """Mean, deviation and histogram of each channel of each image `(N, 18 * num_channels)`, and the labels.

    One channel is the brightness of a picture. In the histogram, values of arrays count as 0 or 1 beyond these.
    """
    found = list(statistics(images, num_channels, background))
    return Tensor(np.array(found)), Tensor(images["label"][:]).long()


def statistics(images: Dataset, num_channels: int, background: str) -> Iterator[list[float]]:
    """The statistics of each image."""
    part = undecoded(images)
    dtype = array_dtype(part, "image")
    for index in range(len(part)):
        decoded = decode_image(part[index]["image"], num_channels, f"example {index}", dtype, background=background)
        pixels = decoded.pixels.numpy()
        row: list[float] = []
        for channel in pixels / 255 if pixels.dtype == np.uint8 else pixels:
            histogram = np.histogram(channel.clip(0, 1), bins=NUM_BINS, range=(0, 1), density=True)[0]
            row += [channel.mean(), channel.std(), *histogram]
        yield row


def frozen_answers(splits: Features, chosen: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """The predicted classes `(Q,)` of a linear probe and of nearest neighbours, fitted on the chosen images' labels."""
    (train, train_labels), (test, _) = splits["train"], splits["test"]
    known = train[chosen], train_labels[chosen], test, int(train_labels.max()) + 1
    scores = {
        PROBE: linear_probe_scores(*known, strength=STRENGTH, seed=seed),
        NEIGHBOURS: knn_scores(*known, NUM_NEIGHBOURS, TEMPERATURE),
    }
    return {method: found.argmax(dim=1).numpy() for method, found in scores.items()}


def pixel_answers(splits: Features, chosen: np.ndarray, seed: int) -> np.ndarray:
    """The classes `(Q,)` that the linear probe predicts: of statistics of the pixels, a logistic regression."""
    return frozen_answers(splits, chosen, seed)[PROBE]
