"""The model of a folder: its kind, size, classes and images."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from conversion.detectors import Detector, detector_of, has_masks
from conversion.families import CONVMAE, CONVNEXT_V1, Family, family_of
from conversion.files import read_json
from conversion.image_processor import DEFAULT_SIZE
from conversion.model_folder import PROCESSOR, parameter_sizes, read_config
from conversion.publishing.wording import format_name
from conversion.segmenters import SEGMENTERS, Segmenter
from hf_convnextv2.images import MODES, background_color
from hf_convnextv2.shared_config import height_and_width

HEADS = ("classifier.", "head.fc.", "head.weight", "head.bias", "head_0.")  # in every layout
DECODERS = ("decoder.", "mask_token")


@dataclass(frozen=True)
class ModelSection:
    """What a card says of the model itself."""

    folder: Path
    config: Any
    parameters: dict[str, int]  # how many numbers each has, by its stored name
    height: int  # of the images that it is for
    width: int
    foreign_layout: str | None  # of weights that are for another library than Transformers

    @cached_property
    def kind(self) -> str:
        """encoder, classifier, fcmae, convmae, segmenter or detector."""
        if self.detector:
            return "detector"
        if self.segmenter:
            return "segmenter"
        if self.count_parameters(DECODERS):
            return self.family.pretraining
        return "classifier" if self.count_parameters(HEADS) else "encoder"

    @property
    def family(self) -> Family:
        """The family of its encoder."""
        return family_of(self.config)

    @property
    def is_convmae(self) -> bool:
        """Whether its encoder is a ConvMAE's, of which Transformers has no class."""
        return self.family is CONVMAE

    @property
    def has_both_blocks(self) -> bool:
        """Whether it has GRN and LayerScale. Transformers' class reads it, but leaves out LayerScale."""
        return not self.is_convmae and self.config.use_grn and self.config.has_layer_scale

    @property
    def needs_package(self) -> bool:
        """Whether Transformers has no such model."""
        return self.is_convmae or self.has_both_blocks

    @property
    def import_line(self) -> str:
        """The import of this package, for a model that needs it."""
        known = "" if self.has_both_blocks else f"  # makes {self.family.name} known to the Auto classes"
        return f"import hf_convnextv2{known}"

    @property
    def without_register(self) -> str:
        """What happens where Transformers alone loads the model, if it does so without an error; ends a paragraph."""
        if not self.has_both_blocks:
            return ""
        return " Without `register()`, Transformers loads it all the same, and what it computes is wrong."

    @cached_property
    def detector(self) -> Detector | None:
        """The detector that the folder holds, if it holds one."""
        return detector_of(read_json(self.folder / "config.json"))

    @property
    def has_masks(self) -> bool:
        """Whether the folder holds a detector that predicts masks."""
        return has_masks(read_json(self.folder / "config.json"))

    @cached_property
    def segmenter(self) -> Segmenter | None:
        """The segmentation model that the folder holds, if it holds one."""
        return SEGMENTERS.get(read_json(self.folder / "config.json").get("model_type", ""))

    @property
    def labels(self) -> list[str]:
        """The names of the classes, in Markdown."""
        return [format_name(name) for name in (self.config.id2label or {}).values()]

    @property
    def is_multi_label(self) -> bool:
        """Whether it is a classifier that gives an image any number of classes."""
        return self.kind == "classifier" and self.config.problem_type == "multi_label_classification"

    @property
    def is_regression(self) -> bool:
        """Whether it has the form of a classifier, but predicts values."""
        return self.kind == "classifier" and self.config.problem_type == "regression"

    @property
    def task_in_words(self) -> str:
        """What the classifier is."""
        if self.is_regression:
            return "image regression model"
        return "multi-label image classifier" if self.is_multi_label else "image classifier"

    @property
    def task_name(self) -> str | None:
        """What the classifier is, for the Hub, where its task alone does not say it."""
        special = self.is_regression or self.is_multi_label
        return self.task_in_words.removesuffix(" model").capitalize() if special else None

    @property
    def answers_in_words(self) -> str:
        """What the classifier answers, in the number of its labels."""
        if self.is_regression:
            return "value" if len(self.labels) == 1 else "values"
        return "class" if self.is_multi_label and len(self.labels) == 1 else "classes"

    @property
    def library(self) -> str:
        """The library that loads the folder."""
        if self.foreign_layout is None:
            return "transformers"
        return "timm" if self.foreign_layout == "timm" else "pytorch"

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the last map."""
        stride_down, stride_across = self.config.last_strides
        return self.height // stride_down, self.width // stride_across

    @property
    def architecture(self) -> str:
        """The size in words."""
        depths, widths = list(self.config.depths), list(self.config.hidden_sizes)
        if self.family is CONVMAE:
            patch = f"tokens of {self.config.target_size} x {self.config.target_size} pixels"
        else:
            patch = f"patch size {self.config.patch_size}{self._other_blocks}"
        for size, (all_depths, all_widths) in self.family.sizes.items():
            if depths == list(all_depths[: len(depths)]) and widths == list(all_widths[: len(depths)]):
                cut = "" if len(depths) == len(all_depths) else f", the first {len(depths)} stages"
                return f"{size}{cut}, {patch}"
        return f"depths {depths}, widths {widths}, {patch}"

    @property
    def _other_blocks(self) -> str:
        """What tells the blocks from those of the family's paper."""
        if self.has_v1_blocks or self.has_v2_blocks:
            return ""
        return ", with LayerScale" if self.config.has_layer_scale else ", without GRN"

    @property
    def has_v1_blocks(self) -> bool:
        """Whether it is a ConvNeXt V1."""
        return self.family is CONVNEXT_V1

    @property
    def has_v2_blocks(self) -> bool:
        """Whether the blocks are those that Transformers' `convnextv2` has."""
        return self.config.use_grn and not self.config.has_layer_scale

    @property
    def is_of_v1_code(self) -> bool:
        """Whether the code of ConvNeXt V1 builds it."""
        return self.family is not CONVMAE and not self.config.use_grn

    @cached_property
    def background(self) -> str | None:
        """What transparent pixels of the training images lay on, for pictures of 1, 3 or 4 channels."""
        stored = read_json(self.folder / PROCESSOR).get("background")
        return stored if self.config.num_channels in MODES else None

    @property
    def background_color(self) -> tuple[int, int, int] | None:
        """The background in red, green and blue."""
        return background_color(self.background) if self.background else None

    @property
    def has_pt(self) -> bool:
        """Whether the weights are there as the official scripts read them, too."""
        return (self.folder / "model.pt").is_file()

    def count_parameters(self, prefix: str | tuple[str, ...] = "") -> int:
        """How many numbers the parameters hold whose names start so."""
        return sum(size for name, size in self.parameters.items() if name.startswith(prefix))


def read_model(folder: Path, settings: dict[str, Any], provenance: dict[str, Any], foreign_config: Any) -> ModelSection:
    """The model of a folder, which a run with `settings` trained or a conversion with `provenance` wrote.

    `foreign_config`: the model's, where the folder has none because another library is to read it.
    """
    config: Any = read_config(folder) if foreign_config is None else foreign_config
    parameters = parameter_sizes(folder)
    height, width = height_and_width(settings.get("image_size") or config.image_size or DEFAULT_SIZE)
    foreign_layout = None if foreign_config is None else provenance["stored_as"]
    return ModelSection(folder, config, parameters, height, width, foreign_layout)
