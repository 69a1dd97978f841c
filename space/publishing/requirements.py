"""What a Space installs: what the package needs, in the versions that pyproject.toml names."""

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TORCHVISION = "detection"  # the extra that brings it: images are resized as in training
CPU_WHEELS = "--extra-index-url https://download.pytorch.org/whl/cpu"  # without gigabytes of CUDA's libraries
GRADIO = "gradio>="


def requirements(repository: str | None) -> str:
    """The text of requirements.txt. gradio is not in it: the header of the Space's README.md names its version.

    Args:
        repository: the https address that the package is installed from; None if the Space carries its files.
    """
    project = _project()
    lines = [*project["dependencies"], *project["optional-dependencies"][TORCHVISION]]
    if repository is not None:
        lines.append(f"{project['name']} @ git+{repository}")
    return "\n".join([CPU_WHEELS, *lines]) + "\n"


def gradio_version() -> str:
    """The version that the page was tested with: the lower bound of the extra `space`."""
    (line,) = [line for line in _project()["optional-dependencies"]["space"] if line.startswith(GRADIO)]
    return line.removeprefix(GRADIO)


def check_repository(repository: str | None) -> None:
    """Raise unless this can be the address of a repository; one with a password or token would publish that."""
    if repository is not None and not re.fullmatch(r"https://[\w.-]+(:\d+)?/[\w./~-]+", repository):
        rule = "must be an https address such as https://host/owner/name, without a user or a token"
        raise ValueError(f"`--repository` {rule}.")


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
