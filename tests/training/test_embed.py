"""embed.py: features as Transformers' maps give them, from every kind of model and form of images, in both files."""

import csv
import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from datasets import List, Value, load_dataset
from numpy.testing import assert_allclose, assert_array_equal
from transformers import AutoImageProcessor, ViTConfig, ViTForImageClassification

from hf_convnextv2 import (
    ConvMAEModel,
    ConvNextV2Backbone,
    ConvNextV2Config,
    ConvNextV2FCMAEConfig,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
    create_image_processor,
)
from tests.photographs import apart, cut, message_of, quick_datasets, write_folder, write_parquet, write_tiny_convmae
from tests.small_models import awake
from tests.training.test_predict import files_of, images, pictures_of, spoilt
from training import embed
from training.models.detection import create_detector
from training.models.segmentation import create_segmenter
from training.settings.embedding import EmbedSettings, files_beside
from training.settings.model import DetectorSettings, SegmenterSettings

__all__ = ["images", "quick_datasets", "spoilt"]
pytestmark = pytest.mark.usefixtures("quick_datasets")
SIZES = {"hidden_sizes": [8, 16], "depths": [1, 2], "image_size": 32}
KINDS = ("classifier", "encoder", "backbone", "pretrained", "segmenter", "detector")
LARGEST = 65504  # of float16


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of every kind of model around one encoder."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = ConvNextV2Config(**SIZES)
    classifier = awake(ConvNextV2ForImageClassification(config))
    classifier.save_pretrained(root / "classifier")
    classifier.convnextv2.save_pretrained(root / "encoder")
    backbone = ConvNextV2Backbone.from_pretrained(root / "classifier", out_features=["stage1", "stage2"])
    awake(backbone.hidden_states_norms)
    backbone.save_pretrained(root / "backbone")
    pretrained = ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig(**SIZES, decoder_hidden_size=16))
    pretrained.convnextv2.load_state_dict(classifier.convnextv2.state_dict(), strict=False)
    pretrained.save_pretrained(root / "pretrained")
    given = {"model_name_or_path": str(root / "classifier"), "decoder_hidden_size": 32}
    segmenter = create_segmenter(SegmenterSettings(**given, auxiliary_loss_weight=0), ["sky", "tree"])
    segmenter.save_pretrained(root / "segmenter")
    detector = create_detector(DetectorSettings(**given, anchor_sizes=[8, 16, 32]), ["disc"])
    detector.save_pretrained(root / "detector")
    for kind in KINDS:
        create_image_processor(config).save_pretrained(root / kind)
    return root


@pytest.fixture(scope="module")
def stock_maps(models, images):
    """The maps `(C, H, W)` of each stage of each image, by Transformers alone."""
    model = transformers.ConvNextV2Model.from_pretrained(models / "encoder").eval()
    return maps_by(model, AutoImageProcessor.from_pretrained(models / "encoder"), images)


def maps_by(model, processor, images):
    found = {}
    for name, picture in pictures_of(images).items():
        pixel_values = processor(picture.convert("RGB"), return_tensors="pt").pixel_values
        with torch.no_grad():
            outputs = model(pixel_values, output_hidden_states=True)
        assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
        found[name] = [each[0].double().numpy() for each in outputs.hidden_states[1:]]
    return found


def settings_for(model, dataset, output, **fields):
    few = {"num_workers": 0, "per_device_eval_batch_size": 5}
    where = {"model_name_or_path": str(model), "dataset_name": str(dataset), "output_file": str(output)}
    return EmbedSettings(**{**few, **where, **fields})


def embedded(*arguments, **fields):
    with apart():
        return read_features(embed.main(settings_for(*arguments, **fields)))


def read_features(file):
    """A row for each image: `image`, `error`, and its features as arrays."""
    if file.suffix == ".parquet":
        return [{name: as_array(value) for name, value in row.items()} for row in pq.read_table(file).to_pylist()]
    beside = files_beside(file)
    good, bad = (read_csv(beside[name]) for name in ("images", "errors"))
    values = np.load(file)
    assert len(values) == len(good)
    rows = {int(row["index"]): {**row, "features": each, "error": None} for row, each in zip(good, values, strict=True)}
    rows |= {int(row["index"]): {**row, "features": None} for row in bad}
    assert sorted(rows) == list(range(len(rows)))
    return [{name: rows[index][name] for name in ("image", "features", "error")} for index in range(len(rows))]


def read_csv(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def as_array(value):
    return np.array(value) if isinstance(value, list) else value


def unit(values):
    return values / np.sqrt((values**2).sum(0))


def by_formula(values, pooling, exponent=3.0):
    """Pooling of a map `(C, H, W)`, written out."""
    positions = values.reshape(len(values), -1)
    if pooling == "gem":
        return (np.maximum(positions, 1e-6) ** exponent).mean(1) ** (1 / exponent)
    return positions.mean(1) if pooling == "mean" else positions.max(1)


def assert_same_rows(rows, expected, tolerance=1e-6):
    assert [(row["image"], row["error"]) for row in rows] == [(row["image"], row["error"]) for row in expected]
    for row, other in zip(rows, expected, strict=True):
        if row["error"] is None:
            assert_allclose(row["features"], other["features"], atol=tolerance * np.abs(other["features"]).max())
        else:
            assert row["features"] is None and other["features"] is None


@pytest.mark.parametrize("suffix", [".parquet", ".npy"])
@pytest.mark.parametrize("normalize", [False, True])
def test_features_are_the_pooled_maps_of_transformers(suffix, normalize, models, images, stock_maps, tmp_path):
    fields = {"pooling": ["max", "gem", "mean"], "stages": [2, 1], "gem_exponent": 4.5, "normalize": normalize}
    rows = embedded(models / "classifier", images, tmp_path / f"features{suffix}", **fields)
    assert [row["image"] for row in rows] == files_of(images) and not any(row["error"] for row in rows)
    for row in rows:
        maps = stock_maps[row["image"]]
        pooled = [by_formula(maps[stage - 1], name, 4.5) for stage in (2, 1) for name in ("max", "gem", "mean")]
        expected = unit(np.concatenate(pooled)) if normalize else np.concatenate(pooled)
        assert_allclose(row["features"], expected, atol=1e-5 * np.abs(expected).max())
    assert len({row["features"].tobytes() for row in rows}) == 9  # three of the photographs are there twice
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_gives_the_features_of_its_encoder(kind, models, images, stock_maps, tmp_path):
    # Of a segmentation model and a detector, the size is that of their training, not of the encoder's.
    for row in embedded(models / kind, images, tmp_path / "features.parquet", image_size=32):
        expected = by_formula(stock_maps[row["image"]][-1], "mean")
        assert_allclose(row["features"], expected, atol=1e-5 * np.abs(expected).max())


def test_features_of_convmae_are_its_pooled_maps(images, tmp_path):
    folder = write_tiny_convmae(tmp_path / "convmae")
    model = ConvMAEModel.from_pretrained(folder).eval()
    processor = create_image_processor(model.config)
    processor.save_pretrained(folder)
    maps = maps_by(model, processor, images)
    for row in embedded(folder, images, tmp_path / "features.parquet", stages=[1, 3]):
        expected = np.concatenate([by_formula(maps[row["image"]][stage], "mean") for stage in (0, 2)])
        assert_allclose(row["features"], expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("suffix", [".parquet", ".npy"])
def test_maps_of_stages_keep_their_shapes(suffix, models, spoilt, images, stock_maps, tmp_path):
    stages = [1, 2] if suffix == ".parquet" else [2]
    fields = {"pooling": ["none"], "stages": stages, "normalize": True}
    rows = embedded(models / "pretrained", spoilt, tmp_path / f"features{suffix}", **fields)
    by_name = {name.replace("/", "-"): maps for name, maps in stock_maps.items()}
    for row in rows:
        for stage in stages:
            values = row["features" if suffix == ".npy" else f"stage_{stage}"]
            if row["image"] in ("a.jpg", "b.jpg"):
                assert values is None and row["error"]
            elif row["image"].endswith(".png"):  # others are compressed once more
                expected = unit(by_name[row["image"]][stage - 1])
                assert values.shape == expected.shape == ((8, 8, 8) if stage == 1 else (16, 4, 4))
                assert_allclose(values, expected, atol=1e-5)


@pytest.mark.parametrize("form", ["pattern", "split", "parquet", "stream", "workers"])
def test_every_form_of_the_images_has_the_same_features(form, models, images, tmp_path):
    fields, name = {}, images / "train" / "*" / "*.jpg"
    if form in ("parquet", "stream"):
        fields, name = {"streaming": form == "stream"}, write_parquet(tmp_path / "images", {"train": 2}) / "*.parquet"
    elif form == "split":
        fields, name = {"split": "train"}, write_folder(tmp_path / "folder", {"train": 2, "test": 1})
    elif form == "workers":
        fields, name = {"num_workers": 2, "per_device_eval_batch_size": 2}, images / "train"
    rows = embedded(models / "encoder", name, tmp_path / "features.parquet", **fields)
    whole = embedded(models / "encoder", images / "train", tmp_path / "whole.npy")
    if form in ("parquet", "stream"):  # PNG instead of JPEG, in another order
        order = [f"{label}/{i}.jpg" for i in range(2) for label in ("astronaut", "chelsea", "coffee")]
        expected = {row["image"]: row["features"] for row in whole}
        largest = max(np.abs(values).max() for values in expected.values())
        for row, other in zip(rows, order, strict=True):
            assert_allclose(row["features"], expected[other], atol=0.05 * largest)
    else:
        prefix = "train/" if form == "split" else ""
        assert_same_rows(rows, [{**row, "image": f"{prefix}{row['image']}"} for row in whole])


def test_both_files_agree_and_name_the_damaged_images(models, spoilt, tmp_path, capsys):
    rows = embedded(models / "encoder", spoilt, tmp_path / "features.parquet")
    assert "2 of 14 images have none: see `error`." in capsys.readouterr().out
    others = embedded(models / "encoder", spoilt, tmp_path / "features.npy")
    printed = capsys.readouterr().out
    assert "Warning: a.jpg: cannot be read as an image" in printed and "features.errors.csv" in printed
    assert [row["image"] for row in rows if row["error"]] == ["a.jpg", "b.jpg"] and len(rows) == 14
    assert_same_rows(others, rows, 0)
    array = np.load(tmp_path / "features.npy")
    assert array.shape == (12, 16) and array.dtype == np.float32 and np.isfinite(array).all()
    assert json.loads((tmp_path / "features.json").read_text())["features"]["stages"] == [2]
    message = message_of(lambda: embedded(models / "encoder", spoilt, tmp_path / "few.npy", max_bad_images=1))
    assert "`max_bad_images` (=1) must be at least the number of bad images" in message


@pytest.mark.parametrize("suffix", [".parquet", ".npy"])
def test_half_precision_is_the_rounded_single_precision(suffix, models, images, tmp_path):
    single = embedded(models / "encoder", images, tmp_path / "single.parquet")
    half = embedded(models / "encoder", images, tmp_path / f"half{suffix}", dtype="float16")
    for row, other in zip(half, single, strict=True):
        assert_array_equal(np.float16(row["features"]), np.float16(other["features"]))
    if suffix == ".npy":
        assert np.load(tmp_path / "half.npy").dtype == np.float16
    else:
        assert str(pq.read_schema(tmp_path / "half.parquet").field("features").type.value_type) == "halffloat"


def test_features_too_large_for_half_precision_are_named(images, tmp_path, capsys):
    torch.manual_seed(0)
    model = ConvNextV2ForImageClassification(ConvNextV2Config(**SIZES))
    torch.nn.init.constant_(model.convnextv2.encoder.stages[-1].layers[-1].pwconv2.bias, 2 * LARGEST)
    model.save_pretrained(tmp_path / "large")
    create_image_processor(model.config).save_pretrained(tmp_path / "large")
    single = embedded(tmp_path / "large", images, tmp_path / "single.parquet")
    assert all(row["features"].max() > LARGEST for row in single)
    half = embedded(tmp_path / "large", images, tmp_path / "half.parquet", dtype="float16")
    assert all("infinite or not a number in float16" in row["error"] for row in half)
    assert "12 of 12 images have none" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_datasets_reads_the_features_as_lists_of_one_length(dtype, models, spoilt, tmp_path):
    rows = embedded(models / "encoder", spoilt, tmp_path / "features.parquet", dtype=dtype)
    loaded = load_dataset("parquet", data_files=str(tmp_path / "features.parquet"), split="train")
    assert loaded.features["features"] == List(Value(dtype), length=16)
    good = loaded.filter(lambda error: error is None, input_columns="error")
    stacked = good.with_format("numpy")["features"][:]
    assert stacked.shape == (12, 16)
    assert_array_equal(stacked, np.float32([row["features"] for row in rows if row["error"] is None]))


def test_an_index_of_faiss_finds_the_neighbours_that_the_formula_gives(models, spoilt, tmp_path):
    rows = [row for row in embedded(models / "encoder", spoilt, tmp_path / "features.parquet") if not row["error"]]
    loaded = load_dataset("parquet", data_files=str(tmp_path / "features.parquet"), split="train")
    good = loaded.filter(lambda error: error is None, input_columns="error")
    good.add_faiss_index("features")
    features = np.float32([row["features"] for row in rows])
    for query in features[:3]:
        _, found = good.get_nearest_examples("features", query, k=4)
        order = ((features - query) ** 2).sum(1).argsort()[:4]
        assert found["image"] == [rows[place]["image"] for place in order]


def test_an_existing_file_is_replaced_only_if_asked_with_those_beside_it(models, spoilt, images, tmp_path):
    output = tmp_path / "features.npy"
    embedded(models / "encoder", spoilt, output)
    assert "features.npy) must not exist yet" in message_of(lambda: embedded(models / "encoder", images, output))
    output.unlink()
    message = message_of(lambda: embedded(models / "encoder", images, output))
    assert "features.images.csv) must not exist yet" in message
    rows = embedded(models / "encoder", images, output, overwrite=True)
    assert len(rows) == 12 and read_csv(tmp_path / "features.errors.csv") == []
    assert embedded(models / "encoder", images, tmp_path / "other.npy")[3]["image"] == rows[3]["image"]
    for text in ('{"images": [], "annotations": []}', "[1]", "1,2"):
        (tmp_path / "boxes.json").write_text(text)
        message = message_of(lambda: embedded(models / "encoder", images, tmp_path / "boxes.npy", overwrite=True))
        assert "must have no other file's boxes.json beside it" in message
        assert (tmp_path / "boxes.json").read_text() == text


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"model_name_or_path": "./no/model"}, "must be a folder that exists, or a Hub id"),
        ({"model_name_or_path": "empty"}, "must be a folder that holds a model"),
        ({"model_name_or_path": "vit"}, "must hold a ConvNeXt V2 or ConvMAE model, or a model with such a backbone"),
        ({"model_name_or_path": "bare"}, "must hold a preprocessor_config.json; without one, give `--image_size`"),
        ({"dataset_name": "empty"}, "must hold images, such as .jpg or .png"),
        ({"output_file": "taken.parquet"}, "`output_file` (=taken.parquet) must not exist yet"),
        ({"output_file": "a.csv"}, "`output_file` (=a.csv) must end in .parquet, .npy"),
        ({"stages": [3]}, "`stages` (=[3]) must be between 1 and 2, the stages of the encoder"),
        ({"stages": [0]}, "`stages` (=[0]) must be between 1 and 2"),
        ({"stages": [1, 1]}, "`stages` (=[1, 1]) must name each only once"),
        ({"gem_exponent": 0.5}, "`gem_exponent` (=0.5) must be at least 1"),
        ({"pooling": ["median"]}, "`pooling` (=['median']) must be some of mean, max, gem, or none"),
        ({"pooling": ["none", "max"]}, "must be some of mean, max, gem, or none"),
        ({"pooling": ["none"], "stages": [1, 2], "output_file": "a.npy"}, "`stages` (=[1, 2]) must be one stage"),
        ({"dtype": "int8"}, "`dtype` (=int8) must be float32 or float16"),
        ({"image_size": 4}, "`image_size` (=4) must be at least 8, the stride of the encoder"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_is_computed(fields, text, models, images, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken.parquet").write_text("")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=8)).save_pretrained(tmp_path / "vit")
    ConvNextV2ForImageClassification(ConvNextV2Config(**SIZES)).save_pretrained(tmp_path / "bare")
    monkeypatch.chdir(tmp_path)
    fields = {"model_name_or_path": str(models / "encoder"), "dataset_name": str(images), **fields}
    with apart():
        assert text in message_of(lambda: embed.main(EmbedSettings(**{"output_file": "a.parquet", **fields})))
    left = set(os.listdir(tmp_path)) - {"datasets_cache"}
    assert left == {"bare", "empty", "taken.parquet", "vit"}


def test_a_file_of_features_does_not_lie_among_the_images(models, images):
    message = message_of(lambda: settings_for(models / "encoder", images, images / "features.npy"))
    assert "must not lie in `dataset_name`" in message


def test_images_with_other_channels_are_embedded_by_adapted_weights(models, tmp_path):
    (tmp_path / "grey").mkdir()
    for i, picture in enumerate(cut("coffee", 3)):
        picture.convert("L").save(tmp_path / f"grey/{i}.png")
    rows = embedded(models / "encoder", tmp_path / "grey", tmp_path / "features.npy", num_channels=1)
    assert [len(row["features"]) for row in rows] == [16] * 3
