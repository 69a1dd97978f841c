"""Whether the result of a run depends on a setting (its recipe) or not (its operation), said at the field."""

import copy
from dataclasses import MISSING, Field, field, fields
from typing import Any, NamedTuple

REQUIRED = MISSING  # as a default: the setting must be given


class Standing(NamedTuple):
    """What is known of a setting beside its type, default and help."""

    affects_result: bool  # the weights or figures of a run depend on it: the model card shows it
    unless: str | None = None  # the setting that puts this one out of force when it is given
    beside: tuple[str, tuple[Any, ...]] | None = None  # the setting that must not have one of these values
    is_planned: bool = False  # the plan of a run sums it up: a resume compares the plan


class Help(str):
    """A setting's line for `--help` with its standing: of metadata `HfArgumentParser` allows none but its own."""

    standing: Standing


def recipe(
    default: Any,
    help: str,
    *,
    unless: str | None = None,
    beside: tuple[str, tuple[Any, ...]] | None = None,
    is_planned: bool = False,
) -> Any:
    """A field that the result of a run depends on, while no setting `unless` is given.

    `beside` names another setting and its values with which this one means nothing.
    """
    return _field(default, help, Standing(True, unless, beside, is_planned))


def operation(default: Any, help: str) -> Any:
    """A field of where, how often and with what a run works: its result is the same with any value."""
    return _field(default, help, Standing(False))


def _field(default: Any, help: str, standing: Standing) -> Any:
    text = Help(help)
    text.standing = standing
    metadata = {"help": text}
    if isinstance(default, list):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def standing_of(setting: Field[Any]) -> Standing:
    """What was said of a field; one that nobody said it of is an error."""
    text = setting.metadata.get("help")
    if not isinstance(text, Help):
        raise ValueError(f"`{setting.name}` must be declared with `recipe(...)` or `operation(...)`.")
    return text.standing


def names_in_force(config: Any) -> list[str]:
    """The settings that this run's result depends on: 0 and False are values too, None leaves the choice to others."""
    return [setting.name for setting in fields(config) if _is_in_force(config, setting.name, standing_of(setting))]


def _is_in_force(config: Any, name: str, standing: Standing) -> bool:
    if not standing.affects_result or getattr(config, name) in (None, []):
        return False
    if standing.unless is not None and getattr(config, standing.unless) is not None:
        return False
    other, without = standing.beside or (None, ())
    return other is None or getattr(config, other) not in without


def names_compared(config: Any) -> list[str]:
    """The settings that a resumed run is told of when they have changed."""
    standings = {setting.name: standing_of(setting) for setting in fields(config)}
    return [name for name, standing in standings.items() if standing.affects_result and not standing.is_planned]
