"""What the configurations of all families share: overrides that are checked, and the settings of pre-training."""

import math
from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

FOLLOWS_DEPTHS = ("num_stages", "stage_names", "out_features", "out_indices")
# What `PreTrainingConfig` offers by name.
CHOICES = {
    "target_type": ("pixel", "feature", "pixel+feature"),
    "feature_target_on": ("visible", "masked"),
    "feature_loss": ("smooth_l1", "mse", "cosine"),
}


def height_and_width(size: int | Sequence[int], name: str = "image_size") -> tuple[int, int]:
    """Both sides of an image, a patch or a cell, whose setting has this name; one number stands for a square."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, str) or len(size) != 2 or not all(isinstance(side, int) for side in size):
        raise ValueError(f"`{name}` (={size!r}) must be a number of pixels, or height and width.")
    height, width = size
    return height, width


def without(settings: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The settings but for some."""
    return {name: value for name, value in settings.items() if name not in names}


class CheckedConfig(PreTrainedConfig):
    """A configuration all of whose settings are checked together."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in Transformers, but overrides are checked together with the rest instead of being set afterwards."""
        names = {field.name for field in fields(cls)} - {"dtype"}
        overrides = {name: value for name, value in kwargs.items() if name in names}
        if "depths" in overrides:
            config_dict = without(config_dict, FOLLOWS_DEPTHS)
        return super().from_dict({**config_dict, **overrides}, **without(kwargs, names))

    @classmethod
    def _refuse_other_type(cls, source: Any, config_dict: dict[str, Any], known: Sequence[str]) -> None:
        """Raise if the settings of a folder or Hub id are those of another type of model, and hold none of these."""
        stored = config_dict.get("model_type", cls.model_type)
        nested = {value.get("model_type") for value in config_dict.values() if isinstance(value, dict)}
        if stored not in known and not nested & set(known):
            *others, last = (f"`{name}`" for name in known)
            listed = f"{', '.join(others)} or {last}" if others else last
            raise ValueError(
                f"`{source}` (of type `{stored}`) must be a {listed} model for {cls.__name__}. Load it with its own "
                "class or with AutoModel."
            )

    def _check_channels_and_drop_path(self: Any) -> None:
        """Raise unless images have channels, and the rate of stochastic depth is a share."""
        if self.num_channels < 1:
            raise ValueError(f"`num_channels` (={self.num_channels}) must be at least 1.")
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"`drop_path_rate` (={self.drop_path_rate}) must be in [0, 1).")


@strict
class PreTrainingConfig(CheckedConfig):
    """The settings of masked pre-training: what is hidden, what is predicted, and the size of the decoder."""

    default_mask_ratio: ClassVar[float] = 0.6

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

    def _check_pretraining(self, num_stages: int, hidden_size: int) -> None:
        """Check what follows from an encoder of so many stages, the last one `hidden_size` wide; fill in the rest."""
        if min(self.decoder_hidden_size, self.decoder_num_hidden_layers) < 1:
            raise ValueError(
                f"`decoder_hidden_size` (={self.decoder_hidden_size}) and `decoder_num_hidden_layers` "
                f"(={self.decoder_num_hidden_layers}) must be at least 1."
            )
        self._check_fusion_stages(num_stages)
        self._check_targets(hidden_size)

    def _check_fusion_stages(self, num_stages: int) -> None:
        """Raise unless they are stages before the last, each once."""
        earlier, stages = [f"stage{index}" for index in range(1, num_stages)], list(self.fusion_stages)
        if len(set(stages)) != len(stages) or not set(stages) <= set(earlier):
            raise ValueError(f"`fusion_stages` (={stages}) must be some of {earlier}, each once.")

    def _check_targets(self, hidden_size: int) -> None:
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
            self.feature_target_dim = hidden_size
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
            single = self.num_visible_sets == 1
            self.mask_ratio = self.default_mask_ratio if single else 1 - 1 / self.num_visible_sets
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
        """As `CheckedConfig.from_dict`; what is overridden takes what follows from it along."""
        follows = set()
        if kwargs.get("num_visible_sets") not in (None, config_dict.get("num_visible_sets", 1)):
            follows.add("mask_ratio")
        if kwargs.get("target_type") == "pixel":
            follows.add("feature_target_dim")
        return super().from_dict(without(config_dict, follows), **kwargs)
