"""Metadata of a setting in addition to its type and default, declared at its dataclass field."""

import copy
from collections.abc import Mapping
from dataclasses import MISSING, Field, field, fields
from typing import Any, Literal, NamedTuple

REQUIRED = MISSING  # the default of a setting that must be given
OnResume = Literal["refuse", "report", "ignore"]


class About(NamedTuple):
    """The metadata of a setting.

    affects_result: whether the weights or the metrics depend on the setting; if so, the model card shows it.
    on_resume: what a resumed run does with a changed value: refuse it, report it, or ignore it. A change is refused if
        the setting determines the order of the images (by `check_order` in data/batches.py) or the shapes of the
        weights (by `ARCHITECTURE` in models/architecture.py).
    overridden_by: another setting; if that one is given, this one has no effect.
    unused_with: another setting, and the values of that one with which this one has no effect.
    family: the only family of models that has the setting; such a setting is None by default.
    """

    affects_result: bool
    on_resume: OnResume
    overridden_by: str | None = None
    unused_with: tuple[str, tuple[Any, ...]] | None = None
    family: str | None = None


def recipe(
    default: Any,
    help: str,
    *,
    on_resume: OnResume = "report",
    overridden_by: str | None = None,
    unused_with: tuple[str, tuple[Any, ...]] | None = None,
    family: str | None = None,
) -> Any:
    """Declare a setting that the result of a run depends on."""
    return _field(default, help, About(True, on_resume, overridden_by, unused_with, family))


def operation(default: Any, help: str) -> Any:
    """Declare a setting that does not change the result of a run, e.g. a folder, an interval or a number of workers."""
    return _field(default, help, About(False, "ignore"))


def _field(default: Any, help: str, about: About) -> Any:
    metadata = {"help": help, "about": about}
    if isinstance(default, list):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def about(setting: Field[Any]) -> About:
    """The metadata of a field; raises a `ValueError` if the field has none."""
    if "about" not in setting.metadata:
        raise ValueError(f"`{setting.name}` must be declared with `recipe(...)` or `operation(...)`.")
    return setting.metadata["about"]


def facts_of(owner: type) -> dict[str, About]:
    """The metadata of each field of a dataclass, by the field's name."""
    return {setting.name: about(setting) for setting in fields(owner)}


def in_force(values: Mapping[str, Any], facts: Mapping[str, About]) -> list[str]:
    """The names of the settings that the result of a run with these `values` depends on.

    A setting counts if its value is 0 or False, but not if it is None: another setting or the model then decides.
    """
    return [name for name, fact in facts.items() if _is_in_force(name, fact, values)]


def _is_in_force(name: str, fact: About, values: Mapping[str, Any]) -> bool:
    if not fact.affects_result or values[name] in (None, []):
        return False
    if fact.overridden_by is not None and values[fact.overridden_by] is not None:
        return False
    if fact.unused_with is None:
        return True
    other, without = fact.unused_with
    return values[other] not in without
