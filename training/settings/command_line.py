"""Reads settings from YAML files and flags, and reports an unknown key or a bad value in one line.

This module does not import PyTorch, so that a script reports a wrong flag before its other imports, which take seconds.

It does not use these alternatives:

- `HfArgumentParser.parse_yaml_file` does not check types (1e-3 stays a string), accepts no flags in addition to the
  file, and does not suggest the nearest key.
- The `args_file_flag` of `HfArgumentParser` reads no YAML, splits strings at spaces, and ignores a missing file.
- In jsonargparse 4.53, a file overrides a flag that stands before it; it suggests no nearest key, and it refuses flags
  in the form of the README (`--streaming`, `--crop_scale 0.2 1`, `--mask-ratio`).

`tests/training/settings/test_alternatives.py` shows these limits, and fails when one of them is gone.
"""

import re
import sys
from functools import cache
from pathlib import Path
from typing import NoReturn, TypeVar

import yaml
from transformers import HfArgumentParser

from conversion.command_line import nearest
from training.console.errors import end, is_first_process
from training.settings.checks import check
from training.settings.help_page import HelpFormatter, add_settings
from training.settings.scripts import Settings

AnySettings = TypeVar("AnySettings", bound=Settings)
USAGE = "%(prog)s [--config RECIPE.yaml] [--SETTING VALUE ...]"
EPILOG = """Every setting is also a key of a recipe. Flags may have hyphens instead of underscores.
A flag that takes true or false means true if it stands alone.
CONVNEXTV2_TRACEBACK=1 in the environment shows where an error comes from."""


class Parser(HfArgumentParser):
    """A parser that prints an error as one line, once, without the usage: its seventy flags would hide the error."""

    def _add_dataclass_arguments(self, dtype: type) -> None:
        add_settings(self, dtype)

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"(--\w+)/--[\w-]+", r"\1", message)  # name a flag with two spellings by the first
        end(f"error: {message}", 2)

    def _print_message(self, message: str, file: object = None) -> None:
        if is_first_process():
            super()._print_message(message, file)  # type: ignore[arg-type]


def parse_settings(kind: type[AnySettings], arguments: list[str], description: str | None = None) -> AnySettings:
    """Read the settings from `--config file.yaml` and flags; flags override the file.

    A wrong setting ends the program with exit code 2.
    """
    parser = create_parser(kind, description)
    known = {option.removeprefix("--") for option in parser._option_string_actions} - {"config", "help", "-h"}
    try:
        files, rest = Parser(add_help=False, allow_abbrev=False), arguments
        files.add_argument("--config", action="append", default=[])
        found, rest = files.parse_known_args(arguments)
        from_files = [flag for file in found.config for flag in yaml_as_flags(Path(file), known)]
        flags = [flag for flag in rest if flag.startswith("--")]
        unknown = [flag for flag in flags if flag.split("=")[0].removeprefix("--") not in {*known, "config", "help"}]
        if unknown:  # first, since a missing setting may be given under a wrong name
            raise ValueError(unknown_key(unknown[0], known))
        from_files = without_overridden(kind, from_files, flags)
        values = vars(parser.parse_args(from_files + rest))
        del values["config"]
        return kind(**values)
    except ValueError as error:
        parser.error(str(error))


def create_parser(kind: type[Settings], description: str | None) -> Parser:
    """Create a parser with a flag for each setting, and `--config`."""
    parser = Parser(
        list(kind.owners().values()),  # type: ignore[arg-type]
        allow_abbrev=False,
        usage=USAGE,
        description=description,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="RECIPE.yaml",
        help="file of settings; flags override it, and a later file overrides an earlier one (default: none)",
    )
    return parser


def without_overridden(kind: type[Settings], from_files: list[str], flags: list[str]) -> list[str]:
    """Remove the recipes' settings that would override another setting given as a flag, and print their names."""
    given = {flag.split("=")[0].removeprefix("--").replace("-", "_") for flag in flags}
    overriding = {fact.overridden_by: name for name, fact in kind.facts().items() if name in given}
    kept, keep = [], True
    for part in from_files:
        if part.startswith("--"):
            name = part.removeprefix("--")
            keep = name not in overriding or name in given
            if not keep:
                say_once(f"`--{overriding[name]}` goes before `{name}` of the recipe.")
        kept += [part] if keep else []
    return kept


@cache
def say_once(text: str) -> None:
    """Print a line to stderr in the first training process; the same line is printed only once."""
    if is_first_process():
        print(text, file=sys.stderr, flush=True)


def yaml_as_flags(file: Path, known: set[str]) -> list[str]:
    """Convert the settings of a file to flags, so that the parser checks their types (YAML reads 1e-4 as a string)."""
    check("config", file, file.is_file(), "be a YAML file")
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"`config` (={file}) must be valid YAML: {' '.join(str(error).split())}") from error
    check("config", file, isinstance(settings, dict), "hold `key: value` lines")
    flags = []
    for key, value in settings.items():
        if key not in known:
            raise ValueError(f"{file}: {unknown_key(key, known)}")
        if value is not None:
            flags += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return flags


def unknown_key(key: str, known: set[str]) -> str:
    """The error message for an unknown key, which suggests the nearest known key."""
    name = str(key).split("=")[0].removeprefix("--")
    return f"`{name}` is not a setting.{nearest(name, known)}"
