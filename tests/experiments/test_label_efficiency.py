"""The evaluation of pre-trained folders: the same functions for every family of models."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

from experiments.label_efficiency import features_of, predicted_labels, save_untrained
from hf_convnextv2 import (
    ConvMAEForImageClassification,
    ConvMAEForPreTraining,
    ConvMAEModel,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
    ConvNextV2Model,
    create_image_processor,
)
from tests.small_models import awake, small_config, small_convmae_config, small_fcmae_config

# Configuration and class of pre-training, encoder, configuration and class of the classifier.
FAMILIES = {
    "FCMAE": (
        small_fcmae_config,
        ConvNextV2ForPreTraining,
        ConvNextV2Model,
        small_config,
        ConvNextV2ForImageClassification,
    ),
    "ConvMAE": (
        small_convmae_config,
        ConvMAEForPreTraining,
        ConvMAEModel,
        small_convmae_config,
        ConvMAEForImageClassification,
    ),
}
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def save(model, folder):
    model.save_pretrained(folder)
    create_image_processor(model.config).save_pretrained(folder)
    return folder


def noise(count):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    columns = {"image": [PILImage.fromarray(image) for image in pixels], "label": [n % 5 for n in range(count)]}
    features = Features({"image": Image(), "label": ClassLabel(names=list("abcde"))})
    return Dataset.from_dict(columns, features=features)


def pixel_values(folder_config, photographs):
    return create_image_processor(folder_config)(list(photographs["image"]), return_tensors="pt")["pixel_values"]


@every_family
def test_features_are_the_mean_of_the_encoders_last_map(family, tmp_path):
    make_config, pretraining, encoder, *_ = family
    folder = save(awake(pretraining(make_config())), tmp_path)
    photographs = {"train": noise(5), "test": noise(3)}
    found = features_of(folder, photographs)
    model = encoder.from_pretrained(folder).eval()
    with torch.no_grad():
        maps = model(pixel_values(model.config, photographs["train"])).last_hidden_state
    torch.testing.assert_close(found["train"][0], maps.mean(dim=(2, 3)), rtol=1e-3, atol=1e-3)
    assert found["train"][0].std(dim=0).min() > 1e-2  # else any image's features would do
    assert found["train"][1].tolist() == [0, 1, 2, 3, 4] and found["test"][0].shape == (3, maps.shape[1])


@every_family
def test_untrained_model_is_of_the_same_family_and_follows_the_seed(family, tmp_path):
    make_config, pretraining, *_ = family
    trained = save(awake(pretraining(make_config())), tmp_path / "trained")
    weights = {}
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        weights[name] = pretraining.from_pretrained(save_untrained(trained, tmp_path / name, seed)).state_dict()
    same = [torch.equal(weights["first"][key], weights["again"][key]) for key in weights["first"]]
    other = [torch.equal(weights["first"][key], weights["other"][key]) for key in weights["first"]]
    assert all(same) and not all(other)


@every_family
def test_predictions_are_the_classifiers(family, tmp_path):
    *_, make_config, classifier = family
    labels = {"id2label": dict(enumerate("abcde")), "label2id": {name: n for n, name in enumerate("abcde")}}
    model = awake(classifier(make_config(**labels)))
    photographs = noise(8)
    with torch.no_grad():
        expected = model(pixel_values(model.config, photographs)).logits.argmax(dim=1).tolist()
    assert predicted_labels(save(model, tmp_path), photographs) == expected
