"""Validating an official checkpoint: its own preprocessing, an interval, and the reference beside the measurement."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, ConvNextImageProcessor, Mask2FormerConfig, UperNetConfig

from conversion.convert import main as convert
from hf_convnextv2 import ConvMAEConfig, ConvNextV2Config, ConvNextV2ForImageClassification, create_image_processor
from hf_convnextv2.configuration_rcnn import ConvNextV2RCNNConfig
from tests.hub_server import HubServer
from tests.photographs import CLASSES, write_folder
from tests.small_models import awake, small_config
from training.evaluation.published import (
    comparison,
    detection_comparison,
    intervals,
    known_checkpoint,
    segmentation_comparison,
)
from training.settings.evaluation import SegmentPredictionSettings

CHECKOUT = Path(__file__).parents[3]


def wilson(hits: int, samples: int) -> tuple[float, float]:
    """The interval, from its formula: Wilson, JASA 22 (1927)."""
    z, share = 1.959964, hits / samples
    center = (share + z * z / (2 * samples)) / (1 + z * z / samples)
    half = z / (1 + z * z / samples) * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples**2))
    return center - half, center + half


@pytest.mark.parametrize(("hits", "samples"), [(0, 12), (7, 12), (12, 12), (41474, 50000)])
def test_the_interval_is_wilsons(hits, samples):
    found = intervals({"eval_accuracy": hits / samples, "eval_samples": samples})
    assert found["eval_accuracy_ci95"] == pytest.approx(wilson(hits, samples), abs=1e-6)


def test_the_interval_is_that_of_the_images_that_were_right_whatever_their_share_is_rounded_to():
    """As floats, 29 of 100 times 100 is a little less than 29."""
    assert 29 / 100 * 100 < 29
    for hits in range(101):
        found = intervals({"eval_accuracy_top5": hits / 100, "eval_samples": 100})
        assert found["eval_accuracy_top5_ci95"] == pytest.approx(wilson(hits, 100), abs=1e-6)


def test_references_stand_beside_the_measurement():
    results = {"eval_accuracy": 0.8295, "eval_accuracy_top5": 0.9629, "eval_samples": 50000}
    table = comparison(results, known_checkpoint("facebook/convnextv2-tiny-1k-224")).splitlines()
    assert table[0].split()[-2:] == ["top-1", "top-5"]
    assert "82.95 (82.62 to 83.28)" in table[1] and "50,000 images" in table[1]
    assert table[2].split()[0] == "official," and table[2].split()[-1] == "83.00"
    assert table[3].split()[0] == "timm," and table[3].split()[-2:] == ["82.95", "96.29"]
    assert len(comparison(results, None).splitlines()) == 2
    assert known_checkpoint("me/other") is None


def upernet(size, num_labels=150, config_class=UperNetConfig):
    return config_class(backbone_config=ConvNextV2Config.from_size(size), num_labels=num_labels)


def test_published_mean_ious_of_the_size_stand_beside_that_of_150_classes():
    results = {"eval_mean_iou": 0.5056, "eval_samples": 2000}
    table = segmentation_comparison(results, upernet("base"), SegmentPredictionSettings()).splitlines()
    assert table[0] == "mean IoU in % (published: UPerNet, size base, ADE20K)"
    assert "measured, 2,000 images, one scale" in table[1] and table[1].split()[-1] == "50.56"
    found = {row[:72].rstrip(): float(row[72:]) for row in table[2:]}  # the paper's Table 7
    assert found["ConvNeXt V2, supervised, several scales, mirrored"] == 50.5
    assert found["ConvNeXt V2, FCMAE, several scales, mirrored"] == 52.1
    several = SegmentPredictionSettings(eval_scales=[0.5, 1.0, 1.5], eval_flip=True)
    table = segmentation_comparison(results, upernet("huge"), several).splitlines()
    assert "2,000 images, 3 scales, mirrored" in table[1] and len({len(row) for row in table[1:]}) == 1


def test_published_figures_of_convmae_stand_beside_those_of_its_base_size():
    backbone = ConvMAEConfig.from_size("base", out_features=["stage1", "stage2", "stage3"])
    windows, results = SegmentPredictionSettings(eval_window=512), {"eval_mean_iou": 0.5, "eval_samples": 2000}
    config = UperNetConfig(backbone_config=backbone, num_labels=150)
    table = [row.split() for row in segmentation_comparison(results, config, windows).splitlines()]
    assert " ".join(table[0]) == "mean IoU in % (published: UPerNet, size ConvMAE base, ADE20K)"
    assert " ".join(table[1]) == "measured, 2,000 images, one scale, sliding windows 50.00"
    assert [" ".join(row) for row in table[2:]] == ["ConvMAE, one scale, sliding windows 51.70"]
    detector = ConvNextV2RCNNConfig(backbone_config=backbone, num_labels=80, anchor_sizes=[32, 64, 128, 256])
    found = {"eval_map": 0.5, "eval_map_mask": 0.4, "eval_samples": 5000}
    assert detection_comparison(found, detector).splitlines()[2].split() == ["ConvMAE", "53.20", "47.10"]
    for other in (ConvMAEConfig.from_size("small"), ConvMAEConfig(depths=[2, 2, 10])):  # the controls
        assert not segmentation_comparison(results, UperNetConfig(backbone_config=other, num_labels=150), windows)


def test_other_classes_sizes_and_models_have_no_published_mean_iou():
    results, prediction = {"eval_mean_iou": 0.5, "eval_samples": 1}, SegmentPredictionSettings()
    for config in (upernet("base", 19), upernet("atto"), upernet("base", config_class=Mask2FormerConfig)):
        assert segmentation_comparison(results, config, prediction) == ""


def test_a_converted_official_file_is_known_by_what_it_was_made_of(tmp_path):
    weights = ConvNextV2ForImageClassification(ConvNextV2Config.from_size("nano", num_labels=1000)).state_dict()
    for name in ("convnextv2_nano_22k_384_ema", "mine"):
        torch.save(weights, tmp_path / f"{name}.pt")
        convert([str(tmp_path / f"{name}.pt"), str(tmp_path / name)])
    checkpoint = known_checkpoint(str(tmp_path / "convnextv2_nano_22k_384_ema"))
    assert checkpoint is not None and checkpoint.transformers == "facebook/convnextv2-nano-22k-384"
    assert known_checkpoint(str(tmp_path / "mine")) is None


@torch.no_grad()
def test_one_command_validates_an_official_model_on_any_labelled_folder(tmp_path):
    """By its Hub id, streamed, with the table's preprocessing even if the repository's file says another."""
    classes = {i: name for i, name in enumerate([*CLASSES, "crane", "crane"])}
    config = small_config(id2label=classes, label2id=None)
    model = awake(ConvNextV2ForImageClassification(config))
    model.save_pretrained(tmp_path / "model")
    create_image_processor(config).save_pretrained(tmp_path / "model")  # for 64 pixels
    data = write_folder(tmp_path / "data", {"validation": 4})
    name = "facebook/convnextv2-tiny-1k-224"
    with HubServer({}) as hub:
        hub.add_repo(name, {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()})
        flags = f"--model_name_or_path {name} --dataset_name {data} --eval_split validation --streaming true"
        command = [sys.executable, "training/validate.py", *flags.split(), "--output_dir", str(tmp_path / "out")]
        environment = {**hub.environment(tmp_path / "home", None), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=CHECKOUT)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out/eval_results.json").read_text())

    stock = AutoModelForImageClassification.from_pretrained(tmp_path / "model")
    processor = ConvNextImageProcessor(
        size=224, crop_pct=0.875, resample=3, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    files = sorted((data / "validation").rglob("*.jpg"))
    pictures = [Image.open(file).convert("RGB") for file in files]
    predicted = stock(processor(pictures, return_tensors="pt").pixel_values).logits.argmax(-1)
    expected = torch.tensor([CLASSES.index(file.parent.name) for file in files])
    hits = int((predicted == expected).sum())
    assert results["eval_samples"] == 12 and results["eval_accuracy"] == pytest.approx(hits / 12)
    assert results["eval_accuracy_ci95"] == pytest.approx(wilson(hits, 12), abs=1e-6)
    assert "82.95" in done.stdout and f"{100 * hits / 12:.2f} (" in done.stdout
