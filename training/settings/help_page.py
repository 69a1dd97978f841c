"""The page that `--help` prints: settings in groups, each with what it takes and its default, once."""

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
    """One spelling of each flag, and one default after each text unless the text says it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"max_help_position": 34, **options})

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = [name for name in action.option_strings if "-" not in name.removeprefix("--")] or action.option_strings
        values = "" if action.nargs == 0 else f" {self._format_args(action, '')}"
        return ", ".join(names) + values

    def _expand_help(self, action: argparse.Action) -> str:
        text = action.help or ""  # without the `%` patterns of argparse: a text may hold one
        if "(default: " in text or action.dest == "help" or action.nargs == 0:
            return text
        return f"{text} ({'required' if action.required else f'default: {shown(action.default)}'})"


def shown(default: Any) -> str:
    """A default as it is typed."""
    if default is None:
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    return " ".join(map(str, default)) if isinstance(default, list) else str(default)


def add_settings(parser: argparse.ArgumentParser, owner: type) -> None:
    """A group for the dataclass, with a flag for each field as `HfArgumentParser` makes it."""
    group: Any = parser.add_argument_group((inspect.getdoc(owner) or "").rstrip("."))
    types = get_type_hints(owner)
    for field in dataclasses.fields(owner):
        plain = copy.copy(field)  # of metadata, `HfArgumentParser` allows none but its own
        plain.type, plain.metadata = types[field.name], MappingProxyType({"help": field.metadata["help"]})
        HfArgumentParser._parse_dataclass_field(group, plain)
        describe(parser._option_string_actions[f"--{field.name}"])
        if negative := parser._option_string_actions.get(f"--no_{field.name}"):
            negative.help = f"as --{field.name} false"


def describe(action: argparse.Action) -> None:
    """Say what a flag takes, rather than its own name again."""
    if action.choices is None:
        action.metavar = SWITCH if action.const is True else PLACEHOLDERS.get(action.type)
