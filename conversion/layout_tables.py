"""What a layout is: the names that parameters have there, beside ours.

"Ours" are the names of this package's models, which for ConvNeXt V2 are Transformers' own. The encoder's names carry no
prefix here; `convnextv2.` or `convmae.` is added where a head or a decoder stands beside it.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from conversion.families import Family

# Of a module, our name and those of other layouts; None: the layout has no such module. {s} a stage, {b} a block of it,
# {last} the last stage. Parameters are `weight,bias` unless others stand after a colon.
Row = Sequence[str | None]
Names = dict[str, str]  # of parameters, ours to theirs, as templates
OURS = "transformers"  # the library of the layouts that this package's models load
# A backbone's norms of the maps that it hands to a detector: no other model has them.
BACKBONE_NORMS = r"hidden_states_norms\."


def under(paths: Sequence[str], rows: Iterable[Row]) -> Iterable[Row]:
    """The rows with the path of their layout before each name."""
    return (tuple(None if name is None else path + name for path, name in zip(paths, row, strict=True)) for row in rows)


def names_of(rows: Iterable[Row], column: int, prefix: str = "") -> Names:
    """The names of all parameters in a column of a table."""
    names: Names = {}
    for row in rows:
        ours, theirs = row[0], row[column]
        if ours is not None and theirs is not None:
            names |= dict(zip(_parameters(ours), _parameters(prefix + theirs), strict=True))
    return names


@dataclass(frozen=True)
class Layout:
    """One way to store the weights of a family of models."""

    name: str
    family: Family
    library: str  # or code that the layout is of
    names: Names
    prefix: str = ""  # of the encoder's names, where a head or decoder may stand beside it
    keeps_prefix: bool = True  # also of an encoder alone
    foreign: str | None = None  # names that belong to something that none of our models has
    settings: dict[str, Any] = field(default_factory=dict)  # of every pre-training model that is stored so
    patterns: list[tuple[re.Pattern[str], re.Pattern[str]]] = field(init=False, repr=False)  # of our names and theirs

    def __post_init__(self) -> None:
        patterns = [(_pattern(ours), self._their_pattern(theirs)) for ours, theirs in self.names.items()]
        object.__setattr__(self, "patterns", patterns)

    def _their_pattern(self, theirs: str) -> re.Pattern[str]:
        """A pattern in which the prefix may be left out."""
        prefix = f"({re.escape(self.prefix)})?" if theirs.startswith(self.prefix) else ""
        return _pattern(theirs.removeprefix(self.prefix), prefix)


def our_name(name: str, layout: Layout, num_stages: int) -> str | None:
    """Our name, without prefix, of a parameter of the layout; None if the layout has no such parameter."""
    for ours, (_, pattern) in zip(layout.names, layout.patterns, strict=True):
        match = pattern.fullmatch(name)
        if match:
            numbers = _numbers(match)
            is_there = numbers.pop("last", num_stages - 1) == num_stages - 1
            return ours.format(**numbers) if is_there else None
    return None


def their_name(name: str, layout: Layout, num_stages: int, is_encoder: bool) -> str | None:
    """The layout's name of our parameter (without prefix); None if the layout has no place for it.

    `is_encoder`: nothing stands beside the encoder, whose names then carry no prefix in some layouts.
    """
    for theirs, (pattern, _) in zip(layout.names.values(), layout.patterns, strict=True):
        match = pattern.fullmatch(name)
        if match:
            theirs = theirs.format(**_numbers(match), last=num_stages - 1)
            return theirs if layout.keeps_prefix or not is_encoder else theirs.removeprefix(layout.prefix)
    return None


def _parameters(row: str) -> list[str]:
    """`a:b,c` as `a.b`, `a.c`; `a` as `a.weight`, `a.bias`; `a:` as the parameter `a` itself."""
    module, colon, parameters = row.partition(":")
    if colon and not parameters:
        return [module]
    return [f"{module}.{parameter}" for parameter in (parameters or "weight,bias").split(",")]


def _pattern(template: str, prefix: str = "") -> re.Pattern[str]:
    """A pattern of the names that a template stands for."""
    numbered = re.sub(r"\\\{(s|b|last)\\\}", r"(?P<\1>0|[1-9]\\d*)", re.escape(template))
    return re.compile(prefix + numbered)


def _numbers(match: re.Match[str]) -> dict[str, int]:
    return {key: int(value) for key, value in match.groupdict().items()}
