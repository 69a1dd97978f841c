"""ONNX Runtime on a file, for tests."""

from pathlib import Path

import onnxruntime
import torch
from torch import Tensor


def outputs_of(file: Path, **inputs: Tensor) -> dict[str, Tensor]:
    """What the file returns, by name."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    arrays = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}
