"""What is known of a setting beside its type and default, said at its field."""

import copy
from collections.abc import Mapping
from dataclasses import MISSING, Field, field, fields
from typing import Any, Literal, NamedTuple

REQUIRED = MISSING  # as a default: the setting must be given
OnResume = Literal["refuse", "report", "ignore"]


class About(NamedTuple):
    """What a field says of its setting.

    affects_result: whether weights or figures depend on it, so that the model card shows it.
    on_resume: what a resumed run does with another value than before: refuse it, report it, or ignore it. It is refused
        where the order of the images or the shapes of the weights follow from it: by `check_order` in data/batches.py
        and by `ARCHITECTURE` in run/checkpoints.py.
    overridden_by: the setting that puts this one out of force when it is given.
    unused_with: another setting, and its values with which this one has no effect.
    """

    affects_result: bool
    on_resume: OnResume
    overridden_by: str | None = None
    unused_with: tuple[str, tuple[Any, ...]] | None = None


def recipe(
    default: Any,
    help: str,
    *,
    on_resume: OnResume = "report",
    overridden_by: str | None = None,
    unused_with: tuple[str, tuple[Any, ...]] | None = None,
) -> Any:
    """A field that the result of a run depends on."""
    return _field(default, help, About(True, on_resume, overridden_by, unused_with))


def operation(default: Any, help: str) -> Any:
    """A field of where, how often and with what a run works: the result is the same with any value."""
    return _field(default, help, About(False, "ignore"))


def _field(default: Any, help: str, about: About) -> Any:
    metadata = {"help": help, "about": about}
    if isinstance(default, list):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def about(setting: Field[Any]) -> About:
    """What a field says of its setting; a field that says nothing is an error."""
    if "about" not in setting.metadata:
        raise ValueError(f"`{setting.name}` must be declared with `recipe(...)` or `operation(...)`.")
    return setting.metadata["about"]


def facts_of(owner: type) -> dict[str, About]:
    """What each field of a dataclass says, by the field's name."""
    return {setting.name: about(setting) for setting in fields(owner)}


def in_force(values: Mapping[str, Any], facts: Mapping[str, About]) -> list[str]:
    """Names of the settings that the result of a run with these `values` depends on.

    0 and False are values as others are; None leaves the choice to another setting or to the model.
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
