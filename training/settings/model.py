"""Settings of the model: its weights, its size and its input images."""

from dataclasses import dataclass

from training.settings.checks import check, check_at_least, check_below_one, check_finite, may_be_there
from training.settings.families import CONVMAE, CONVNEXTV2, FAMILIES, Sizes, check_family
from training.settings.fields import operation, recipe

RCNN = ("mask_rcnn", "faster_rcnn")
MASK_TRANSFORMERS = ("mask2former", "maskformer")  # of Transformers
SIZES = "; of ".join(f"{sizes.title} {sizes.in_words}" for sizes in FAMILIES.values())
DEFAULT_SIZES = ", ".join(f"{sizes.default} of {sizes.title}" for sizes in FAMILIES.values())
NOT_RCNN = ("rt_detr", "rt_detr_v2", "d_fine", "deformable_detr", "conditional_detr", "detr")  # of Transformers


@dataclass(kw_only=True)
class ModelSettings:
    """Model weights and input."""

    model_name_or_path: str | None = recipe(None, "weights to start from: a folder or a Hub id")
    model_revision: str | None = recipe(None, "revision of the model on the Hub (default: main)")
    image_size: int | None = recipe(None, "side of the square input image, in pixels (default: the model's)")
    num_channels: int | None = recipe(
        None,
        "channels of an image; 4 are RGB and opacity, other numbers than 1, 3 and 4 need arrays (default: the model's)",
        on_resume="refuse",
    )
    image_mean: list[float] | None = recipe(None, "mean of each channel (default: ImageNet's)")
    image_std: list[float] | None = recipe(None, "standard deviation of each channel (default: ImageNet's)")

    def __post_init__(self) -> None:
        check_finite(self)
        check_at_least(self, ("image_size", "num_channels"), 1)
        channels = self.num_channels or (3 if self.model_name_or_path is None else None)
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            fits = None in (values, channels) or len(values) == channels
            check(name, values, fits, f"have one number for each of the {channels} channels")
        check("image_std", self.image_std, min(self.image_std or [1]) > 0, "be positive")
        name = self.model_name_or_path or ""
        check("model_name_or_path", name, may_be_there(name), "be a folder that exists, or a Hub id")

    def check_given(self) -> None:
        """Raise without stored weights, for a script that only applies a model."""
        check("model_name_or_path", self.model_name_or_path, bool(self.model_name_or_path), "be given")


@dataclass(kw_only=True)
class TrainedModelSettings(ModelSettings):
    """Model: a new one or stored weights."""

    model_type: str | None = recipe(
        None,
        f"without model_name_or_path: {' or '.join(FAMILIES)} (default: {CONVNEXTV2})",
        on_resume="refuse",
        overridden_by="model_name_or_path",
    )
    model_size: str | None = recipe(
        None,
        f"without model_name_or_path: of {SIZES} (default: {DEFAULT_SIZES})",
        on_resume="refuse",
        overridden_by="model_name_or_path",
    )
    patch_size: int | None = recipe(
        None,
        "without model_name_or_path: side of the stem's patches, in pixels (default: 4)",
        on_resume="refuse",
        overridden_by="model_name_or_path",
    )
    num_stages: int | None = recipe(
        None,
        "ConvNeXt V2 without model_name_or_path only: keep the first stages only (default: all)",
        on_resume="refuse",
        overridden_by="model_name_or_path",
        family=CONVNEXTV2,
    )
    use_grn: bool | None = recipe(
        None,
        "ConvNeXt V2 without model_name_or_path only: false for the blocks of ConvNeXt V1, without GRN (default: true)",
        on_resume="refuse",
        overridden_by="model_name_or_path",
        family=CONVNEXTV2,
    )
    layer_scale_init_value: float | None = recipe(
        None,
        "ConvNeXt V2 without model_name_or_path only: initial value of LayerScale, 0 for none (default: 1e-6 with"
        " use_grn false, else 0)",
        on_resume="refuse",
        overridden_by="model_name_or_path",
        family=CONVNEXTV2,
    )
    activation_checkpointing: bool = operation(False, "recompute activations in the backward pass to save memory")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, ("patch_size", "num_stages"), 1)
        check_at_least(self, ("layer_scale_init_value",), 0)
        known = self.model_type is None or self.model_type in FAMILIES
        check("model_type", self.model_type, known, f"be one of {', '.join(FAMILIES)}")
        family = self.model_type or CONVNEXTV2
        sizes = FAMILIES[family]
        self.model_size = self.model_size or sizes.default
        rule = f"be one of {', '.join(sizes.names)}"
        check("model_size", self.model_size, self.model_size in sizes.all_names, rule)
        if self.model_name_or_path is None:  # else the family follows from the weights
            self.model_type = family
            check_family(self, family)
            self._check_blocks_of_size(sizes)

    def _check_blocks_of_size(self, sizes: Sizes) -> None:
        """Raise for a size of ConvNeXt V1 with other blocks."""
        has_v1_blocks = self.use_grn is False and self.layer_scale_init_value != 0
        rule = "come with `use_grn` false and with LayerScale: ConvNeXt V1 has this size, V2 does not"
        check("model_size", self.model_size, has_v1_blocks or self.model_size in sizes.names, rule)


@dataclass(kw_only=True)
class DenseModelSettings(TrainedModelSettings):
    """Model that computes on the maps of a backbone."""

    drop_path_rate: float | None = recipe(None, "rate of stochastic depth in the last block (default: the model's)")
    window_size: int | None = recipe(
        None,
        "ConvMAE only: side of the windows, in tokens, within which all but four blocks of the transformer attend"
        " (default: the model's, none)",
        on_resume="refuse",
        family=CONVMAE,
    )
    use_relative_position_bias: bool | None = recipe(
        None,
        "ConvMAE only: learn biases by relative position in attention (default: the model's, false)",
        on_resume="refuse",
        family=CONVMAE,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, ("window_size",), 1)
        check_below_one(self, "drop_path_rate")


@dataclass(kw_only=True)
class SegmenterSettings(DenseModelSettings):
    """Segmentation model: UPerNet, Mask2Former or MaskFormer on a backbone."""

    architecture: str = recipe("upernet", f"upernet, {' or '.join(MASK_TRANSFORMERS)}", on_resume="refuse")
    num_labels: int | None = recipe(None, "number of classes (default: from the masks)", on_resume="refuse")
    decoder_hidden_size: int = recipe(
        512, "channels of the decode head, or of pixel decoder and transformer: a multiple of 32", on_resume="refuse"
    )
    auxiliary_loss_weight: float = recipe(
        0.4,
        "weight of the loss of UPerNet's second head on the third stage; 0: without it",
        unused_with=("architecture", MASK_TRANSFORMERS),
    )
    num_queries: int = recipe(
        100,
        "largest number of masks that Mask2Former and MaskFormer predict in an image",
        on_resume="refuse",
        unused_with=("architecture", ("upernet",)),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        known, width = ("upernet", *MASK_TRANSFORMERS), self.decoder_hidden_size
        check("architecture", self.architecture, self.architecture in known, f"be one of {', '.join(known)}")
        check_at_least(self, ("num_labels",), 2)
        check_at_least(self, ("decoder_hidden_size", "num_queries"), 1)
        fits = self.architecture == "upernet" or width % 32 == 0  # by the groups of the group normalisation
        check("decoder_hidden_size", width, fits, f"be a multiple of 32 with `architecture` {self.architecture}")
        check_at_least(self, ("auxiliary_loss_weight",), 0)


@dataclass(kw_only=True)
class DetectorSettings(DenseModelSettings):
    """Detector: Mask R-CNN, Faster R-CNN or a model of Transformers on a backbone."""

    architecture: str = recipe(
        "mask_rcnn",
        f"{', '.join(RCNN)}, or one of Transformers' models: {', '.join(NOT_RCNN)}",
        on_resume="refuse",
    )
    num_labels: int | None = recipe(None, "number of classes (default: from the objects)", on_resume="refuse")
    decoder_hidden_size: int = recipe(
        256, "channels of the feature pyramid and of the mask head, or of the model of Transformers", on_resume="refuse"
    )
    box_head_size: int = recipe(
        1024, "width of the R-CNN's box head", on_resume="refuse", unused_with=("architecture", NOT_RCNN)
    )
    box_batch_size: int = recipe(
        512, "regions of an image that the R-CNN's heads are trained on", unused_with=("architecture", NOT_RCNN)
    )
    anchor_sizes: list[int] = recipe(
        [32, 64, 128, 256, 512],
        "side of the R-CNN's anchors in each level of the pyramid, in pixels",
        on_resume="refuse",
        unused_with=("architecture", NOT_RCNN),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        known = (*RCNN, *NOT_RCNN)
        check("architecture", self.architecture, self.architecture in known, f"be one of {', '.join(known)}")
        check_at_least(self, ("num_labels", "decoder_hidden_size", "box_head_size", "box_batch_size"), 1)
        sizes = self.anchor_sizes
        check("anchor_sizes", sizes, bool(sizes) and min(sizes) > 0, "be positive numbers")


@dataclass(kw_only=True)
class ClassifierSettings(TrainedModelSettings):
    """Classifier."""

    num_labels: int | None = recipe(None, "number of classes (default: from the label column)", on_resume="refuse")
    drop_path_rate: float | None = recipe(None, "rate of stochastic depth in the last block (default: the model's)")
    head_init_scale: float | None = recipe(
        None, "factor on the head's initial weights (default: 0.001 with model_name_or_path, else 1)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, ("num_labels",), 1)
        check_at_least(self, ("head_init_scale",), 0)
        check_below_one(self, "drop_path_rate")
