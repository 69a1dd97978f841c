"""What a classifier says of a visitor's picture."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForImageClassification

from .loading import load
from .pictures import open_picture, to_pixel_values
from .settings import FLAGS, MODEL

MULTI_LABEL, REGRESSION = "multi_label_classification", "regression"


class Classifier:
    """The classifier of a folder or Hub id: of one class for each image, of several, or of values.

    Raises:
        ValueError: if it is another model, or one of values whose run is not finished.
    """

    def __init__(self, name: str) -> None:
        self.loaded = load(
            MODEL, name, AutoModelForImageClassification, "ForImageClassification", "an image classifier"
        )
        config = self.loaded.model.config
        if getattr(config, "label_std", None) is not None:
            raise ValueError(
                f"`{MODEL}` or `{FLAGS[MODEL]}` (={name}) must be of a finished run: its config.json has `label_mean` "
                "and `label_std`, so that it answers on the scale of training, not in the units of the values."
            )
        names = [name for _, name in sorted((config.id2label or {}).items())]
        twice = len(set(names)) < len(names)
        self.names = [f"{number} {name}" for number, name in enumerate(names)] if twice else names
        self.problem_type: str | None = getattr(config, "problem_type", None)

    @property
    def gives_one_class(self) -> bool:
        """Whether an image has one class, so that the scores add up to 1."""
        return self.problem_type not in (MULTI_LABEL, REGRESSION) and len(self.names) > 1

    @torch.inference_mode()
    def __call__(self, file: str | Path | None) -> dict[str, float] | str:
        """The score of each class, in [0, 1], as of Transformers' pipeline; of a model of values, these as a text.

        Raises:
            BadPictureError: if the file is no picture that can be used.
        """
        model, processor = self.loaded.model, self.loaded.processor
        pixel_values = to_pixel_values(open_picture(file, processor, self.loaded.num_channels), processor)
        (logits,) = model(pixel_values=pixel_values.to(model.device)).logits.float().cpu()
        if self.problem_type == REGRESSION:
            values = zip(self.names, logits.tolist(), strict=True)
            return ", ".join(f"{name}: {np.float32(value)}" for name, value in values)
        scores = logits.softmax(-1) if self.gives_one_class else logits.sigmoid()
        return dict(zip(self.names, scores.tolist(), strict=True))
