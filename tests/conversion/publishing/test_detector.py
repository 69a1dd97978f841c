"""A detector's folder is published whole, with a card of its own kind; an R-CNN takes its code along."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForObjectDetection, pipeline

from conversion.publish import publish
from conversion.publishing.card import render_card
from conversion.publishing.publication import Publication
from conversion.publishing.staging import stage
from tests.photographs import cut, message_of
from tests.small_models import WITHOUT_THE_PACKAGE
from training.models.detection import create_detection_processor, create_detector
from training.settings.model import NOT_RCNN, RCNN, DetectorSettings

RESULTS = {"eval_map": 0.312, "eval_map_50": 0.55, "eval_map_mask": 0.287, "eval_objects": 1204, "eval_samples": 120}
TABLE = "label,class,objects,ap,ap50,mask_ap\n0,cell,1000,0.4,0.6,0.3\n1,a|b,204,0.2,0.5,\n"


def save(folder, architecture, names=("cell", "nucleus"), **fields):
    stages, sizes = (2, [8, 16, 32]) if architecture in RCNN else (3, [8])
    width = 32 if architecture == "deformable_detr" else 8
    fields = {"image_size": 64, "num_stages": stages, "decoder_hidden_size": width, "anchor_sizes": sizes, **fields}
    settings = DetectorSettings(architecture=architecture, box_head_size=8, **fields)
    torch.manual_seed(0)
    model = create_detector(settings, list(names))
    model.save_pretrained(folder)
    create_detection_processor(settings, None, model.config.backbone_config, settings.architecture).save_pretrained(
        folder
    )
    (folder / "all_results.json").write_text(json.dumps(RESULTS))
    return folder


def code_in(card):
    """The code of the section on use."""
    section = card.split("## Use")[1].split("\n## ")[0]
    return "\n".join(re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL))


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "detector", "mask_rcnn")


def test_a_card_says_task_classes_and_figures(folder, capsys):
    (folder / "eval_per_class.csv").write_text(TABLE)
    publish(folder, "me/cells", dry_run=True)
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: object-detection" in card and "- instance-segmentation\n" in card
    assert "[Mask R-CNN](https://arxiv.org/abs/1703.06870)" in card and "2 classes: cell, nucleus." in card
    assert "| box AP, mean over IoUs of 0.50 to 0.95, evaluation images | 0.312 |" in card
    assert "| mask AP, mean over IoUs of 0.50 to 0.95, evaluation images | 0.287 |" in card
    assert "| class | objects | AP | AP50 | mask AP |\n|---|---|---|---|---|\n| cell | 1000 | 40.0 %" in card
    assert r"| a\|b | 204 | 20.0 % | 50.0 % | - |" in card
    backbone = sum(w.numel() for name, w in load_file(folder / "model.safetensors").items() if "backbone." in name)
    assert f"{backbone:,} of them in the backbone" in card
    assert not re.search(r"\n{4,}|\{\{|\{%", card)
    assert "modeling_rcnn.py" in capsys.readouterr().out


def test_of_many_classes_those_with_the_lowest_ap_are_in_the_card(tmp_path):
    names = [f"class {label}" for label in range(30)]
    folder = save(tmp_path / "detector", "faster_rcnn", names)
    rows = [f"{label},{name},{label},{(label * 7 % 30) / 30},0.5" for label, name in enumerate(names)]
    (folder / "eval_per_class.csv").write_text("\n".join(["label,class,objects,ap,ap50", *rows]))
    section = render_card(folder).split("## Figures per class")[1].split("##")[0]
    lines = section.split("|---|---|---|---|\n")[1].strip().splitlines()
    shown = [float(line.split("|")[3].split("%")[0]) for line in lines]
    expected = sorted(100 * (label * 7 % 30) / 30 for label in range(1, 30))[:10]  # class 0 has no object
    assert shown == pytest.approx(expected, abs=0.06) and "10 classes with the lowest AP" in section
    assert "mask" not in section


def test_an_rcnn_takes_its_code_along_and_its_card_says_how_it_loads(folder, tmp_path):
    assert "import hf_convnextv2  #" in render_card(folder) and "trust_remote_code" not in render_card(folder)
    staged = stage(folder, tmp_path / "staged", Publication("me/cells"))
    card = (staged / "README.md").read_text()
    assert 'pipeline("object-detection", model="me/cells", trust_remote_code=True)' in card
    assert "import hf_convnextv2  #" not in card
    auto_map = json.loads((staged / "config.json").read_text())["auto_map"]
    for reference in auto_map.values():
        module, name = reference.split(".")
        assert f"class {name}(" in (staged / f"{module}.py").read_text()
    for file in staged.glob("*.py"):
        siblings = re.findall(r"^\s*from \.(\w+) import", file.read_text(), flags=re.MULTILINE)
        assert all((staged / f"{name}.py").is_file() for name in siblings), file


LOAD = """
import sys, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection, pipeline
name, photograph, output = sys.argv[1:]
model = AutoModelForObjectDetection.from_pretrained(name, trust_remote_code=True)
inputs = AutoImageProcessor.from_pretrained(name)(Image.open(photograph), return_tensors="pt")
outputs = model(**inputs)
objects = pipeline("object-detection", model=name, trust_remote_code=True, device="cpu")(photograph, threshold=0.0)
torch.save({"logits": outputs.logits, "masks": outputs.pred_masks, "objects": objects, **inputs}, output)
print(type(model).__module__.split(".")[0])
"""


def test_a_published_rcnn_loads_without_this_package(folder, tmp_path):
    staged = stage(folder, tmp_path / "staged", Publication("me/cells"))
    cut("astronaut", 1, 100)[0].save(tmp_path / "photo.png")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", WITHOUT_THE_PACKAGE + LOAD, staged, tmp_path / "photo.png", tmp_path / "found.pt"]
    done = subprocess.run(
        [*map(str, command)], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "transformers_modules"
    found = torch.load(tmp_path / "found.pt")
    model = AutoModelForObjectDetection.from_pretrained(folder)
    with torch.no_grad():
        expected = model(pixel_values=found["pixel_values"], pixel_mask=found["pixel_mask"])
    torch.testing.assert_close(found["logits"], expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found["masks"], expected.pred_masks, rtol=0, atol=1e-5)
    objects = pipeline("object-detection", model=str(folder), device="cpu")(str(tmp_path / "photo.png"), threshold=0.0)
    assert len(found["objects"]) == len(objects) > 0
    for one, other in zip(found["objects"], objects, strict=True):
        assert (one["label"], one["box"]) == (other["label"], other["box"])
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)


@pytest.mark.parametrize("architecture", [*RCNN, *NOT_RCNN])
def test_every_architecture_is_published_whole(architecture, tmp_path, capsys):
    folder = save(tmp_path / "detector", architecture)
    publish(folder, "me/cells", dry_run=True)
    card = (folder / "README.md").read_text()
    is_ours, has_masks = architecture in RCNN, architecture == "mask_rcnn"
    assert ("trust_remote_code" in card) == is_ours == ("modeling_rcnn.py" in capsys.readouterr().out)
    assert ("instance-segmentation" in card) == ("post_process_instance_segmentation" in card) == has_masks
    assert ", 0 of them in the backbone" not in card


def test_the_code_in_the_card_runs(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cut("astronaut", 1, 100)[0].save("photo.jpg")
    code = code_in(render_card(folder)).replace('"detector"', f'"{folder}"').replace("threshold=0.5", "threshold=0.0")
    exec(code, names := {})
    found = names["found"]
    assert found["masks"].shape == (len(found["scores"]), 100, 100) and len(found["scores"])
    assert "{'xmin':" in capsys.readouterr().out


def test_the_code_in_the_card_of_a_model_of_other_channels_runs(tmp_path):
    folder = save(tmp_path / "detector", "mask_rcnn", num_channels=2)
    exec(code_in(render_card(folder)).replace('"detector"', f'"{folder}"'), names := {})
    assert names["found"]["masks"].shape[1:] == (64, 64)


def test_weights_that_do_not_fit_the_configuration_are_refused_by_name(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["rpn.head.cls_logits.bias"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    message = message_of(lambda: publish(folder, "me/cells", dry_run=True))
    assert "1 differ, e.g. `rpn.head.cls_logits.bias`" in message


def test_a_detector_on_another_backbone_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["backbone_config"]["model_type"] = "swin"
    (folder / "config.json").write_text(json.dumps(config))
    message = message_of(lambda: publish(folder, "me/cells", dry_run=True))
    assert "must have a backbone of the type convnextv2 or convnext or convmae, but it is swin" in message
