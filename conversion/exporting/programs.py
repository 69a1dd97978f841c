"""Programs of each format, made by the exporters of Transformers, and written to files."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.export import Dim
from transformers.exporters.configs import DynamoConfig, ExecutorchConfig, OnnxConfig, OpenVINOConfig
from transformers.exporters.exporter_dynamo import DynamoExporter

from conversion.exporting.models import Subject
from conversion.exporting.rewriting import rewritten

# The largest batch of ExecuTorch, and by how many cells the sides of its images may exceed the model's image size: it
# reserves memory for the largest ones before it runs.
MAX_BATCH, MORE_CELLS = 8, 4


class Program(NamedTuple):
    """A program of a format, not yet written, and what the exporter noted of it."""

    program: Any
    metadata: Any


def export_program(format: str, subject: Subject, dtype: str) -> Program:
    """The model as a program of the format, with weights in a data type; int8 is made of float32 afterwards.

    The batch is dynamic, and so is the size of the images where the model allows it.
    """
    exporter, config = _exporter(format, subject, dtype)
    # OpenVINO has the weights rounded afterwards: its exporter swaps the parameters of layers that are called, and the
    # fused blocks read theirs without a call.
    is_cast = format != "openvino" and dtype in ("float16", "bfloat16")
    wrapped = subject.wrapped(getattr(torch, dtype) if is_cast else torch.float32)
    # With gradients, PyTorch chooses another kernel of attention with a learned mask than the one that was traced.
    with quiet(), rewritten(format), torch.no_grad():
        exported = exporter.export(wrapped, subject.sample(), config=config)
    component = exported.components["model"]
    component.metadata.architecture = type(subject.model).__name__
    if format == "onnx":
        from conversion.exporting.onnx_graph import tidy

        tidy(component.program)
    if format == "openvino":
        center_single_pixels(component.program)
    return Program(component.program, component.metadata)


def center_single_pixels(program: Any) -> None:
    """Let what is resized to a side of one pixel read the middle, as PyTorch does, and not the first pixel.

    OpenVINO's `pytorch_half_pixel` differs from `half_pixel` there alone: it is what PyTorch computed before its
    version 1.5.
    """
    for node in program.get_ordered_ops():
        if node.get_attributes().get("coordinate_transformation_mode") == "pytorch_half_pixel":
            node.set_attribute("coordinate_transformation_mode", "half_pixel")


def write_program(format: str, program: Program, file: Path) -> None:
    """Write the file, and beside it what its format keeps beside it."""
    file.parent.mkdir(exist_ok=True)
    _write(format, program.program, file)


def parts_of(file: Path) -> list[Path]:
    """A file, and what its format keeps beside it."""
    return sorted(file.parent.glob(f"{file.stem}.*"))


def size_of(file: Path) -> int:
    """The bytes of a file, with what its format keeps beside it."""
    return sum(part.stat().st_size for part in parts_of(file))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters print and warn of their own inner workings."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _exporter(format: str, subject: Subject, dtype: str) -> tuple[Any, Any]:
    """The exporter of Transformers and its settings. Each is imported here: it needs the packages of its format."""
    shapes = _dynamic_shapes(format, subject)
    common: dict[str, Any] = {"dynamic": True, "dynamic_shapes": shapes}
    with quiet():
        if format == "onnx":
            from transformers.exporters.exporter_onnx import OnnxExporter

            return OnnxExporter(), OnnxConfig(**common)
        if format == "openvino":
            from transformers.exporters.exporter_openvino import OpenVINOExporter

            return OpenVINOExporter(), OpenVINOConfig(**common, compress_to_fp16=dtype in ("float16", "bfloat16"))
        if format == "executorch":
            from transformers.exporters.exporter_executorch import ExecutorchExporter

            return ExecutorchExporter(), ExecutorchConfig(**common)
        return DynamoExporter(), DynamoConfig(**common)


def largest_images(format: str, subject: Subject) -> tuple[int, int, int] | None:
    """Batch, height and width of the largest images that a file takes; None if it takes any."""
    if format != "executorch":
        return None
    more = MORE_CELLS if subject.has_dynamic_sizes else 0
    height, width = (side + more * cell for side, cell in zip(subject.image_size, subject.cell, strict=True))
    return MAX_BATCH, height, width


def smallest_images(format: str, subject: Subject) -> tuple[int, int] | None:
    """Height and width of the smallest images that a file takes, if they have more than one cell a side."""
    if format != "torch" or not subject.has_dynamic_sizes:
        return None
    return 2 * subject.cell[0], 2 * subject.cell[1]  # torch.export takes one as a constant


def _dynamic_shapes(format: str, subject: Subject) -> dict[str, dict[int, Any]]:
    """The axes of each input that stay open."""
    batch: Any = Dim.DYNAMIC
    sides: list[Any] = [Dim.DYNAMIC, Dim.DYNAMIC]
    if (largest := largest_images(format, subject)) is not None:
        batch, auto = Dim("batch", min=1, max=largest[0]), cast(Any, Dim.AUTO)
        sides = [auto(min=1, max=side) for side in largest[1:]]
    images = {0: batch, 2: sides[0], 3: sides[1]} if subject.has_dynamic_sizes else {0: batch}
    return {name: images if name == "pixel_values" else {0: batch} for name in subject.sample()}


def _write(format: str, program: Any, file: Path) -> None:
    if format == "onnx":
        from conversion.exporting.onnx_graph import save

        save(program, file)
    elif format == "openvino":
        openvino: Any = import_module("openvino")
        openvino.save_model(program, str(file), compress_to_fp16=False)  # it holds its weights as they are to be
    elif format == "torch":
        torch.export.save(program, str(file))
    else:
        with file.open("wb") as stream:
            program.write_to_file(stream)


def calibration_inputs(subject: Subject, images: list[Tensor]) -> list[dict[str, Tensor]]:
    """What the model takes of each image."""
    return [subject.inputs(image) for image in images]
