"""Validating a segmentation model: the figures of its own run, from every form of data, and misfits refused."""

import json
from pathlib import Path

import pytest
from transformers import SwinConfig, UperNetConfig, UperNetForSemanticSegmentation

from tests.photographs import (
    apart,
    fcmae,
    forget_accelerate,
    message_of,
    quick_datasets,
    write_masked_folder,
    write_masked_parquet,
)
from tests.training.test_distributed import run as launch
from training import segment, validate
from training.settings.scripts import SegmentSettings, ValidateSettings

__all__ = ["fcmae", "quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets")
RUN = {"image_size": 32, "num_stages": 3, "num_labels": 3, "max_train_steps": 3, "warmup_steps": 0, "ema_decay": 0.5}
RUN |= {"learning_rate": 3e-3, "per_device_train_batch_size": 4, "eval_split": "test", "with_tracking": False}
RUN |= {"num_workers": 0, "num_queries": 5, "checkpointing_steps": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root, splits = tmp_path_factory.mktemp("masked"), {"train": 3, "test": 3}
    return {
        "folder": write_masked_folder(root / "folder", splits),
        "parquet": write_masked_parquet(root / "parquet", splits),
    }


def train(output, data, **fields):
    with apart():
        segment.main(SegmentSettings(dataset_name=str(data), output_dir=str(output), **{**RUN, **fields}))
    return Path(output)


@pytest.fixture(scope="module")
def upernet(data, tmp_path_factory):
    fields = {"decoder_hidden_size": 8, "eval_flip": True, "eval_window": 24}
    return train(tmp_path_factory.mktemp("upernet"), data["folder"], **fields)


def validated(model, data, **fields):
    forget_accelerate()
    where = {"model_name_or_path": str(model), "dataset_name": str(data), "num_workers": 0}
    with apart():
        return validate.main(ValidateSettings(**where, **fields))


def figures_of(folder):
    """The figures of the evaluation at the end of a run."""
    results = json.loads((folder / "all_results.json").read_text())
    return {name: value for name, value in results.items() if name.startswith("eval_")}


def assert_same(found, expected):
    assert found == pytest.approx(expected, abs=1e-6)  # of the loss; shares of pixels are equal
    assert found["eval_mean_iou"] == expected["eval_mean_iou"]


AS_TRAINED = {"eval_flip": True, "eval_window": 24}


@pytest.mark.parametrize(
    "reading", [{"mask_values": [2, 0, 1]}, {"ignore_index": 0}, {"reduce_labels": True, "num_labels": 2}]
)
def test_masks_are_read_as_in_the_training_of_the_model_unless_settings_say_otherwise(reading, data, tmp_path, capsys):
    small = {"decoder_hidden_size": 8, "max_train_steps": 1}
    model = train(tmp_path / "model", data["folder"], **small, **reading)
    capsys.readouterr()
    assert_same(validated(model, data["folder"]), figures_of(model))
    told = f"The masks are read as in the training of the model, with `{next(iter(reading))}` (="
    assert told in capsys.readouterr().out
    other = {"mask_values": [1, 2, 0][: reading.get("num_labels", 3)], "ignore_index": 7}
    if "reduce_labels" in reading:
        other = {"ignore_index": 2}  # class 2 of the masks would else be one too many
    assert validated(model, data["folder"], **other)["eval_mean_iou"] != figures_of(model)["eval_mean_iou"]
    assert told not in capsys.readouterr().out


def test_the_figures_are_those_of_the_run_itself(upernet, data, tmp_path, capsys):
    found = validated(upernet, data["folder"], output_dir=str(tmp_path), **AS_TRAINED)
    assert_same(found, figures_of(upernet))
    printed = capsys.readouterr().out
    assert f"mean IoU {100 * found['eval_mean_iou']:.1f} %" in printed and "published" not in printed
    assert "Evaluating on split `test`" in printed and "LABEL_2" in printed
    assert json.loads((tmp_path / "eval_results.json").read_text()) == found
    assert (tmp_path / "eval_per_class.csv").read_text() == (upernet / "eval_per_class.csv").read_text()
    assert (tmp_path / "predictions.png").stat().st_size > 0
    assert validated(upernet, data["folder"])["eval_loss"] != found["eval_loss"]  # without windows and flips


@pytest.mark.parametrize("streaming", [False, True])
def test_a_stream_gives_the_same_in_training_and_validation(streaming, data, tmp_path):
    fields = {"decoder_hidden_size": 8, "checkpointing_steps": None, "per_device_eval_batch_size": 4}
    run = train(tmp_path / "run", data["parquet"], **fields, streaming=streaming)
    fields = {"eval_split": "test", "streaming": not streaming, "protocols": ["segmentation"]}
    found = validated(run, data["parquet"], **fields)
    assert_same(found, figures_of(run))
    assert found["eval_samples"] == 9


@pytest.mark.slow
@pytest.mark.parametrize("streaming", ["false", "true"])
def test_every_image_counts_once_whatever_the_number_of_processes(streaming, upernet, data, tmp_path):
    settings = {"model_name_or_path": upernet, "dataset_name": data["parquet"], "eval_split": "test", "num_workers": 1}
    settings |= {"streaming": streaming, "per_device_eval_batch_size": 2}
    results = {}
    for processes in (1, 2, 3):
        flags = [f"--{key}={value}" for key, value in {**settings, "output_dir": tmp_path / str(processes)}.items()]
        launch(["training/validate.py", *flags], processes, tmp_path)
        results[processes] = json.loads((tmp_path / str(processes) / "eval_results.json").read_text())
        assert results[processes] == pytest.approx(results[1], rel=1e-6)
    assert results[1]["eval_samples"] == 9


def test_a_checkpoint_has_the_averaged_weights_and_the_raw_ones(upernet, data):
    averaged = validated(upernet / "checkpoint-3", data["folder"], use_ema=True, **AS_TRAINED)
    assert_same(averaged, figures_of(upernet))  # a run evaluates and saves the average
    assert validated(upernet / "checkpoint-3", data["folder"], **AS_TRAINED)["eval_loss"] != averaged["eval_loss"]


@pytest.mark.parametrize("architecture", ["mask2former", "maskformer"])
def test_mask_transformers_are_validated_from_folder_and_checkpoint(architecture, data, tmp_path):
    fields = {"architecture": architecture, "decoder_hidden_size": 32, "per_device_train_batch_size": 1}
    run = train(tmp_path / "run", data["folder"], **fields)
    assert_same(validated(run, data["folder"]), figures_of(run))
    assert_same(validated(run / "checkpoint-3", data["folder"], use_ema=True), figures_of(run))


def test_images_may_be_prepared_otherwise(upernet, data):
    usual = validated(upernet, data["folder"])
    assert validated(upernet, data["folder"], image_size=32, num_channels=3) == pytest.approx(usual)  # as they are
    assert validated(upernet, data["folder"], image_size=48)["eval_loss"] != pytest.approx(usual["eval_loss"])
    message = message_of(lambda: validated(upernet, data["folder"], num_channels=1))
    assert "`num_channels` (=1) must be 3, the channels of the model" in message


@pytest.mark.parametrize("protocols", [["classifier"], ["knn"], ["segmentation", "linear_probe"]])
def test_a_protocol_that_does_not_fit_a_segmentation_model_is_refused(protocols, upernet, data):
    message = message_of(lambda: validated(upernet, data["folder"], eval_split="test", protocols=protocols))
    assert f"`protocols` (={protocols}) must be segmentation for {upernet}, a model of upernet" in message


def test_segmentation_of_another_model_is_refused(fcmae, data):
    message = message_of(lambda: validated(fcmae, data["folder"], protocols=["segmentation"]))
    assert "must be classifier or knn or linear_probe for" in message and "a model of convnextv2_fcmae" in message


def test_another_backbone_is_refused(data, tmp_path):
    backbone = SwinConfig(depths=[1, 1], num_heads=[1, 1], embed_dim=8, out_features=["stage1", "stage2"])
    config = UperNetConfig(backbone_config=backbone, hidden_size=8, use_auxiliary_head=False, num_labels=3)
    UperNetForSemanticSegmentation(config).save_pretrained(tmp_path)
    message = message_of(lambda: validated(tmp_path, data["folder"]))
    assert "must have a backbone of the type convnextv2 or convmae, not swin" in message


def test_a_folder_that_names_other_classes_is_refused(upernet, data, tmp_path):
    folder = write_masked_folder(tmp_path / "named", {"test": 1})
    (folder / "id2label.json").write_text(json.dumps({"0": "dark", "1": "middle", "2": "bright"}))
    validated(upernet, folder)  # the model has no names of its own
    (folder / "id2label.json").write_text(json.dumps({"0": "dark", "1": "bright"}))
    message = message_of(lambda: validated(upernet, folder))
    assert "must name the 3 classes of the model, in their order: LABEL_0, LABEL_1, LABEL_2" in message
