"""Telling the id of a repository on the Hub from a path, and a valid id from a wrong one; the files of either."""

from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.utils.hub import cached_file


def is_hub_id(name: str | None) -> bool:
    """Whether `name` is the id of a repository rather than a file or folder of this machine."""
    if not name or Path(name).exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def stored_file(base: str, name: str, revision: str | None = None) -> Path:
    """A file of a folder, or of a repository on the Hub; where it cannot be had, a path at which there is none."""
    if is_hub_id(base):
        errors = ("missing_entries", "connection_errors", "gated_repo")
        no_errors = {f"_raise_exceptions_for_{error}": False for error in errors}
        return Path(cached_file(base, name, revision=revision, **no_errors) or Path(base) / name)
    return Path(base) / name


def check_repo_id(repo_id: str) -> None:
    """Raise unless this can be the id of a repository."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"`--repo_id` (={repo_id}) must be a name such as me/name: {error}") from error


def is_local_setting(name: str, settings: dict[str, Any]) -> bool:
    """Whether a setting of a run was a path on the machine of the run.

    The run notes the names of such settings (`local`); for a run that did not, the value is tested on this machine.
    """
    value = settings.get(name)
    if not isinstance(value, str):
        return False
    local = settings.get("local")
    return name in local if isinstance(local, list) else not is_hub_id(value)
