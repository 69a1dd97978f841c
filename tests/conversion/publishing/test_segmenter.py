"""A segmentation model's folder is published whole, with a card of its own kind, and a damaged one is refused."""

import json

import pytest
from safetensors.torch import load_file, save_file

from conversion.publish import publish
from tests.photographs import message_of
from training.models.segmentation import create_segmentation_processor, create_segmenter
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
    assert "must have a backbone of the type convnextv2 or convmae, but it is swin" in message
