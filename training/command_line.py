"""Settings from a YAML file and from flags: an unknown key or a bad value is one clear line."""

import difflib
from pathlib import Path
from typing import NoReturn, TypeVar

import yaml
from transformers import HfArgumentParser

from training.config import check

Config = TypeVar("Config")


class Parser(HfArgumentParser):
    """A parser whose errors are one line: the usage of seventy flags would hide it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def parse_config(config_class: type[Config], arguments: list[str], description: str | None = None) -> Config:
    """Settings from `--config file.yaml` and flags; flags go before the file. A bad one ends the program, code 2."""
    parser = Parser(config_class, allow_abbrev=False, description=description)  # type: ignore[arg-type]
    parser.add_argument("--config", action="append", default=[], help="YAML file of settings; flags go before it")
    known = {option.removeprefix("--") for option in parser._option_string_actions} - {"config", "help", "-h"}
    try:
        files, rest = Parser(add_help=False, allow_abbrev=False), arguments
        files.add_argument("--config", action="append", default=[])
        found, rest = files.parse_known_args(arguments)
        from_files = [flag for file in found.config for flag in yaml_as_flags(Path(file), known)]
        namespace, unknown = parser.parse_known_args(from_files + rest)
        if unknown:
            raise ValueError(unknown_key(unknown[0], known))
        settings = vars(namespace)
        del settings["config"]
        return config_class(**settings)
    except ValueError as error:
        parser.error(str(error))


def yaml_as_flags(file: Path, known: set[str]) -> list[str]:
    """The file's settings as flags, so that the same parser checks their types (YAML reads 1e-4 as a string)."""
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
    """The message for a key that no setting has, with the nearest one that there is."""
    name = str(key).split("=")[0].removeprefix("--")
    near = difflib.get_close_matches(name.replace("-", "_"), sorted(known), n=1)
    return f"`{name}` is not a setting." + (f" Did you mean `{near[0]}`?" if near else " See --help.")
