"""The families of models that a script can train: their names and sizes, and which settings only one of them has.

This module does not import PyTorch: settings are checked before it is. What a script does with a family is in
models/families.py.
"""

from dataclasses import dataclass
from typing import Any

from conversion.command_line import MODEL_SIZES, V1_ONLY_MODEL_SIZES
from training.settings.checks import check
from training.settings.fields import facts_of

CONVNEXTV2, CONVMAE = "convnextv2", "convmae"


@dataclass(frozen=True)
class Sizes:
    """The names of the sizes of a family, the one that a new model has by default, and the family's own name.

    v1_only_names: of the sizes that need the blocks of ConvNeXt V1.
    """

    title: str
    names: tuple[str, ...]
    default: str
    v1_only_names: tuple[str, ...] = ()

    @property
    def all_names(self) -> tuple[str, ...]:
        """The names of all sizes."""
        return self.names + self.v1_only_names

    @property
    def in_words(self) -> str:
        """The names, for the help."""
        v1_only = f", with use_grn false also {', '.join(self.v1_only_names)}" if self.v1_only_names else ""
        return ", ".join(self.names) + v1_only


# By the setting `model_type`.
FAMILIES = {
    CONVNEXTV2: Sizes("ConvNeXt V2", MODEL_SIZES, "atto", V1_ONLY_MODEL_SIZES),
    CONVMAE: Sizes("ConvMAE", ("tiny", "small", "base"), "base"),
}


def check_family(owner: Any, family: str) -> None:
    """Raise if a setting of `owner` is given that only another family has."""
    for name, fact in facts_of(type(owner)).items():
        if fact.family not in (None, family):
            value, other = getattr(owner, name), FAMILIES[fact.family].title
            rule = f"not be given for a {FAMILIES[family].title}: it is a setting of {other}"
            check(name, value, value is None, rule)
