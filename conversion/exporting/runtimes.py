"""A file that was written, run by its runtime on the CPU."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.exporters.utils import get_leaf_tensors

from conversion.exporting.formats import openvino_precision

# Inputs and outputs by name.
Run = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def open_file(format: str, dtype: str, file: Path, outputs: list[str]) -> Run:
    """A function that runs the file with as many threads as PyTorch.

    `outputs`: their names, in order, for a runtime that has none.
    """
    return OPENERS[format](file, dtype, outputs)


def _open_onnx(file: Path, dtype: str, outputs: list[str]) -> Run:
    onnxruntime: Any = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors: what it warns of are casts that it adds where a type is missing
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        arrays = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}

    return run


def _open_openvino(file: Path, dtype: str, outputs: list[str]) -> Run:
    openvino: Any = import_module("openvino")
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    settings |= {"INFERENCE_PRECISION_HINT": openvino_precision(dtype)}
    compiled = openvino.Core().compile_model(str(file), "CPU", settings)
    names = [port.get_any_name() for port in compiled.outputs]

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        found = compiled({name: tensor.numpy() for name, tensor in inputs.items()})
        return {name: torch.from_numpy(found[port].copy()) for name, port in zip(names, compiled.outputs, strict=True)}

    return run


def _open_torch(file: Path, dtype: str, outputs: list[str]) -> Run:
    module = torch.export.load(file).module()

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            return get_leaf_tensors(module(**inputs))

    return run


def _open_executorch(file: Path, dtype: str, outputs: list[str]) -> Run:
    runtime: Any = import_module("executorch.runtime")
    program = runtime.Runtime.get().load_program(file)
    method = program.load_method("forward")

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        found = method.execute([tensor.contiguous() for tensor in inputs.values()])
        return dict(zip(outputs, found, strict=True))

    return run


OPENERS: dict[str, Callable[[Path, str, list[str]], Run]] = {
    "onnx": _open_onnx,
    "openvino": _open_openvino,
    "torch": _open_torch,
    "executorch": _open_executorch,
}
