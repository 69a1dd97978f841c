"""Under which licence weights are: the one that somebody stated, or that of the weights they start from."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load
from transformers.utils.hub import cached_file

from conversion.files import read_json
from conversion.publishing.wording import is_hub_id

OFFICIAL_WEIGHTS = ("facebook/convnextv2", "timm/convnextv2")
OFFICIAL_LICENSE = "cc-by-nc-4.0"
UNKNOWN = "unknown"  # the Hub's word where nobody has stated one
EARLIER_DEFAULT = "apache-2.0"


def inherited_license(base: str | None, revision: str | None = None) -> str:
    """The licence of what is trained from `base`, a folder or a Hub id.

    A base that does not say its licence leaves it unknown, and so do random weights.
    """
    if not base or was_never_stated(read_json(Path(base) / "training_config.json")):
        return UNKNOWN
    if base.startswith(OFFICIAL_WEIGHTS):
        return OFFICIAL_LICENSE
    card: str | Path | None = Path(base) / "README.md"
    if is_hub_id(base):
        quiet = dict.fromkeys(("missing_entries", "connection_errors", "gated_repo"), False)
        options = {f"_raise_exceptions_for_{name}": value for name, value in quiet.items()}
        card = cached_file(base, "README.md", revision=revision, **options)
    return (read_license(Path(card)) if card is not None else None) or UNKNOWN


def was_never_stated(settings: dict[str, Any]) -> bool:
    """Whether a run's licence may be nobody's word: earlier runs from random weights noted one by themselves."""
    is_earlier = bool(settings) and "recipe" not in settings
    return is_earlier and settings.get("license") == EARLIER_DEFAULT and not settings.get("model_name_or_path")


def settle_license(asked: str | None, said: str | None) -> str:
    """The licence asked for, else the one that the weights have; nobody can give the official weights another."""
    if said == OFFICIAL_LICENSE and asked not in (None, OFFICIAL_LICENSE):
        raise ValueError(f"`--license` (={asked}) must be {OFFICIAL_LICENSE}: that of the official weights stays.")
    return asked or said or UNKNOWN


def read_license(card: Path) -> str | None:
    """What the front matter of a card says."""
    if not card.is_file():
        return None
    try:
        license = (metadata_load(card) or {}).get("license")
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{card} must begin with valid YAML: {' '.join(str(error).split())}") from error
    return license if isinstance(license, str) else None
