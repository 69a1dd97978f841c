"""The output of `--help`: the settings in groups, each with the type of its value and its default."""

import argparse
import copy
import dataclasses
import inspect
from types import MappingProxyType
from typing import Any, get_type_hints

from transformers import HfArgumentParser

PLACEHOLDERS: dict[Any, str] = {int: "INT", float: "FLOAT", str: "TEXT"}
SWITCH = "BOOL"


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows one spelling of each flag, and adds the default to a help text that does not state it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"max_help_position": 34, **options})

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = [name for name in action.option_strings if "-" not in name.removeprefix("--")] or action.option_strings
        values = "" if action.nargs == 0 else f" {self._format_args(action, '')}"
        return ", ".join(names) + values

    def _expand_help(self, action: argparse.Action) -> str:
        text = action.help or ""  # argparse would expand `%`, which a text may contain
        if "(default: " in text or action.dest == "help" or action.nargs == 0:
            return text
        return f"{text} ({'required' if action.required else f'default: {shown(action.default)}'})"


def shown(default: Any) -> str:
    """A default value, in the form in which a user types it."""
    if default is None:
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    return " ".join(map(str, default)) if isinstance(default, list) else str(default)


def add_settings(parser: argparse.ArgumentParser, owner: type) -> None:
    """Add a group for the dataclass, with the flag that `HfArgumentParser` makes for each field.

    The docstring of the dataclass is the title of the group.
    """
    group: Any = parser.add_argument_group((inspect.getdoc(owner) or "").rstrip("."))
    types = get_type_hints(owner)
    for field in dataclasses.fields(owner):
        plain = copy.copy(field)  # `HfArgumentParser` accepts only its own keys as metadata
        plain.type, plain.metadata = types[field.name], MappingProxyType({"help": field.metadata["help"]})
        HfArgumentParser._parse_dataclass_field(group, plain)
        describe(parser._option_string_actions[f"--{field.name}"])
        if negative := parser._option_string_actions.get(f"--no_{field.name}"):
            negative.help = f"as --{field.name} false"


def describe(action: argparse.Action) -> None:
    """Show the type of a flag's value as its placeholder, instead of the flag's name."""
    if action.choices is None:
        action.metavar = SWITCH if action.const is True else PLACEHOLDERS.get(action.type)
