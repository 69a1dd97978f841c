"""Settings of masked pre-training: masking, decoder and prediction targets.

FCMAE: the paper's section 3 and Table 8. ConvMAE: arXiv 2205.03892, section 3.
"""

import re
from dataclasses import dataclass
from typing import Literal

from training.settings.checks import check, check_at_least, check_finite
from training.settings.families import CONVMAE
from training.settings.fields import operation, recipe

TARGET_TYPES = ("pixel", "feature", "pixel+feature")
CELLS = ("visible", "masked")
FEATURE_LOSSES = ("smooth_l1", "mse", "cosine")
WITHOUT_FEATURES = (None, "pixel")  # values of `target_type`


@dataclass(kw_only=True)
class MaskedAutoencoderSettings:
    """Masking and decoder."""

    mask_ratio: float | None = recipe(
        None,
        "share of cells hidden from the encoder (default: the model's, 0.6; of ConvMAE 0.75; with K visible sets:"
        " 1 - 1/K)",
    )
    cell_size: int | None = recipe(
        None,
        "ConvMAE only: side in pixels of what is hidden together, a multiple of a token's (default: the model's, 16)",
        family=CONVMAE,
    )
    num_visible_sets: int | None = recipe(
        None,
        "K > 1: divide the cells among K views of an image and train on all of them in one pass (default: the"
        " model's, 1)",
    )
    norm_pix_loss: bool | None = recipe(
        None, "predict pixels normalised within each cell, or token of ConvMAE (default: the model's, true)"
    )
    decoder_hidden_size: int | None = recipe(
        None, "channels of the decoder (default: the model's, 512 of published sizes)", on_resume="refuse"
    )
    decoder_num_hidden_layers: int | None = recipe(
        None, "blocks of the decoder (default: the model's, 1; of ConvMAE 8)", on_resume="refuse"
    )
    decoder_num_attention_heads: int | None = recipe(
        None,
        "ConvMAE only: attention heads of the decoder (default: the model's, 16)",
        on_resume="refuse",
        family=CONVMAE,
    )
    fusion_stages: list[str] | None = recipe(
        None,
        "earlier stages whose features the decoder receives too, e.g. stage1 stage2, or none (default: the model's,"
        " none; of ConvMAE stage1 stage2)",
        on_resume="refuse",
    )
    reconstruction_steps: int | None = operation(
        None, "optimizer steps between saved pictures of reconstructions (default: at most 20 pictures per run)"
    )

    def __post_init__(self) -> None:
        check_finite(self)
        check("mask_ratio", self.mask_ratio, self.mask_ratio is None or 0 < self.mask_ratio < 1, "be in (0, 1)")
        counts = ("num_visible_sets", "cell_size", "decoder_hidden_size", "decoder_num_hidden_layers")
        check_at_least(self, (*counts, "decoder_num_attention_heads", "reconstruction_steps"), 1)
        if self.fusion_stages == ["none"]:
            self.fusion_stages = []
        stages = self.fusion_stages
        named = all(re.fullmatch(r"stage\d+", stage) for stage in stages or [])
        check("fusion_stages", stages, named, "be names of stages: stage1, stage2, ..., or none")


@dataclass(kw_only=True)
class TargetSettings:
    """Prediction target: pixels, or the features of a teacher."""

    target_type: str | None = recipe(None, "pixel, feature or pixel+feature (default: pixel)", on_resume="refuse")
    feature_target_on: str | None = recipe(
        None, "cells whose features are predicted: visible or masked (default: visible)", on_resume="refuse"
    )
    feature_loss: str | None = recipe(None, "smooth_l1, mse or cosine (default: smooth_l1)")
    feature_loss_weight: float | None = recipe(None, "weight of the feature loss (default: 1)")
    feature_target_layers: int = recipe(
        1,
        "number of the teacher's last layers whose features are averaged",
        unused_with=("target_type", WITHOUT_FEATURES),
    )
    feature_target_norm: Literal["layer_norm", "none"] = recipe(
        "layer_norm", "normalisation of the features", unused_with=("target_type", WITHOUT_FEATURES)
    )
    teacher_name_or_path: str | None = recipe(
        None, "frozen vision model whose features are predicted (default: the average of the model's own weights)"
    )
    teacher_revision: str | None = recipe(None, "revision of the teacher on the Hub (default: main)")
    teacher_decay: list[float] = recipe(
        [0.999, 0.9999],
        "decay of the average of the model's own weights, at the start and at the end of the run",
        overridden_by="teacher_name_or_path",
        unused_with=("target_type", WITHOUT_FEATURES),
    )

    def __post_init__(self) -> None:
        check_finite(self)
        check_at_least(self, ("feature_target_layers",), 1)
        choices = {"target_type": TARGET_TYPES, "feature_target_on": CELLS, "feature_loss": FEATURE_LOSSES}
        for name, known in choices.items():
            value = getattr(self, name)
            check(name, value, value is None or value in known, f"be one of {', '.join(known)}")
        decays = self.teacher_decay
        ordered = len(decays) == 2 and 0 <= decays[0] <= decays[1] < 1
        check("teacher_decay", decays, ordered, "be two numbers, 0 <= first <= last < 1")
        taught = self.teacher_name_or_path is None or self.target_type in ("feature", "pixel+feature")
        check("target_type", self.target_type, taught, "be feature or pixel+feature with `teacher_name_or_path`")
        revised = self.teacher_revision is None or self.teacher_name_or_path is not None
        check("teacher_revision", self.teacher_revision, revised, "come with `teacher_name_or_path`")
