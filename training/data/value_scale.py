"""The scale on which a model is trained to predict values."""

from typing import Any, NamedTuple, Self


class Scale(NamedTuple):
    """The mean and the standard deviation of each value: training takes values less the mean, over the deviation."""

    mean: list[float]
    std: list[float]

    @classmethod
    def units(cls, count: int) -> Self:
        """The scale of values as they are."""
        return cls([0.0] * count, [1.0] * count)

    @classmethod
    def of(cls, model_config: Any) -> Self | None:
        """The scale that a model under training notes in its configuration; None for one that answers in units."""
        mean, std = getattr(model_config, "label_mean", None), getattr(model_config, "label_std", None)
        return None if mean is None or std is None else cls(mean, std)
