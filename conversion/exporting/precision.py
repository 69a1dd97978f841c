"""Whether the runtime computes in a data type, on this machine, and whether it runs this model."""

from importlib import import_module
from typing import Any

from conversion.exporting.choices import RECONSTRUCTION
from conversion.exporting.models import Subject
from conversion.exporting.programs import smallest_images

ROUNDING = ("bfloat16", "int8")  # leave too few digits of a value


def check_precision(format: str, dtypes: list[str]) -> None:
    """Raise where the runtime has no such arithmetic on this processor: the file could not be checked."""
    if format != "openvino" or "bfloat16" not in dtypes:
        return
    openvino: Any = import_module("openvino")
    offered = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "BF16" not in offered:
        raise ValueError(
            "`--dtype` (=bfloat16) must be float32, float16 or int8 here: OpenVINO computes in bfloat16 on processors "
            f"with AVX512_BF16 or AMX only, and this one has {', '.join(offered)}."
        )


def check_image_size(format: str, subject: Subject) -> None:
    """Raise if the program would not take images of the model's own size."""
    least = smallest_images(format, subject)
    if least is not None and any(side < each for side, each in zip(subject.image_size, least, strict=True)):
        raise ValueError(
            f"`--format` (=torch) must be onnx or openvino for images of {subject.image_size[0]} x "
            f"{subject.image_size[1]} pixels: a program of torch.export takes {least[0]} x {least[1]} and more."
        )


def check_model(format: str, dtypes: list[str], model_type: str, task: str, gives_values: bool = False) -> None:
    """Raise for a file that the runtime is known not to run, or to run wrongly."""
    rounding = [dtype for dtype in dtypes if gives_values and dtype in ROUNDING]
    if rounding:
        raise ValueError(
            f"`--dtype` (={rounding[0]}) must be float32 or float16 for regression: {' and '.join(ROUNDING)} round the "
            "values to two or three digits."
        )
    if format == "executorch" and model_type == "convmae" and task != RECONSTRUCTION:
        raise ValueError(
            f"`--format` (=executorch) must be onnx, openvino or torch for {task} by a ConvMAE, for which ExecuTorch "
            "(1.5) gives other answers than the model."
        )
    if format == "executorch" and model_type == "convnextv2_fcmae" and task == RECONSTRUCTION:
        raise ValueError(
            "`--format` (=executorch) must be onnx, openvino or torch for reconstruction by ConvNeXt V2, which "
            "ExecuTorch (1.5) runs with one number of images only."
        )
    if format == "openvino" and "int8" in dtypes and model_type == "convmae":
        raise ValueError(
            "`--dtype` (=int8) must be float32, float16 or bfloat16 for a ConvMAE in OpenVINO, which (2026.4) fails as "
            "soon as the images of an int8 file have another size. ONNX Runtime runs it."
        )
