"""Settings of the training length, the learning rate and the optimizer."""

from dataclasses import dataclass
from typing import Literal

from training.settings.checks import check, check_at_least, check_below_one, check_finite, check_positive
from training.settings.fields import recipe


@dataclass(kw_only=True)
class ScheduleSettings:
    """The length of a run and its learning rate."""

    gradient_accumulation_steps: int = recipe(1, "forward passes for an optimizer step", on_resume="ignore")
    num_train_epochs: float = recipe(100, "passes over the data", on_resume="ignore", overridden_by="max_train_steps")
    max_train_steps: int | None = recipe(
        None, "optimizer steps (default: as num_train_epochs says)", on_resume="ignore"
    )
    base_learning_rate: float = recipe(
        1.5e-4,
        "learning rate for a total batch of 256; scaled linearly",
        on_resume="ignore",
        overridden_by="learning_rate",
    )
    learning_rate: float | None = recipe(
        None, "absolute learning rate (default: as base_learning_rate says)", on_resume="ignore"
    )
    min_learning_rate: float = recipe(0.0, "learning rate at the end of the cosine")
    warmup_epochs: float = recipe(0.0, "epochs of linear warm-up", overridden_by="warmup_steps")
    warmup_steps: int | None = recipe(None, "optimizer steps of linear warm-up (default: as warmup_epochs says)")

    def __post_init__(self) -> None:
        check_finite(self)
        check_at_least(self, ("gradient_accumulation_steps", "max_train_steps"), 1)
        check_at_least(self, ("min_learning_rate", "warmup_epochs", "warmup_steps"), 0)
        check_positive(self, ("num_train_epochs", "base_learning_rate", "learning_rate"))


@dataclass(kw_only=True)
class OptimizerSettings:
    """AdamW and the average of the weights."""

    weight_decay: float = recipe(0.05, "decay of the weights of linear and convolution layers")
    adam_beta1: float = recipe(0.9, "AdamW's first beta")
    adam_beta2: float = recipe(0.999, "AdamW's second beta")
    max_grad_norm: float | None = recipe(None, "clip the gradient's norm to this (default: no clipping)")
    ema_decay: float = recipe(0.0, "average the weights with this decay and save the average; 0: off")

    def __post_init__(self) -> None:
        check_finite(self)
        check_at_least(self, ("weight_decay",), 0)
        check_positive(self, ("max_grad_norm",))
        check_below_one(self, "adam_beta1", "adam_beta2", "ema_decay")


@dataclass(kw_only=True)
class PretrainOptimizerSettings(OptimizerSettings):
    """AdamW and the average of the weights, in pre-training."""

    adam_beta2: float = recipe(0.95, "AdamW's second beta")
    decay_grn_and_mask_token: bool = recipe(False, "decay GRN and the mask token too, as the official pre-training")


@dataclass(kw_only=True)
class FinetuneOptimizerSettings(OptimizerSettings):
    """AdamW and the average of the weights, with learning rates by layer."""

    layer_decay: float = recipe(1.0, "factor of the learning rate from one layer to the one below")
    layer_decay_type: Literal["single", "group"] = recipe(
        "single", "a layer is a block (single) or three (group)", unused_with=("layer_decay", (1.0,))
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check("layer_decay", self.layer_decay, 0 < self.layer_decay <= 1, "be in (0, 1]")
