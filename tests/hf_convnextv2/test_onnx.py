"""Exported to ONNX, a model takes batches of any size, and gives what it gives here."""

import warnings

import numpy as np
import onnxruntime
import pytest
import torch

from hf_convnextv2 import ConvNextV2Backbone, ConvNextV2ForImageClassification
from tests.small_models import assert_close, awake, small_config

KINDS = {"classifier": ConvNextV2ForImageClassification, "backbone": ConvNextV2Backbone}


class FirstOutput(torch.nn.Module):
    """The logits of a classifier, or the last map of a backbone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        first = self.model(pixel_values)[0]
        return first if isinstance(first, torch.Tensor) else first[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_made_with_a_batch_of_two_takes_one_and_five(kind, tmp_path):
    model, file = FirstOutput(awake(KINDS[kind](small_config()))), tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own code
        shapes = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(model, (torch.randn(2, 3, 64, 64),), file, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = onnxruntime.InferenceSession(file)
    for size in (1, 2, 5):
        images = torch.randn(size, 3, 64, 64)
        with torch.no_grad():
            expected = model(images)
        (actual,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        assert_close(torch.from_numpy(np.asarray(actual)), expected)
