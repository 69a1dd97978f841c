"""int8: static, with the ranges of activations from the user's images, and weights with a scale for each channel.

Convolutions and matrix products are quantised; norms, GELU and GRN stay in float32. Layers can be left out by name.
"""

from hashlib import sha256
from importlib import import_module
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers.exporters.configs import ExportFormat

from conversion.exporting.choices import LAYERS
from conversion.exporting.models import Subject
from conversion.exporting.onnx_graph import layer_of
from conversion.exporting.programs import Program, calibration_inputs, quiet


def quantise(format: str, subject: Subject, program: Program, images: list[Tensor], float_layers: list[str]) -> Program:
    """The float32 program in int8, calibrated with images `(1, C, height, width)`."""
    calibration = calibration_inputs(subject, images)
    with quiet():
        if format == "onnx":
            return program._replace(program=_quantise_onnx(program.program, calibration, float_layers))
        layers = openvino_layers(program.program, subject.model)
        return program._replace(program=_quantise_openvino(program.program, calibration, _chosen(layers, float_layers)))


def _quantise_onnx(model: Any, calibration: list[dict[str, Tensor]], float_layers: list[str]) -> Any:
    from onnxruntime.quantization import QuantType
    from transformers.exporters.quantizers.quantizer_onnxruntime import OnnxRuntimeQuantizer, OnnxRuntimeStaticConfig

    layers = {node.name: layer for node in model.graph if (layer := layer_of(node)) is not None}
    config = OnnxRuntimeStaticConfig(
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        nodes_to_quantize=sorted(set(layers) - set(_chosen(layers, float_layers))),
        per_channel=True,
        activation_type=QuantType.QUInt8,  # signed ones took 2.5 times as long on a processor with VNNI
        weight_type=QuantType.QInt8,
    )
    return OnnxRuntimeQuantizer(config, calibration).quantize(model, calibration[0], ExportFormat.ONNX)


def _quantise_openvino(model: Any, calibration: list[dict[str, Tensor]], left_out: list[str]) -> Any:
    from transformers.exporters.quantizers.quantizer_nncf import NNCFOpenVINOQuantizer, NNCFQuantizationConfig

    nncf: Any = import_module("nncf")
    config = NNCFQuantizationConfig(
        subset_size=len(calibration),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.PERFORMANCE,  # symmetric ranges: nearer to float32 in our measurements
        ignored_scope=nncf.IgnoredScope(names=left_out) if left_out else None,
    )
    return NNCFOpenVINOQuantizer(config, calibration).quantize(model, calibration[0], ExportFormat.OPENVINO)


def check_float_layers(model: nn.Module, float_layers: list[str]) -> None:
    """Raise a `ValueError` for a layer that the model lacks, and if none is left; a program takes long to be made."""
    layers = {name: name for name, _ in model.named_parameters()}
    _chosen(layers, float_layers)
    if set(_known(layers)) <= set(float_layers):
        raise ValueError(
            f"`--float_layers` (={' '.join(float_layers)}) must leave a layer in int8: all of them in float32 are the "
            "file of `--dtype float32`."
        )


def _chosen(layers: dict[str, str], float_layers: list[str]) -> list[str]:
    """The nodes of the layers that are left out; raises a `ValueError` for a layer that no node is of."""
    nodes = {name: [node for node, layer in layers.items() if _is_of(layer, name)] for name in float_layers}
    unknown = [name for name in float_layers if not nodes[name]]
    if unknown:
        raise ValueError(
            f"`--float_layers` (={' '.join(unknown)}) must be layers that the model has: {', '.join(_known(layers))}."
        )
    return [node for name in float_layers for node in nodes[name]]


def _known(layers: dict[str, str]) -> list[str]:
    """The names on the command line of those layers."""
    return [name for name in LAYERS if any(_is_of(layer, name) for layer in layers.values())]


def _is_of(layer: str, name: str) -> bool:
    """Whether a parameter is one of the layers that have this name on the command line."""
    return any(part in layer for part in LAYERS[name])


def openvino_layers(program: Any, model: nn.Module) -> dict[str, str]:
    """The convolutions and products of a program by name, with the names of the parameters that they multiply with.

    The program has forgotten the names; the numbers tell.
    """
    names = {_digest(parameter.detach().numpy()): name for name, parameter in model.named_parameters()}
    found = {}
    for node in program.get_ordered_ops():
        if node.get_type_name() in ("Convolution", "GroupConvolution", "MatMul"):
            weight = node.input_value(1).get_node()
            if weight.get_type_name() == "Reshape":  # of a depthwise convolution
                weight = weight.input_value(0).get_node()
            if weight.get_type_name() == "Constant":
                found[node.get_friendly_name()] = names.get(_digest(weight.data), "")
    return found


def _digest(values: np.ndarray) -> bytes:
    return sha256(np.ascontiguousarray(values).tobytes()).digest()
