"""The formats that a model is exported to: what they need, and what their files are called.

It imports neither PyTorch nor a runtime, so that a command reports a wrong flag before its other imports.
"""

from dataclasses import dataclass
from importlib.util import find_spec

DTYPES = ("float32", "float16", "bfloat16", "int8")


@dataclass(frozen=True)
class Format:
    """A format, the runtime that is meant by it, and its files.

    packages: the modules that it is written and run with, and the requirements that install them.
    for_int8: the same, of what int8 needs more.
    float_layers: what int8 leaves in float32 unless told otherwise.
    files: the names by data type; those that the libraries reading such a folder look for.
    refused: why there is no file of the other data types.
    """

    runtime: str
    packages: dict[str, str]
    files: dict[str, str]
    refused: dict[str, str]
    for_int8: dict[str, str]
    float_layers: tuple[str, ...] = ()


ONNX = Format(
    "ONNX Runtime",
    {"onnx": "onnx>=1.23", "onnxscript": "onnxscript>=0.7", "onnxruntime": "onnxruntime>=1.32"},
    {
        "float32": "onnx/model.onnx",
        "float16": "onnx/model_fp16.onnx",
        "int8": "onnx/model_quantized.onnx",
    },
    {"bfloat16": "ONNX Runtime has no convolutions in bfloat16 on processors"},
    {},
)
OPENVINO = Format(
    "OpenVINO",
    {"openvino": "openvino>=2026.4"},
    {
        "float32": "openvino_model.xml",
        "float16": "openvino_model_fp16.xml",
        "bfloat16": "openvino_model_bf16.xml",
        "int8": "openvino_model_int8.xml",
    },
    {},
    {"nncf": "nncf>=3.4"},
    # On a trained atto, the stem in int8 moved the logits by 4 %, all other layers together by 1 %.
    float_layers=("stem",),
)
TORCH = Format(
    "torch.export",
    {},
    {"float32": "model.pt2", "float16": "model_fp16.pt2", "bfloat16": "model_bf16.pt2"},
    {"int8": "it is made for ONNX Runtime and OpenVINO only"},
    {},
)
EXECUTORCH = Format(
    "ExecuTorch",
    {"executorch": "executorch>=1.5"},
    {"float32": "model.pte"},
    {
        "float16": "files for XNNPACK are written in float32 only",
        "bfloat16": "files for XNNPACK are written in float32 only",
        "int8": "it is made for ONNX Runtime and OpenVINO only",
    },
    {},
)
FORMATS = {"onnx": ONNX, "openvino": OPENVINO, "torch": TORCH, "executorch": EXECUTORCH}


def check_format(name: str, dtypes: list[str]) -> None:
    """Raise unless the format has files of these data types, and what writes and runs them is installed."""
    format = FORMATS[name]
    for dtype in dtypes:
        if dtype in format.refused:
            offered = ", ".join(format.files)
            raise ValueError(f"`--dtype` (={dtype}) must be {offered} for {name}: {format.refused[dtype]}.")
    needed = {**format.packages, **(format.for_int8 if "int8" in dtypes else {})}
    missing = [requirement for module, requirement in needed.items() if find_spec(module) is None]
    if missing:
        quoted = " ".join(f"'{requirement}'" for requirement in missing)
        raise ImportError(f"`--format` (={name}) needs packages that are not installed: pip install {quoted}")


def openvino_precision(dtype: str) -> str:
    """What OpenVINO is told to compute in: unasked, it takes bfloat16 on every processor that has it."""
    return "bf16" if dtype == "bfloat16" else "f32"
