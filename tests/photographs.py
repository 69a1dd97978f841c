"""Small real photographs for the tests, cut out of those that scikit-image carries, and tiny models for them."""

import os
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
import pytest
import skimage.data
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pictures

from hf_convnextv2 import ConvNextV2FCMAEConfig, ConvNextV2ForPreTraining

CLASSES = ("astronaut", "chelsea", "coffee")


@pytest.fixture
def quick_datasets(monkeypatch, tmp_path):
    """`datasets` with a cache of the test's own, and without the 5 s that it sleeps after each epoch of a stream."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


def cut(name: str, count: int, size: int = 40) -> list[Pictures.Image]:
    """`count` squares out of one photograph."""
    photograph = Pictures.fromarray(getattr(skimage.data, name)())
    corners = np.random.default_rng(0).integers(0, min(photograph.size) - size, (count, 2)).tolist()
    return [photograph.crop((x, y, x + size, y + size)) for x, y in corners]


def write_folder(root: Path, splits: dict[str, int], classes: tuple[str, ...] = CLASSES) -> Path:
    """A folder of images, `split/class/number.jpg`."""
    for split, count in splits.items():
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i, picture in enumerate(cut(name, count)):
                picture.save(root / split / name / f"{i}.jpg")
    return root


def write_parquet(root: Path, splits: dict[str, int], files: int = 2) -> Path:
    """The same as parquet, `files` of them a split."""
    root.mkdir(parents=True)
    features = Features({"image": Image(), "label": ClassLabel(names=list(CLASSES))})
    for split, count in splits.items():
        images = [picture for i in range(count) for picture in (cut(name, count)[i] for name in CLASSES)]
        rows = {"image": images, "label": list(range(len(CLASSES))) * count}
        table = Dataset.from_dict(rows, features=features)
        for i in range(files):
            table.shard(files, i).to_parquet(root / f"{split}-{i:05d}-of-{files:05d}.parquet")
    return root


def write_masked_folder(root: Path, splits: dict[str, int]) -> Path:
    """A folder of photographs and masks of three classes by brightness: `split/images/1.jpg`, `split/masks/1.png`."""
    for split, count in splits.items():
        for part in ("images", "masks"):
            (root / split / part).mkdir(parents=True)
        for name, picture in masked_names(count):
            picture.save(root / split / "images" / f"{name}.jpg")
            brightness_classes(picture).save(root / split / "masks" / f"{name}.png")
    return root


def write_masked_parquet(root: Path, splits: dict[str, int], files: int = 2) -> Path:
    """The same as parquet with the columns `image` and `annotation`, `files` of them a split."""
    root.mkdir(parents=True)
    for split, count in splits.items():
        pictures = [picture for _, picture in masked_names(count)]
        rows = {"image": pictures, "annotation": [brightness_classes(picture) for picture in pictures]}
        table = Dataset.from_dict(rows, features=Features({"image": Image(), "annotation": Image()}))
        for i in range(files):
            table.shard(files, i).to_parquet(root / f"{split}-{i:05d}-of-{files:05d}.parquet")
    return root


def masked_names(count: int) -> list[tuple[str, Pictures.Image]]:
    """`count` photographs of each of `CLASSES` and their names."""
    return [(f"{name}{i}", picture) for name in CLASSES for i, picture in enumerate(cut(name, count, 48))]


def brightness_classes(picture: Pictures.Image) -> Pictures.Image:
    """A mask: 0 where the picture is dark, 1, or 2 where it is bright."""
    return Pictures.fromarray(np.digitize(np.asarray(picture.convert("L")), [80, 150]).astype(np.uint8))


def write_tiny_fcmae(folder: Path) -> Path:
    """A pre-training model of 8 and 16 channels with cells of 8 pixels, for images of 32."""
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [8, 16], "depths": [1, 2], "decoder_hidden_size": 16, "image_size": 32}
    ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig(**sizes)).save_pretrained(folder)
    return folder


# Flags of a run on views of images, with all that can be added to it.
VIEWS = {"num_visible_sets": 4, "fusion_stages": "stage1", "target_type": "pixel+feature", "feature_loss": "cosine"}


def forget_accelerate() -> None:
    """Let the next `Accelerator` of this process start anew."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()  # type: ignore[attr-defined]
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)


@contextmanager
def apart():
    """No state of an earlier run; one thread, which is faster for models this small, and adds in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    forget_accelerate()
    yield
    forget_accelerate()
    torch.set_num_threads(threads)


@pytest.fixture
def fresh_accelerate():
    with apart():
        yield


@pytest.fixture(scope="module")
def fcmae(tmp_path_factory):
    """The folder of a tiny pre-training model."""
    return str(write_tiny_fcmae(tmp_path_factory.mktemp("fcmae")))


def message_of(call: Callable[[], object]) -> str:
    """What a call says when it refuses its input."""
    with pytest.raises(ValueError) as error:
        call()
    return str(error.value)
