"""Checks of settings; each raises a `ValueError` that states the name, the value and the rule."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def check(name: str, value: Any, holds: bool, rule: str) -> None:
    """Raise a `ValueError` that states the setting, its value and the rule, unless the rule holds."""
    if not holds:
        raise ValueError(f"`{name}` (={value}) must {rule}.")


def check_finite(owner: Any) -> None:
    """Raise if a number among the settings of `owner` is NaN or infinite."""
    for name, value in vars(owner).items():
        numbers = value if isinstance(value, list) else [value]
        finite = all(math.isfinite(number) for number in numbers if isinstance(number, float))
        check(name, value, finite, "be finite")


def check_at_least(owner: Any, names: Iterable[str], least: float) -> None:
    """Raise unless each of the settings is None or at least `least`."""
    for name in names:
        value = getattr(owner, name)
        check(name, value, value is None or value >= least, f"be at least {least}")


def check_positive(owner: Any, names: Iterable[str]) -> None:
    """Raise unless each of the settings is None or more than 0."""
    for name in names:
        value = getattr(owner, name)
        check(name, value, value is None or value > 0, "be positive")


def check_share(owner: Any, *names: str) -> None:
    """Raise unless each of the settings is in [0, 1]."""
    for name in names:
        check(name, getattr(owner, name), 0 <= getattr(owner, name) <= 1, "be in [0, 1]")


def check_below_one(owner: Any, *names: str) -> None:
    """Raise unless each of the settings is None or in [0, 1)."""
    for name in names:
        value = getattr(owner, name)
        check(name, value, value is None or 0 <= value < 1, "be in [0, 1)")


def may_be_there(name: str) -> bool:
    """Whether a name is an existing path, or can be a Hub id or an address."""
    is_path = name.startswith(("/", ".", "~")) or name.count("/") > 1
    if not is_path or "://" in name:
        return True
    try:
        return Path(name).expanduser().exists()
    except PermissionError:  # the path exists; reading it later raises a clear error
        return True
