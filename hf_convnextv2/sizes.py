"""Conditions on the sizes of a tensor, which are symbols where a program is made for many sizes."""

from typing import Any

from torch.fx.experimental.symbolic_shapes import statically_known_true


def is_certain(*conditions: Any) -> bool:
    """Whether conditions on sizes hold for all sizes that a compiled, exported or traced program is for.

    It is no question to the program: one that was asked whether a size is 14 would be one for all sizes but 14.
    """
    return all(isinstance(condition, bool) and statically_known_true(condition) for condition in conditions)
