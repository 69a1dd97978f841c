"""The Python snippets of docs/training.md run as they stand, one after the other."""

import re
from pathlib import Path

import torch
from PIL import Image

from hf_convnextv2 import ConvNextV2ForImageClassification, ConvNextV2ForPreTraining, create_image_processor
from tests.small_models import assert_close, awake, small_config, small_fcmae_config

DOCUMENT = Path(__file__).parents[2] / "docs/training.md"


def test_the_snippets_run_and_do_what_they_say(tmp_path, monkeypatch, photographs):
    snippets = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(snippets) >= 4
    for name, model in (
        ("pretrain", awake(ConvNextV2ForPreTraining(small_fcmae_config()))),
        ("classifier", awake(ConvNextV2ForImageClassification(small_config()))),
    ):
        model.save_pretrained(tmp_path / "out" / name)
        create_image_processor(model.config).save_pretrained(tmp_path / "out" / name)
    Image.fromarray(photographs[0]).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    with torch.no_grad():
        for snippet in snippets:
            exec(snippet, names)
    x, output = names["pixel_values"], names["output"]
    maps = names["model"].convnextv2(x).last_hidden_state
    assert_close(names["embedding"], maps.mean((2, 3)))
    assert torch.equal(names["again"].logits, output.logits)
    with Image.open("reconstruction.png") as picture:
        assert (picture.size, picture.mode) == ((64, 64), "RGB")
