"""Run a training script in float64, where rounding is too small to change which regions a detector keeps and draws.

python tests/in_float64.py training/detect.py --dataset_name ...
"""

import runpy
import sys
from functools import wraps
from typing import Any

from torch import Tensor, nn

from hf_convnextv2.modeling_rcnn import ConvNextV2RCNNForObjectDetection
from training.run.training_run import TrainingRun


def train_in_float64() -> None:
    """Let a run train weights in float64, and a detector take its images in it."""
    prepare, forward = TrainingRun.prepare, ConvNextV2RCNNForObjectDetection.forward

    @wraps(prepare)
    def prepare_wide(self: TrainingRun, model: nn.Module, *arguments: Any) -> None:
        prepare(self, model.double(), *arguments)  # type: ignore[arg-type]

    @wraps(forward)
    def forward_wide(self: nn.Module, pixel_values: Tensor, *arguments: Any, **keywords: Any) -> Any:
        return forward(self, pixel_values.double(), *arguments, **keywords)  # type: ignore[arg-type]

    TrainingRun.prepare = prepare_wide
    ConvNextV2RCNNForObjectDetection.forward = forward_wide


if __name__ == "__main__":
    train_in_float64()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
