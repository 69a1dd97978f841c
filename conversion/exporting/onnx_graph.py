"""Changes of an ONNX graph that the exporter leaves to others: names of axes, weights as they are multiplied, the file.

Files hold their weights inside, as transformers.js and ONNX Runtime's web build expect, up to the 2 GB of a protobuf.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir

AXES = {0: "batch_size", 2: "height", 3: "width"}  # of `pixel_values`, as Optimum calls them
MOST_INSIDE = int(1.9 * 2**30)  # bytes of weights


def tidy(model: onnx_ir.Model) -> None:
    """Give the open axes their usual names, and store the weights of products as they are multiplied.

    A product whose weight is still to be transposed is one of two activations for the tools that quantise.
    """
    fold_transposes(model)
    name_axes(model)
    forget_origins(model)


def fold_transposes(model: onnx_ir.Model) -> None:
    """Transpose weights now: the exporter's optimiser leaves those of large layers to the runtime."""
    for node in list(model.graph):
        if node.op_type != "Transpose" or node.inputs[0] is None or not node.inputs[0].is_initializer():
            continue
        weight: Any = node.inputs[0]
        output = node.outputs[0]
        axes = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
        values = np.ascontiguousarray(np.transpose(weight.const_value.numpy(), axes))
        name = f"{weight.name}.transposed"
        folded = onnx_ir.Value(name=name, type=output.type, const_value=onnx_ir.tensor(values, name=name))
        folded.shape = onnx_ir.Shape(values.shape)
        onnx_ir.convenience.replace_all_uses_with(output, folded)
        model.graph.remove(node, safe=True)
        model.graph.register_initializer(folded)
        if not weight.uses():
            model.graph.initializers.pop(weight.name)


def name_axes(model: onnx_ir.Model) -> None:
    """Name the open axes of the images, also where those of other tensors follow from them."""
    images: Any = next(value for value in model.graph.inputs if value.name == "pixel_values")
    symbols = {str(dim.value): AXES[axis] for axis, dim in enumerate(images.shape) if not isinstance(dim, int)}
    if not symbols:
        return
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, symbols)) + r")\b")
    for value in _values(model.graph):
        if value.shape is not None:
            value.shape = onnx_ir.Shape([_named(dim, pattern, symbols) for dim in value.shape])


def forget_origins(model: onnx_ir.Model) -> None:
    """Leave out where in the Python code each node comes from: paths of this machine, and much of a small file."""
    for part in (model, model.graph, *model.graph, *_values(model.graph)):
        part.metadata_props.clear()
        part.doc_string = None


def layer_of(node: Any) -> str | None:
    """The name of the parameter that a convolution or product multiplies with; None for other nodes.

    Where the optimiser has transposed a weight, it has lost its name, and the bias that is added to the product tells.
    """
    weights = [value for value in node.inputs if value is not None and value.is_initializer()]
    if node.op_type not in ("Conv", "MatMul", "Gemm") or not weights:
        return None
    added = [value for user, _ in node.outputs[0].uses() if user.op_type == "Add" for value in user.inputs]
    biases = [value.name for value in added if value.is_initializer() and value.name.endswith(".bias")]
    return biases[0].removesuffix("bias") + "weight" if biases else weights[0].name


def save(model: onnx_ir.Model, file: Path) -> None:
    """Write the model in one file, or if it is too large for one, with its weights in another beside it."""
    tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    is_large = sum(tensor.nbytes for tensor in tensors) > MOST_INSIDE
    onnx_ir.save(model, str(file), external_data=f"{file.name}_data" if is_large else None)


def _values(graph: onnx_ir.Graph) -> Iterator[Any]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _named(dim: Any, pattern: re.Pattern[str], symbols: dict[str, str]) -> Any:
    if isinstance(dim, int) or dim.value is None:
        return dim
    return onnx_ir.SymbolicDim(pattern.sub(lambda match: symbols[match[1]], str(dim.value)))
