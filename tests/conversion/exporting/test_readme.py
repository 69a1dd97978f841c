"""The README of an export runs its file: the code as it is written, in a process of its own, in the folder."""

import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from conversion.export import export
from conversion.exporting.formats import FORMATS
from hf_convnextv2 import ConvMAEForPreTraining, ConvNextV2ForPreTraining, create_image_processor
from tests.readme import blocks
from tests.small_models import assert_close, awake, small_convmae_config, small_fcmae_config

# Appended to the code: what it has computed, for the test to read.
SAVED = """
import torch
first = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
kept = {"pixel_values": pixel_values, "noise": globals().get("noise"), "logits": first}
torch.save({name: torch.as_tensor(each).detach() for name, each in kept.items() if each is not None}, "found.pt")
"""
# ExecuTorch says of itself that it is experimental, and uses what PyTorch and Python are about to drop.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=list(FORMATS))
def format(request) -> str:
    """A format whose packages are installed."""
    missing = [package for package in FORMATS[request.param].packages if find_spec(package) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    return request.param


def run_readme(folder, photographs):
    """What the code of the README has computed of a photograph, and the text around the code."""
    Image.fromarray(photographs[0]).save(folder / "photo.jpg")
    (code,) = (block.text for block in blocks(folder / "README.md") if block.language == "python")
    subprocess.run([sys.executable, "-c", code + SAVED], cwd=folder, check=True)
    return torch.load(folder / "found.pt"), (folder / "README.md").read_text()


@torch.no_grad()
def test_the_code_classifies_a_photograph(tmp_path, format, classifier, photographs):
    export(str(classifier), tmp_path / "out", format=format)
    found, text = run_readme(tmp_path / "out", photographs)
    stock = transformers.ConvNextV2ForImageClassification.from_pretrained(classifier)
    processor = transformers.AutoImageProcessor.from_pretrained(classifier)
    picture = Image.open(tmp_path / "out/photo.jpg")
    assert_close(found["logits"], stock(**processor(picture, return_tensors="pt")).logits)
    assert "open such files with its `open_image`" in text


@torch.no_grad()
def test_the_code_reconstructs_a_photograph(tmp_path, format, photographs):
    """With the noise that it draws: as many numbers as the image has cells."""
    if format == "executorch":  # which does not run the other family's
        model = awake(ConvMAEForPreTraining(small_convmae_config(depths=[1, 1, 1], decoder_num_hidden_layers=1)))
    else:
        model = awake(ConvNextV2ForPreTraining(small_fcmae_config(hidden_sizes=[8, 16], depths=[1, 1], image_size=64)))
    model.save_pretrained(tmp_path / "model")
    create_image_processor(model.config).save_pretrained(tmp_path / "model")
    export(str(tmp_path / "model"), tmp_path / "out", format=format)
    found, _ = run_readme(tmp_path / "out", photographs)
    logits = found.pop("logits")
    assert np.unique(found["noise"]).size == found["noise"].numel() > 1
    assert_close(logits, model(**found).logits)
