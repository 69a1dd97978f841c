"""Small real photographs for the tests, cut out of those that scikit-image carries, and tiny models for them."""

import json
import math
import os
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import skimage.data
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as Pictures
from PIL import ImageDraw

from hf_convnextv2 import ConvMAEConfig, ConvMAEForPreTraining, ConvNextV2FCMAEConfig, ConvNextV2ForPreTraining

CLASSES = ("astronaut", "chelsea", "coffee")
OBJECTS = {"disc": (220, 30, 30), "rectangle": (30, 60, 220)}  # with their colours


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


def write_masked_parquet(root: Path, splits: dict[str, int], files: int = 2, unknown: bool = False) -> Path:
    """The same as parquet with the columns `image` and `annotation`, `files` of them a split.

    With `unknown`, the brightest pixels have no class.
    """
    root.mkdir(parents=True)
    for split, count in splits.items():
        pictures = [picture for _, picture in masked_names(count)]
        rows = {"image": pictures, "annotation": [brightness_classes(picture, unknown) for picture in pictures]}
        table = Dataset.from_dict(rows, features=Features({"image": Image(), "annotation": Image()}))
        for i in range(files):
            table.shard(files, i).to_parquet(root / f"{split}-{i:05d}-of-{files:05d}.parquet")
    return root


def masked_names(count: int) -> list[tuple[str, Pictures.Image]]:
    """`count` photographs of each of `CLASSES` and their names."""
    return [(f"{name}{i}", picture) for name in CLASSES for i, picture in enumerate(cut(name, count, 48))]


def brightness_classes(picture: Pictures.Image, unknown: bool = False) -> Pictures.Image:
    """A mask: 0 where the picture is dark, 1, or 2 where it is bright; if asked, 255 where it is brightest."""
    brightness = np.asarray(picture.convert("L"))
    classes = np.digitize(brightness, [80, 150])
    return Pictures.fromarray(np.where(unknown & (brightness > 180), 255, classes).astype(np.uint8))


def write_objects_folder(root: Path, splits: dict[str, int]) -> Path:
    """A folder of photographs with discs and rectangles: `split/1.jpg`, and `split/metadata.jsonl` with `objects`."""
    for split, count in splits.items():
        (root / split).mkdir(parents=True)
        lines = []
        for name, picture, objects in pictures_with_objects(count):
            picture.save(root / split / f"{name}.jpg")
            lines.append(json.dumps({"file_name": f"{name}.jpg", "objects": objects}))
        (root / split / "metadata.jsonl").write_text("\n".join(lines))
    return root


def write_objects_parquet(root: Path, splits: dict[str, int], files: int = 2) -> Path:
    """The same as parquet with the columns `image` and `objects`, `files` of them a split."""
    root.mkdir(parents=True)
    numbers = List(List(Value("float32")))
    polygons = List(List(List(Value("float32"))))
    objects = {"bbox": numbers, "category": List(ClassLabel(names=list(OBJECTS))), "segmentation": polygons}
    for split, count in splits.items():
        _, pictures, stored = zip(*pictures_with_objects(count), strict=True)
        rows = {"image": list(pictures), "objects": list(stored)}
        table = Dataset.from_dict(rows, features=Features({"image": Image(), "objects": objects}))
        for i in range(files):
            table.shard(files, i).to_parquet(root / f"{split}-{i:05d}-of-{files:05d}.parquet")
    return root


def write_coco_folder(root: Path, splits: dict[str, int]) -> Path:
    """The same as COCO has it, with the ids 1 and 3: `train2017/1.jpg`, `annotations/instances_train2017.json`."""
    (root / "annotations").mkdir(parents=True)
    ids = dict(zip(OBJECTS, (1, 3), strict=True))
    for split, count in splits.items():
        (root / f"{split}2017").mkdir()
        images, annotations = [], []
        for name, picture, objects in pictures_with_objects(count):
            file, image_id = f"{name}.jpg", 100 + len(images)
            picture.save(root / f"{split}2017" / file)
            images.append({"id": image_id, "file_name": file, "width": picture.width, "height": picture.height})
            for box, kind, polygons in zip(*objects.values(), strict=True):
                own = {"id": len(annotations) + 1, "image_id": image_id, "category_id": ids[kind], "iscrowd": 0}
                annotations.append({**own, "bbox": box, "area": area_of(polygons[0]), "segmentation": polygons})
        categories = [{"id": number, "name": name, "supercategory": "shape"} for name, number in ids.items()]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return root


def pictures_with_objects(count: int) -> list[tuple[str, Pictures.Image, dict[str, list]]]:
    """`count` photographs of each of `CLASSES` with one to four objects, each in a quarter of its own; their names."""
    random = np.random.default_rng(1)
    return [(name, *with_objects(picture, 1 + i % 4, random)) for i, (name, picture) in enumerate(masked_names(count))]


def with_objects(picture: Pictures.Image, count: int, random: np.random.Generator) -> tuple:
    """A photograph with `count` objects on it, and their boxes, names and polygons."""
    objects: dict[str, list] = {"bbox": [], "category": [], "segmentation": []}
    quarter = picture.width // 2
    for place in random.permutation(4)[:count].tolist():
        width, height = random.integers(quarter // 2, quarter - 2, 2).tolist()
        left, top = (random.integers(0, quarter - side) for side in (width, height))
        left, top = int(left) + quarter * (place % 2), int(top) + quarter * (place // 2)
        kind = str(random.choice(list(OBJECTS)))
        polygon = outline(kind, left, top, width, height)
        last_pixels = [(x - (x > left), y - (y > top)) for x, y in polygon] if kind == "rectangle" else polygon
        ImageDraw.Draw(picture).polygon(last_pixels, OBJECTS[kind])
        objects["bbox"].append([left, top, width, height])
        objects["category"].append(kind)
        objects["segmentation"].append([[number for point in polygon for number in point]])
    return picture, objects


def outline(kind: str, left: int, top: int, width: int, height: int) -> list[tuple[float, float]]:
    """The corners of an object that fills a box."""
    if kind == "rectangle":
        return [(left, top), (left + width, top), (left + width, top + height), (left, top + height)]
    angles = [2 * math.pi * i / 16 for i in range(16)]
    middle, radii = (left + width / 2, top + height / 2), (width / 2, height / 2)
    return [
        tuple(round(m + r * f(a), 2) for m, r, f in zip(middle, radii, (math.cos, math.sin), strict=True))
        for a in angles
    ]


def area_of(polygon: list[float]) -> float:
    """The area inside a polygon x1, y1, x2, y2, ..."""
    x, y = np.array(polygon[::2]), np.array(polygon[1::2])
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)


def with_float_values(folder: Path, offset: float = 0.0, scale: float = 1.0) -> Path:
    """A folder whose photographs become TIFF files of floats with a page for each colour: `offset + scale * [0, 1]`."""
    for file in folder.rglob("*.jpg"):
        colours = np.asarray(Pictures.open(file).convert("RGB")).astype(np.float32).transpose(2, 0, 1)
        colours = (colours - colours.min()) / (colours.max() - colours.min())
        pages = [Pictures.fromarray((offset + scale * page).astype(np.float32)) for page in colours]
        pages[0].save(file.with_suffix(".tif"), save_all=True, append_images=pages[1:])
        file.unlink()
    for file in folder.rglob("metadata.jsonl"):
        file.write_text(file.read_text().replace(".jpg", ".tif"))
    return folder


def write_tiny_fcmae(folder: Path, num_stages: int = 2) -> Path:
    """A pre-training model of 8 and 16 (and 24) channels with cells of 8 (or 16) pixels, for images of 32."""
    torch.manual_seed(0)
    stages = {"hidden_sizes": [8, 16, 24][:num_stages], "depths": [1, 2, 1][:num_stages]}
    sizes = {**stages, "decoder_hidden_size": 16, "image_size": 32}
    ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig(**sizes)).save_pretrained(folder)
    return folder


def write_tiny_convmae(folder: Path) -> Path:
    """A pre-training model of ConvMAE of 8, 12 and 16 channels with cells of 8 pixels, for images of 32."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_sizes": [8, 12, 16], "depths": [1, 1, 2], "patch_sizes": [2, 2, 2]}
    sizes |= {"num_attention_heads": 2, "decoder_num_attention_heads": 2, "decoder_hidden_size": 16}
    config = ConvMAEConfig(**sizes, decoder_num_hidden_layers=1, image_size=32)
    ConvMAEForPreTraining(config).save_pretrained(folder)
    return folder


# By the family's name.
WRITE_TINY = {"convnextv2": write_tiny_fcmae, "convmae": write_tiny_convmae}


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


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder of a tiny pre-training model of each family, by the family's name."""
    return {name: str(write(tmp_path_factory.mktemp(name))) for name, write in WRITE_TINY.items()}


def save_turned(picture: Pictures.Image, file: Path) -> Pictures.Image:
    """Save a picture on its side, as a phone does, with EXIF data that say so; return how it looks when upright."""
    exif = Pictures.Exif()
    exif[0x0112] = 6  # the orientation: turn by 90 degrees clockwise to show it
    picture.convert("RGB").transpose(Pictures.Transpose.ROTATE_90).save(file, exif=exif)
    return Pictures.open(file).transpose(Pictures.Transpose.ROTATE_270)


def message_of(call: Callable[[], object]) -> str:
    """What a call says when it refuses its input."""
    with pytest.raises(ValueError) as error:
        call()
    return str(error.value)
