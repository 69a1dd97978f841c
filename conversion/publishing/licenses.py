"""Under which licence weights are: the one that somebody stated, or that of the weights they start from."""

from pathlib import Path

import yaml
from huggingface_hub import metadata_load

from conversion.command_line import one_line
from conversion.files import read_json
from conversion.model_folder import CARD, SETTINGS
from conversion.publishing.earlier_runs import has_license_of_nobody
from conversion.publishing.hub_ids import stored_file

OFFICIAL_WEIGHTS = ("facebook/convnextv2", "timm/convnextv2")
OFFICIAL_LICENSE = "cc-by-nc-4.0"
UNKNOWN = "unknown"  # the Hub's word where nobody has stated one


def inherited_license(base: str | None, revision: str | None = None) -> str:
    """The licence of what is trained from `base`, a folder or a Hub id.

    A base that does not say its licence leaves it unknown, and so do random weights.
    """
    if not base or has_license_of_nobody(read_json(Path(base) / SETTINGS)):
        return UNKNOWN
    if base.startswith(OFFICIAL_WEIGHTS):
        return OFFICIAL_LICENSE
    return read_license(stored_file(base, CARD, revision)) or UNKNOWN


def settle_license(asked: str | None, stated: str | None) -> str:
    """The licence asked for, else the one that the weights have; nobody can give the official weights another."""
    if stated == OFFICIAL_LICENSE and asked not in (None, OFFICIAL_LICENSE):
        raise ValueError(f"`--license` (={asked}) must be {OFFICIAL_LICENSE}: that of the official weights stays.")
    return asked or stated or UNKNOWN


def read_license(card: Path) -> str | None:
    """What the front matter of a card says."""
    if not card.is_file():
        return None
    try:
        license = (metadata_load(card) or {}).get("license")
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{card} must begin with valid YAML: {one_line(error)}") from error
    return license if isinstance(license, str) else None
