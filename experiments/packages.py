"""Files inside installed packages, from which the demos take their images."""

from importlib.metadata import files
from pathlib import Path


def packaged(package: str, name: str) -> Path:
    """The path of a file in an installed package, whose modules are not imported."""
    found = [file for file in files(package) or [] if file.name == name]
    return Path(str(found[0].locate()))
