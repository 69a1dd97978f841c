"""Configurations of ConvNeXt V2 and of its FCMAE pre-training (arXiv 2301.00808); every setting is checked here."""

import math
from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import Any, Self

from huggingface_hub.dataclasses import strict
from transformers import ConvNextV2Config as StockConvNextV2Config
from transformers import PreTrainedConfig

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
FCMAE_MODEL_TYPE = "convnextv2_fcmae"
FOLLOWS_DEPTHS = ("num_stages", "stage_names", "out_features", "out_indices")


def height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    """Both sides of an image, a patch or a cell; one number stands for a square."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def without(settings: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The settings but for some."""
    return {name: value for name, value in settings.items() if name not in names}


@strict
class ConvNextV2Config(StockConvNextV2Config):
    """Transformers' `ConvNextV2Config` with checked settings and a few more; what it saves, stock Transformers reads.

    Args:
        num_stages: number of stages; follows from `depths` and may be left out.
        use_grn: `False` leaves Global Response Normalization out of every block (paper, Table 3: the V1-like ablation).
        head_init_scale: factor on the initial weights of the classifier head (paper, Tables 9 to 13: 0.001).

    Raises:
        ValueError: if a setting breaks its rule; the message names the setting, its value and the rule.
    """

    model_type = "convnextv2"

    num_stages: int | None = None
    hidden_sizes: list[int] | tuple[int, ...] = (96, 192, 384, 768)
    depths: list[int] | tuple[int, ...] = (3, 3, 9, 3)
    use_grn: bool = True
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
        if self.num_channels < 1:
            raise ValueError(f"`num_channels` (={self.num_channels}) must be at least 1.")
        if min(self.patch_sides) < 1:
            raise ValueError(f"`patch_size` (={self.patch_size}) must be at least 1.")
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"`drop_path_rate` (={self.drop_path_rate}) must be in [0, 1).")
        super().__post_init__(**kwargs)

    @classmethod
    def from_size(cls, name: str, **overrides: Any) -> Self:
        """The configuration of a published size (paper, appendix A.1), e.g. `from_size("atto", num_labels=10)`.

        `num_stages=n` keeps the first n stages. Any other field is taken as given.
        """
        if name not in SIZES:
            raise ValueError(f"`name` (={name!r}) must be one of {', '.join(SIZES)}.")
        depths, hidden_sizes = SIZES[name]
        num_stages = overrides.pop("num_stages", len(depths))
        if not isinstance(num_stages, int) or not 1 <= num_stages <= len(depths):
            raise ValueError(f"`num_stages` (={num_stages!r}) must be an integer between 1 and {len(depths)}.")
        stages = {"depths": list(depths[:num_stages]), "hidden_sizes": list(hidden_sizes[:num_stages])}
        return cls(**{**stages, **overrides})

    @property
    def patch_sides(self) -> tuple[int, int]:
        """Height and width in pixels of a patch of the stem."""
        return height_and_width(self.patch_size)

    @property
    def cell_size(self) -> int | tuple[int, int]:
        """Side in pixels of a cell: the image area that one position of the last stage sees through the strides."""
        stride = 2 ** (len(self.depths) - 1)  # of the stages after the stem
        height, width = self.patch_sides[0] * stride, self.patch_sides[1] * stride
        return height if height == width else (height, width)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in Transformers, reading the folder of an FCMAE model as its encoder's (and the other way round)."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        stored = config_dict.get("model_type", cls.model_type)
        nested = [value.get("model_type") for value in config_dict.values() if isinstance(value, dict)]
        if stored in (ConvNextV2Config.model_type, FCMAE_MODEL_TYPE):
            config_dict = as_model_type(config_dict, cls)
        elif cls.model_type not in nested:
            raise ValueError(
                f"`{pretrained_model_name_or_path}` (of type `{stored}`) must be a `{ConvNextV2Config.model_type}` or "
                f"`{FCMAE_MODEL_TYPE}` model for {cls.__name__}. Load it with its own class or with AutoModel."
            )
        return config_dict, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in Transformers, but overrides are checked together with the rest instead of being set afterwards."""
        names = {field.name for field in fields(cls)} - {"dtype"}
        overrides = {name: value for name, value in kwargs.items() if name in names}
        if "depths" in overrides:
            config_dict = without(config_dict, FOLLOWS_DEPTHS)
        return super().from_dict({**config_dict, **overrides}, **without(kwargs, names))


# What `ConvNextV2FCMAEConfig` offers by name.
CHOICES = {
    "target_type": ("pixel", "feature", "pixel+feature"),
    "feature_target_on": ("visible", "masked"),
    "feature_loss": ("smooth_l1", "mse", "cosine"),
}


@strict
class ConvNextV2FCMAEConfig(ConvNextV2Config):
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

    mask_ratio: float | None = None
    num_visible_sets: int = 1
    norm_pix_loss: bool = True
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 1
    fusion_stages: list[str] | tuple[str, ...] = ()
    target_type: str = "pixel"
    feature_target_dim: int | None = None
    feature_target_on: str = "visible"
    feature_loss: str = "smooth_l1"
    feature_loss_weight: float | int = 1.0

    def __post_init__(self, **kwargs: Any) -> None:
        self._resolve_mask_ratio()
        if not isinstance(self.patch_size, int):
            raise ValueError(f"`patch_size` (={self.patch_size}) must be one integer: FCMAE hides square cells.")
        if min(self.decoder_hidden_size, self.decoder_num_hidden_layers) < 1:
            raise ValueError(
                f"`decoder_hidden_size` (={self.decoder_hidden_size}) and `decoder_num_hidden_layers` "
                f"(={self.decoder_num_hidden_layers}) must be at least 1."
            )
        super().__post_init__(**kwargs)
        self._check_fusion_stages()
        self._check_targets()

    def _check_fusion_stages(self) -> None:
        """Raise unless they are stages before the last, each once."""
        earlier, stages = [f"stage{index}" for index in range(1, len(self.depths))], list(self.fusion_stages)
        if len(set(stages)) != len(stages) or not set(stages) <= set(earlier):
            raise ValueError(f"`fusion_stages` (={stages}) must be some of {earlier}, each once.")

    def _check_targets(self) -> None:
        """Raise unless what is predicted, and where, makes sense; resolves `feature_target_dim`."""
        for name, values in CHOICES.items():
            if getattr(self, name) not in values:
                raise ValueError(f"`{name}` (={getattr(self, name)!r}) must be one of {', '.join(values)}.")
        if self.target_type == "feature" and self.feature_target_on == "visible":
            raise ValueError(
                "`target_type` (='feature') must be 'pixel+feature' with `feature_target_on` (='visible'): the decoder "
                "would have nothing to predict."
            )
        if self.feature_target_dim is None and self.target_type != "pixel":
            self.feature_target_dim = self.hidden_sizes[-1]
        dim = self.feature_target_dim
        if dim is not None and (self.target_type == "pixel" or dim < 1):
            raise ValueError(
                f"`feature_target_dim` (={dim}) must be at least 1, and None with `target_type` (='pixel')."
            )
        if not 0 < self.feature_loss_weight < math.inf:
            raise ValueError(f"`feature_loss_weight` (={self.feature_loss_weight}) must be positive and finite.")

    def _resolve_mask_ratio(self) -> None:
        """Fill in and check the share of hidden cells."""
        if self.num_visible_sets < 1:
            raise ValueError(f"`num_visible_sets` (={self.num_visible_sets}) must be at least 1.")
        if self.mask_ratio is None:
            self.mask_ratio = 0.6 if self.num_visible_sets == 1 else 1 - 1 / self.num_visible_sets
        self.validate_mask_ratio()

    def validate_mask_ratio(self) -> None:
        """Raise unless the ratio is one of `num_visible_sets`; also called before the configuration is saved."""
        complementary = 1 - 1 / self.num_visible_sets
        if self.mask_ratio is None or not 0 < self.mask_ratio < 1:
            raise ValueError(f"`mask_ratio` (={self.mask_ratio}) must be in (0, 1).")
        if self.num_visible_sets > 1 and abs(self.mask_ratio - complementary) > 1e-3:
            raise ValueError(
                f"`mask_ratio` (={self.mask_ratio}) must be {complementary:.4g} with `num_visible_sets` "
                f"(={self.num_visible_sets}): each set sees its share of the cells. Leave it out."
            )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As `ConvNextV2Config.from_dict`; what is overridden takes what follows from it along."""
        follows = set()
        if kwargs.get("num_visible_sets") not in (None, config_dict.get("num_visible_sets", 1)):
            follows.add("mask_ratio")
        if kwargs.get("target_type") == "pixel":
            follows.add("feature_target_dim")
        return super().from_dict(without(config_dict, follows), **kwargs)

    @property
    def cell_size(self) -> int:
        """Side of a cell in pixels: 32 for the published sizes."""
        assert isinstance(self.patch_size, int)
        return self.patch_size * 2 ** (len(self.depths) - 1)


_PRETRAINING_FIELDS = {f.name for f in fields(ConvNextV2FCMAEConfig)} - {f.name for f in fields(ConvNextV2Config)}


def as_model_type(config_dict: dict[str, Any], config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """The same folder's settings read as `config_class`: an encoder's configuration keeps no pre-training field.

    Neither does it keep the map to the code that a published pre-training model may carry.
    """
    if config_class.model_type != FCMAE_MODEL_TYPE and config_dict.get("model_type") == FCMAE_MODEL_TYPE:
        config_dict = without(config_dict, {*_PRETRAINING_FIELDS, "auto_map"})
    return {**config_dict, "model_type": config_class.model_type}
