"""The segmentation models of Transformers that a ConvNeXt V2 backbone is trained in."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Segmenter(NamedTuple):
    """A segmentation model: its name and paper, the Auto class that loads it, and where its backbone's weights lie."""

    name: str
    paper: str
    auto_class: str
    backbone: str


UNIVERSAL = ("AutoModelForUniversalSegmentation", "model.pixel_level_module.encoder.")
# By their `model_type`.
SEGMENTERS = {
    "upernet": Segmenter(
        "UPerNet", "https://arxiv.org/abs/1807.10221", "AutoModelForSemanticSegmentation", "backbone."
    ),
    "mask2former": Segmenter("Mask2Former", "https://arxiv.org/abs/2112.01527", *UNIVERSAL),
    "maskformer": Segmenter("MaskFormer", "https://arxiv.org/abs/2107.06278", *UNIVERSAL),
}
LOGGERS = [f"transformers.models.{name}.configuration_{name}" for name in ("mask2former", "maskformer")]


@contextmanager
def convnextv2_supported() -> Iterator[None]:
    """Leave out Transformers' warning that a backbone of this package may not be compatible: it is."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addFilter(is_other)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_other)


def is_other(record: logging.LogRecord) -> bool:
    """Whether a record is another than that warning."""
    warnings = tuple(f"Backbone {kind} is not a supported model" for kind in ("convnextv2", "convmae"))
    return not record.getMessage().startswith(warnings)
