"""A segmentation model is published whole, with its own card, and loads in stock; a damaged one is refused."""

import csv
import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from conversion.publish import publish
from tests.photographs import message_of
from tests.small_models import WITHOUT_THE_PACKAGE, assert_close, awake, run_python
from training.models.segmentation import backbone_of, create_segmentation_processor, create_segmenter
from training.settings.model import SegmenterSettings


@pytest.fixture
def folder(tmp_path):
    settings = SegmenterSettings(image_size=32, num_stages=2, decoder_hidden_size=8, auxiliary_loss_weight=0)
    model = create_segmenter(settings, ["sky", "tree", "sea"])
    model.save_pretrained(tmp_path / "segmenter")
    processor = create_segmentation_processor(settings, None, model.config.backbone_config, "upernet")
    processor.save_pretrained(tmp_path / "segmenter")
    results = {"eval_mean_iou": 0.5, "eval_overall_accuracy": 0.75, "eval_samples": 7}
    (tmp_path / "segmenter/all_results.json").write_text(json.dumps(results))
    return tmp_path / "segmenter"


def test_a_card_says_task_classes_and_figures(folder, capsys):
    publish(folder, "me/zones", dry_run=True)
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: image-segmentation" in card and "3 classes: sky, tree, sea" in card
    assert 'pipeline("image-segmentation", model="me/zones")' in card
    assert "| mean IoU, evaluation images | 0.5 |" in card and "| pixel accuracy, evaluation images | 0.75 |" in card
    assert "preprocessor_config.json" in capsys.readouterr().out


def test_names_of_classes_are_text_in_one_line_of_the_card(folder):
    """In the prose as in the table: neither HTML nor a line break that would begin a heading."""
    config = json.loads((folder / "config.json").read_text())
    names = ["<b>sky", "tree\n# or bush", "sea"]
    config["id2label"] = dict(enumerate(names))
    config["label2id"] = {name: number for number, name in enumerate(names)}
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "eval_per_class.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["class", "pixels", "iou", "precision", "recall"])
        table.writerows([name, 5, 0.5, 0.5, 0.5] for name in names)
    publish(folder, "me/zones", dry_run=True)
    card = (folder / "README.md").read_text()
    assert "3 classes: &lt;b>sky, tree # or bush, sea." in card
    assert "| &lt;b>sky | 5 |" in card and "| tree # or bush | 5 |" in card
    assert "<b>" not in card and "\n# or bush" not in card


def test_weights_that_do_not_fit_the_configuration_are_refused_by_name(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["decode_head.classifier.bias"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "1 differ, e.g. `decode_head.classifier.bias`" in message_of(
        lambda: publish(folder, "me/zones", dry_run=True)
    )


def test_upernet_on_another_backbone_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["backbone_config"]["model_type"] = "swin"
    (folder / "config.json").write_text(json.dumps(config))
    message = message_of(lambda: publish(folder, "me/zones", dry_run=True))
    assert "must have a backbone of the type convnextv2 or convnext or convmae, but it is swin" in message


LOAD = """
import torch
from transformers import AutoImageProcessor, pipeline
import transformers
folder, auto, processor, *outputs = sys.argv[1:]
model = getattr(transformers, auto).from_pretrained(folder).eval()
assert type(model).__module__.startswith("transformers.")
assert type(AutoImageProcessor.from_pretrained(folder)).__name__ == processor
with torch.no_grad():
    found = model(torch.load(folder + "/images.pt"))
torch.save([found[name] for name in outputs], folder + "/outputs.pt")
parts = pipeline("image-segmentation", model=folder)(folder + "/photo.png", subtask="semantic")
assert {part["label"] for part in parts} <= {"sky", "tree", "sea"} and parts[0]["mask"].size == (83, 50)
"""
QUERIES = ("class_queries_logits", "masks_queries_logits")
STOCK = {
    "upernet": ("AutoModelForSemanticSegmentation", "SegformerImageProcessor", "logits"),
    "mask2former": ("AutoModelForUniversalSegmentation", "Mask2FormerImageProcessor", *QUERIES),
    "maskformer": ("AutoModelForUniversalSegmentation", "MaskFormerImageProcessor", *QUERIES),
}


WITHOUT_GRN = {"use_grn": False, "layer_scale_init_value": 0.0}


@pytest.mark.parametrize(
    ("architecture", "blocks"), [*((name, {}) for name in STOCK), ("upernet", WITHOUT_GRN)], ids=str
)
def test_a_published_model_loads_without_this_package_and_computes_the_same(architecture, blocks, tmp_path):
    torch.manual_seed(0)
    small = {"image_size": 64, "num_stages": 3, "decoder_hidden_size": 32, "num_queries": 7, **blocks}
    settings = SegmenterSettings(architecture=architecture, **small)
    model = awake(create_segmenter(settings, ["sky", "tree", "sea"]))
    model.save_pretrained(tmp_path)
    create_segmentation_processor(settings, None, backbone_of(model).config, architecture).save_pretrained(tmp_path)
    publish(tmp_path, "me/zones", dry_run=True)
    torch.save(torch.randn(1, 3, 64, 96), tmp_path / "images.pt")
    Image.new("RGB", (83, 50), "tomato").save(tmp_path / "photo.png")
    auto, processor, *names = STOCK[architecture]
    run_python(WITHOUT_THE_PACKAGE + LOAD, tmp_path, auto, processor, *names, cwd=tmp_path)
    with torch.no_grad():
        # Ours of the last two gives scores of classes; with Transformers' `forward` it gives what the heads predict.
        forward = type(model).forward if architecture == "upernet" else type(model).__mro__[2].forward
        expected = forward(model, torch.load(tmp_path / "images.pt"))
    for found, name in zip(torch.load(tmp_path / "outputs.pt"), names, strict=True):
        assert_close(found, expected[name])
