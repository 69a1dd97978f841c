"""The settings of analyze.py: what is looked at in a trained model, on which images, and where the results go."""

from dataclasses import dataclass
from pathlib import Path

from conversion.analyses import CAPTIONS, RECORD
from training.settings.checks import check, check_at_least, may_be_there
from training.settings.fields import REQUIRED, operation, recipe
from training.settings.model import ModelSettings
from training.settings.pooling import POOLINGS, PoolingSettings
from training.settings.prediction import PredictDataSettings, check_outside
from training.settings.scripts import Settings

DIVERSITY, ACTIVATIONS, CONTEXT, LAYERS = ANALYSES = tuple(CAPTIONS)
ALL_BLOCKS = ["all"]


@dataclass(kw_only=True)
class AnalysisSettings:
    """Analyses."""

    analyses: list[str] | None = recipe(
        None,
        "diversity: how different the channels of each block are; activations: maps of a photograph; context: what the"
        " reconstruction of a hidden cell depends on; layers: nearest neighbours and a linear probe on each layer, of"
        " labelled images (default: diversity and activations, and context of a pre-training model)",
    )
    max_images: int = recipe(256, "images that diversity is measured on, drawn by seed; of a stream the first ones")
    compared_with: list[str] | None = recipe(
        None, "further models whose diversity is measured on the same images: folders or Hub ids"
    )
    with_checkpoints: bool = recipe(
        False, "also measure the diversity of each checkpoint in the folder of the run that model_name_or_path names"
    )
    photograph: str | None = recipe(
        None, "image file for activations and context (default: the first of the drawn images)"
    )
    blocks: list[str] | None = recipe(
        None,
        "blocks as STAGE.BLOCK, both counted from 1, e.g. 3.6, or all (default: of activations, the last one of the"
        " last stage but one; of layers, the last one of each stage)",
    )
    max_channels: int = recipe(64, "channels of a block that activations draws, spread evenly over all")
    hidden_cell: list[int] | None = recipe(
        None, "row and column, counted from 1, of the hidden cell of context (default: the one in the middle)"
    )

    def __post_init__(self) -> None:
        check_at_least(self, ("max_images", "max_channels"), 1)
        for name, values in (
            ("analyses", self.analyses),
            ("blocks", self.blocks),
            ("compared_with", self.compared_with),
        ):
            check(name, values, values is None or bool(values), "name one or more")
            check(name, values, len(set(values or [])) == len(values or []), "name each one once")
        known = set(self.analyses or []) <= set(ANALYSES)
        check("analyses", self.analyses, known, f"be some of {', '.join(ANALYSES)}")
        for name in self.compared_with or []:
            check("compared_with", name, may_be_there(name), "be a folder that exists, or a Hub id")
        file = self.photograph
        check("photograph", file, file is None or Path(file).expanduser().is_file(), "be an image file that exists")
        cell = self.hidden_cell
        check("hidden_cell", cell, cell is None or (len(cell) == 2 and min(cell) >= 1), "be a row and a column, from 1")
        self.check_used()

    def check_used(self) -> None:
        """Raise if a setting is given for an analysis that is not asked for."""
        asked = set(self.analyses or (DIVERSITY, ACTIVATIONS, CONTEXT))
        users = {
            "compared_with": {DIVERSITY},
            "with_checkpoints": {DIVERSITY},
            "photograph": {ACTIVATIONS, CONTEXT},
            "blocks": {ACTIVATIONS, LAYERS},
            "hidden_cell": {CONTEXT},
        }
        for name, analyses in users.items():
            value = getattr(self, name)
            check(name, value, not value or bool(asked & analyses), f"come with {' or '.join(sorted(analyses))}")


@dataclass(kw_only=True)
class LayerSettings:
    """Labels and pooling, for layers."""

    label_column: str = recipe("label", "column that holds the class of each image")
    train_split: str = recipe("train", "split that nearest neighbours and the linear probe are fitted on")
    eval_split: str | None = recipe(
        None, "split to measure on (default: validation, else val, dev or test; else train_val_split)"
    )
    train_val_split: float = recipe(
        0.25,
        "without a split to measure on: hold out this share of the training images of each class",
        overridden_by="eval_split",
    )
    pooling: list[str] = recipe(["mean", "max"], f"how maps are pooled: some of {', '.join(POOLINGS)}")

    def __post_init__(self) -> None:
        PoolingSettings(pooling=self.pooling)  # which checks it
        check("train_val_split", self.train_val_split, 0 < self.train_val_split < 1, "be in (0, 1)")


@dataclass(kw_only=True)
class AnalysisOutputSettings:
    """Output."""

    output_dir: str = operation(REQUIRED, "folder for the pictures, the figures as JSON, and README.md")
    overwrite: bool = operation(False, "replace an analysis that output_dir holds")

    def __post_init__(self) -> None:
        check("output_dir", self.output_dir, bool(self.output_dir), "be given")
        folder = Path(self.output_dir)
        check("output_dir", self.output_dir, folder.is_dir() or not folder.exists(), "be a folder")
        held = folder.is_dir() and any(folder.iterdir())
        rule = "be empty or hold an earlier analysis, but it holds something else"
        check("output_dir", self.output_dir, not held or (folder / RECORD).is_file(), rule)
        rule = "not hold an analysis: give another folder, or replace it with `--overwrite true`"
        check("output_dir", self.output_dir, not held or self.overwrite, rule)


class AnalyzeSettings(Settings):
    """What a trained model has learned."""

    task = "analyze"

    data: PredictDataSettings
    model: ModelSettings
    analysis: AnalysisSettings
    layers: LayerSettings
    output: AnalysisOutputSettings

    def check(self) -> None:
        self.model.check_given()
        check_outside(self.data.dataset_name, output_dir=Path(self.output.output_dir))
        asked = LAYERS in (self.analysis.analyses or ())
        rule = "be false for layers: the labels of a stream cannot be drawn"
        check("streaming", self.data.streaming, not (asked and self.data.streaming), rule)
