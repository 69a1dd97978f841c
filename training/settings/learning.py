"""Settings of the training length, the learning rate and the optimizer."""

from dataclasses import dataclass
from typing import Literal

from training.settings.checks import check, check_at_least, check_below_one, check_finite, check_positive
from training.settings.fields import recipe

DecayType = Literal["single", "group", "group_v1", "stage"]
LAYERS = (
    "what counts as a layer: one block (single), three (group; group_v1: with fewer layers in small models, as in"
    " ConvNeXt's first version), or a whole stage (stage)"
)


@dataclass(kw_only=True)
class ScheduleSettings:
    """Length of the run and learning rate schedule."""

    gradient_accumulation_steps: int = recipe(1, "forward and backward passes per optimizer step", on_resume="ignore")
    num_train_epochs: float = recipe(100, "passes over the data", on_resume="ignore", overridden_by="max_train_steps")
    max_train_steps: int | None = recipe(None, "optimizer steps (default: from num_train_epochs)", on_resume="ignore")
    base_learning_rate: float = recipe(
        1.5e-4,
        "learning rate for a total batch of 256, scaled linearly to the actual one",
        on_resume="ignore",
        overridden_by="learning_rate",
    )
    learning_rate: float | None = recipe(
        None, "learning rate, not scaled (default: from base_learning_rate)", on_resume="ignore"
    )
    min_learning_rate: float = recipe(0.0, "learning rate at the end of the schedule, unless it goes in steps")
    lr_scheduler_type: Literal["cosine", "polynomial", "step"] = recipe(
        "cosine", "schedule of the learning rate after the warm-up; polynomial: a straight line"
    )
    lr_step_epochs: list[float] = recipe(
        [],
        "with lr_scheduler_type step: epochs after which the learning rate is divided by 10 (default: none)",
        unused_with=("lr_scheduler_type", ("cosine", "polynomial")),
    )
    warmup_epochs: float = recipe(0.0, "epochs of linear warm-up", overridden_by="warmup_steps")
    warmup_steps: int | None = recipe(None, "optimizer steps of linear warm-up (default: from warmup_epochs)")

    def __post_init__(self) -> None:
        check_finite(self)
        check_at_least(self, ("gradient_accumulation_steps", "max_train_steps"), 1)
        check_at_least(self, ("min_learning_rate", "warmup_epochs", "warmup_steps"), 0)
        check_positive(self, ("num_train_epochs", "base_learning_rate", "learning_rate"))
        kinds = ("cosine", "polynomial", "step")
        check("lr_scheduler_type", self.lr_scheduler_type, self.lr_scheduler_type in kinds, f"be {', '.join(kinds)}")
        steps, is_step = self.lr_step_epochs, self.lr_scheduler_type == "step"
        check("lr_step_epochs", steps, bool(steps) == is_step, "be given with `lr_scheduler_type step`, and only then")
        ascending = steps == sorted(set(steps)) and all(epoch > 0 for epoch in steps)
        check("lr_step_epochs", steps, ascending, "be positive and ascending")


@dataclass(kw_only=True)
class DenseScheduleSettings(ScheduleSettings):
    """Length of the run and learning rate schedule of segmentation and detection."""

    base_learning_rate: float = recipe(
        1.6e-3,  # 1e-4 for a batch of 16
        "learning rate for a total batch of 256, scaled linearly to the actual one",
        on_resume="ignore",
        overridden_by="learning_rate",
    )
    lr_scheduler_type: Literal["cosine", "polynomial", "step"] = recipe(
        "polynomial", "schedule of the learning rate after the warm-up; polynomial: a straight line"
    )


@dataclass(kw_only=True)
class OptimizerSettings:
    """AdamW and weight averaging."""

    weight_decay: float = recipe(0.05, "weight decay of linear and convolution layers")
    adam_beta1: float = recipe(0.9, "AdamW's first beta")
    adam_beta2: float = recipe(0.999, "AdamW's second beta")
    max_grad_norm: float | None = recipe(None, "largest gradient norm; a larger one is clipped (default: no clipping)")
    ema_decay: float = recipe(0.0, "decay of a moving average of the weights, which becomes the final model; 0: off")

    def __post_init__(self) -> None:
        check_finite(self)
        check_at_least(self, ("weight_decay",), 0)
        check_positive(self, ("max_grad_norm",))
        check_below_one(self, "adam_beta1", "adam_beta2", "ema_decay")


@dataclass(kw_only=True)
class PretrainOptimizerSettings(OptimizerSettings):
    """AdamW and weight averaging in pre-training."""

    adam_beta2: float = recipe(0.95, "AdamW's second beta")
    decay_grn_and_mask_token: bool = recipe(
        False, "weight decay on GRN and the mask token too, as in the official code"
    )


@dataclass(kw_only=True)
class FinetuneOptimizerSettings(OptimizerSettings):
    """AdamW, layer-wise learning rates and weight averaging."""

    layer_decay: float = recipe(1.0, "factor on the learning rate from one layer to the one below it")
    layer_decay_type: DecayType = recipe(
        "single",
        LAYERS,
        unused_with=("layer_decay", (1.0,)),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check("layer_decay", self.layer_decay, 0 < self.layer_decay <= 1, "be in (0, 1]")


@dataclass(kw_only=True)
class SegmentOptimizerSettings(FinetuneOptimizerSettings):
    """AdamW, layer-wise learning rates and weight averaging in segmentation."""

    layer_decay_type: DecayType = recipe(
        "stage",
        LAYERS,
        unused_with=("layer_decay", (1.0,)),
    )
