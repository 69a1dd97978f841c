"""Settings of FCMAE pre-training: masking, decoder and prediction targets (paper, section 3 and Table 8)."""

from dataclasses import dataclass
from typing import Literal

from training.settings.checks import check, check_at_least, check_finite
from training.settings.fields import operation, recipe

WITHOUT_FEATURES = (None, "pixel")  # values of `target_type`


@dataclass(kw_only=True)
class FCMAESettings:
    """FCMAE: what is hidden of an image, and the decoder."""

    mask_ratio: float | None = recipe(None, "share of the cells hidden from the encoder (default: 0.6, or 1 - 1/K)")
    num_visible_sets: int | None = recipe(
        None, "K > 1: share the cells out to K views of an image, trained on in one pass (default: the model's, 1)"
    )
    norm_pix_loss: bool = recipe(True, "regress pixels normalised in each cell")
    decoder_hidden_size: int | None = recipe(
        None, "width of the decoder (default: the model's, 512)", on_resume="refuse"
    )
    decoder_num_hidden_layers: int | None = recipe(
        None, "blocks of the decoder (default: the model's, 1)", on_resume="refuse"
    )
    fusion_stages: list[str] | None = recipe(
        None, "earlier stages that the decoder sees too, e.g. stage1 stage2 (default: none)", on_resume="refuse"
    )
    reconstruction_steps: int | None = operation(
        None, "optimizer steps between pictures of the same images' reconstruction (default: 20 of them in a run)"
    )

    def __post_init__(self) -> None:
        check_finite(self)
        check("mask_ratio", self.mask_ratio, self.mask_ratio is None or 0 < self.mask_ratio < 1, "be in (0, 1)")
        counts = ("num_visible_sets", "decoder_hidden_size", "decoder_num_hidden_layers", "reconstruction_steps")
        check_at_least(self, counts, 1)


@dataclass(kw_only=True)
class TargetSettings:
    """What is predicted: pixels, or features of a teacher."""

    target_type: str | None = recipe(
        None, "pixel, feature or pixel+feature: what is predicted (default: pixel)", on_resume="refuse"
    )
    feature_target_on: str | None = recipe(
        None, "predict the features of visible or masked cells (default: visible)", on_resume="refuse"
    )
    feature_loss: str | None = recipe(None, "smooth_l1, mse or cosine (default: smooth_l1)")
    feature_loss_weight: float | None = recipe(None, "weight of the features' loss (default: 1)")
    feature_target_layers: int = recipe(
        1, "average the teacher's last so many layers", unused_with=("target_type", WITHOUT_FEATURES)
    )
    feature_target_norm: Literal["layer_norm", "none"] = recipe(
        "layer_norm", "how the features are normalised", unused_with=("target_type", WITHOUT_FEATURES)
    )
    teacher_name_or_path: str | None = recipe(
        None, "frozen vision model whose features are predicted (default: the average of the model's own weights)"
    )
    teacher_revision: str | None = recipe(None, "revision of the teacher on the Hub (default: main)")
    teacher_decay: list[float] = recipe(
        [0.999, 0.9999],
        "decay of that average, at first and at last",
        overridden_by="teacher_name_or_path",
        unused_with=("target_type", WITHOUT_FEATURES),
    )

    def __post_init__(self) -> None:
        check_finite(self)
        check_at_least(self, ("feature_target_layers",), 1)
        decays = self.teacher_decay
        ordered = len(decays) == 2 and 0 <= decays[0] <= decays[1] < 1
        check("teacher_decay", decays, ordered, "be two numbers, 0 <= first <= last < 1")
        taught = self.teacher_name_or_path is None or self.target_type in ("feature", "pixel+feature")
        check("target_type", self.target_type, taught, "be feature or pixel+feature with `teacher_name_or_path`")
        revised = self.teacher_revision is None or self.teacher_name_or_path is not None
        check("teacher_revision", self.teacher_revision, revised, "come with `teacher_name_or_path`")
