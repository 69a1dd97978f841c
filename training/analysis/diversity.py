"""Feature diversity in every block of a model, of several models beside each other, and over training.

The paper's Figure 4: the mean cosine distance of the channels of a block, against the depth of the block.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from training.analysis.blocks import all_blocks, outputs_seen
from training.analysis.drawing import save_diversity
from training.analysis.subject import Subject
from training.evaluation.diversity import block_diversity, cosine_distances
from training.prediction.encoders import StoredEncoder
from training.prediction.models import config_of_model, has_our_encoder, what_is
from training.run.checkpoints import NAME, numbered_folders
from training.settings.analysis import DIVERSITY
from training.settings.checks import check
from training.settings.model import ModelSettings

WIDE, OUTPUT = "wide", "output"  # the widest features of a block, those of its MLP, and its output


class Curve(NamedTuple):
    """A model whose diversity is measured; `step` of a checkpoint."""

    title: str
    model: ModelSettings
    step: int | None = None


class Diversity:
    """The diversity of all blocks of the models."""

    name = DIVERSITY

    def __init__(self, subject: Subject, run: str) -> None:
        """`run`: the folder whose checkpoints are measured, if that is asked for."""
        self.subject = subject
        settings = subject.settings
        self.curves = [Curve(settings.model.model_name_or_path or "", settings.model)]
        if settings.analysis.with_checkpoints:
            self.curves = curves_of_run(run, settings.model)
        for name in settings.analysis.compared_with or []:
            model = replace(settings.model, model_name_or_path=name, model_revision=None)
            check_comparable(name, model, subject.encoder.num_channels)
            self.curves.append(Curve(name, model))

    def measure(self) -> dict[str, Any]:
        """The diversity of each block of each model, as diversity.json has it."""
        models = []
        for curve in self.curves:
            is_own = curve.model == self.subject.settings.model
            encoder = self.subject.encoder if is_own else self.subject.load(curve.model)
            measured, num_images = self.diversity_of(encoder)
            models.append({"model": curve.title, "step": curve.step, "images": num_images, "blocks": measured})
        return {"models": models}

    def diversity_of(self, encoder: StoredEncoder) -> tuple[list[dict[str, Any]], int]:
        """Mean over the images of each block, and the number of images."""
        blocks = all_blocks(encoder.model)
        parts = list(self.distances_of(encoder))
        means = {name: torch.cat([part[name] for part in parts], dim=1).mean(dim=1).tolist() for name in (WIDE, OUTPUT)}
        rows = zip(blocks, means[WIDE], means[OUTPUT], strict=True)
        found = [{"block": block.name, WIDE: wide, OUTPUT: output} for block, wide, output in rows]
        return found, sum(part[WIDE].shape[1] for part in parts)

    def distances_of(self, encoder: StoredEncoder) -> Iterator[dict[str, Tensor]]:
        """The distances `(blocks, B)` of both kinds of features, for each batch."""
        size = self.subject.settings.data.per_device_eval_batch_size
        for pixel_values in self.subject.pixel_values(encoder.processor, size):
            yield distances_in(encoder.model, pixel_values)

    def save_picture(self, found: dict[str, Any], file: Path) -> None:
        """Draw a curve for each model."""
        save_diversity(found["models"], file)

    def sentence(self, found: dict[str, Any]) -> str:
        """What was measured, in words."""
        lines = []
        for model in found["models"]:
            values = {row["block"]: row[WIDE] for row in model["blocks"]}
            least = min(values, key=lambda name: values[name])
            first, last = (model["blocks"][index][WIDE] for index in (0, -1))
            lines.append(
                f"- {model['model']}: {first:.3f} in the first block, {last:.3f} in the last one, "
                f"least {values[least]:.3f} in block {least}"
            )
        kind = f"mean cosine distance of the channels of each block's MLP, {found['models'][0]['images']:,} images"
        return "\n".join([f"Feature diversity ({kind}; 0: all channels the same, 0.5: orthogonal on average):", *lines])


def distances_in(model: Any, pixel_values: Tensor) -> dict[str, Tensor]:
    """The distances `(blocks, B)` of both kinds of features of an encoder, for prepared images."""
    blocks, output = all_blocks(model), list[Tensor]()
    with outputs_seen(model, blocks, pixel_values, lambda features: output.append(cosine_distances(features))):
        wide = block_diversity(model, [block.module for block in blocks], pixel_values)
    return {WIDE: torch.stack(wide).cpu(), OUTPUT: torch.stack(output).cpu()}


def curves_of_run(run: str, model: ModelSettings) -> list[Curve]:
    """The checkpoints of a run, and its final model if there is one."""
    folder = Path(run).expanduser()
    checkpoints = numbered_folders(folder) if folder.is_dir() else []
    rule = "be the folder of a run that holds checkpoints, with `with_checkpoints`"
    check("model_name_or_path", run, bool(checkpoints), rule)
    curves = []
    for checkpoint in checkpoints:
        match = NAME.fullmatch(checkpoint.name)
        assert match is not None
        settings = replace(model, model_name_or_path=str(checkpoint))
        curves.append(Curve(f"step {int(match[1]):,}", settings, int(match[1])))
    has_model = (folder / "config.json").is_file()
    return [*curves, Curve("final model", model)] if has_model else curves


def check_comparable(name: str, model: ModelSettings, num_channels: int) -> None:
    """Raise unless a model has an encoder of this package that takes the same images."""
    stored = config_of_model(model)
    rule = f"be models with an encoder of this package, but it is a {what_is(stored)}"
    check("compared_with", name, has_our_encoder(stored), rule)
    channels = (stored.get("backbone_config") or stored).get("num_channels", 3)
    fits = (model.num_channels or channels) == num_channels
    check("compared_with", name, fits, f"take images of {num_channels} channels, but takes {channels}")
