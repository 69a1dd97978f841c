"""Configurations of ConvNeXt V2 and of its FCMAE pre-training (arXiv 2301.00808); every setting is checked here.

Models with the blocks of ConvNeXt V1 (arXiv 2201.03545) have the same configurations and classes.
"""

import math
from dataclasses import fields
from typing import Any, Self

from huggingface_hub.dataclasses import strict
from transformers import ConvNextV2Config as StockConvNextV2Config
from transformers import PreTrainedConfig

from .shared_config import CheckedConfig, PreTrainingConfig, height_and_width, without

# name: (depths, hidden_sizes). Paper, appendix A.1; `small` is timm's and mmpretrain's.
SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "atto": ((2, 2, 6, 2), (40, 80, 160, 320)),
    "femto": ((2, 2, 6, 2), (48, 96, 192, 384)),
    "pico": ((2, 2, 6, 2), (64, 128, 256, 512)),
    "nano": ((2, 2, 8, 2), (80, 160, 320, 640)),
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
    "huge": ((3, 3, 27, 3), (352, 704, 1408, 2816)),
}
# Of ConvNeXt V1 alone (arXiv 2201.03545, section 3).
V1_ONLY_SIZES = {"xlarge": ((3, 3, 27, 3), (256, 512, 1024, 2048))}
FCMAE_MODEL_TYPE = "convnextv2_fcmae"
V1_MODEL_TYPE = "convnext"  # of Transformers' `ConvNextConfig`
V1_LAYER_SCALE = 1e-6  # that configuration's default of `layer_scale_init_value`, and the V1 paper's


@strict
class ConvNextV2Config(CheckedConfig, StockConvNextV2Config):
    """Transformers' `ConvNextV2Config` with checked settings and a few more; what it saves, stock Transformers reads.

    With LayerScale and without GRN, it describes a model of ConvNeXt V1. It reads the config.json of one, of the type
    `convnext`, and saves such a one.

    Args:
        num_stages: number of stages; follows from `depths` and may be left out.
        use_grn: `False` leaves Global Response Normalization out of every block (paper, Table 3: the V1-like ablation).
        layer_scale_init_value: initial value of LayerScale, a learned factor on each channel of a block's branch; 0: no
            LayerScale, as in V2. Where a config.json of `convnext` does not name it, Transformers' default, 1e-6.
        head_init_scale: factor on the initial weights of the classifier head (paper, Tables 9 to 13: 0.001).

    Raises:
        ValueError: if a setting breaks its rule; the message names the setting, its value and the rule.
    """

    model_type = "convnextv2"

    num_stages: int | None = None
    hidden_sizes: list[int] | tuple[int, ...] = (96, 192, 384, 768)
    depths: list[int] | tuple[int, ...] = (3, 3, 9, 3)
    use_grn: bool = True
    layer_scale_init_value: float | int = 0.0
    head_init_scale: float | int = 1.0

    def __post_init__(self, **kwargs: Any) -> None:
        depths, hidden_sizes = list(self.depths), list(self.hidden_sizes)
        if not depths or len(depths) != len(hidden_sizes):
            raise ValueError(
                f"`depths` (={depths}) and `hidden_sizes` (={hidden_sizes}) must have the same length >= 1."
            )
        if min(depths) < 1 or min(hidden_sizes) < 1:
            raise ValueError(f"`depths` (={depths}) and `hidden_sizes` (={hidden_sizes}) must be positive.")
        if self.num_stages is None:
            self.num_stages = len(depths)
        if self.num_stages != len(depths):
            raise ValueError(f"`num_stages` (={self.num_stages}) must equal the length of `depths` (={depths}).")
        self._check_channels_and_drop_path()
        if min(self.patch_sides) < 1:
            raise ValueError(f"`patch_size` (={self.patch_size}) must be at least 1.")
        if not 0 <= self.layer_scale_init_value < math.inf:
            value = self.layer_scale_init_value
            raise ValueError(f"`layer_scale_init_value` (={value}) must be finite and not negative; 0: no LayerScale.")
        super().__post_init__(**kwargs)

    @classmethod
    def from_size(cls, name: str, **overrides: Any) -> Self:
        """The configuration of a published size (paper, appendix A.1), e.g. `from_size("atto", num_labels=10)`.

        `num_stages=n` keeps the first n stages. Any other field is taken as given. "xlarge" is a size of ConvNeXt V1:
        it needs V1's blocks, `use_grn=False` and a `layer_scale_init_value` above 0.
        """
        sizes = {**SIZES, **V1_ONLY_SIZES}
        if name not in sizes:
            known = f"{', '.join(SIZES)}, or for ConvNeXt V1 {', '.join(V1_ONLY_SIZES)}"
            raise ValueError(f"`name` (={name!r}) must be one of {known}.")
        depths, hidden_sizes = sizes[name]
        num_stages = overrides.pop("num_stages", len(depths))
        if not isinstance(num_stages, int) or not 1 <= num_stages <= len(depths):
            raise ValueError(f"`num_stages` (={num_stages!r}) must be an integer between 1 and {len(depths)}.")
        stages = {"depths": list(depths[:num_stages]), "hidden_sizes": list(hidden_sizes[:num_stages])}
        config = cls(**{**stages, **overrides})
        if name in V1_ONLY_SIZES and not config.has_v1_blocks:
            raise ValueError(
                f"`name` (={name!r}) must come with `use_grn=False` and a `layer_scale_init_value` above 0: "
                "ConvNeXt V1 has this size, V2 does not."
            )
        return config

    @property
    def patch_sides(self) -> tuple[int, int]:
        """Height and width in pixels of a patch of the stem."""
        return height_and_width(self.patch_size, "patch_size")

    @property
    def cell_size(self) -> int | tuple[int, int]:
        """Side in pixels of a cell: the image area that one position of the last stage sees through the strides."""
        stride = 2 ** (len(self.depths) - 1)  # of the stages after the stem
        height, width = self.patch_sides[0] * stride, self.patch_sides[1] * stride
        return height if height == width else (height, width)

    @property
    def last_strides(self) -> tuple[int, int]:
        """Pixels from row to row, and from column to column, of the last map; no smaller image has one."""
        return height_and_width(self.cell_size)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels from row to row of the map of each stage."""
        return tuple(self.patch_sides[0] * 2**stage for stage in range(len(self.depths)))

    @property
    def has_layer_scale(self) -> bool:
        """Whether each block has a LayerScale."""
        return self.layer_scale_init_value > 0

    @property
    def has_v1_blocks(self) -> bool:
        """Whether the blocks are those of ConvNeXt V1: with LayerScale and without GRN."""
        return not self.use_grn and self.has_layer_scale

    @property
    def is_convnext_v1(self) -> bool:
        """Whether Transformers' `convnext` is the same model, which has V1's blocks and no decoder."""
        return self.has_v1_blocks and self.model_type == ConvNextV2Config.model_type

    def to_dict(self) -> dict[str, Any]:
        """As in Transformers. A model of ConvNeXt V1 has its type; without LayerScale there is no setting for it."""
        settings = super().to_dict()
        if not self.has_layer_scale:
            return without(settings, ["layer_scale_init_value"])
        if self.is_convnext_v1:
            classes = [name.replace("ConvNextV2", "ConvNext") for name in settings.get("architectures") or []]
            settings |= {"model_type": V1_MODEL_TYPE, "architectures": classes or None}
        return settings

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As `CheckedConfig.from_dict`, also of the settings of a `ConvNextConfig`."""
        if config_dict.get("model_type") == V1_MODEL_TYPE:
            config_dict = as_model_type(config_dict, cls)
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in Transformers, reading the folder of an FCMAE model as its encoder's (and the other way round).

        That of a ConvNeXt V1 is read as that of a model with its blocks.
        """
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        known = (ConvNextV2Config.model_type, FCMAE_MODEL_TYPE, V1_MODEL_TYPE)
        cls._refuse_other_type(pretrained_model_name_or_path, config_dict, known)
        if config_dict.get("model_type", cls.model_type) in known:
            config_dict = as_model_type(config_dict, cls)
        return config_dict, kwargs


@strict
class ConvNextV2FCMAEConfig(PreTrainingConfig, ConvNextV2Config):
    """An encoder's configuration plus that of its FCMAE pre-training (paper, section 3 and Table 8).

    Args:
        mask_ratio: share of the cells hidden from the encoder; `None` resolves to 0.6, or as `num_visible_sets` says.
        num_visible_sets: K > 1 shares the cells of an image out to K sets, each of which a view of its own shows to the
            encoder, in one pass (FastConvMAE's complementary masking); it hides 1 - 1/K of the cells from each.
        norm_pix_loss: regress each cell's pixels normalised by that cell's mean and standard deviation.
        decoder_hidden_size: width of the decoder (paper, Table 1d).
        decoder_num_hidden_layers: number of ConvNeXt V2 blocks in the decoder (paper, Table 1c).
        fusion_stages: earlier stages, e.g. `["stage1", "stage2"]`, whose maps are added to the decoder's input
            (ConvMAE's multi-scale fusion).
        target_type: "pixel", "feature" or "pixel+feature": what is predicted. Features are given to `forward`.
        feature_target_dim: channels of the features; `None` resolves to the encoder's own.
        feature_target_on: "visible": the encoder mimics the features of visible cells; "masked": the decoder predicts
            those of hidden ones.
        feature_loss: "smooth_l1", "mse" or "cosine".
        feature_loss_weight: weight of the features' loss beside that of the pixels.
    """

    model_type = FCMAE_MODEL_TYPE

    def __post_init__(self, **kwargs: Any) -> None:
        self._resolve_mask_ratio()
        if not isinstance(self.patch_size, int):
            raise ValueError(f"`patch_size` (={self.patch_size}) must be one integer: FCMAE hides square cells.")
        super().__post_init__(**kwargs)
        self._check_pretraining(len(self.depths), self.hidden_sizes[-1])

    @property
    def cell_size(self) -> int:
        """Side of a cell in pixels: 32 for the published sizes."""
        assert isinstance(self.patch_size, int)
        return self.patch_size * 2 ** (len(self.depths) - 1)

    @property
    def target_size(self) -> int:
        """Side in pixels of what the decoder predicts at a time: a cell."""
        return self.cell_size


_PRETRAINING_FIELDS = {f.name for f in fields(ConvNextV2FCMAEConfig)} - {f.name for f in fields(ConvNextV2Config)}


def as_model_type(config_dict: dict[str, Any], config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """The same folder's settings read as `config_class`: an encoder's configuration keeps no pre-training field.

    Neither does it keep the map to the code that a published pre-training model may carry. The settings of a
    `ConvNextConfig` get those that tell its blocks from V2's.
    """
    if config_dict.get("model_type") == V1_MODEL_TYPE:
        config_dict = {"layer_scale_init_value": V1_LAYER_SCALE, **config_dict, "use_grn": False}
    if config_class.model_type != FCMAE_MODEL_TYPE and config_dict.get("model_type") == FCMAE_MODEL_TYPE:
        config_dict = without(config_dict, {*_PRETRAINING_FIELDS, "auto_map"})
    return {**config_dict, "model_type": config_class.model_type}
