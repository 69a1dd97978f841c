"""Keywords of `forward`: what callers pass to any model is welcome, a mistyped one is an error."""

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps
from typing import Any

import torch
from transformers.utils.generic import TransformersKwargs

# What Transformers, its Trainer and its pipelines pass to any model, and a convolution has no use for.
PASSED_TO_ANY_MODEL = frozenset(
    {*TransformersKwargs.__annotations__, "return_dict", "return_loss", "use_cache", "interpolate_pos_encoding"}
)


def refuse_unknown_keywords(*more: str, strict: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator of `forward` that raises a `TypeError` for a keyword which is nearly one of its own.

    Others are ignored, as in Transformers, or with `strict` are an error too. `more` are keywords that `forward` takes
    beyond its signature.
    """

    def decorate(forward: Callable[..., Any]) -> Callable[..., Any]:
        own = (*[name for name in inspect.signature(forward).parameters if name not in ("self", "kwargs")], *more)
        known = PASSED_TO_ANY_MODEL | set(own)

        @wraps(forward)
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            for name in kwargs:
                if name not in known and kwargs[name] is not None:
                    _refuse(name, own, strict, type(self).__name__)
            return forward(self, *args, **kwargs)

        return wrapper

    return decorate


@torch.compiler.assume_constant_result
def _refuse(name: str, own: tuple[str, ...], strict: bool, model: str) -> None:
    near = get_close_matches(name, own, n=1, cutoff=0.8)
    if near or strict:
        meant = f"Did you mean `{near[0]}`?" if near else f"It takes {', '.join(f'`{other}`' for other in own)}."
        raise TypeError(f"`{name}` is not a keyword of `{model}.forward`. {meant}")
