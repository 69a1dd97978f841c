"""A tenth of the files is broken or unusual, of ten kinds: a run goes through them, and says which it left out."""

import base64
import json

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value

from tests.bad_files import UNREADABLE, UNUSUAL, bad_file, encode
from tests.photographs import cut, forget_accelerate, quick_datasets, write_tiny_fcmae
from training import pretrain
from training.data.batches import TrainBatches
from training.data.decoding import BadImageError, decode_image
from training.data.samples import name_of
from training.evaluation.pictures import read_metrics
from training.settings.scripts import PretrainSettings

__all__ = ["quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets")
KINDS = (*UNREADABLE, *UNUSUAL)
COUNT = 200


@pytest.fixture(scope="module")
def flood():
    """Files by name; every tenth is one of the kinds, each kind twice."""
    good = [cut(name, COUNT // 2, 48) for name in ("astronaut", "coffee")]
    files = {}
    for number in range(COUNT):
        picture = good[number % 2][number // 2]
        kind = KINDS[number // 10 % len(KINDS)] if number % 10 == 5 else None
        files[f"{number:03d}{'-' + kind.replace(' ', '_') if kind else ''}.jpg"] = (
            bad_file(kind, picture) if kind else encode(picture, "JPEG")
        )
    return files


def write(form, files, root):
    """The files as a folder of images, or as two files of parquet."""
    (root / "train").mkdir(parents=True)
    if form == "folder":
        for name, content in files.items():
            (root / "train" / name).write_bytes(content)
        return root
    columns = {"image": [{"bytes": content, "path": name} for name, content in files.items()]}
    table = Dataset.from_dict(
        columns, features=Features({"image": {"bytes": Value("binary"), "path": Value("string")}})
    )
    table = table.cast_column("image", Image(decode=False))
    for part in range(2):
        table.shard(2, part).to_parquet(root / f"train/{part:05d}-of-00002.parquet")
    return root / "train/*.parquet"


@pytest.mark.parametrize("form", ["folder", "parquet", "stream", "stream by two workers"])
def test_a_run_goes_through_a_flood_of_bad_images_and_counts_each(form, flood, tmp_path, monkeypatch, capfd):
    forget_accelerate()
    fetch, sizes = TrainBatches.__next__, []

    def fetch_and_count(self):
        batch = fetch(self)
        sizes.append(len(batch["pixel_values"]))
        assert batch["pixel_values"].isfinite().all()
        return batch

    monkeypatch.setattr(TrainBatches, "__next__", fetch_and_count)
    bad = sorted(name for name in flood if any(kind.replace(" ", "_") in name for kind in UNREADABLE))
    assert len(bad) == 8
    good = COUNT - len(bad)
    settings = {"dataset_name": str(write("folder" if form == "folder" else "parquet", flood, tmp_path / "images"))}
    streaming, workers = form.startswith("stream"), 2 if form.endswith("workers") else 0
    epochs = 3 if workers else 1  # so that each of the two has had each file
    settings |= {"streaming": streaming, "skip_bad_images": True, "num_workers": workers, "with_tracking": False}
    settings |= {"per_device_train_batch_size": 8, "max_train_steps": epochs * good // 8, "logging_steps": 6}
    settings["max_bad_images"] = len(bad) if streaming else 100
    settings |= {
        "shuffle_buffer_size": 20,
        "reconstruction_steps": 1000,
        "model_name_or_path": str(write_tiny_fcmae(tmp_path / "fcmae")),
    }
    pretrain.main(PretrainSettings(output_dir=str(tmp_path / "out"), **settings))
    said = capfd.readouterr()
    assert sum(sizes) == epochs * good
    for name in flood:
        times = said.out.count(name) + said.err.count(name)
        assert times == (name in bad) or (times == 2 and name == bad[0] and streaming)  # that the picture met
    if streaming:
        named = [json.loads(line)["problem"] for line in (tmp_path / "out/bad_images.jsonl").read_text().splitlines()]
        assert len(named) == len(bad) and all(any(name in line for line in named) for name in bad)
        assert [line["bad_images"] for line in read_metrics(tmp_path / "out/metrics.jsonl") if "loss" in line][-1] == 8


@pytest.mark.parametrize("raised", [RuntimeError, TypeError, NotImplementedError, IndexError, KeyError])
def test_whatever_a_reader_raises_for_a_damaged_file_makes_it_a_bad_image(raised, monkeypatch):
    def damaged(*arguments):
        raise raised

    monkeypatch.setattr("training.data.decoding.picture_to_array", damaged)
    stored = {"bytes": encode(cut("coffee", 1)[0], "PNG"), "path": None}
    with pytest.raises(BadImageError, match=f"photo cannot be read as an image: {raised.__name__}"):
        decode_image(stored, 3, "photo")


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_file_that_is_no_picture_is_a_bad_image(kind):
    with pytest.raises(BadImageError, match=r"photo cannot be read as an image"):
        decode_image({"bytes": bad_file(kind, cut("coffee", 1)[0]), "path": None}, 3, "photo")


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_an_image_in_base64_is_named_by_its_number_and_not_by_its_text(prefix):
    text = prefix + base64.b64encode(encode(cut("coffee", 1)[0], "png")).decode()
    with pytest.raises(
        BadImageError, match=r"^example 3, a text of [\d,]+ characters \(.{20}\.\.\.\), must be the path"
    ):
        decode_image(text, 3, name_of(text, "example 3"))
    path = "/" + "folder/" * 60 + "1.png"  # the control
    assert name_of(path, "example 3") == path


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_array_with_a_number_that_is_not_finite_is_a_bad_image(value):
    array = np.zeros((4, 5, 2), np.float32)
    decode_image(array, 2, "raster", "float32")
    array[1, 2, 0] = value
    with pytest.raises(BadImageError, match=r"raster holds values that are NaN or infinite"):
        decode_image(array, 2, "raster", "float32")


@pytest.mark.parametrize("kind", UNUSUAL)
def test_an_unusual_picture_shows_what_the_photograph_shows(kind):
    photograph = cut("coffee", 1, 64)[0]
    value = {"bytes": bad_file(kind, photograph, huge=512), "path": None}
    image = decode_image(value, 3, "photo", background="none").pixels.float()  # one colour of the palette is hidden
    image = image * 255 if kind == "16 bits" else image
    expected = torch.from_numpy(np.array(photograph)).permute(2, 0, 1).float()
    grey, size = kind == "16 bits", (1, 1) if kind == "1 x 1" else (64, 64)
    found, wanted = (torch.nn.functional.adaptive_avg_pool2d(tensor, size) for tensor in (image, expected))
    difference = (found.mean(0) - wanted.mean(0)) if grey else found - wanted
    assert difference.abs().mean() < 10  # of 255: JPEG, 16 colours and weights of grey differ
