"""ExecuTorch's file of a classifier, run by ExecuTorch, gives what stock Transformers gives in eager mode."""

from importlib import import_module

import pytest
import torch
import transformers

from conversion.export import export
from tests.conversion.exporting.conftest import photographed
from tests.small_models import assert_close

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
