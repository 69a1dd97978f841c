"""Training with the blocks of ConvNeXt V1, LayerScale and no GRN, through the ordinary scripts."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import (
    ConvNextBackbone,
    ConvNextConfig,
    ConvNextForImageClassification,
    UperNetForSemanticSegmentation,
)

from hf_convnextv2 import (
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
    create_image_processor,
)
from tests.photographs import (
    forget_accelerate,
    fresh_accelerate,
    message_of,
    quick_datasets,
    write_folder,
    write_masked_folder,
)
from training import finetune, predict, pretrain, segment, validate
from training.evaluation.pictures import read_metrics
from training.models.layer_decay import layer_id
from training.models.optimizer import decayed_parameters
from training.settings.prediction import PredictSettings
from training.settings.scripts import (
    FinetuneSettings,
    PretrainSettings,
    SegmentSettings,
    ValidateSettings,
)

__all__ = ["fresh_accelerate", "quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets", "fresh_accelerate")
RUN = {"num_workers": 0, "per_device_train_batch_size": 4, "logging_steps": 1, "with_tracking": False}
RUN |= {"learning_rate": 1e-2, "warmup_steps": 1, "max_train_steps": 4}
NEW = {"num_stages": 2, "image_size": 32, "use_grn": False}
NEEDED = {"dataset_name": "images", "output_dir": "out"}
LAYER_SCALE = "layer_scale_parameter"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return str(write_folder(tmp_path_factory.mktemp("images"), {"train": 6, "test": 3}))


def pretrain_run(output, images, **fields):
    forget_accelerate()
    settings = {**RUN, "dataset_name": images, "output_dir": str(output), "reconstruction_steps": 1000}
    pretrain.main(PretrainSettings(**{**settings, **fields}))
    return Path(output)


def finetune_run(output, images, **fields):
    forget_accelerate()
    settings = {**RUN, "dataset_name": images, "output_dir": str(output), "eval_split": "test", "ema_decay": 0.5}
    settings |= {"layer_decay": 0.9, "image_size": 32}
    finetune.main(FinetuneSettings(**{**settings, **fields}))
    return Path(output)


@pytest.fixture(scope="module")
def pretrained(images, tmp_path_factory):
    """A new model of V1, pre-trained for a few steps."""
    return pretrain_run(tmp_path_factory.mktemp("pretrained") / "out", images, decoder_hidden_size=16, **NEW)


@pytest.fixture(scope="module")
def classifier(images, pretrained, tmp_path_factory):
    """A classifier fine-tuned from there."""
    return finetune_run(
        tmp_path_factory.mktemp("tuned") / "out", images, model_name_or_path=str(pretrained), checkpointing_steps=4
    )


def losses_of(folder):
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]


def test_a_new_model_of_v1_is_pretrained(pretrained):
    config = json.loads((pretrained / "config.json").read_text())
    assert (config["use_grn"], config["layer_scale_init_value"]) == (False, 1e-6)
    assert config["model_type"] == "convnextv2_fcmae"
    scales = {n: t for n, t in load_file(pretrained / "model.safetensors").items() if n.endswith(LAYER_SCALE)}
    assert len(scales) == 2 + 2 + 1
    assert all((scale != 1e-6).all() for scale in scales.values()), "every LayerScale learns"
    assert "| `use_grn` | no |" in (pretrained / "README.md").read_text()
    assert "A [ConvNeXt V1](https://arxiv.org/abs/2201.03545) encoder" in (pretrained / "README.md").read_text()


def test_finetuning_keeps_the_pretrained_blocks_and_stock_reads_the_classifier(images, pretrained, classifier):
    stock, report = ConvNextForImageClassification.from_pretrained(classifier, output_loading_info=True)
    ours = ConvNextV2ForImageClassification.from_pretrained(classifier)
    assert not any(report.values())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert_close(stock(x).logits, ours(x).logits)
    name = "encoder.stages.0.layers.0.pwconv1.weight"
    before = load_file(pretrained / "model.safetensors")[f"convnextv2.{name}"]
    after = load_file(classifier / "model.safetensors")[f"convnext.{name}"]
    assert 0 < (after - before).abs().max() < 0.2


def test_validation_and_prediction_read_a_classifier_of_v1(images, classifier, tmp_path):
    settings = {"dataset_name": images, "eval_split": "test", "num_workers": 0}
    forget_accelerate()
    found = validate.main(ValidateSettings(model_name_or_path=str(classifier), **settings))
    expected = json.loads((classifier / "all_results.json").read_text())
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-6)
    forget_accelerate()
    checkpoint = str(classifier / "checkpoint-4")
    averaged = validate.main(ValidateSettings(model_name_or_path=checkpoint, use_ema=True, **settings))
    assert averaged["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-6)
    forget_accelerate()
    output = {"output_file": str(tmp_path / "answers.csv"), "dataset_name": f"{images}/test", "num_workers": 0}
    predict.main(PredictSettings(model_name_or_path=str(classifier), **output))
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 1 + 9


def test_a_resumed_run_is_the_straight_one(images, tmp_path):
    fields = {**NEW, "decoder_hidden_size": 16, "checkpointing_steps": 2}
    straight = pretrain_run(tmp_path / "straight", images, **fields)
    resumed = pretrain_run(tmp_path / "resumed", images, **fields)
    for name in ("checkpoint-4", "all_results.json", "README.md"):
        path = resumed / name
        path.rename(tmp_path / f"gone-{name}")
    pretrain_run(resumed, images, **fields, resume_from_checkpoint="latest")
    first, second = (load_file(folder / "model.safetensors") for folder in (straight, resumed))
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
    other = {**fields, "layer_scale_init_value": 0.0, "resume_from_checkpoint": str(resumed / "checkpoint-2")}
    assert "`layer_scale_init_value` is 1e-06, not 0.0" in message_of(lambda: pretrain_run(resumed, images, **other))


@pytest.mark.parametrize("script", [pretrain_run, finetune_run], ids=["pretrain", "finetune"])
def test_stock_weights_of_v1_are_trained_on(script, images, tmp_path):
    torch.manual_seed(0)
    config = ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 2], num_stages=2, image_size=32, num_labels=3)
    stock = ConvNextForImageClassification(config)
    stock.save_pretrained(tmp_path / "stock")
    create_image_processor(ConvNextV2Config(image_size=32)).save_pretrained(tmp_path / "stock")
    run = script(tmp_path / "out", images, model_name_or_path=str(tmp_path / "stock"))
    assert len(losses_of(run)) == 4
    model_class = ConvNextV2ForPreTraining if script is pretrain_run else ConvNextV2ForImageClassification
    trained = model_class.from_pretrained(run)
    assert not trained.config.use_grn and trained.config.hidden_sizes == [8, 16]
    scale = trained.convnextv2.encoder.stages[1].layers[1].layer_scale_parameter
    assert 0 < (scale - stock.convnext.encoder.stages[1].layers[1].layer_scale_parameter).abs().max() < 0.2


def test_a_segmentation_model_on_v1_is_read_by_stock_and_by_its_script(tmp_path):
    masks = str(write_masked_folder(tmp_path / "masks", {"train": 6, "test": 3}))
    fields = {**RUN, **NEW, "num_stages": 3, "decoder_hidden_size": 8, "num_labels": 3, "eval_split": "test"}
    segment.main(SegmentSettings(dataset_name=masks, output_dir=str(tmp_path / "out"), **fields))
    stock = UperNetForSemanticSegmentation.from_pretrained(tmp_path / "out")
    assert type(stock.backbone) is ConvNextBackbone
    card = (tmp_path / "out/README.md").read_text()
    assert "with a [ConvNeXt V1](https://arxiv.org/abs/2201.03545) backbone" in card and "2301.00808" not in card
    forget_accelerate()
    settings = {"dataset_name": masks, "eval_split": "test", "num_workers": 0}
    found = validate.main(ValidateSettings(model_name_or_path=str(tmp_path / "out"), **settings))
    assert found["eval_loss"] == pytest.approx(
        json.loads((tmp_path / "out/all_results.json").read_text())["eval_loss"], abs=1e-5
    )


def create(**fields):
    settings = PretrainSettings(**NEEDED, num_stages=2, image_size=32, **fields)
    return pretrain.create_model(settings.model, settings.autoencoder, settings.targets)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (True, 0)),
        ({"use_grn": True}, (True, 0)),
        ({"use_grn": False}, (False, 1e-6)),
        ({"use_grn": False, "layer_scale_init_value": 0.0}, (False, 0)),
        ({"layer_scale_init_value": 0.1}, (True, 0.1)),
    ],
)
def test_blocks_are_those_of_v2_unless_asked_for(fields, expected):
    config = create(**fields).config
    assert (config.use_grn, config.layer_scale_init_value) == expected


def test_xlarge_is_made_with_the_blocks_of_v1():
    config = create(use_grn=False, model_size="xlarge").config
    assert (list(config.hidden_sizes), config.has_v1_blocks) == ([256, 512], True)  # its first two stages


def test_layer_scale_has_no_weight_decay_and_the_rate_of_its_block():
    model = create(use_grn=False)
    scales = {name for name, _ in model.named_parameters() if name.endswith(LAYER_SCALE)}
    assert scales and not scales & decayed_parameters(model)
    assert not scales & decayed_parameters(model, decay_grn_and_mask_token=True)
    for name in scales:
        beside = name.replace(LAYER_SCALE, "pwconv2.weight")
        assert layer_id(name, [2, 2], "single") == layer_id(beside, [2, 2], "single")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer_scale_init_value": -1.0}, "`layer_scale_init_value` (=-1.0) must be at least 0."),
        ({"model_size": "xlarge"}, "`model_size` (=xlarge) must come with `use_grn` false and with LayerScale"),
        ({"model_size": "xlarge", "use_grn": False, "layer_scale_init_value": 0.0}, "must come with `use_grn` false"),
        ({"model_size": "xlarge", "layer_scale_init_value": 1.0}, "must come with `use_grn` false and with LayerScale"),
        ({"model_type": "convmae", "use_grn": False}, "`use_grn` (=False) must not be given for a ConvMAE"),
        ({"model_type": "convmae", "layer_scale_init_value": 1.0}, "must not be given for a ConvMAE"),
    ],
)
def test_settings_of_blocks_are_refused(fields, message):
    assert message in message_of(lambda: PretrainSettings(**NEEDED, **fields))


def test_blocks_of_stored_weights_are_their_own(pretrained):
    settings = PretrainSettings(**NEEDED, model_name_or_path=str(pretrained), use_grn=True)
    message = message_of(lambda: pretrain.create_model(settings.model, settings.autoencoder, settings.targets))
    assert "`use_grn` (=True) must not be given with `model_name_or_path`" in message
