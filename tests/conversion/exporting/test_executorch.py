"""ExecuTorch's file of a classifier, run by ExecuTorch, gives what stock Transformers gives in eager mode."""

from importlib import import_module

import pytest
import torch
import transformers

from conversion.export import export
from hf_convnextv2 import ConvMAEForPreTraining, create_image_processor
from tests.conversion.exporting.conftest import photographed
from tests.small_models import assert_close, awake, small_convmae_config

pytest.importorskip("executorch")

# ExecuTorch 1.5 says of itself that it is experimental, and uses what PyTorch and Python are about to drop.
pytestmark = pytest.mark.filterwarnings("ignore")


@torch.no_grad()
def test_a_file_gives_the_logits_of_stock_transformers(tmp_path, classifier, photographs):
    export(str(classifier), tmp_path / "out", format="executorch")
    runtime = import_module("executorch.runtime")  # here, where its warnings are ignored
    method = runtime.Runtime.get().load_program(tmp_path / "out/model.pte").load_method("forward")
    stock = transformers.ConvNextV2ForImageClassification.from_pretrained(classifier)
    for batch in ((1, 64, 64), (3, 96, 160), (8, 192, 192), (2, 100, 90)):
        images = photographed(photographs, *batch)
        (logits,) = method.execute([images.contiguous()])
        assert_close(logits, stock(images).logits)
    for batch in ((9, 192, 192), (8, 224, 192)):
        with pytest.raises(RuntimeError, match="failed with error"):
            method.execute([torch.zeros(batch[0], 3, *batch[1:])])
    text = (tmp_path / "out/README.md").read_text()
    assert "up to 8 images" in text and "192 x 192 pixels" in text


@torch.no_grad()
def test_a_convmae_reconstructs_as_the_noise_says(tmp_path, photographs):
    model = awake(ConvMAEForPreTraining(small_convmae_config(depths=[1, 1, 1], decoder_num_hidden_layers=1)))
    model.save_pretrained(tmp_path / "model")
    create_image_processor(model.config).save_pretrained(tmp_path / "model")
    export(str(tmp_path / "model"), tmp_path / "out", format="executorch")
    runtime = import_module("executorch.runtime")
    method = runtime.Runtime.get().load_program(tmp_path / "out/model.pte").load_method("forward")
    for count in (1, 3, 8):
        images, noise = photographed(photographs, count, 64, 64), torch.rand(count, 16)
        logits, mask, _ = method.execute([images.contiguous(), noise])
        expected = model(images, noise=noise)
        assert torch.equal(mask, expected.mask)
        assert_close(logits, expected.logits)
