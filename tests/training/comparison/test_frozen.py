"""Frozen features, answers of methods on them, and statistics of the pixels, for images of any number of channels."""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value, load_dataset
from PIL import Image as Pictures
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import PreTrainedModel

from hf_convnextv2 import ConvNextV2ForImageClassification, create_image_processor
from tests.photographs import CLASSES, apart, cut, quick_datasets, write_folder
from tests.small_models import awake, small_config
from training import validate
from training.comparison import frozen
from training.comparison.frozen import (
    NEIGHBOURS,
    PROBE,
    features_of,
    frozen_answers,
    pixel_statistics,
    predicted_classes,
)
from training.settings.data import ValidateDataSettings
from training.settings.model import ModelSettings
from training.settings.pooling import ReadingSettings
from training.settings.scripts import ValidateSettings

__all__ = ["quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets")


def photographs(count):
    images = [picture for name in CLASSES for picture in cut(name, count)]
    features = Features({"image": Image(), "label": ClassLabel(names=list(CLASSES))})
    return Dataset.from_dict({"image": images, "label": np.repeat(range(3), count).tolist()}, features=features)


def save_classifier(folder, **config):
    torch.manual_seed(0)
    names = dict(enumerate(CLASSES))
    labels = {"id2label": names, "label2id": {name: label for label, name in names.items()}}
    model = awake(ConvNextV2ForImageClassification(small_config(**labels, **config)))
    model.save_pretrained(folder)
    create_image_processor(model.config).save_pretrained(folder)
    return model


def test_a_classifier_predicts_what_it_predicts_by_itself(tmp_path):
    model, images = save_classifier(tmp_path), photographs(4)
    pixels = create_image_processor(model.config)(list(images["image"]), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model(pixels).logits.argmax(dim=1).tolist()
    assert predicted_classes(str(tmp_path), images).tolist() == expected and len(set(expected)) > 1


def test_models_that_answer_side_by_side_answer_every_image(tmp_path, monkeypatch):
    monkeypatch.setattr(frozen, "ValidateDataSettings", partial(ValidateDataSettings, per_device_eval_batch_size=8))
    save_classifier(tmp_path)
    model, counts = ModelSettings(model_name_or_path=str(tmp_path)), (1, 3, 5, 9)
    slowly = register_module_forward_pre_hook(lambda *_: time.sleep(0.001))  # lets the other threads go on
    try:
        with ThreadPoolExecutor(len(counts)) as pool:
            features = pool.map(lambda count: features_of(model, {"train": photographs(count)})["train"], counts)
            assert [len(labels) for _, labels in features] == [3, 9, 15, 27]
            classes = pool.map(lambda count: predicted_classes(str(tmp_path), photographs(count)), counts)
            assert [len(found) for found in classes] == [3, 9, 15, 27]
    finally:
        slowly.remove()


@pytest.mark.parametrize("ask", ["features", "classes"])
def test_models_are_loaded_one_at_a_time(ask, tmp_path, monkeypatch):
    """Of two at a time, the one that ends last leaves Transformers' `tie_weights` without effect for all models."""
    save_classifier(tmp_path)
    before, stock = PreTrainedModel.tie_weights, PreTrainedModel._load_pretrained_model
    loading, most = [], []

    def slowly(*args, **kwargs):
        loading.append(None)
        most.append(len(loading))
        time.sleep(0.1)  # lets the other threads go on
        try:
            return stock(*args, **kwargs)
        finally:
            loading.pop()

    def answer(_):
        if ask == "classes":
            return predicted_classes(str(tmp_path), photographs(1))
        return features_of(ModelSettings(model_name_or_path=str(tmp_path)), {"train": photographs(1)})

    monkeypatch.setattr(PreTrainedModel, "_load_pretrained_model", staticmethod(slowly))
    try:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(answer, range(3)))
        assert most == [1, 1, 1] and PreTrainedModel.tie_weights is before
    finally:
        PreTrainedModel.tie_weights = before


def test_answers_are_those_of_scikit_learn_on_the_chosen_images():
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 160)
    features = random.normal(size=(160, 8)).astype(np.float32) + np.eye(3, 8, dtype=np.float32)[labels] * 2
    parts = {"train": slice(0, 100), "test": slice(100, 160)}
    splits = {name: (torch.tensor(features[part]), torch.tensor(labels[part])) for name, part in parts.items()}
    chosen = random.permutation(100)[:40]
    found = frozen_answers(splits, chosen, seed=0)
    scaler = StandardScaler().fit(features[chosen])
    probe = LogisticRegression(max_iter=2000).fit(scaler.transform(features[chosen]), labels[chosen])
    assert found[PROBE].tolist() == probe.predict(scaler.transform(features[100:])).tolist()

    def votes(distances):
        return np.exp((1 - distances) / 0.07)

    neighbours = KNeighborsClassifier(20, metric="cosine", weights=votes).fit(features[chosen], labels[chosen])
    assert found[NEIGHBOURS].tolist() == neighbours.predict(features[100:]).tolist()


def test_statistics_of_colours_are_of_each_channel():
    images = photographs(1)
    found, labels = pixel_statistics(images, 3)
    assert found.shape == (3, 54) and labels.tolist() == [0, 1, 2]
    pixels = np.asarray(images[1]["image"]) / 255
    for channel in range(3):
        p = pixels[..., channel]
        expected = [p.mean(), p.std(), *np.histogram(p, bins=16, range=(0, 1), density=True)[0]]
        assert found[1, 18 * channel : 18 * (channel + 1)].tolist() == pytest.approx(expected, rel=1e-5)


def test_arrays_of_five_channels_have_features_and_statistics(tmp_path):
    files = []
    for number in range(4):
        files.append(str(tmp_path / f"{number}.npy"))
        np.save(files[-1], np.random.default_rng(number).random((64, 64, 5), dtype=np.float32))
    columns = {"image": files, "label": [0, 1, 2, 0]}
    rows = Dataset.from_dict(columns, Features({"image": Value("string"), "label": ClassLabel(names=list(CLASSES))}))
    save_classifier(tmp_path / "model", num_channels=5)
    model = ModelSettings(model_name_or_path=str(tmp_path / "model"))
    features, labels = features_of(model, {"train": rows})["train"]
    assert features.shape == (4, 32) and labels.tolist() == [0, 1, 2, 0]
    statistics, _ = pixel_statistics(rows, 5)
    assert statistics.shape == (4, 90) and statistics[:, 0].tolist() == pytest.approx([0.5] * 4, abs=0.02)


def test_weights_of_other_channels_are_adapted(tmp_path):
    save_classifier(tmp_path)
    grey = photographs(2).map(lambda row: {"image": row["image"].convert("L")})
    values = {"num_channels": 1, "image_size": 64, "image_mean": [0.5], "image_std": [0.25]}
    found, _ = features_of(ModelSettings(model_name_or_path=str(tmp_path), **values), {"train": grey})["train"]
    colour = Dataset.from_dict(
        {"image": [Pictures.merge("RGB", [image] * 3) for image in grey["image"]], "label": grey["label"][:]},
        features=grey.features,
    )
    values = {"image_size": 64, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    same, _ = features_of(ModelSettings(model_name_or_path=str(tmp_path), **values), {"train": colour})["train"]
    torch.testing.assert_close(found, same, rtol=1e-3, atol=1e-3)


def test_validate_reads_features_as_a_comparison_does(tmp_path, monkeypatch):
    """Of the stages, poolings and principal components that it is given, those of the training images."""
    save_classifier(tmp_path / "model")
    folder, seen = write_folder(tmp_path / "images", {"train": 4, "test": 2}), []
    monkeypatch.setattr(validate, "top_accuracies", lambda *_: {})
    monkeypatch.setattr(validate, "knn_scores", lambda *given: seen.append(given))
    reading = {"stages": [2, 4], "pooling": ["mean", "max"], "whitened_components": 3}
    fields = {"dataset_name": str(folder), "eval_split": "test", "protocols": ["knn"], "num_workers": 0, **reading}
    with apart():
        validate.main(ValidateSettings(model_name_or_path=str(tmp_path / "model"), **fields))
    ((train, train_labels, queries, *_),) = seen
    images = {split: load_dataset("imagefolder", data_dir=str(folder), split=split) for split in ("train", "test")}
    model = ModelSettings(model_name_or_path=str(tmp_path / "model"))
    expected = features_of(model, images, 0, ReadingSettings(**reading))
    assert train_labels.tolist() == expected["train"][1].tolist()
    for found, split in ((train, "train"), (queries, "test")):
        torch.testing.assert_close(found.abs(), expected[split][0].abs(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("background", ["black", "#ff8000"])
def test_transparent_images_are_composited_on_what_the_model_was_trained_on(background, tmp_path):
    model = save_classifier(tmp_path)
    create_image_processor(model.config, background=background).save_pretrained(tmp_path)
    cut_out = photographs(1).map(lambda row: {"image": with_hole(row["image"])})
    solid = photographs(1).map(lambda row: {"image": on(background, with_hole(row["image"]))})
    settings = ModelSettings(model_name_or_path=str(tmp_path))
    found, expected = (features_of(settings, {"train": images})["train"][0] for images in (cut_out, solid))
    torch.testing.assert_close(found, expected)
    statistics = pixel_statistics(cut_out, 3, background)[0]
    torch.testing.assert_close(statistics, pixel_statistics(solid, 3)[0])
    assert not torch.allclose(statistics, pixel_statistics(cut_out, 3)[0])  # the control: on white


def with_hole(picture):
    """The picture with a transparent square."""
    picture = picture.convert("RGBA")
    picture.paste((0, 0, 0, 0), (8, 8, 40, 40))
    return picture


def on(color, picture):
    """What is seen of a transparent picture on a colour."""
    ground = Pictures.new("RGBA", picture.size, color)
    return Pictures.alpha_composite(ground, picture).convert("RGB")
