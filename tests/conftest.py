"""What all tests share: no network, one seed, few threads, photographs."""

import os
import random

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TRITON_INTERPRET"] = "1"  # kernels for GPUs run on a CPU; read when they are defined

import numpy as np
import pytest
import skimage.data
import torch
import transformers
from torch import Tensor

transformers.utils.logging.disable_progress_bar()
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # a worker for each core: more threads would wait for each other

# Photographs that come inside scikit-image's wheel; any other name of skimage.data would need the network.
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "brick", "grass", "gravel", "camera")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(autouse=True)
def seed():
    """The only randomness of the tests: every test starts from the same state of every generator."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def photographs() -> list[np.ndarray]:
    """Photographs `(H, W, 3)` uint8, of several sizes, grey ones as three equal channels."""
    images = [getattr(skimage.data, name)() for name in PHOTOGRAPHS]
    return [image if image.ndim == 3 else image[..., None].repeat(3, axis=-1) for image in images]


@pytest.fixture(scope="session")
def crops(photographs) -> Tensor:
    """64 crops `(64, 3, 224, 224)` of the photographs, normalised with ImageNet's statistics."""
    generator = np.random.default_rng(0)
    images = []
    for index in range(64):
        image = photographs[index % len(photographs)]
        top, left = (generator.integers(0, side - 224 + 1) for side in image.shape[:2])
        images.append(torch.from_numpy(image[top : top + 224, left : left + 224].copy()))
    pixel_values = torch.stack(images).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixel_values - mean) / std
