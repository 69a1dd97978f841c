"""Checks of what callers give to `forward`: images of the wrong shape and mistyped keywords are errors."""

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from transformers.utils.generic import TransformersKwargs

from .shared_config import height_and_width

# What Transformers, its Trainer and its pipelines pass to any model, and a convolution has no use for.
PASSED_TO_ANY_MODEL = frozenset(
    {*TransformersKwargs.__annotations__, "return_dict", "return_loss", "use_cache", "interpolate_pos_encoding"}
)


MASKS = ("noise", "bool_masked_pos")  # of pre-training models


def check_pixel_values(pixel_values: Tensor, num_channels: int, cell_size: int | tuple[int, int]) -> None:
    """Raise a `ValueError` unless `pixel_values` are images of `num_channels` channels, at least one cell large.

    They must be floats: integers of 0 to 255 would be taken as they are, without the scale that the model knows.
    """
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"`pixel_values` (of dtype {pixel_values.dtype}) must be floats, scaled and normalised as by the model's "
            "image processor."
        )
    if pixel_values.ndim != 4 or pixel_values.shape[1] != num_channels:
        raise ValueError(
            f"`pixel_values` (of shape {tuple(pixel_values.shape)}) must be (batch, `num_channels` (={num_channels}), "
            "height, width). Load the model with `num_channels=...` to adapt its weights to other images."
        )
    height, width = height_and_width(cell_size)
    if pixel_values.shape[2] < height or pixel_values.shape[3] < width:
        raise ValueError(
            f"`pixel_values` (of shape {tuple(pixel_values.shape)}) must be at least {height} pixels high and {width} "
            "wide, the size of one cell. Resize the images or use a smaller `patch_size` (ConvMAE: `patch_sizes`)."
        )


def refuse_unknown_keywords(*more: str, strict: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator of `forward` that raises a `TypeError` for a keyword that is nearly one of its own.

    Others are ignored, as in Transformers; with `strict` they are errors too. A model with attention raises a
    `ValueError` for `output_attentions=True`. `more` are keywords that `forward` takes beyond its signature.
    """

    def decorate(forward: Callable[..., Any]) -> Callable[..., Any]:
        named = [name for name in inspect.signature(forward).parameters if name not in ("self", "kwargs")]
        own = (*named, *more)
        known = PASSED_TO_ANY_MODEL | set(own)

        @wraps(forward)
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            for name in kwargs:
                if name not in known and kwargs[name] is not None:
                    _refuse(name, own, strict, type(self).__name__)
            if self.refuses_attentions and kwargs.get("output_attentions", self.config.output_attentions):
                raise ValueError(
                    f"`output_attentions` (=True) must be left out, in the configuration too: {type(self).__name__} "
                    "returns no attentions. Hooks on its blocks' `attn` see what goes in and out."
                )
            return forward(self, *args, **kwargs)

        return wrapper

    return decorate


@torch.compiler.assume_constant_result
def _refuse(name: str, own: tuple[str, ...], strict: bool, model: str) -> None:
    """Raise for a mask, which would have no effect, and for a keyword near one of `own`; with `strict`, for any."""
    if name in MASKS:
        raise TypeError(f"`{name}` is not a keyword of `{model}.forward`, which hides nothing: pre-training models do.")
    near = get_close_matches(name, own, n=1, cutoff=0.8)
    if near:
        raise TypeError(f"`{name}` is not a keyword of `{model}.forward`. Did you mean `{near[0]}`?")
    if strict:
        taken = ", ".join(f"`{other}`" for other in own)
        raise TypeError(f"`{name}` is not a keyword of `{model}.forward`. It takes {taken}.")
