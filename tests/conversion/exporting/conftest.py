"""A small classifier of photographs that has learnt its classes, and its ONNX files in three data types."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from conversion.export import export
from hf_convnextv2 import ConvNextV2ForImageClassification, create_image_processor
from tests.photographs import CLASSES, cut
from tests.small_models import awake, small_config

NUM_IMAGES = 12  # of each class


@dataclass(frozen=True)
class Exported:
    """A model's folder, that of its files, and the images that it was measured on, with their classes."""

    model: Path
    folder: Path
    images: list[Path]
    labels: list[int]


@pytest.fixture(scope="session")
def labelled(tmp_path_factory) -> Path:
    """Photographs as `test/CLASS/1.png`."""
    root = tmp_path_factory.mktemp("labelled")
    for name in CLASSES:
        (root / "test" / name).mkdir(parents=True)
        for number, picture in enumerate(cut(name, NUM_IMAGES, 80)):
            picture.save(root / "test" / name / f"{number:02d}.png")
    return root


@pytest.fixture(scope="session")
def classifier(tmp_path_factory, labelled) -> Path:
    """The folder of a classifier, whose last layer is fitted to the labelled images."""
    torch.manual_seed(0)
    names = dict(enumerate(CLASSES))
    config = small_config(depths=[1, 1, 1, 1], num_labels=3, id2label=names, label2id={n: i for i, n in names.items()})
    model, processor = awake(ConvNextV2ForImageClassification(config)), create_image_processor(config)
    files = sorted(labelled.rglob("*.png"))
    pixel_values = processor([Image.open(file) for file in files], return_tensors="pt").pixel_values
    targets = torch.tensor([CLASSES.index(file.parent.name) for file in files])
    with torch.no_grad():
        features = model.convnextv2(pixel_values).pooler_output.double()
        features = torch.cat([features, torch.ones(len(features), 1).double()], dim=1)
        wanted = 6 * torch.nn.functional.one_hot(targets).double() - 3
        # With some weight decay: else the rounding of features would be the classes.
        gram = features.T @ features + torch.eye(features.shape[1]).double()
        solved = torch.linalg.solve(gram, features.T @ wanted)
        model.classifier.weight.copy_(solved[:-1].T)
        model.classifier.bias.copy_(solved[-1])
    folder = tmp_path_factory.mktemp("models") / "classifier"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory, classifier, labelled) -> Exported:
    """Its files in float32, float16 and int8, calibrated with and measured on the labelled images."""
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    dtypes = ("float32", "float16", "int8")
    export(str(classifier), folder, dtype=dtypes, calibration_images=labelled, validation_dataset=labelled)
    images = sorted((labelled / "test").rglob("*.png"))
    return Exported(classifier, folder, images, [CLASSES.index(image.parent.name) for image in images])


def photographed(photographs: list[np.ndarray], count: int, height: int, width: int) -> Tensor:
    """Parts of photographs `(count, 3, height, width)`, with values as an image processor makes them."""
    parts = [torch.from_numpy(photographs[i % 4][i : i + height, i : i + width].copy()) for i in range(count)]
    return (torch.stack(parts).permute(0, 3, 1, 2) / 255 - 0.45) / 0.225
