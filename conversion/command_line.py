"""What commands share: a parser whose errors are one line, and texts of other libraries' errors.

It does not import PyTorch, so that a command reports a wrong flag before its other imports, which take seconds.
"""

import argparse
import difflib
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

MODEL_SIZES = ("atto", "femto", "pico", "nano", "tiny", "small", "base", "large", "huge")
V1_ONLY_MODEL_SIZES = ("xlarge",)  # with the blocks of ConvNeXt V1 alone


class Parser(argparse.ArgumentParser):
    """A parser that names a wrong flag and the nearest right one, in one line without the usage, with exit code 2."""

    def __init__(self, program: str, description: str | None) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=program, description=description, formatter_class=formatter, allow_abbrev=False)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        known = [name.removeprefix("--") for name in self._option_string_actions if name.startswith("--")]
        for argument in args or ():  # before argparse does, since a missing flag may be given under a wrong name
            name = argument.removeprefix("--").split("=")[0]
            if argument.startswith("--") and name and name not in known:
                self.error(f"`--{name}` is not an option.{nearest(name, known, '--')}")
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.splitlines())}\n")


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """A sentence that suggests the known name nearest to a wrong one."""
    near = difflib.get_close_matches(name.replace("-", "_"), sorted(known), n=1)
    return f" Did you mean `{prefix}{near[0]}`?" if near else " See --help."


def one_line(error: Exception) -> str:
    """All that the error says, with its line breaks as spaces."""
    return " ".join(str(error).split())


def first_line(error: Exception) -> str:
    """The first line of what the error says, or its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
