"""What the models of the page say of a picture: as Transformers' pipeline and as the model itself."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, pipeline

from hf_convnextv2 import ConvNextV2ForImageClassification, ConvNextV2ForPreTraining, ConvNextV2Model, to_image
from spaces.classifier import Classifier
from spaces.reconstructor import Reconstructor
from tests.photographs import message_of
from tests.small_models import small_config
from tests.spaces.saved_models import CLASSES, save_classifier, save_convmae, save_pretrained


@pytest.fixture
def photograph(tmp_path, photographs):
    file = tmp_path / "chelsea.png"
    Image.fromarray(photographs[2]).save(file)
    return file


# The classifier.


def test_the_scores_are_those_of_stocks_pipeline(tmp_path, photograph):
    folder = save_classifier(tmp_path / "model")
    found = Classifier(str(folder))(photograph)
    expected = {each["label"]: each["score"] for each in pipeline("image-classification", str(folder))(str(photograph))}
    assert set(found) == set(CLASSES) and found == pytest.approx(expected, abs=1e-5)
    assert sum(found.values()) == pytest.approx(1)


def test_several_classes_have_scores_of_their_own(tmp_path, photograph):
    folder = save_classifier(tmp_path / "model", problem_type="multi_label_classification")
    found = Classifier(str(folder))(photograph)
    expected = {each["label"]: each["score"] for each in pipeline("image-classification", str(folder))(str(photograph))}
    assert found == pytest.approx(expected, abs=1e-5) and sum(found.values()) != pytest.approx(1)


@torch.no_grad()
def test_values_are_a_text_with_their_names(tmp_path, photograph):
    folder = save_classifier(tmp_path / "model", problem_type="regression")
    model, processor = (
        ConvNextV2ForImageClassification.from_pretrained(folder),
        AutoImageProcessor.from_pretrained(folder),
    )
    values = model(processor(Image.open(photograph), return_tensors="pt").pixel_values).logits[0]
    found = Classifier(str(folder))(photograph)
    assert isinstance(found, str)
    names, numbers = zip(*(part.split(": ") for part in found.split(", ")), strict=True)
    assert names == CLASSES and [float(number) for number in numbers] == pytest.approx(values.tolist(), rel=1e-6)


def test_classes_of_one_name_are_told_apart(tmp_path, photograph):
    folder = tmp_path / "model"
    save_classifier(folder)
    config = (folder / "config.json").read_text().replace('"cat"', '"coffee"')
    (folder / "config.json").write_text(config)
    assert set(Classifier(str(folder))(photograph)) == {"0 astronaut", "1 coffee", "2 coffee", "3 rocket", "4 brick"}


# The pre-trained model.


@torch.no_grad()
@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_the_pictures_are_those_of_the_model_with_the_noise_of_the_seed(tmp_path, photograph, norm_pix_loss):
    folder = save_pretrained(tmp_path / "model", norm_pix_loss=norm_pix_loss, mask_ratio=0.75)
    found = Reconstructor(str(folder))(photograph, 0.75, seed=3)
    model, processor = ConvNextV2ForPreTraining.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    pixel_values = processor(Image.open(photograph), return_tensors="pt").pixel_values
    output = model(pixel_values, noise=torch.rand(1, 16, generator=torch.Generator().manual_seed(3)))
    (painted,) = to_image(model.reconstruct(pixel_values, output.logits, output.mask), processor)
    (original,) = to_image(pixel_values, processor)
    assert np.array_equal(found.painted, painted) and np.array_equal(found.original, original)
    assert (found.num_visible, found.num_cells) == (4, 16)
    grey = (np.asarray(found.visible) == 128).all(-1)
    hidden = output.mask.view(4, 4).bool().repeat_interleave(32, 0).repeat_interleave(32, 1).numpy()
    assert (grey | ~hidden).all() and np.array_equal(np.asarray(found.visible)[~hidden], np.asarray(original)[~hidden])


def test_a_seed_draws_the_same_cells_and_a_larger_share_hides_them_too(tmp_path, photograph):
    reconstruct = Reconstructor(str(save_pretrained(tmp_path / "model")))
    few, same, many, other = (
        np.asarray(reconstruct(photograph, ratio, seed).visible)
        for ratio, seed in ((0.4, 1), (0.4, 1), (0.8, 1), (0.4, 2))
    )
    assert np.array_equal(few, same) and not np.array_equal(few, other)
    hidden_in_few, hidden_in_many = ((picture == 128).all(-1) for picture in (few, many))
    assert hidden_in_many.sum() > hidden_in_few.sum() and not (hidden_in_few & ~hidden_in_many).any()


@pytest.mark.parametrize("kind", ["convmae", "fastconvmae", "four views", "four channels", "grey"])
def test_every_family_paints_any_share(tmp_path, photograph, kind):
    if kind in ("convmae", "fastconvmae"):
        folder = save_convmae(tmp_path / "model", num_visible_sets=4 if kind == "fastconvmae" else 1)
    else:
        settings = {"four views": {"num_visible_sets": 4}, "four channels": {"num_channels": 4}}
        folder = save_pretrained(tmp_path / "model", **settings.get(kind, {"num_channels": 1}))
    reconstruct = Reconstructor(str(folder))
    assert reconstruct.mask_ratio == (0.6 if kind in ("four channels", "grey") else 0.75)
    for ratio, num_visible in ((0.25, 12), (0.5, 8), (0.9, 1)):
        found = reconstruct(photograph, ratio, seed=0)
        assert found.num_visible == num_visible and found.num_cells == 16
        shown, original, painted = map(np.asarray, (found.visible, found.original, found.painted))
        assert shown.shape == original.shape == painted.shape
        same = (np.abs(painted.astype(int) - original).reshape(*original.shape[:2], -1).max(-1) <= 1).mean()
        assert num_visible / 16 - 0.01 <= same < num_visible / 16 + 0.3


def test_a_share_that_leaves_nothing_and_a_seed_that_is_none_are_named(tmp_path, photograph):
    reconstruct = Reconstructor(str(save_pretrained(tmp_path / "model")))
    assert "must leave at least one visible and one hidden cell" in message_of(lambda: reconstruct(photograph, 0.99, 0))
    assert "The seed (=-1) must be between" in message_of(lambda: reconstruct(photograph, 0.5, -1))


# Models that cannot be shown.


def test_a_model_of_values_that_answers_on_the_scale_of_training_is_refused(tmp_path):
    scale = {"label_mean": [5.0] * 5, "label_std": [2.0] * 5}
    folder = save_classifier(tmp_path / "model", problem_type="regression", **scale)
    said = message_of(lambda: Classifier(str(folder)))
    assert said.startswith(f"`MODEL` or `--classifier` (={folder}) must be of a finished run: ") and "\n" not in said


def test_another_kind_of_model_is_named(tmp_path):
    classifier, pretrained = save_classifier(tmp_path / "classifier"), save_pretrained(tmp_path / "pretrained")
    encoder = tmp_path / "encoder"
    ConvNextV2Model(small_config()).save_pretrained(encoder)
    for load, folder, holds in (
        (Classifier, pretrained, "ConvNextV2ForPreTraining"),
        (Classifier, encoder, "ConvNextV2Model"),
        (Reconstructor, classifier, "ConvNextV2ForImageClassification"),
    ):
        said = message_of(lambda load=load, folder=folder: load(str(folder)))
        assert said.endswith(f"a folder or a Hub id: it holds {holds}.") and "\n" not in said


def test_a_model_that_is_not_there_and_one_without_an_image_processor_are_named(tmp_path):
    said = message_of(lambda: Classifier("nobody/nothing"))
    assert said.startswith("`MODEL` or `--classifier` (=nobody/nothing) must be an image classifier")
    assert "\n" not in said
    folder = save_pretrained(tmp_path / "pretrained")
    (folder / "preprocessor_config.json").unlink()
    said = message_of(lambda: Reconstructor(str(folder)))
    assert said.startswith("`PRETRAINED_MODEL` or `--pretrained` (=") and "\n" not in said


@pytest.mark.parametrize("wrong", ["pickled", "cut", "without a head", "of another size"])
def test_weights_that_are_not_safe_or_not_whole_are_refused(tmp_path, wrong):
    folder = save_classifier(tmp_path / "model")
    file = folder / "model.safetensors"
    weights = load_file(file)
    if wrong == "pickled":
        torch.save(weights, folder / "pytorch_model.bin")
        file.unlink()
    elif wrong == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        head = {} if wrong == "without a head" else {"classifier.weight": torch.ones(3, 3)}
        save_file({name: value for name, value in weights.items() if name != "classifier.weight"} | head, file)
    said = message_of(lambda: Classifier(str(folder)))
    assert said.startswith(f"`MODEL` or `--classifier` (={folder}) must be an image classifier") and "\n" not in said
    assert wrong != "without a head" or said.endswith("it lacks weights, e.g. `classifier.weight`.")


def test_code_of_a_repository_is_never_run(tmp_path):
    folder = save_classifier(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: ...")
    assert "must be an image classifier" in message_of(lambda: Classifier(str(folder)))
    assert not (tmp_path / "ran").exists()


def test_models_whose_images_or_predictions_nobody_could_see_are_refused(tmp_path):
    spectral = save_pretrained(tmp_path / "spectral", num_channels=5)
    assert "with 1, 3 or 4 channels" in message_of(lambda: Reconstructor(str(spectral)))
    features = save_pretrained(tmp_path / "features", target_type="feature", feature_target_on="masked")
    assert "must predict pixels, but predicts features alone" in message_of(lambda: Reconstructor(str(features)))
