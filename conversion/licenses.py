"""Under which licence weights are: they keep the licence of those they start from."""

from pathlib import Path

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


def read_license(card: Path) -> str | None:
    """What the front matter of a card says."""
    return (metadata_load(card) or {}).get("license") if card.is_file() else None
