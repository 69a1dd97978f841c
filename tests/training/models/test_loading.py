"""What is said of weights that a run starts from: new ones are a line without a table, odd ones are refused."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.modeling_utils import logger

from hf_convnextv2 import (
    ConvMAEForImageClassification,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
    ConvNextV2Model,
)
from tests.photographs import WRITE_TINY, message_of, write_tiny_convmae, write_tiny_fcmae
from training.console.errors import message_for_user
from training.models.creation import stored_processor
from training.models.families import BY_NAME
from training.models.loading import FEATURES, FINETUNING, NOTHING, PRETRAINING, load_pretrained
from training.run.stored_models import load_classifier
from training.settings.model import ModelSettings

CLASSES = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    write_tiny_fcmae(root / "fcmae")
    ConvNextV2ForImageClassification.from_pretrained(root / "fcmae", **CLASSES).save_pretrained(root / "classifier")
    return root


@pytest.fixture
def warned():
    """What Transformers logs at the loading of a model."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


@pytest.fixture
def changed(folders, tmp_path):
    """A folder with other weights."""

    def change(name, edit):
        shutil.copytree(folders / name, tmp_path / name)
        weights = load_file(tmp_path / name / "model.safetensors")
        edit(weights)
        save_file(weights, tmp_path / name / "model.safetensors", {"format": "pt"})
        return tmp_path / name

    return change


FIVE = {"id2label": dict(enumerate("abcde")), "label2id": {}, "ignore_mismatched_sizes": True}


@pytest.mark.parametrize(
    ("source", "model_class", "expected", "arguments", "told"),
    [
        ("fcmae", ConvNextV2ForImageClassification, FINETUNING, CLASSES, "classifier, convnextv2.layernorm are new."),
        ("classifier", ConvNextV2ForImageClassification, FINETUNING, FIVE, "those of classifier are new."),
        ("classifier", ConvNextV2ForImageClassification, NOTHING, {}, ""),
        ("fcmae", ConvNextV2Model, FEATURES, {}, ""),
        ("classifier", ConvNextV2Model, FEATURES, {}, ""),
        ("fcmae", ConvNextV2ForPreTraining, PRETRAINING, {}, ""),
        ("classifier", ConvNextV2ForPreTraining, PRETRAINING, {}, "decoder.pred, decoder.proj are new."),
        ("fcmae", ConvNextV2ForPreTraining, PRETRAINING, {"target_type": "pixel+feature"}, "decoder.pred_feature are"),
    ],
)
def test_weights_that_a_task_makes_or_leaves_are_a_line_at_most(
    source, model_class, expected, arguments, told, folders, warned, capsys
):
    model = load_pretrained(model_class, str(folders / source), expected, **arguments)
    assert isinstance(model, model_class)
    printed = capsys.readouterr().out
    assert not warned and told in printed and len(printed.splitlines()) == bool(told)


def test_without_us_transformers_prints_its_table(folders, warned):  # the control
    ConvNextV2ForImageClassification.from_pretrained(folders / "fcmae", **CLASSES)
    assert any("LOAD REPORT" in text for text in warned)


@pytest.mark.parametrize("missing", ["convnextv2.encoder.stages.0.layers.0.grn.weight", "classifier.weight"])
def test_weights_that_are_missing_where_they_should_be_there_are_refused(missing, changed):
    folder = str(changed("classifier", lambda weights: weights.pop(missing)))
    said = message_of(lambda: load_pretrained(ConvNextV2ForImageClassification, folder, NOTHING))
    assert f"{folder}" in said and missing in said


def test_an_encoder_that_lacks_weights_or_has_another_shape_is_refused_where_a_head_may_be_new(changed):
    name = "convnextv2.encoder.stages.0.layers.0.grn.weight"

    def narrow(weights):
        weights[name] = weights[name][..., :4].contiguous()

    folder = str(changed("fcmae", narrow))
    said = message_of(
        lambda: load_pretrained(
            ConvNextV2ForImageClassification, folder, FINETUNING, ignore_mismatched_sizes=True, **CLASSES
        )
    )
    assert f"1 differ, e.g. `{name}`" in said


def test_weights_that_the_model_has_no_place_for_are_named(changed, capsys, warned):
    folder = str(changed("fcmae", lambda weights: weights.update({"adapter.lora_A": torch.zeros(2)})))
    load_pretrained(ConvNextV2ForImageClassification, folder, FINETUNING, **CLASSES)
    assert f"Warning: the model has no place for weights in {folder}: adapter." in capsys.readouterr().out
    assert not warned


@pytest.mark.parametrize(
    ("family", "settings", "layer"),
    [
        ("convnextv2", {"decoder_num_hidden_layers": 2}, "decoder.layers.1"),
        ("convnextv2", {"fusion_stages": ["stage1"]}, "decoder.fusion"),
        ("convmae", {"decoder_num_hidden_layers": 2}, "decoder.layers.1"),
        ("convmae", {"fusion_stages": ["stage1"]}, "decoder.fusion"),
    ],
)
def test_layers_of_a_trained_decoder_that_a_smaller_one_drops_are_named(family, settings, layer, tmp_path, capsys):
    model_class = BY_NAME[family].pretraining
    small = model_class.from_pretrained(WRITE_TINY[family](tmp_path / "small"), fusion_stages=[]).config
    config = small.from_dict({**small.to_dict(), **settings})
    model_class(config).save_pretrained(tmp_path / "large")
    smaller = {name: getattr(small, name) for name in settings}
    load_pretrained(model_class, str(tmp_path / "large"), PRETRAINING)
    assert not capsys.readouterr().out
    load_pretrained(model_class, str(tmp_path / "large"), PRETRAINING, **smaller)
    assert f"Warning: the model has no place for weights in {tmp_path / 'large'}: {layer}" in capsys.readouterr().out


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value, changed):
    name = "convnextv2.encoder.stages.1.layers.0.pwconv1.weight"
    folder = str(changed("classifier", lambda weights: weights[name][3].fill_(value)))
    said = message_of(lambda: load_pretrained(ConvNextV2ForImageClassification, folder, NOTHING))
    assert said == (
        f"`model_name_or_path` (={folder}) must hold finite weights, but 1 have NaN or infinity in them, e.g. `{name}`."
    )


def test_a_loading_that_fails_shows_the_table(folders, warned):
    with pytest.raises(ValueError, match="must hold weights of the shapes that the settings ask for"):
        load_pretrained(ConvNextV2ForImageClassification, str(folders / "classifier"), NOTHING, num_labels=7)
    assert any("LOAD REPORT" in text and "MISMATCH" in text for text in warned)


def test_other_processes_than_the_first_say_nothing(folders, capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    load_pretrained(ConvNextV2ForImageClassification, str(folders / "fcmae"), FINETUNING, **CLASSES)
    assert not capsys.readouterr().out


def test_a_model_that_is_nowhere_is_an_error_of_the_setting_that_names_it(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for name in ("out/nowhere", str(empty)):
        message = message_of(lambda name=name: load_pretrained(ConvNextV2ForPreTraining, name, PRETRAINING))
        assert message.startswith(
            f"`model_name_or_path` (={name}) must be a folder that holds a model, or a model on the"
        )


def pointer(folder):
    """What a clone without Git LFS has in place of weights."""
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def cut_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def unknown_type(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "convnextv9"}))


def wrong_value(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "hidden_act": 7}))


def with_code(folder):
    """A model of somebody's own, whose code Transformers offers to run."""
    maps = {"AutoConfig": "own.Config", "AutoModelForImageClassification": "own.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": maps}))
    (folder / "own.py").write_text("raise SystemExit('run')")


@pytest.mark.parametrize("damage", [pointer, cut_weights, unknown_type, wrong_value, with_code])
def test_a_model_that_cannot_be_loaded_is_an_error_of_the_setting_that_names_it(damage, folders, tmp_path, monkeypatch):
    shutil.copytree(folders / "classifier", tmp_path / "model")
    damage(tmp_path / "model")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asks whether to run code"))
    message = message_of(lambda: load_classifier(ModelSettings(model_name_or_path=str(tmp_path / "model")), False))
    assert message.startswith(f"`model_name_or_path` (={tmp_path / 'model'}) must ") and "\n" not in message


def test_the_map_to_code_that_is_not_saved_along_is_dropped(tmp_path):
    """The folder of a published ConvMAE has one; a model fine-tuned from it is saved without the code."""
    folder = write_tiny_convmae(tmp_path / "convmae")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_convmae.ConvMAEModel"}
    (folder / "config.json").write_text(json.dumps(config))
    assert hasattr(ConvMAEForImageClassification.from_pretrained(folder).config, "auto_map")
    model = load_pretrained(ConvMAEForImageClassification, str(folder), FINETUNING, **CLASSES)
    model.save_pretrained(tmp_path / "classifier")
    assert "auto_map" not in json.loads((tmp_path / "classifier/config.json").read_text())


def test_an_image_processor_that_is_no_json_is_named_by_its_file(tmp_path):
    """In one line: an error of the module `json` would end a script with a traceback."""
    file = tmp_path / "preprocessor_config.json"
    file.write_text('{"image_mean": [0.1,')
    with pytest.raises(ValueError) as error:
        stored_processor(ModelSettings(model_name_or_path=str(tmp_path)))
    said = message_for_user(error.value) or ""
    assert said.startswith(f"{file} must be JSON: ") and len(said.splitlines()) == 1
