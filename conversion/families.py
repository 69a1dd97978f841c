"""The families of models that are converted: their classes by the kind of model, and their sizes."""

from dataclasses import dataclass, replace
from typing import Any

from hf_convnextv2 import (
    ConvMAEConfig,
    ConvMAEForImageClassification,
    ConvMAEForPreTraining,
    ConvMAEModel,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
    ConvNextV2Model,
)
from hf_convnextv2.configuration_convmae import CONVMAE_SIZES
from hf_convnextv2.configuration_convnextv2 import SIZES, V1_ONLY_SIZES


@dataclass(frozen=True)
class Family:
    """A family of models.

    The kinds of a model, here and in what is printed, are the encoder alone, the encoder with a head ("classifier") and
    the encoder with the decoder of pre-training, which is called by the method.
    """

    name: str
    tag: str  # by which the Hub finds its models
    paper: str
    code: str  # of its authors
    pretraining: str  # the kind of a pre-training model
    models: dict[str, Any]  # classes by kind
    sizes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]  # depths and widths of those that have a name

    @property
    def prefix(self) -> str:
        """Of our names of the encoder's parameters, where a head or a decoder stands beside it."""
        return f"{self.models['encoder'].base_model_prefix}."


def _convmae_sizes() -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    configs = {name: ConvMAEConfig.from_size(name) for name in CONVMAE_SIZES}
    return {name: (tuple(config.depths), tuple(config.hidden_sizes)) for name, config in configs.items()}


CONVNEXTV2 = Family(
    "ConvNeXt V2",
    "convnextv2",
    "https://arxiv.org/abs/2301.00808",
    "https://github.com/facebookresearch/ConvNeXt-V2",
    "fcmae",
    {
        "encoder": ConvNextV2Model,
        "classifier": ConvNextV2ForImageClassification,
        "fcmae": ConvNextV2ForPreTraining,
    },
    SIZES,
)
CONVNEXT_V1 = replace(  # in the same layouts: its models are told by their configuration
    CONVNEXTV2,
    name="ConvNeXt V1",
    tag="convnext",
    paper="https://arxiv.org/abs/2201.03545",
    code="https://github.com/facebookresearch/ConvNeXt",
    sizes={**SIZES, **V1_ONLY_SIZES},
)
CONVMAE = Family(
    "ConvMAE",
    "convmae",
    "https://arxiv.org/abs/2205.03892",
    "https://github.com/Alpha-VL/ConvMAE",
    "convmae",
    {
        "encoder": ConvMAEModel,
        "classifier": ConvMAEForImageClassification,
        "convmae": ConvMAEForPreTraining,
    },
    _convmae_sizes(),
)
PRETRAINING = tuple(family.pretraining for family in (CONVNEXTV2, CONVMAE))


def family_of(config: Any) -> Family:
    """The family of a model with this configuration."""
    if isinstance(config, ConvMAEConfig):
        return CONVMAE
    return CONVNEXT_V1 if config.has_v1_blocks else CONVNEXTV2


def size_of(config: Any) -> str | None:
    """The name of the size that the model has, if any."""
    shape = (tuple(config.depths or ()), tuple(config.hidden_sizes or ()))
    return next((name for name, size in family_of(config).sizes.items() if size == shape), None)


def describe_size(config: Any) -> str:
    """The name of the size, or else depths and widths."""
    return size_of(config) or f"depths {list(config.depths or ())} and widths {list(config.hidden_sizes or ())}"
