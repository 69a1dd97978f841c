"""The model that is exported: which class, what it takes and returns, and the sizes of its images.

B batch, L cells of an image.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.exporters.utils import get_leaf_tensors

from conversion.command_line import first_line
from conversion.exporting.choices import BACKBONE, CLASSIFICATION, FEATURES, RECONSTRUCTION, SEGMENTATION
from conversion.image_processor import DEFAULT_SIZE
from conversion.model_folder import BACKBONES
from hf_convnextv2 import (
    ConvMAEBackbone,
    ConvMAEForImageClassification,
    ConvMAEForPreTraining,
    ConvMAEModel,
    ConvNextV2Backbone,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
    ConvNextV2Model,
)
from hf_convnextv2.images import MODES
from hf_convnextv2.registration import registered
from hf_convnextv2.shared_config import height_and_width
from hf_convnextv2.upernet import UperNetForSemanticSegmentation

CONVNEXTV2 = {FEATURES: ConvNextV2Model, BACKBONE: ConvNextV2Backbone}
CONVMAE = {FEATURES: ConvMAEModel, BACKBONE: ConvMAEBackbone}
# By `model_type`: the class of each task.
CLASSES: dict[str, dict[str, Any]] = {
    "convnextv2": {CLASSIFICATION: ConvNextV2ForImageClassification, **CONVNEXTV2},
    "convnextv2_fcmae": {RECONSTRUCTION: ConvNextV2ForPreTraining, **CONVNEXTV2},
    "convmae": {CLASSIFICATION: ConvMAEForImageClassification, RECONSTRUCTION: ConvMAEForPreTraining, **CONVMAE},
    "upernet": {SEGMENTATION: UperNetForSemanticSegmentation},
}
# The task of a stored model by the end of its class's name, and those that need its head or decoder.
TRAINED_FOR = {
    "ForImageClassification": CLASSIFICATION,
    "ForPreTraining": RECONSTRUCTION,
    "ForSemanticSegmentation": SEGMENTATION,
    "Backbone": BACKBONE,
}
WITH_HEAD = (CLASSIFICATION, RECONSTRUCTION, SEGMENTATION)
SAMPLE_CELLS = (3, 4)  # rows and columns of the images that are traced: unequal, so that the axes stay apart


class Exported(nn.Module):
    """A model that takes float32 images and returns float32 outputs, whatever the data type of its weights.

    So a file in half precision is called as one in float32 is. Noise keeps float32 too: rounded, it would have ties.
    """

    def __init__(self, model: Any, options: dict[str, Any]) -> None:
        super().__init__()
        # The exporters cast inputs to the type of the first parameter, which is this one; it is in no file.
        self.input_type = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.model, self.config, self.options = model, model.config, options

    def forward(self, pixel_values: Tensor, **inputs: Tensor) -> dict[str, Any]:
        """What the model returns, by name.

        A plain dictionary: the files of torch.export name the classes of their outputs, and load only where these are
        known.
        """
        outputs = self.model(pixel_values, **inputs, **self.options)
        return {name: _as_float32(value) for name, value in outputs.items() if value is not None}


@dataclass(frozen=True)
class Subject:
    """A model to export.

    task: one of `choices.TASKS`.
    cell: of how many pixels, down and across, the sides of its images are multiples: what is hidden together where
        pre-training is exported, else one position of the last map.
    """

    name: str
    task: str
    model: Any
    cell: tuple[int, int]
    image_size: tuple[int, int]
    num_channels: int

    def wrapped(self, dtype: torch.dtype = torch.float32) -> Exported:
        """The model with weights in a data type, to be traced or run."""
        options = {"return_loss": False} if self.task == RECONSTRUCTION else {}
        model = self.model if dtype == torch.float32 else copy.deepcopy(self.model).to(dtype)
        return Exported(model, options).eval()

    def inputs(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """What the model takes with images `(B, num_channels, height, width)`: for a reconstruction, also noise.

        The noise `(B, L)` is the same for the same number of images and cells.
        """
        if self.task != RECONSTRUCTION:
            return {"pixel_values": pixel_values}
        rows, columns = (side // cell for side, cell in zip(pixel_values.shape[2:], self.cell, strict=True))
        noise = torch.rand(len(pixel_values), rows * columns, generator=torch.Generator().manual_seed(0))
        return {"pixel_values": pixel_values, "noise": noise}

    def sample(self) -> dict[str, Tensor]:
        """What the model is traced with: two images of random numbers."""
        generator = torch.Generator().manual_seed(0)
        return self.inputs(torch.randn(2, self.num_channels, *self.sample_size, generator=generator))

    @property
    def sample_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that are traced."""
        if self.has_dynamic_sizes:
            return self.cell[0] * SAMPLE_CELLS[0], self.cell[1] * SAMPLE_CELLS[1]
        return self.image_size

    @property
    def has_dynamic_sizes(self) -> bool:
        """Whether a file takes images of other sizes."""
        return self.task != RECONSTRUCTION

    @property
    def gives_values(self) -> bool:
        """Whether the logits are numbers in units of their own."""
        return self.task == CLASSIFICATION and self.model.config.problem_type == "regression"

    @property
    def gives_one_class(self) -> bool:
        """Whether the largest logit of an image or a pixel is the answer: not so for several classes, or numbers."""
        config = self.model.config
        is_single = config.problem_type in (None, "single_label_classification") and config.num_labels > 1
        return self.task == SEGMENTATION or (self.task == CLASSIFICATION and is_single)

    @torch.no_grad()
    def outputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the model returns in eager mode, by the names that the outputs have in a file."""
        return get_leaf_tensors(self.wrapped()(**inputs))


def exportable_config(name: str) -> Any:
    """The configuration of a folder or a model of the Hub; raises a `ValueError` if it cannot be exported."""
    config = _read_config(name)
    if config.model_type not in CLASSES:
        known = ", ".join(CLASSES)
        raise ValueError(f"`model` (={name}) must be of the type {known} to be exported, but is a {config.model_type}.")
    own = encoder_config(config)
    if own is not config and own.model_type not in BACKBONES:
        raise ValueError(
            f"`model` (={name}) must have a backbone of the type {' or '.join(BACKBONES)} to be exported, but it has a "
            f"{own.model_type}."
        )
    return config


def check_channels(name: str, dtypes: Sequence[str], validation_dataset: Any) -> None:
    """Raise for what needs pictures, where the model takes no pictures; its weights are not loaded."""
    if "int8" not in dtypes and validation_dataset is None:
        return
    num_channels = encoder_config(exportable_config(name)).num_channels
    if num_channels not in MODES:
        setting = "`--dtype` (=int8)" if "int8" in dtypes else f"`--validation_dataset` (={validation_dataset})"
        why = "it needs pictures, which have 1, 3 or 4"
        raise ValueError(f"{setting} must be left out for a model of {num_channels} channels: {why}.")


def encoder_config(config: Any) -> Any:
    """The configuration of a model's backbone, or its own if it has none."""
    return getattr(config, "backbone_config", None) or config


def load_subject(name: str, task: str | None) -> Subject:
    """Load a folder or a model of the Hub in float32.

    Raises:
        ValueError: if there is no such model, or if it cannot be exported for the task.
    """
    config = exportable_config(name)
    classes = CLASSES[config.model_type]
    task = _task(name, config, classes, task)
    if task == CLASSIFICATION and getattr(config, "label_std", None) is not None:
        raise ValueError(
            f"`model` (={name}) must be of a finished run: its config.json has `label_mean` and `label_std`, so that a "
            "file of it would answer on the scale of training, not in the units of the values."
        )
    with registered():
        loaded: Any = classes[task].from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    model, report = loaded
    # Where nothing was pre-trained, the norms of a backbone and the final one change nothing.
    missing = sorted(report["missing_keys"]) if task in WITH_HEAD else []
    if missing:
        raise ValueError(
            f"`model` (={name}) must hold all weights of a {type(model).__name__}, but lacks {len(missing)}, e.g. "
            f"`{missing[0]}`: the file would have random ones."
        )
    model.eval()
    own = encoder_config(model.config)
    cell = height_and_width(own.cell_size) if task == RECONSTRUCTION else own.last_strides
    sides = height_and_width(own.image_size or DEFAULT_SIZE)
    rounded = tuple(max(1, side // unit) * unit for side, unit in zip(sides, cell, strict=True))
    return Subject(name, task, model, cell, (rounded[0], rounded[1]), own.num_channels)


def _read_config(name: str) -> Any:
    try:
        with registered():
            return AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"`model` (={name}) must be a folder that holds a model, or a model on the Hub: {first_line(error)}"
        ) from error


def _task(name: str, config: Any, classes: dict[str, Any], asked: str | None) -> str:
    """The task that is asked for, or that the stored model is for."""
    stored = (config.architectures or [""])[0]
    trained = next((task for end, task in TRAINED_FOR.items() if stored.endswith(end)), FEATURES)
    task = asked or trained
    offered = [each for each in classes if each not in WITH_HEAD or each == trained]
    if task not in offered:
        raise ValueError(f"`--task` (={task}) must be {' or '.join(offered)} for {name}, a {stored or 'model'}.")
    return task


def _as_float32(value: Any) -> Any:
    """A tensor, or several, in float32; whole numbers stay."""
    if isinstance(value, tuple):
        return tuple(_as_float32(each) for each in value)
    return value.float() if value.is_floating_point() else value
