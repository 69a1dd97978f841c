"""Texts with blanks: cards and READMEs."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template


def load_template(file: Path) -> Template:
    """A template that may include others of its folder; a blank that nothing fills is an error."""
    environment = Environment(
        loader=FileSystemLoader(file.parent),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    return environment.get_template(file.name)
