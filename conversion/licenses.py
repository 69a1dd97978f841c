"""Under which licence weights are: they keep the licence of those they start from."""

from pathlib import Path

import yaml
from huggingface_hub import metadata_load
from transformers.utils.hub import cached_file

from conversion.words import is_hub_id

OFFICIAL_WEIGHTS = ("facebook/convnextv2", "timm/convnextv2")
OFFICIAL_LICENSE = "cc-by-nc-4.0"
OWN_LICENSE = "apache-2.0"
UNKNOWN = "unknown"


def inherited_license(base: str | None, revision: str | None = None) -> str:
    """The licence of what is trained from `base`, a folder or a Hub id; from random weights the package's own.

    A base that does not say its licence leaves it unknown.
    """
    if not base:
        return OWN_LICENSE
    if base.startswith(OFFICIAL_WEIGHTS):
        return OFFICIAL_LICENSE
    card: str | Path | None = Path(base) / "README.md"
    if is_hub_id(base):
        quiet = dict.fromkeys(("missing_entries", "connection_errors", "gated_repo"), False)
        options = {f"_raise_exceptions_for_{name}": value for name, value in quiet.items()}
        card = cached_file(base, "README.md", revision=revision, **options)
    return (read_license(Path(card)) if card is not None else None) or UNKNOWN


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
