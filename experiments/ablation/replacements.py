"""Models with other modules than ours, for the training scripts: they get their classes from the table of families."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from experiments.ablation.dense_encoder import DenseEncoderForPreTraining
from experiments.ablation.normalisations import BatchNorm, LayerNorm, LocalResponseNorm
from hf_convnextv2.layers import ConvNextV2Layer
from training.models.families import BY_MODEL_TYPE, BY_NAME, Family
from training.settings.families import CONVNEXTV2


def put_in_place_of_grn(model: nn.Module, create: Callable[[int], nn.Module]) -> None:
    """Give every block of a model, the decoder's too, another normalisation of its 4C channels instead of GRN.

    Raises:
        ValueError: for a block without GRN.
    """
    for name, block in model.named_modules():
        if isinstance(block, ConvNextV2Layer):
            if block.grn is None:
                raise ValueError(f"`use_grn` (=False) must be True for GRN to be replaced, but {name} has none.")
            block.grn = create(block.pwconv1.out_features)  # type: ignore[assignment]


def with_normalisation(model_class: Any, create: Callable[[int], nn.Module]) -> Any:
    """A model class whose blocks have another normalisation, so that it is built, loaded and saved with it."""

    class Replaced(model_class):
        def __init__(self, config: Any, *args: Any, **kwargs: Any):
            super().__init__(config, *args, **kwargs)
            put_in_place_of_grn(self, create)

    return named_as(Replaced, model_class)


def named_as(model_class: Any, other: Any) -> Any:
    """The class under the name of another one, which its folders give for their architecture."""
    model_class.__name__ = model_class.__qualname__ = other.__name__
    return model_class


def normalised_by(create: Callable[[int], nn.Module]) -> Callable[[Family], Family]:
    """The family with another normalisation in all of its models."""

    def change(family: Family) -> Family:
        names = ("model", "backbone", "classifier", "pretraining")
        return replace(family, **{name: with_normalisation(getattr(family, name), create) for name in names})

    return change


def densely_encoded(family: Family) -> Family:
    """The family whose pre-training computes every cell."""
    dense = type("Dense", (DenseEncoderForPreTraining,), {})
    return replace(family, pretraining=named_as(dense, family.pretraining))


REPLACEMENTS: dict[str, Callable[[Family], Family]] = {
    "dense": densely_encoded,
    "lrn": normalised_by(LocalResponseNorm),
    "batch_norm": normalised_by(BatchNorm),
    "layer_norm": normalised_by(LayerNorm),
}


@contextmanager
def replaced(name: str | None) -> Iterator[None]:
    """Within the block, models of ConvNeXt V2 have what is named in place of ours, in this whole process.

    Whoever runs several threads must let one at a time into such a block, or create a model.
    """
    if name is None:
        yield
        return
    ours = BY_NAME[CONVNEXTV2]
    put(REPLACEMENTS[name](ours))
    try:
        yield
    finally:
        put(ours)


def put(family: Family) -> None:
    """Let a family be the one that training knows by its name and types."""
    BY_NAME[family.name] = family
    BY_MODEL_TYPE.update(dict.fromkeys(family.model_types, family))
