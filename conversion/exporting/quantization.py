"""int8: static, with the ranges of activations from the user's images, and weights with a scale for each channel.

Convolutions and matrix products are quantised; norms, GELU and GRN stay in float32. Layers can be left out by name.
"""

from importlib import import_module
from typing import Any

from torch import Tensor

from conversion.exporting.choices import LAYERS
from conversion.exporting.models import Subject
from conversion.exporting.onnx_graph import layer_of
from conversion.exporting.programs import Program, calibration_inputs, quiet


def quantise(format: str, subject: Subject, program: Program, images: list[Tensor], float_layers: list[str]) -> Program:
    """The float32 program in int8, calibrated with images `(1, C, height, width)`."""
    calibration = calibration_inputs(subject, images)
    parts = [part for name in float_layers for part in LAYERS[name]]
    quantise_format = _quantise_onnx if format == "onnx" else _quantise_openvino
    with quiet():
        return program._replace(program=quantise_format(program.program, calibration, parts))


def _quantise_onnx(model: Any, calibration: list[dict[str, Tensor]], parts: list[str]) -> Any:
    from onnxruntime.quantization import QuantType
    from transformers.exporters.quantizers.quantizer_onnxruntime import OnnxRuntimeQuantizer, OnnxRuntimeStaticConfig

    layers = {node.name: layer_of(node) for node in model.graph}
    products = [name for name, layer in layers.items() if layer is not None]
    left_out = [name for name in products if any(part in str(layers[name]) for part in parts)]
    config = OnnxRuntimeStaticConfig(
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        nodes_to_quantize=[name for name in products if name not in left_out],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return OnnxRuntimeQuantizer(config, calibration).quantize(model, calibration[0], "onnx")  # type: ignore[arg-type]


def _quantise_openvino(model: Any, calibration: list[dict[str, Tensor]], parts: list[str]) -> Any:
    from transformers.exporters.quantizers.quantizer_nncf import NNCFOpenVINOQuantizer, NNCFQuantizationConfig

    nncf: Any = import_module("nncf")
    products = ("Convolution", "GroupConvolution", "MatMul")
    names = [node.get_friendly_name() for node in model.get_ordered_ops() if node.get_type_name() in products]
    left_out = [name for name in names if any(part in name for part in parts)]
    config = NNCFQuantizationConfig(
        subset_size=len(calibration),
        model_type=nncf.ModelType.TRANSFORMER,
        ignored_scope=nncf.IgnoredScope(names=left_out) if left_out else None,
    )
    return NNCFOpenVINOQuantizer(config, calibration).quantize(model, calibration[0], "openvino")  # type: ignore[arg-type]
