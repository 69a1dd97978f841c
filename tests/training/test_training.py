"""Whole runs on small photographs: pre-training, fine-tuning, validation; stopped and resumed; bad input refused."""

import csv
import json
import math
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections import Counter
from itertools import count
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from torch.optim.swa_utils import AveragedModel
from torch.testing import assert_close
from transformers import AutoModelForImageClassification, AutoModelForObjectDetection, pipeline

from hf_convnextv2 import (
    ConvMAEForPreTraining,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
    ConvNextV2Model,
    create_image_processor,
)
from hf_convnextv2.modeling_rcnn import ConvNextV2RCNNForObjectDetection
from hf_convnextv2.upernet import UperNetForSemanticSegmentation
from tests.photographs import (
    CLASSES,
    WRITE_TINY,
    apart,
    fcmae,
    forget_accelerate,
    fresh_accelerate,
    message_of,
    quick_datasets,
    tiny,
    with_float_values,
    write_coco_folder,
    write_folder,
    write_masked_folder,
    write_masked_parquet,
    write_objects_folder,
    write_objects_parquet,
    write_parquet,
    write_tiny_convmae,
)
from tests.small_models import small_config
from training import detect, finetune, pretrain, segment, validate
from training.data.batches import TrainBatches
from training.data.problems import Problem
from training.evaluation.metrics import TopAccuracy
from training.evaluation.pictures import read_metrics
from training.models.detection import create_detector
from training.models.families import BY_NAME
from training.models.segmentation import create_segmenter
from training.models.teachers import AverageTeacher
from training.run.checkpoints import averaged_weights, digest_of, read_state
from training.settings.augmentation import check_distortion
from training.settings.model import NOT_RCNN
from training.settings.scripts import (
    DetectSettings,
    FinetuneSettings,
    PretrainSettings,
    SegmentSettings,
    ValidateSettings,
)

__all__ = ["fcmae", "fresh_accelerate", "quick_datasets", "tiny"]
pytestmark = pytest.mark.usefixtures("quick_datasets", "fresh_accelerate")
FAMILY = pytest.mark.parametrize("family", WRITE_TINY)
RUN = {"num_workers": 0, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 1}
RUN["with_tracking"] = False
RECIPE = {"ema_decay": 0.5, "learning_rate": 1e-2, "warmup_steps": 1, "max_train_steps": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The same photographs as a folder and as parquet."""
    root = tmp_path_factory.mktemp("photographs")
    splits = {"train": 6, "test": 3}
    return {
        "folder": write_folder(root / "folder", splits),
        "parquet": write_parquet(root / "parquet", splits),
        "masked folder": write_masked_folder(root / "masked_folder", splits),
        "masked parquet": write_masked_parquet(root / "masked_parquet", splits),
        "objects folder": write_objects_folder(root / "objects_folder", splits),
        "objects parquet": write_objects_parquet(root / "objects_parquet", splits),
        "coco": write_coco_folder(root / "coco", splits),
    }


def pretrain_run(output, dataset, fcmae, **fields):
    settings = {**RUN, **RECIPE, "model_name_or_path": fcmae, "dataset_name": str(dataset), "output_dir": str(output)}
    settings["reconstruction_steps"] = 1000
    forget_accelerate()
    pretrain.main(PretrainSettings(**{**settings, **fields}))
    return Path(output)


def finetune_run(output, dataset, **fields):
    settings = {**RUN, **RECIPE, "dataset_name": str(dataset), "output_dir": str(output), "eval_split": "test"}
    settings |= {"mixup": 0.8, "cutmix": 1.0, "layer_decay": 0.9, "label_smoothing": 0.1, "image_size": 32}
    forget_accelerate()
    finetune.main(FinetuneSettings(**{**settings, **fields}))
    return Path(output)


def segment_run(output, dataset, **fields):
    settings = {**RUN, **RECIPE, "dataset_name": str(dataset), "output_dir": str(output), "eval_split": "test"}
    settings |= {"layer_decay": 0.9, "image_size": 32, "num_labels": 3, "decoder_hidden_size": 8}
    forget_accelerate()
    segment.main(SegmentSettings(**{**settings, **fields}))
    return Path(output)


def detect_run(output, dataset, **fields):
    settings = {**RUN, **RECIPE, "dataset_name": str(dataset), "output_dir": str(output), "eval_split": "test"}
    settings |= {"layer_decay": 0.9, "image_size": 48, "decoder_hidden_size": 8, "box_head_size": 16}
    settings |= {"box_batch_size": 32, "anchor_sizes": [8, 16, 32], "scale_range": [0.5, 1.5]}
    forget_accelerate()
    detect.main(DetectSettings(**{**settings, **fields}))
    return Path(output)


def pretrain_model(settings):
    return pretrain.create_model(settings.model, settings.autoencoder, settings.targets)


def finetune_model(settings, names):
    problem = Problem("single_label_classification", names)
    return finetune.create_model(settings.model, settings.augmentation, problem)


def classifier_of(settings):
    return validate.load_classifier(settings.model, settings.evaluation.use_ema)


def figures(folder, *names):
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "loss" in line or "eval_loss" in line]
    return [[line.get(name) for name in ("step", *names)] for line in lines]


# Runs


@pytest.mark.parametrize(
    ("kind", "streaming", "family"),
    [
        ("folder", False, "convnextv2"),
        ("parquet", False, "convnextv2"),
        ("parquet", True, "convnextv2"),
        ("folder", False, "convmae"),
        ("parquet", True, "convmae"),
    ],
)
def test_images_to_classifier(kind, streaming, family, data, tiny, tmp_path, capsys):
    source = {"streaming": streaming, "dataset": data[kind]}
    encoder = pretrain_run(tmp_path / "pretrain", fcmae=tiny[family], **source)
    loaded = BY_NAME[family].pretraining.from_pretrained(encoder)
    assert loaded.config.mask_ratio == {"convnextv2": 0.6, "convmae": 0.75}[family]
    for name in ("README.md", "loss_curves.png", "reconstructions.png", "preprocessor_config.json"):
        assert (encoder / name).stat().st_size > 0
    assert [row[0] for row in figures(encoder)] == [1, 2, 3, 4]

    folder = finetune_run(tmp_path / "classifier", model_name_or_path=str(encoder), eval_steps=2, **source)
    results = json.loads((folder / "all_results.json").read_text())
    assert {"eval_accuracy", "eval_accuracy_top5", "eval_loss", "train_loss", "images_per_second"} <= set(results)
    classifier = AutoModelForImageClassification.from_pretrained(folder)
    assert classifier.config.model_type == family
    assert classifier.config.label2id == {"astronaut": 0, "chelsea": 1, "coffee": 2}
    assert_classes_are_counted(folder, results)
    told = [line for line in capsys.readouterr().out.splitlines() if "accuracy" in line]
    shown = f"accuracy {results['eval_accuracy']:.1%} (always the largest class: 33.3%), loss".replace("%", " %")
    assert [line.split(":")[0] for line in told[:2]] == ["evaluation after step 2", "evaluation after step 4"]
    assert shown in told[1] and told[2].startswith(shown)
    assert "## Figures per class" in (folder / "README.md").read_text()

    forget_accelerate()
    config = {"model_name_or_path": str(folder), "eval_split": "test", "num_workers": 0, "streaming": streaming}
    validated = validate.main(ValidateSettings(dataset_name=str(data[kind]), output_dir=str(tmp_path), **config))
    assert validated["eval_accuracy"] == results["eval_accuracy"]
    assert validated["eval_loss"] == pytest.approx(results["eval_loss"], abs=1e-6)
    assert json.loads((tmp_path / "eval_results.json").read_text()) == validated
    assert shown in capsys.readouterr().out
    assert (tmp_path / "eval_per_class.csv").read_text() == (folder / "eval_per_class.csv").read_text()


def assert_classes_are_counted(folder, results):
    with (folder / "eval_per_class.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [(row["class"], row["images"]) for row in rows] == [("astronaut", "3"), ("chelsea", "3"), ("coffee", "3")]
    assert np.mean([float(row["recall"]) for row in rows]) == pytest.approx(results["eval_accuracy"])
    assert (folder / "confusion_matrix.png").exists() and (folder / "eval_confusions.csv").exists()


@pytest.mark.parametrize("kind", ["objects folder", "objects parquet", "coco"])
@pytest.mark.parametrize("architecture", ["mask_rcnn", "faster_rcnn"])
def test_images_with_objects_to_detector(kind, architecture, data, fcmae, tmp_path, capsys):
    folder = detect_run(tmp_path, data[kind], model_name_or_path=fcmae, architecture=architecture, eval_steps=4)
    results = json.loads((folder / "all_results.json").read_text())
    assert {"eval_map", "eval_map_50", "train_loss"} <= set(results) and results["eval_samples"] == 9
    assert ("eval_map_mask" in results) == (architecture == "mask_rcnn")
    detector = AutoModelForObjectDetection.from_pretrained(folder)
    assert detector.config.label2id == {"disc": 0, "rectangle": 1}
    assert detector.config.use_masks == (architecture == "mask_rcnn")
    for name in ("README.md", "eval_per_class.csv", "predictions.png", "preprocessor_config.json"):
        assert (folder / name).stat().st_size > 0
    parts = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    parts |= {"loss_mask"} if architecture == "mask_rcnn" else set()
    line = read_metrics(folder / "metrics.jsonl")[0]
    assert line["loss"] == pytest.approx(sum(line[name] for name in parts))
    assert "box AP" in capsys.readouterr().out


@pytest.mark.parametrize("architecture", NOT_RCNN)
def test_a_detector_of_transformers_is_trained_by_its_name(architecture, data, tmp_path):
    fields = {"architecture": architecture, "decoder_hidden_size": 32, "num_stages": 3, "max_train_steps": 2}
    folder = detect_run(tmp_path, data["objects folder"], **fields, gradient_accumulation_steps=1, eval_steps=2)
    results = json.loads((folder / "all_results.json").read_text())
    assert results["eval_samples"] == 9 and 0 <= results["eval_map"] <= 1
    detector = AutoModelForObjectDetection.from_pretrained(folder)
    assert detector.config.model_type == architecture
    found = pipeline("object-detection", model=str(folder), device="cpu")(
        Image.open(data["objects folder"] / "test/coffee0.jpg"), threshold=0.0
    )
    assert found and {answer["label"] for answer in found} <= {"disc", "rectangle"}


@pytest.mark.parametrize("num_channels", [1, 4])
@pytest.mark.parametrize(("run", "kind"), [(segment_run, "masked folder"), (detect_run, "objects folder")])
def test_dense_models_from_scratch_take_images_of_other_channels(run, kind, num_channels, data, tmp_path):
    fields = {"num_channels": num_channels, "num_stages": 2, "max_train_steps": 2, "eval_steps": 2}
    if run is segment_run:
        fields |= {"auxiliary_loss_weight": 0, "photometric_distortion": 0}
    folder = run(tmp_path, data[kind], **fields)
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == pytest.approx([0.449] * num_channels, abs=1e-3)
    assert json.loads((folder / "all_results.json").read_text())["eval_samples"] == 9


@pytest.mark.parametrize(
    ("run", "kind", "fields"),
    [
        (finetune_run, "folder", {}),
        (segment_run, "masked folder", {}),
        (detect_run, "objects folder", {"anchor_sizes": [8, 16, 32, 64]}),
    ],
)
def test_layers_that_a_convmae_does_not_have_are_refused_before_the_images_are_read(run, kind, fields, data, tmp_path):
    model, folder = write_tiny_convmae(tmp_path / "model"), shutil.copytree(data[kind], tmp_path / "data")
    for file in folder.rglob("*.jpg"):
        file.write_bytes(b"damaged")
    started = lambda **fields: run(tmp_path / "out", folder, model_name_or_path=str(model), **fields)  # noqa: E731
    message = message_of(lambda: started(layer_decay_type="stage", **fields))
    assert message.startswith("`layer_decay_type` (=stage) must be single for a ConvMAE")
    message = message_of(lambda: started(layer_decay_type="single", **fields))
    assert "18 files cannot be " in message and "`--skip_bad_images` skips such files:" in message
    message = message_of(lambda: started(layer_decay_type="single", skip_bad_images=True, max_bad_images=99, **fields))
    assert "must hold images" in message


@pytest.mark.parametrize("num_channels", [1, 2, 4, 8])
@pytest.mark.parametrize(("run", "kind"), [(segment_run, "masked folder"), (detect_run, "objects folder")])
def test_colours_of_images_without_colours_are_not_changed(run, kind, num_channels, data, tmp_path):
    """The weights say how many channels there are; nothing is read or trained before."""
    ConvNextV2Model(small_config(num_channels=num_channels)).save_pretrained(tmp_path / "model")
    weights, folder = {"model_name_or_path": str(tmp_path / "model")}, shutil.copytree(data[kind], tmp_path / "data")
    for file in [*folder.rglob("*.png"), *folder.rglob("*.jpg"), *folder.rglob("*.jsonl")]:
        file.write_bytes(b"damaged")
    for fields in (weights, {"num_channels": num_channels}):
        message = message_of(lambda: run(tmp_path / "out", folder, photometric_distortion=0.5, **fields))  # noqa: B023
        assert message.startswith(f"`photometric_distortion` (=0.5) must be 0 for images of {num_channels} channel")
    check_distortion(0.0, num_channels)  # the controls
    check_distortion(0.5, 3)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("run", "kind"), [(segment_run, "masked folder"), (detect_run, "objects folder")])
def test_colours_of_floats_outside_0_to_1_are_not_changed(run, kind, streaming, data, tmp_path):
    """The changes would cut them off in training alone."""
    folder = with_float_values(shutil.copytree(data[kind], tmp_path / "data"), -1, 3)
    names = {"masked folder": ["dark", "middle", "bright"], "objects folder": ["disc", "rectangle"]}[kind]
    (folder / "id2label.json").write_text(json.dumps(dict(enumerate(names))))
    fields = {"streaming": streaming, "max_train_steps": 1, "warmup_steps": 0, "eval_steps": 1}
    fields |= {"num_stages": 2} if run is detect_run else {}
    message = message_of(lambda: run(tmp_path / "out", folder, photometric_distortion=0.5, **fields))
    assert "`photometric_distortion` (=0.5) must be 0 for images with values outside [0, 1]" in message
    assert ".tif holds -1 to 2. Give `--photometric_distortion 0`" in message
    assert not list(tmp_path.glob("**/all_results.json"))
    if not streaming:
        run(tmp_path / "out", folder, photometric_distortion=0, **fields)  # the control
        assert list(tmp_path.glob("**/all_results.json"))


@pytest.mark.parametrize("reading", [{}, {"check_images": False}, {"streaming": True}], ids=str)
def test_floats_outside_0_to_1_are_not_made_bytes_for_randaugment(reading, data, tmp_path):
    """They would be cut off in training alone."""
    folder = with_float_values(shutil.copytree(data["folder"], tmp_path / "data"), -1, 3)
    model = ConvNextV2ForImageClassification(
        small_config(image_size=32, num_labels=3, id2label=dict(enumerate(CLASSES)))
    )
    model.save_pretrained(tmp_path / "model")  # whose classes a stream needs
    fields = {"model_name_or_path": str(tmp_path / "model"), "max_train_steps": 1, "warmup_steps": 0, "eval_steps": 1}
    message = message_of(lambda: finetune_run(tmp_path / "out", folder, randaugment_num_ops=2, **fields, **reading))
    assert "`randaugment_num_ops` (=2) must be 0 for images with values outside [0, 1]" in message
    assert ".tif holds -1 to 2. Give `--randaugment_num_ops 0`, or scale the images to [0, 1]." in message
    assert not list(tmp_path.glob("**/all_results.json"))
    finetune_run(tmp_path / "control", folder, randaugment_num_ops=0, **fields, **reading)
    assert list(tmp_path.glob("**/all_results.json"))


@pytest.mark.parametrize("family", WRITE_TINY)
def test_settings_that_change_the_shapes_of_stored_weights_are_refused_in_a_line(family, data, tmp_path):
    model = WRITE_TINY[family](tmp_path / "model")
    message = message_of(lambda: pretrain_run(tmp_path / "out", data["folder"], str(model), decoder_hidden_size=24))
    assert message.startswith(f"`model_name_or_path` (={model}) must hold weights of the shapes that the settings ask")


def test_a_detector_is_no_encoder_to_start_from(data, fcmae, tmp_path):
    folder = detect_run(
        tmp_path / "one", data["objects folder"], model_name_or_path=fcmae, max_train_steps=1, warmup_steps=0
    )
    message = message_of(lambda: detect_run(tmp_path / "two", data["objects folder"], model_name_or_path=str(folder)))
    assert "must hold an encoder, a classifier or a pre-training model, but is a convnextv2_rcnn" in message


def test_discs_and_rectangles_are_learnt(data, tmp_path):
    fields = {"ema_decay": 0.0, "scale_range": [1.0, 1.0], "learning_rate": 3e-3, "gradient_accumulation_steps": 1}
    fields |= {"per_device_train_batch_size": 9, "max_train_steps": 60, "warmup_steps": 5, "layer_decay": 1.0}
    fields |= {"num_stages": 2, "decoder_hidden_size": 32, "box_head_size": 32, "eval_steps": 60}
    folder = detect_run(tmp_path, data["objects folder"], **fields)
    results = json.loads((folder / "all_results.json").read_text())
    assert results["eval_map_50"] > 0.3 and results["eval_map_mask_50"] > 0.3  # without training, 0.00


def test_validation_agrees_with_the_pipeline(data, tmp_path):
    folder = finetune_run(tmp_path, data["folder"], model_size="atto", num_stages=2, ema_decay=0.0, mixup=0.0, cutmix=0)
    files = sorted((data["folder"] / "test").rglob("*.jpg"))
    answers = pipeline("image-classification", model=str(folder), device="cpu")([Image.open(file) for file in files])
    hits = np.mean([answer[0]["label"] == file.parent.name for answer, file in zip(answers, files, strict=True)])
    assert json.loads((folder / "all_results.json").read_text())["eval_accuracy"] == pytest.approx(hits)


@FAMILY
def test_frozen_features_are_evaluated_of_a_run_and_of_its_checkpoint(family, data, tiny, tmp_path):
    run = pretrain_run(tmp_path, data["folder"], tiny[family], checkpointing_steps=4)
    fields = {"dataset_name": str(data["folder"]), "protocols": ["knn", "linear_probe"], "eval_split": "test"}
    fields |= {"num_workers": 0, "output_dir": str(tmp_path / "validated")}

    def validated(**more):
        forget_accelerate()
        return validate.main(ValidateSettings(**fields, **more))

    results = validated(model_name_or_path=str(run))
    assert (results["train_samples"], results["eval_samples"]) == (18, 9)
    # Crops of three photographs; a guess is right in a third. What four steps of a transformer leave alike, only the
    # probe, which is trained, tells apart.
    figures = ["eval_linear_probe_accuracy"] + ["eval_knn_accuracy"] * (family == "convnextv2")
    assert all(results[name] > 0.5 for name in figures)
    assert json.loads((tmp_path / "validated/eval_results.json").read_text()) == results
    checkpoint = run / "checkpoint-4"
    assert validated(model_name_or_path=str(checkpoint), use_ema=True) == results
    grey = {"num_channels": 1}
    assert validated(model_name_or_path=str(checkpoint), use_ema=True, **grey) == validated(
        model_name_or_path=str(run), **grey
    )
    average, raw, saved = (
        averaged_weights(checkpoint),
        load_file(checkpoint / "model.safetensors"),
        load_file(run / "model.safetensors"),
    )
    assert_close(average, saved, rtol=0, atol=0)
    assert not torch.equal(raw["decoder.mask_token"], saved["decoder.mask_token"])
    assert_close(dict(BY_NAME[family].pretraining.from_pretrained(checkpoint).state_dict()), raw, rtol=0, atol=0)
    message = message_of(lambda: validated(model_name_or_path=str(run), use_ema=True))
    assert message.startswith("`use_ema` (=True) must be of a training checkpoint")


def test_an_averaged_classifier_is_evaluated_on_images_of_other_channels(data, tmp_path):
    run = finetune_run(tmp_path, data["folder"], model_size="atto", num_stages=2, checkpointing_steps=4)
    fields = {"dataset_name": str(data["folder"]), "eval_split": "test", "num_workers": 0}

    def validated(**more):
        forget_accelerate()
        return validate.main(ValidateSettings(**fields, **more))

    averaged = {"model_name_or_path": str(run / "checkpoint-4"), "use_ema": True}
    saved = {"model_name_or_path": str(run)}  # whose weights are the average
    for more in ({}, {"num_channels": 1}, {"num_channels": 1, "image_size": 64}):
        results = validated(**averaged, **more)
        assert results == validated(**saved, **more)
        assert results["eval_samples"] == 9
    assert validated(**saved, num_channels=1)["eval_loss"] != validated(**saved)["eval_loss"]


def test_a_small_set_is_learnt(data, tmp_path):
    plain = {"mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0, "layer_decay": 1.0, "ema_decay": 0.0}
    plain |= {"crop_scale": [1.0, 1.0], "horizontal_flip": 0.0, "learning_rate": 3e-3, "gradient_accumulation_steps": 1}
    plain |= {"per_device_train_batch_size": 18, "max_train_steps": 45, "eval_steps": 45}
    folder = finetune_run(tmp_path, data["folder"], num_stages=2, eval_split="train", **plain)
    assert json.loads((folder / "all_results.json").read_text())["eval_accuracy"] > 0.9


@pytest.mark.parametrize("streaming", [False, True])
def test_evaluating_more_often_leaves_the_training_as_it_is(streaming, data, tmp_path):
    fields = {"streaming": streaming, "num_stages": 2, "drop_path_rate": 0.5}
    runs = [finetune_run(tmp_path / f"{n}", data["parquet"], eval_steps=n, **fields) for n in (1, 4)]
    losses = [[row for row in figures(run, "loss") if row[1] is not None] for run in runs]
    assert losses[0] == losses[1]


def test_paths_are_dropped_in_every_step_of_a_model_that_was_loaded_and_is_evaluated(data, fcmae, tmp_path):
    """A loaded model is in evaluation mode, and so is an evaluated one where no average is evaluated in its place."""
    losses = []
    for rate, eval_steps in ((0.5, 4), (0.5, 1), (0.0, 4)):
        fields = {"drop_path_rate": rate, "eval_steps": eval_steps, "ema_decay": 0.0, "model_name_or_path": fcmae}
        fields["head_init_scale"] = 1.0  # with a head of nearly 0, the first losses would all be alike
        folder = finetune_run(tmp_path / f"{rate}-{eval_steps}", data["folder"], **fields)
        losses.append(dict(row for row in figures(folder, "loss") if row[1] is not None))
    whole, evaluated, without = losses
    assert evaluated == whole and all(whole[step] != without[step] for step in (1, 2, 3, 4))


def test_the_saved_weights_are_the_average_and_the_checkpoint_keeps_the_raw_ones(data, fcmae, tmp_path):
    raw = pretrain_run(tmp_path / "raw", data["folder"], fcmae, ema_decay=0.0, checkpointing_steps=1)
    averaged = pretrain_run(tmp_path / "averaged", data["folder"], fcmae, checkpointing_steps=4)
    steps = [load_file(raw / f"checkpoint-{step}/model.safetensors") for step in (1, 2, 3, 4)]
    expected = steps[0]  # the average starts at the first step's weights; then 0.5 * average + 0.5 * weights
    for weights in steps[1:]:
        expected = {name: (expected[name] + weights[name]) / 2 for name in weights}
    assert_close(load_file(averaged / "model.safetensors"), expected)
    assert_close(load_file(averaged / "checkpoint-4/model.safetensors"), steps[3], rtol=0, atol=0)
    assert_close(load_file(raw / "model.safetensors"), steps[3], rtol=0, atol=0)


def test_accumulated_batches_give_the_step_of_one_batch(data, fcmae, tmp_path):
    one = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    whole = pretrain_run(tmp_path / "whole", data["folder"], fcmae, **one)
    parts = pretrain_run(tmp_path / "parts", data["folder"], fcmae)
    assert_close(torch.tensor(figures(parts, "loss")), torch.tensor(figures(whole, "loss")), rtol=1e-4, atol=0)
    other = pretrain_run(tmp_path / "other", data["folder"], fcmae, seed=1)
    assert figures(other, "loss") != figures(parts, "loss")


# Stop and resume


def interrupt_after(monkeypatch, batches):
    """Send this process SIGTERM when it asks for so many batches."""
    fetch, fetched = TrainBatches.__next__, count(1)

    def fetch_or_stop(self):
        if next(fetched) == batches:
            os.kill(os.getpid(), signal.SIGTERM)
        return fetch(self)

    monkeypatch.setattr(TrainBatches, "__next__", fetch_or_stop)


def test_a_run_may_go_on_with_other_parts_of_the_same_total_batch(data, fcmae, tmp_path):
    """Eight images a step: in one forward pass, then in two; Accelerate's own count of passes is odd at the change."""
    one, two = (
        {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts} for size, parts in ((8, 1), (4, 2))
    )
    rest = {"dataset": data["folder"], "fcmae": fcmae, "max_train_steps": 4}
    whole = pretrain_run(tmp_path / "whole", **rest, **two)
    pretrain_run(tmp_path / "changed", **rest, **one, checkpointing_steps=1)
    first = tmp_path / "changed/checkpoint-1"
    changed = pretrain_run(tmp_path / "changed", **rest, **two, resume_from_checkpoint=str(first))
    columns = list(zip(figures(changed, "loss", "grad_norm"), figures(whole, "loss", "grad_norm"), strict=True))
    assert len(columns) == 4
    for actual, expected in columns:
        assert actual == pytest.approx(expected, rel=1e-4)


def test_full_determinism_is_switched_on(data, fcmae, tmp_path, monkeypatch):
    for name in ("CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "ASCEND_LAUNCH_BLOCKING", "HCCL_DETERMINISTIC"):
        monkeypatch.setenv(name, "")  # to be given back
    monkeypatch.setenv("FLASH_ATTENTION_DETERMINISTIC", "")
    try:
        pretrain_run(tmp_path, data["folder"], fcmae, full_determinism=True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_another_objective_is_named_on_resume(data, fcmae, tmp_path, capsys):
    pretrain_run(tmp_path, data["folder"], fcmae, checkpointing_steps=1)
    fields = {"resume_from_checkpoint": str(tmp_path / "checkpoint-1"), "mask_ratio": 0.5, "logging_steps": 2}
    pretrain_run(tmp_path, data["folder"], fcmae, **fields)
    printed = capsys.readouterr().out
    assert "was written with `mask_ratio` 0.6; it is 0.5 now." in printed
    assert "logging_steps" not in printed


RUNS = {
    pretrain: (pretrain_run, "parquet", {}),
    finetune: (finetune_run, "parquet", {"num_stages": 2}),
    segment: (segment_run, "masked parquet", {"num_stages": 3}),
    detect: (detect_run, "objects parquet", {"num_stages": 2}),
}
# Fine-tuned, ConvMAE starts from weights, for its tiny size is no published one; it has three stages.
OF_CONVMAE = {segment: {"layer_decay_type": "single"}, detect: {"anchor_sizes": [8, 16, 32, 64]}}


# ConvMAE's dense models differ from ConvNeXt V2's in the backbone alone.
STOPPED = [
    pytest.param(family, script, streaming, marks=[pytest.mark.slow] * (family == "convmae" and script in OF_CONVMAE))
    for family in WRITE_TINY
    for script in RUNS
    for streaming in (False, True)
]


@pytest.mark.parametrize(("family", "script", "streaming"), STOPPED)
def test_a_run_stopped_by_a_signal_and_resumed_is_the_run_in_one_go(
    family, script, streaming, data, tiny, tmp_path, monkeypatch
):
    run, kind, keywords = RUNS[script]
    keywords = {"dataset": data[kind], "streaming": streaming, **keywords}
    if script is pretrain:
        keywords["fcmae"] = tiny[family]
    else:
        keywords |= {"drop_path_rate": 0.3, "eval_steps": 2}  # an evaluation is due at the stop, too
    if script is not pretrain and family == "convmae":
        del keywords["num_stages"]
        keywords |= {"model_name_or_path": tiny[family], **OF_CONVMAE.get(script, {})}
    straight = run(tmp_path / "straight", **keywords)
    with monkeypatch.context() as patched, pytest.raises(SystemExit) as stop:
        interrupt_after(patched, 4)  # in the second step
        run(tmp_path / "stopped", **keywords)
    assert stop.value.code == 75
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert (tmp_path / "stopped/checkpoint-2").is_dir() and not (tmp_path / "stopped/model.safetensors").exists()
    resumed = run(tmp_path / "stopped", **keywords, resume_from_checkpoint="latest")
    columns = ("loss", "learning_rate", "grad_norm", "eval_loss", "eval_map")
    assert figures(resumed, *columns) == figures(straight, *columns)
    assert_close(load_file(resumed / "model.safetensors"), load_file(straight / "model.safetensors"), rtol=0, atol=0)


VIEWS = {"num_visible_sets": 4, "mask_ratio": None, "fusion_stages": ["stage1"], "target_type": "pixel+feature"}


CROPS = {"num_crops": 2, "sigreg_weight": 0.05, "sigreg_directions": 8, "sigreg_cells": "all", "ema_decay": 0.0}
PARTS = {"pixel_loss": 1, "feature_loss": 1}
OBJECTIVES = {
    "teacher": ({**VIEWS, "teacher_decay": [0.5, 0.9]}, PARTS),
    "regulariser": (CROPS, {"pixel_loss": 1, "sigreg_loss": 0.05, "invariance_loss": 1}),
    "both": ({**CROPS, **VIEWS, "sigreg_cells": "visible"}, {**PARTS, "sigreg_loss": 0.05, "invariance_loss": 1}),
}
# With all objectives, a family differs in what is encoded alone.
RESUMED = [
    pytest.param(objective, family, streaming, marks=[pytest.mark.slow] * (objective == "both" or streaming_is_slow))
    for objective in OBJECTIVES
    for family in WRITE_TINY
    for streaming, streaming_is_slow in ((False, False), (True, objective != "teacher" and family == "convmae"))
]


@pytest.mark.parametrize(("objective", "family", "streaming"), RESUMED)
def test_a_run_with_a_loss_of_several_parts_is_resumed_to_the_bit(
    objective, family, streaming, data, tiny, tmp_path, monkeypatch
):
    fields, weights = OBJECTIVES[objective]
    keywords = {"dataset": data["parquet"], "fcmae": tiny[family], "streaming": streaming, **fields}
    straight = pretrain_run(tmp_path / "straight", **keywords)
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        interrupt_after(patched, 4)
        pretrain_run(tmp_path / "stopped", **keywords)
    resumed = pretrain_run(tmp_path / "stopped", **keywords, resume_from_checkpoint="latest")
    columns = ("loss", "grad_norm", *weights)
    assert figures(resumed, *columns) == figures(straight, *columns)
    assert_close(load_file(resumed / "model.safetensors"), load_file(straight / "model.safetensors"), rtol=0, atol=0)
    for _, loss, *parts in figures(resumed, "loss", *weights):
        expected = sum(weight * part for weight, part in zip(weights.values(), parts, strict=True))
        assert loss == pytest.approx(expected) and min(parts) > 0


@FAMILY
def test_a_teacher_of_its_own_teaches(family, data, tiny, tmp_path):
    keywords = {"dataset": data["parquet"], "fcmae": tiny[family], **VIEWS}
    quick, slow = (
        pretrain_run(tmp_path / str(decays[0]), **keywords, teacher_decay=decays)
        for decays in ([0.5, 0.9], [0.999, 0.9999])
    )
    config = BY_NAME[family].pretraining.from_pretrained(quick).config
    assert (config.num_visible_sets, config.mask_ratio, config.target_type) == (4, 0.75, "pixel+feature")
    assert figures(slow, "loss")[1:] != figures(quick, "loss")[1:]


def test_the_learning_rate_counts_views_and_an_epoch_images(data, fcmae, tmp_path):
    fields = {"learning_rate": None, "base_learning_rate": 1e-2, "warmup_steps": 0, "max_train_steps": 2}
    one = pretrain_run(tmp_path / "one", data["folder"], fcmae, **fields)
    four = pretrain_run(tmp_path / "four", data["folder"], fcmae, **fields, num_visible_sets=4, mask_ratio=None)
    crops = pretrain_run(tmp_path / "crops", data["folder"], fcmae, **fields, num_crops=2)
    rates = [figures(folder, "learning_rate")[0][1] for folder in (one, four, crops)]
    assert rates == pytest.approx([1e-2 * 8 / 256, 4e-2 * 8 / 256, 2e-2 * 8 / 256])
    assert len({read_metrics(folder / "metrics.jsonl")[0]["epoch"] for folder in (one, four, crops)}) == 1


def test_the_logged_learning_rate_is_that_of_the_head_which_no_layer_decay_reduces(data, tmp_path):
    folder = finetune_run(tmp_path, data["folder"], num_stages=2, layer_decay=0.5, eval_steps=4)
    rates = [rate for _, rate in figures(folder, "learning_rate") if rate is not None]
    # A step of warm-up from 0, then a cosine over the other three.
    assert rates == pytest.approx([0, *(1e-2 * (1 + math.cos(math.pi * step / 3)) / 2 for step in range(3))])


def test_a_new_head_on_stored_weights_starts_at_a_thousandth_of_the_usual_size(fcmae):
    """As in the paper's Tables 9 to 13; a model from scratch starts as any other layer."""
    names, needed = [str(label) for label in range(200)], {"dataset_name": "x", "output_dir": "out"}
    stored, fresh = {"model_name_or_path": fcmae}, {"num_stages": 1}
    for fields, scale in ((stored, 0.001), (fresh, 1), ({**stored, "head_init_scale": 2.0}, 2)):
        model = finetune_model(FinetuneSettings(**needed, **fields), names)
        assert model.classifier.weight.std().item() == pytest.approx(0.02 * scale, rel=0.1)


def test_weights_stored_in_half_precision_are_trained_and_evaluated_in_single_precision(fcmae, tmp_path):
    folder = tmp_path / "half"
    ConvNextV2ForPreTraining.from_pretrained(fcmae, dtype=torch.bfloat16).save_pretrained(folder)
    assert {weight.dtype for weight in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    source = {"dataset_name": "x", "model_name_or_path": str(folder)}
    models = [
        pretrain_model(PretrainSettings(**source, output_dir="out")),
        finetune_model(FinetuneSettings(**source, output_dir="out"), ["a", "b"]),
    ]
    ConvNextV2ForImageClassification(small_config()).to(torch.bfloat16).save_pretrained(tmp_path / "classifier")
    models.append(classifier_of(ValidateSettings(**{**source, "model_name_or_path": f"{tmp_path}/classifier"})))
    for model in models:
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}, type(model)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"image_mean": [0.7, 0.8, 0.9]}, {"image_mean": [0.7, 0.8, 0.9]}),
        ({"image_std": [0.7, 0.8, 0.9]}, {"image_std": [0.7, 0.8, 0.9]}),
        ({"image_size": 96}, {"size": 96}),
        ({"num_channels": 1}, {"image_mean": [0.449], "image_std": [0.226]}),  # the mean of ImageNet's
    ],
    ids=str,
)
def test_a_validation_prepares_images_as_stored_but_for_what_is_given(given, expected, tmp_path):
    config = small_config(image_size=64)
    stored = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "crop_pct": 0.95, "resample": 2}
    ConvNextV2ForImageClassification(config).save_pretrained(tmp_path)
    create_image_processor(config, **stored).save_pretrained(tmp_path)
    settings = ValidateSettings(dataset_name="x", model_name_or_path=str(tmp_path), **given)
    background = settings.data.background
    processor = validate.load_processor(settings.model, background, classifier_of(settings))
    found = {"image_mean": list(processor.image_mean), "image_std": list(processor.image_std)}
    found |= {"size": dict(processor.size)["shortest_edge"], "crop_pct": processor.crop_pct}
    found["resample"] = int(processor.resample)
    expected = {**stored, "size": 64, **expected}
    assert {name: pytest.approx(value) for name, value in expected.items()} == found


def test_the_average_is_taken_after_each_step_with_a_decay_that_rises_over_the_run(data, fcmae, tmp_path):
    fields = {**VIEWS, "teacher_decay": [0.2, 0.8], "checkpointing_steps": 1, "max_train_steps": 3}
    run = pretrain_run(tmp_path, data["folder"], fcmae, **fields)
    expected = {n: t for n, t in load_file(f"{fcmae}/model.safetensors").items() if n.startswith("convnextv2.")}
    for step in range(1, 4):
        decay, folder = 0.2 + 0.6 * step / 3, run / f"checkpoint-{step}"
        weights = load_file(folder / "model.safetensors")
        expected = {name: decay * old + (1 - decay) * weights[name] for name, old in expected.items()}
        (saved,) = [
            state
            for file in folder.glob("custom_checkpoint_*.pkl")
            if "average.n_averaged" in (state := torch.load(file, weights_only=True))
        ]
        for name, wanted in expected.items():
            assert_close(saved[f"average.module.{name.removeprefix('convnextv2.')}"], wanted)


def test_the_learning_rate_counts_the_views_of_a_stored_model(data, fcmae, tmp_path):
    four = ConvNextV2ForPreTraining.from_pretrained(fcmae, num_visible_sets=4)
    four.save_pretrained(tmp_path / "four")
    fields = {"learning_rate": None, "base_learning_rate": 1e-2, "warmup_steps": 0, "max_train_steps": 1}
    run = pretrain_run(tmp_path / "run", data["folder"], str(tmp_path / "four"), **fields, mask_ratio=None)
    assert figures(run, "learning_rate")[0][1] == pytest.approx(1e-2 * 4 * 8 / 256)


@pytest.mark.parametrize("family", BY_NAME)
def test_going_on_keeps_what_the_stored_model_hides_and_predicts(data, tiny, family, tmp_path):
    stored = {"mask_ratio": 0.5, "norm_pix_loss": False}
    BY_NAME[family].pretraining.from_pretrained(tiny[family], **stored).save_pretrained(tmp_path / "first")
    for given in ({}, {"norm_pix_loss": True}, {"mask_ratio": 0.25}):
        fields = {"dataset_name": "x", "output_dir": "out", "model_name_or_path": str(tmp_path / "first"), **given}
        config = pretrain_model(PretrainSettings(**fields)).config
        assert {name: getattr(config, name) for name in stored} == {**stored, **given}


def test_attention_heads_of_a_stored_decoder_are_those_that_it_was_trained_with(tiny, tmp_path):
    stored = ConvMAEForPreTraining.from_pretrained(tiny["convmae"])
    heads = stored.config.decoder_num_attention_heads
    stored.save_pretrained(tmp_path / "stored")
    stored.convmae.save_pretrained(tmp_path / "encoder")

    def model_of(name, asked):
        fields = {"model_name_or_path": str(tmp_path / name), "decoder_num_attention_heads": asked}
        return pretrain_model(PretrainSettings(dataset_name="x", output_dir="out", **fields))

    with pytest.raises(ValueError, match=rf"`decoder_num_attention_heads` \(={2 * heads}\) must be {heads}, as the"):
        model_of("stored", 2 * heads)
    assert model_of("stored", heads).config.decoder_num_attention_heads == heads
    assert model_of("encoder", 2 * heads).config.decoder_num_attention_heads == 2 * heads


def test_going_on_from_a_model_of_another_teacher_starts_the_features_anew(data, fcmae, tmp_path):
    model = ConvNextV2ForPreTraining.from_pretrained(
        fcmae, target_type="pixel+feature", feature_target_dim=12, num_visible_sets=4
    )
    model.save_pretrained(tmp_path / "first")
    stored = str(tmp_path / "first")
    with pytest.raises(ValueError, match=r"`target_type` \(=None\) must be given to go on from .*first"):
        pretrain_run(tmp_path / "run", data["folder"], stored, mask_ratio=None)
    run = pretrain_run(tmp_path / "run", data["folder"], stored, **{**VIEWS, "fusion_stages": None}, max_train_steps=2)
    assert ConvNextV2ForPreTraining.from_pretrained(run).config.feature_target_dim == 16
    run = pretrain_run(
        tmp_path / "pixel", data["folder"], stored, mask_ratio=None, target_type="pixel", max_train_steps=2
    )
    assert ConvNextV2ForPreTraining.from_pretrained(run).config.feature_target_dim is None
    with pytest.raises(ValueError, match=r"`feature_loss` \(=cosine\) must come with `target_type`"):
        pretrain_run(tmp_path / "other", data["folder"], fcmae, feature_loss="cosine")


def test_a_resume_with_another_kind_of_teacher_is_refused_by_name(data, fcmae, tmp_path, capsys):
    sizes = {"hidden_sizes": [16, 16], "depths": [1, 1], "num_stages": 2, "image_size": 32}
    transformers.ConvNextModel(transformers.ConvNextConfig(**sizes)).save_pretrained(tmp_path / "teacher")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "teacher")
    fields = {**VIEWS, "max_train_steps": 2}
    pretrain_run(tmp_path / "run", data["folder"], fcmae, **fields, checkpointing_steps=1)
    fields |= {"resume_from_checkpoint": str(tmp_path / "run/checkpoint-1")}
    with pytest.raises(ValueError, match=r"`teacher_name_or_path` \(=.*teacher\) must be left out to go on from"):
        pretrain_run(tmp_path / "run", data["folder"], fcmae, **fields, teacher_name_or_path=str(tmp_path / "teacher"))
    state = read_state(tmp_path / "run/checkpoint-1")
    for name in ("own_teacher", "sha256"):
        del state[name]
    for name in ("num_visible_sets", "teacher_decay", "feature_target_norm"):
        del state["run"][name]
    whole = {**state, "sha256": digest_of(state)}
    (tmp_path / "run/checkpoint-1/training_state.json").write_text(json.dumps(whole))
    pretrain_run(tmp_path / "run", data["folder"], fcmae, **fields)
    printed = capsys.readouterr().out
    assert "Resuming from" in printed and "was written with" not in printed  # by an older version


@pytest.mark.parametrize(
    ("kind", "where", "family"),
    [
        ("pixel+feature", "visible", "convnextv2"),
        ("pixel+feature", "masked", "convnextv2"),
        ("feature", "masked", "convnextv2"),
        ("pixel+feature", "visible", "convmae"),
    ],
)
def test_a_model_of_another_kind_can_be_the_teacher(kind, where, family, data, tiny, tmp_path):
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    vit = transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=48, patch_size=16))
    vit.save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 48, "width": 48}).save_pretrained(tmp_path / "vit")
    fields = {"teacher_name_or_path": str(tmp_path / "vit"), "feature_target_layers": 2, "feature_target_on": where}
    fields |= {**VIEWS, "target_type": kind}
    run = pretrain_run(tmp_path / "run", data["folder"], tiny[family], **fields | {"reconstruction_steps": 2})
    model = BY_NAME[family].pretraining.from_pretrained(run)
    assert model.config.feature_target_dim == 12
    assert (run / "reconstructions.png").is_file() == ("pixel" in kind)
    assert any("feature_diversity_stage2" in line for line in read_metrics(run / "metrics.jsonl"))
    losses = [loss for _, loss in figures(run, "loss")]
    assert losses[-1] < losses[0]
    finetune_run(tmp_path / "classifier", data["folder"], model_name_or_path=str(run))


def test_resuming_at_another_step_is_another_run(data, fcmae, tmp_path):
    straight = pretrain_run(tmp_path, data["folder"], fcmae, checkpointing_steps=1)
    expected = figures(straight, "loss")
    (straight / "checkpoint-2").rename(straight / "kept")
    state = json.loads((straight / "kept/training_state.json").read_text())
    state = {**state, "step": 1}
    del state["sha256"]
    (straight / "kept/training_state.json").write_text(json.dumps({**state, "sha256": digest_of(state)}))
    resumed = pretrain_run(tmp_path, data["folder"], fcmae, resume_from_checkpoint=str(straight / "kept"))
    assert figures(resumed, "loss")[:1] == expected[:1] and figures(resumed, "loss") != expected


def test_a_loss_that_is_not_finite_stops_at_its_step_and_leaves_the_last_good_checkpoint(
    data, fcmae, tmp_path, monkeypatch
):
    forward = ConvNextV2ForPreTraining.forward
    calls = []

    def broken(self, **batch):
        calls.append(1)
        outputs = forward(self, **batch)
        outputs.loss = outputs.loss * (float("nan") if len(calls) == 2 * 3 else 1)  # the third step
        return outputs

    monkeypatch.setattr(ConvNextV2ForPreTraining, "forward", broken)
    with pytest.raises(FloatingPointError, match="`loss`, gradient and weights of step 3 must be finite"):
        pretrain_run(tmp_path, data["folder"], fcmae, checkpointing_steps=1, logging_steps=50)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    weights = load_file(tmp_path / "checkpoint-2/model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert not (tmp_path / "model.safetensors").exists()


def test_a_gradient_that_is_not_finite_stops_before_anything_is_saved(data, fcmae, tmp_path, monkeypatch):
    calls = []

    def spoil(gradient):
        calls.append(1)
        return gradient * (float("nan") if len(calls) == 2 * 3 else 1)  # the third step, the last one

    create = pretrain.create_model

    def spoilt_model(*arguments):
        model = create(*arguments)
        model.decoder.mask_token.register_hook(spoil)
        return model

    monkeypatch.setattr(pretrain, "create_model", spoilt_model)
    with pytest.raises(FloatingPointError, match="gradient and weights of step 3 must be finite"):
        pretrain_run(tmp_path, data["folder"], fcmae, checkpointing_steps=2, logging_steps=50, max_train_steps=3)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (tmp_path / "model.safetensors").exists()


def test_a_failing_run_with_workers_ends(data, fcmae, tmp_path, environment):
    flags = [*command_flags(data, fcmae, tmp_path / "out"), "--max_train_steps", "30", "--learning_rate", "1e30"]
    command = [sys.executable, "training/pretrain.py", *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1 and "must be finite" in done.stderr


@pytest.mark.parametrize(
    "fields", [{}, {"mixture_weights": [0.7, 0.3]}, {"mixture_weights": [0.7, 0.3], "streaming": True}]
)
def test_several_data_sets_are_mixed(fields, data, fcmae, tmp_path):
    more = write_parquet(tmp_path / "more", {"train": 2})
    fields = {**fields, "mixed_dataset_names": [str(more)], "max_train_steps": None, "num_train_epochs": 1.0}
    if "streaming" in fields:
        fields["max_train_steps"] = 4
    mixed = pretrain_run(tmp_path / "out", data["parquet"], fcmae, **fields)
    results = json.loads((mixed / "all_results.json").read_text())
    assert results["total_steps"] == (4 if "streaming" in fields else 3)  # of 18 and 6 images, 8 a step
    assert results["train_samples"] == (None if "streaming" in fields else 24)
    again = pretrain_run(tmp_path / "again", data["parquet"], fcmae, **fields)
    assert figures(again, "loss") == figures(mixed, "loss")
    alone = pretrain_run(tmp_path / "alone", data["parquet"], fcmae, max_train_steps=results["total_steps"])
    assert figures(alone, "loss") != figures(mixed, "loss")


def test_compiled_by_accelerates_option_a_run_is_the_same(data, fcmae, tmp_path, monkeypatch):
    plain = pretrain_run(tmp_path / "plain", data["folder"], fcmae)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "AOT_EAGER")  # as `accelerate launch --dynamo_backend aot_eager`
    counters.clear()
    fields = {"ema_decay": 0.0, "checkpointing_steps": 2}
    stopped = pretrain_run(tmp_path / "compiled", data["folder"], fcmae, **fields)
    assert counters["stats"]["unique_graphs"] > 0
    resumed = pretrain_run(stopped, data["folder"], fcmae, **fields, resume_from_checkpoint=f"{stopped}/checkpoint-2")
    torch._dynamo.reset()
    assert_close(figures(resumed, "loss"), figures(plain, "loss"), rtol=1e-5, atol=0)
    assert load_file(resumed / "model.safetensors").keys() == load_file(plain / "model.safetensors").keys()


@FAMILY
def test_bfloat16_computes_in_half_and_keeps_whole_weights(family, data, tiny, tmp_path):
    plain = pretrain_run(tmp_path / "plain", data["folder"], tiny[family])
    half = pretrain_run(tmp_path / "half", data["folder"], tiny[family], mixed_precision="bf16")
    assert_close(figures(half, "loss"), figures(plain, "loss"), rtol=1e-3, atol=0)
    assert figures(half, "loss") != figures(plain, "loss")
    assert {weight.dtype for weight in load_file(half / "model.safetensors").values()} == {torch.float32}


# Every switch reaches the run: losses and weights are not those without it.


@pytest.fixture(scope="module")
def plain_runs(data, fcmae, tmp_path_factory):
    """Losses and weights without any of the switches below."""
    with apart(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
        folder = tmp_path_factory.mktemp("plain")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        runs = {
            pretrain_run: pretrain_run(folder / "pretrain", data["folder"], fcmae, ema_decay=0.0),
            finetune_run: finetune_run(folder / "finetune", data["folder"], **PLAIN),
        }
        return {run: outcome(folder) for run, folder in runs.items()}


PLAIN = {"num_stages": 2, "mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0, "layer_decay": 1.0, "ema_decay": 0.0}
SWITCHES = [
    {"mixup": 0.8},
    {"cutmix": 1.0},
    {"label_smoothing": 0.1},
    {"layer_decay": 0.5},
    {"ema_decay": 0.5},
    {"drop_path_rate": 0.9},
    {"randaugment_num_ops": 2},
    {"random_erasing": 1.0},
    {"head_init_scale": 2.0},
]


def outcome(folder):
    weights = load_file(folder / "model.safetensors")
    return figures(folder, "loss"), torch.cat([tensor.flatten() for tensor in weights.values()])


@pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: next(iter(switch)))
def test_every_switch_of_fine_tuning_changes_the_run(switch, plain_runs, data, tmp_path):
    losses, weights = outcome(finetune_run(tmp_path, data["folder"], **{**PLAIN, **switch}))
    assert not torch.equal(weights, plain_runs[finetune_run][1])
    assert (losses == plain_runs[finetune_run][0]) is ("ema_decay" in switch)  # the average leaves the training alone


@pytest.mark.parametrize("switch", [{"max_grad_norm": 0.1}, {"decay_grn_and_mask_token": True}, {"weight_decay": 0.5}])
def test_every_switch_of_pre_training_changes_the_run(switch, plain_runs, data, fcmae, tmp_path):
    _, weights = outcome(pretrain_run(tmp_path, data["folder"], fcmae, ema_decay=0.0, **switch))
    assert not torch.equal(weights, plain_runs[pretrain_run][1])


def test_a_run_without_a_switch_is_the_same_run(plain_runs, data, tmp_path):
    losses, weights = outcome(finetune_run(tmp_path, data["folder"], **PLAIN))
    assert losses == plain_runs[finetune_run][0] and torch.equal(weights, plain_runs[finetune_run][1])


@pytest.mark.parametrize("script", RUNS, ids=lambda script: script.__name__)
@FAMILY
def test_activation_checkpointing_is_switched_on(script, family, tiny):
    fields = {"output_dir": "out", "dataset_name": "x", "activation_checkpointing": True}
    fields["model_name_or_path"] = tiny[family]
    if script is pretrain:
        model = pretrain_model(PretrainSettings(**fields))
    elif script is segment:
        fields |= {"image_size": 32, "auxiliary_loss_weight": 0}
        model = create_segmenter(SegmentSettings(**fields).model, ["a", "b"]).backbone
    elif script is detect:
        fields |= {"image_size": 32, "anchor_sizes": [8, 16, 32] + [64] * (family == "convmae")}
        model = create_detector(DetectSettings(**fields).model, ["a", "b"]).backbone
    else:
        model = finetune_model(FinetuneSettings(image_size=32, **fields), ["a", "b"])
    assert model.is_gradient_checkpointing


# Bad input, refused before training


@pytest.mark.parametrize("damage", ["model.safetensors", "training_state.json", "optimizer.bin"])
def test_a_damaged_checkpoint_is_named_and_the_run_left_as_it_was(damage, data, fcmae, tmp_path):
    folder = pretrain_run(tmp_path / "run", data["folder"], fcmae, checkpointing_steps=2)
    file = folder / "checkpoint-2" / damage
    file.write_bytes(file.read_bytes()[:20])
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    again = {"resume_from_checkpoint": str(folder / "checkpoint-2")}
    message = message_of(lambda: pretrain_run(folder, data["folder"], fcmae, **again))
    assert f"`resume_from_checkpoint` (={folder / 'checkpoint-2'}) must be" in message
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_checkpoint_of_another_plan_is_refused(data, fcmae, tmp_path):
    folder = pretrain_run(tmp_path / "run", data["folder"], fcmae, checkpointing_steps=2)
    again = {"resume_from_checkpoint": str(folder / "checkpoint-2")}
    for fields, message in (
        ({"ema_decay": 0.0}, "`ema_decay` (=0.0) must be more than 0 to go on from"),
        ({"max_train_steps": 1, "warmup_steps": 0}, "`max_train_steps` (=1) must not end before"),
    ):
        assert message in message_of(
            lambda fields=fields: pretrain_run(folder, data["folder"], fcmae, **again, **fields)
        )


@pytest.mark.parametrize("streaming", [False, True])
def test_a_stream_is_not_taken_up_without_streaming_nor_the_other_way_round(streaming, data, fcmae, tmp_path):
    """The two give the images in different orders: some would be seen twice, and others not at all."""
    fields = {"max_train_steps": 4, "checkpointing_steps": 2}
    folder = pretrain_run(tmp_path / "run", data["parquet"], fcmae, streaming=streaming, **fields)
    again = {**fields, "resume_from_checkpoint": str(folder / "checkpoint-2")}
    other = message_of(lambda: pretrain_run(folder, data["parquet"], fcmae, streaming=not streaming, **again))
    assert other.startswith(f"`streaming` (={not streaming}) must be")
    pretrain_run(folder, data["parquet"], fcmae, streaming=streaming, **again)  # the control


def test_learning_rate_and_decay_may_change_on_resume_and_it_is_said(data, fcmae, tmp_path, capsys):
    fields = {"checkpointing_steps": 2, "max_train_steps": 6}
    folder = pretrain_run(tmp_path, data["folder"], fcmae, **fields)
    before = dict(figures(folder, "learning_rate"))
    again = {
        **fields,
        "resume_from_checkpoint": str(folder / "checkpoint-2"),
        "learning_rate": 1e-3,
        "weight_decay": 0.5,
    }
    capsys.readouterr()
    pretrain_run(folder, data["folder"], fcmae, **again)
    after = dict(figures(folder, "learning_rate"))
    assert [after[step] for step in (1, 2)] == [before[step] for step in (1, 2)]
    assert [after[step] for step in (3, 4, 5, 6)] == pytest.approx([before[step] / 10 for step in (3, 4, 5, 6)])
    said = capsys.readouterr().out
    assert (
        "was written with `learning_rate` 0.01; it is 0.001 now." in said and "`weight_decay` 0.05; it is 0.5" in said
    )
    state = torch.load(folder / "checkpoint-6/optimizer.bin", weights_only=True)
    assert {group["weight_decay"] for group in state["param_groups"]} == {0.5, 0}


def test_an_evaluation_that_a_stop_put_off_is_logged_once(data, tmp_path, monkeypatch):
    fields = {"num_stages": 2, "eval_steps": 2, "max_train_steps": 6, "resume_from_checkpoint": "latest"}
    for interruption in (4, 2):  # in the second step; then one step after the resume
        with monkeypatch.context() as patched, pytest.raises(SystemExit if interruption == 4 else RuntimeError):
            interrupt_after(patched, 4) if interruption == 4 else fail_after(patched, 2)
            finetune_run(tmp_path, data["parquet"], **fields)
    finetune_run(tmp_path, data["parquet"], **fields)
    assert [step for step, loss in figures(tmp_path, "eval_loss") if loss is not None] == [2, 4, 6]


@pytest.mark.parametrize("step", [2, 4])  # in the middle of a run, and at its end
def test_a_stop_in_an_evaluation_ends_it_and_it_comes_after_the_resume(step, data, tmp_path, monkeypatch):
    fields = {"eval_steps": 2, "num_stages": 2, "per_device_eval_batch_size": 2}
    whole = finetune_run(tmp_path / "whole", data["parquet"], **fields)
    add_batch, added = TopAccuracy.add_batch, []

    def add_and_stop(self, **batch):
        """Documented: `evaluate` adds to it."""
        added.append(1)
        if len(added) == 5 * (step // 2 - 1) + 2:  # of the five batches of each evaluation
            os.kill(os.getpid(), signal.SIGTERM)
        return add_batch(self, **batch)

    with monkeypatch.context() as patched, pytest.raises(SystemExit) as stop:
        patched.setattr(TopAccuracy, "add_batch", add_and_stop)
        finetune_run(tmp_path / "run", data["parquet"], **fields)
    assert stop.value.code == 75 and len(added) == 5 * (step // 2 - 1) + 2
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == [f"checkpoint-{step}"]
    added.clear()
    added += [1] * (5 * (step // 2 - 1))  # a second stop, in the evaluation that the resumed run begins with
    with monkeypatch.context() as patched, pytest.raises(SystemExit) as stop:
        patched.setattr(TopAccuracy, "add_batch", add_and_stop)
        finetune_run(tmp_path / "run", data["parquet"], **fields, resume_from_checkpoint="latest")
    assert stop.value.code == 75 and len(added) == 5 * (step // 2 - 1) + 2
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == [f"checkpoint-{step}"]
    resumed = finetune_run(tmp_path / "run", data["parquet"], **fields, resume_from_checkpoint="latest")
    assert figures(resumed, "loss", "eval_loss") == figures(whole, "loss", "eval_loss")
    assert_close(load_file(resumed / "model.safetensors"), load_file(whole / "model.safetensors"), rtol=0, atol=0)


def test_a_stop_in_the_last_step_leaves_no_older_evaluation_behind(data, tmp_path, monkeypatch):
    fields = {"num_stages": 2, "eval_steps": 2, "max_train_steps": 4}
    whole = finetune_run(tmp_path / "whole", data["parquet"], **fields)
    with monkeypatch.context() as patched:
        interrupt_after(patched, 8)  # in the fourth step
        stopped = finetune_run(tmp_path / "stopped", data["parquet"], **fields)
    assert figures(stopped, "loss", "eval_loss") == figures(whole, "loss", "eval_loss")
    results = [json.loads((folder / "all_results.json").read_text())["eval_loss"] for folder in (stopped, whole)]
    assert results[0] == results[1] == figures(whole, "eval_loss")[-1][1]


def test_a_finished_run_is_left_as_it_is(data, fcmae, tmp_path, monkeypatch, capsys):
    fields = {"resume_from_checkpoint": "latest", "max_train_steps": 2}
    whole = pretrain_run(tmp_path, data["folder"], fcmae, **fields)
    written = {path: path.read_bytes() for path in whole.iterdir() if path.is_file()}
    with monkeypatch.context() as patched:
        fail_after(patched, 0)
        pretrain_run(tmp_path, data["folder"], fcmae, **fields)
    assert {path: path.read_bytes() for path in whole.iterdir() if path.is_file()} == written
    assert "holds the whole run: nothing is left to do" in capsys.readouterr().out
    longer = pretrain_run(tmp_path, data["folder"], fcmae, **{**fields, "max_train_steps": 3})
    assert json.loads((longer / "all_results.json").read_text())["total_steps"] == 3


def fail_after(monkeypatch, batches):
    """Let the run break down, as by a kill, when so many batches have been fetched."""
    fetch, fetched = TrainBatches.__next__, count(1)

    def fetch_or_fail(self):
        if next(fetched) > batches:
            raise RuntimeError("killed")
        return fetch(self)

    monkeypatch.setattr(TrainBatches, "__next__", fetch_or_fail)


def test_the_log_of_a_run_killed_before_its_first_checkpoint_begins_anew(data, fcmae, tmp_path, monkeypatch):
    fields = {"resume_from_checkpoint": "latest", "checkpointing_steps": 3}
    whole = pretrain_run(tmp_path / "whole", data["folder"], fcmae, **fields)
    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        fail_after(patched, 4)
        pretrain_run(tmp_path / "killed", data["folder"], fcmae, **fields)
    assert [step for step, _ in figures(tmp_path / "killed", "loss")] == [1, 2]
    killed = pretrain_run(tmp_path / "killed", data["folder"], fcmae, **fields)
    assert figures(killed, "loss") == figures(whole, "loss")


def test_overwriting_leaves_the_checkpoints_of_others(data, fcmae, tmp_path):
    others = tmp_path / "checkpoint-500"
    others.mkdir()
    (others / "training_state.json").write_text("{}")
    pretrain_run(tmp_path, data["folder"], fcmae, overwrite_output_dir=True)
    assert others.is_dir()
    pretrain_run(tmp_path, data["folder"], fcmae, overwrite_output_dir=True)  # now the folder is ours
    assert not others.exists()


def refused(run, tmp_path, *arguments, **fields):
    output = tmp_path / "refused"
    message = message_of(lambda: run(output, *arguments, **fields))
    assert not (output / "metrics.jsonl").exists() and not (output / "training_config.json").exists()
    return message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 36}, "`image_size` (=36) must be a multiple of 8, the size of a cell"),
        ({"image_size": 4}, "`image_size` (=4) must be a multiple of 8"),
        ({"mask_ratio": 0.99}, "`mask_ratio` (=0.99) must leave at least one visible and one hidden cell"),
        ({"image_size": 8}, "must leave at least one visible and one hidden cell"),
        ({"image_column": "photo"}, "`image_column` (=photo) must be a column of the data set"),
        ({"model_name_or_path": None, "model_size": "micro"}, "(=micro) must be one of atto, femto, pico"),
        ({"patch_size": 2}, "`patch_size` (=2) must not be given with `model_name_or_path`"),
        ({"cell_size": 16}, "`cell_size` (=16) must not be given for a ConvNeXt V2: it is a setting of ConvMAE."),
        ({"model_type": "convmae"}, "`model_type` (=convmae) must be convnextv2, as `model_name_or_path`"),
        ({"warmup_steps": 4}, "`warmup_steps` (=4) must be less than the 4 steps of the run."),
        ({"min_learning_rate": 1.0}, "`min_learning_rate` (=1.0) must be at most the learning rate, 0.01."),
        ({"image_mean": [0.5]}, "`image_mean` (=[0.5]) must have one number for each of the 3 channels."),
        ({"train_split": "valid"}, "must hold a split `valid`"),
    ],
)
def test_pretraining_refuses(fields, message, data, fcmae, tmp_path):
    assert message in refused(pretrain_run, tmp_path, data["folder"], fcmae, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 16}, "`image_size` (=16) must be at least 32, the stride of the encoder."),
        ({"num_labels": 2}, "`num_labels` (=2) must be at least 3, the classes of `label`."),
        ({"label_column": "kind"}, "`label_column` (=kind) must be a column of the data set, which has image, label."),
        ({"metrics": ["no/such_metric"]}, "`metrics` (=no/such_metric) must be a metric that `evaluate.load` finds"),
    ],
)
def test_finetuning_refuses(fields, message, data, tmp_path):
    assert message in refused(finetune_run, tmp_path, data["folder"], **fields)


def test_a_stream_of_unknown_length_needs_a_number_of_steps(data, fcmae, tmp_path):
    message = refused(pretrain_run, tmp_path, data["parquet"], fcmae, streaming=True, max_train_steps=None)
    assert message.startswith("`max_train_steps` (=None) must be given")


def test_validation_refuses_a_model_without_a_head(data, fcmae):
    config = ValidateSettings(dataset_name=str(data["folder"]), model_name_or_path=fcmae, eval_split="test")
    assert "must hold an image classifier, not ConvNextV2ForPreTraining" in message_of(lambda: validate.main(config))


def test_a_dry_run_prints_the_plan_and_writes_nothing(data, fcmae, tmp_path, capsys):
    settings = {"dry_run": True, "json": True, "learning_rate": None, "base_learning_rate": 1e-3}
    pretrain_run(tmp_path / "out", data["folder"], fcmae, **settings)
    found = json.loads(capsys.readouterr().out)  # and nothing else
    plan = found["plan"]
    assert plan["num_samples"] == 18 and plan["max_steps"] == 4 and plan["steps_per_epoch"] == 18 / 8
    assert plan["learning_rate"] == pytest.approx(1e-3 * 8 / 256)
    assert 0 <= found["data_wait"] < 1 and found["images_per_second"] == pytest.approx(8 / found["seconds_per_step"])
    assert not (tmp_path / "out").exists()


def test_a_dry_run_is_a_page_that_names_classes_model_steps_memory_and_time(data, fcmae, tmp_path, capsys):
    finetune_run(tmp_path / "out", data["folder"], model_name_or_path=fcmae, dry_run=True)
    lines = capsys.readouterr().out.partition("Dry run\n")[2].splitlines()
    page = {line[2:15].strip(): line[17:] for line in lines if line[2] != " "}
    assert page["Data"] == f"{data['folder']}: 18 images of `train` to train on, 9 images to evaluate on"
    assert page["Classes"] == "3: astronaut, chelsea, coffee"
    assert page["Labels"] == f"{data['folder']}/train/astronaut/0.jpg: astronaut"
    assert page["Steps"] == "4 of 8 images (4 in a pass x 2 passes), 2.2 to an epoch, 1.8 epochs"
    assert page["Learning rate"] == "1 steps of warm-up to 0.01, then a cosine to 0"
    assert f"the weights of {fcmae}" in page["Model"] and "images of 32 x 32 pixels, 3 channels" in page["Model"]
    assert lines[7].split()[:3] == ["0.00729", "in", "embeddings"]  # 0.01 * 0.9 ** 3
    subjects = (
        "Data",
        "Classes",
        "Labels",
        "Model",
        "Machine",
        "Steps",
        "Learning rate",
        "Memory",
        "Time",
        "Waiting",
        "Output",
    )
    assert set(page) == set(subjects)
    assert len(lines) < 20 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("task", "family"),
    [(task, "convnextv2") for task in ("pretrain", "finetune", "segment", "detect")]
    + [(task, "convmae") for task in ("pretrain", "finetune")],
)
def test_a_dry_run_takes_its_steps_as_training_does(task, family, data, tiny, tmp_path, monkeypatch):
    calls = Counter()

    def counted(owner, name):
        original = getattr(owner, name)

        def call(*arguments, **fields):
            calls[name] += 1
            return original(*arguments, **fields)

        monkeypatch.setattr(owner, name, call)

    counted(torch.optim.AdamW, "step")
    counted(AveragedModel, "update_parameters")
    fields = {"dry_run": True, "gradient_accumulation_steps": 3, "ema_decay": 0.5, "model_name_or_path": tiny[family]}
    if task == "pretrain":
        counted(BY_NAME[family].pretraining, "forward")
        fields |= {"dataset": data["folder"], "fcmae": tiny[family], "target_type": "pixel+feature"}
        del fields["model_name_or_path"]
        counted(AverageTeacher, "update")
        pretrain_run(tmp_path / "out", **fields)
    elif task == "segment":
        counted(UperNetForSemanticSegmentation, "forward")
        segment_run(tmp_path / "out", data["masked folder"], **fields, auxiliary_loss_weight=0)
    elif task == "detect":
        counted(ConvNextV2RCNNForObjectDetection, "forward")
        detect_run(tmp_path / "out", data["objects folder"], **fields)
    else:
        counted(BY_NAME[family].classifier, "forward")
        finetune_run(tmp_path / "out", data["folder"], **fields)
    steps = calls["step"]
    assert steps >= 2 and calls["forward"] == 3 * steps
    assert calls["update"] == (steps if task == "pretrain" else 0)
    assert calls["update_parameters"] == (2 * steps + 1 if task == "pretrain" else steps)  # the teacher's first copy


# Metrics


def test_top_five_is_the_share_among_the_first_five_ranks():
    metric = TopAccuracy(keep_in_memory=True)
    ranked = np.random.default_rng(0).permuted(np.tile(np.arange(9), (40, 1)), axis=1)
    references = np.random.default_rng(1).integers(0, 9, 40)
    for part in (slice(0, 30), slice(30, 40)):
        metric.add_batch(predictions=ranked[part, :5], references=references[part])
    ranks = [row.tolist().index(label) for row, label in zip(ranked, references, strict=True)]
    expected = {
        "accuracy": np.mean([rank < 1 for rank in ranks]),
        "accuracy_top5": np.mean([rank < 5 for rank in ranks]),
    }
    assert metric.compute() == pytest.approx(expected)


# The command line


def command_flags(data, fcmae, output):
    flags = {"model_name_or_path": fcmae, "dataset_name": data["folder"], "output_dir": output, "logging_steps": 1}
    flags |= {"per_device_train_batch_size": 4, "num_workers": 1}
    return [part for key, value in flags.items() for part in (f"--{key}", str(value))]


@pytest.fixture
def environment(tmp_path):
    return {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}


def test_accelerate_launch_runs_a_script_with_workers_and_a_tracker(data, fcmae, tmp_path, environment):
    flags = [*command_flags(data, fcmae, tmp_path / "out"), "--max_train_steps", "2"]
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--num_processes",
        "1",
        "training/pretrain.py",
        *flags,
    ]
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert [row[0] for row in figures(tmp_path / "out")] == [1, 2]
    assert list((tmp_path / "out/logs").rglob("events.out.tfevents*"))


@pytest.mark.slow
def test_a_signal_to_the_whole_process_group_stops_a_run_with_code_75(data, fcmae, tmp_path, environment):
    flags = [*command_flags(data, fcmae, tmp_path / "out"), "--max_train_steps", "100000"]
    command = [sys.executable, "training/pretrain.py", *flags]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    running = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
    assert running.stderr is not None
    for line in running.stderr:  # the progress bar rewrites its line
        if "loss=" in line:
            os.killpg(running.pid, signal.SIGTERM)
            break
    output = running.communicate(timeout=60)[1]
    assert running.returncode == 75, output
    assert len(list((tmp_path / "out").glob("checkpoint-*"))) == 1


def test_a_bad_setting_of_a_script_is_one_line_and_code_2(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["training/validate.py", "--dataset_name", "x", "--eval_splitt", "test"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path("training/validate.py", run_name="__main__")
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error == "validate.py: error: `eval_splitt` is not a setting. Did you mean `eval_split`?\n"
