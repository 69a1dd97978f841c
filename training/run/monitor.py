"""Regular checks of a pre-training run: reconstructions of a few fixed images, and the diversity of the features."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from training.data.samples import Batch
from training.evaluation.diversity import block_diversity
from training.evaluation.pictures import save_reconstructions
from training.models.families import PreTrainingModel
from training.run.sharding import gathered
from training.run.trackers import show_picture


class Monitor:
    """Runs the model on a few fixed images. Every process has to call it: the weights may be sharded over all."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: PreTrainingModel,
        read_images: Callable[[], Batch],
        processor: Any,
    ) -> None:
        self.accelerator = accelerator
        self.model = model
        self.read_images = read_images
        self.processor = processor

    def read(self) -> None:
        """Read the images, before the first step: later, a process that has forked would wait for a remote source."""
        images = self.read_images()
        # The images and the noise that determines their masks.
        self.images = {name: images[name].to(self.accelerator.device) for name in ("pixel_values", "noise")}

    def __call__(self, folder: Path, step: int) -> dict[str, float]:
        """Write `reconstructions/step-{step}.png`, show it to the trackers, and return the diversity by stage."""
        file = folder / "reconstructions" / f"step-{step}.png"
        with evaluating(self.model), self.accelerator.autocast():
            diversity = feature_diversity(self.model, self.images["pixel_values"])
            self.save_picture(self.model, file)
        if self.accelerator.is_main_process and file.is_file():
            show_picture(self.accelerator, file, step)
        return {f"feature_diversity_stage{stage}": value for stage, value in enumerate(diversity, start=1)}

    def save_picture(self, model: PreTrainingModel, file: Path) -> None:
        """Draw the model's reconstructions from the first view of each image, if it makes any.

        The main process writes the file.
        """
        if model.config.target_type == "feature":
            return
        with evaluating(model):
            outputs = model(**self.images)
        if self.accelerator.is_main_process:
            mean, std = self.processor.image_mean, self.processor.image_std
            save_reconstructions(model, outputs, self.images["pixel_values"], mean, std, file)


def feature_diversity(model: PreTrainingModel, pixel_values: Tensor) -> list[float]:
    """Mean cosine distance between the channels of each stage's last block, on whole images (paper, section 3.1).

    The channels are the 4C channels after GRN, or after GELU without GRN. The distance is 0.5 if the channels are
    orthogonal on average, and goes towards 0 if they all become the same, as in a feature collapse.
    """
    encoder: Any = model.base_model
    blocks = [stage.layers[-1] for stage in encoder.encoder.stages]
    with gathered(model):
        return [distances.mean().item() for distances in block_diversity(encoder, blocks, pixel_values)]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode without gradients, and restore its mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
