"""Assigns the images of a folder to splits and classes, by the names of the folders that hold them."""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection
from functools import lru_cache
from typing import NamedTuple

from datasets.data_files import NON_WORDS_CHARS, SPLIT_KEYWORDS

from training.data.folders.listing import Listing, Run, show
from training.settings.checks import check

WORDS = [(str(split), word) for split, words in SPLIT_KEYWORDS.items() for word in words]
FORMS = ("{word}", "{word}[{gap}].*", ".*[{gap}]{word}", ".*[{gap}]{word}[{gap}].*")  # in the order of `datasets`


class Part(NamedTuple):
    """Images of one folder: their split, the rank that sorts the parts, and the other folders on their path.

    The last of these other folders is the class.
    """

    run: Run
    split: str
    rank: int
    classes: tuple[str, ...]

    @property
    def class_name(self) -> str:
        """The class. Accents, which Macs store as characters of their own, are joined with their letters."""
        return unicodedata.normalize("NFC", self.classes[-1])


class Match(NamedTuple):
    """A split that the name of a folder stands for."""

    split: str
    rank: int
    is_exact: bool


def split_name(name: str) -> str:
    """The split that a name in the settings means; as for folder names, `val` and `dev` mean `validation`."""
    return next((split for split, word in WORDS if word == name.lower()), name)


def is_split(name: str) -> bool:
    """Whether a name is one of the folder names that mean a split."""
    return any(word == name for _, word in WORDS)


@lru_cache(maxsize=1 << 16)
def match_split(name: str) -> Match | None:
    """The split that a folder's name stands for: `train` and `Train` are exact, `train_01` and `my-train` are not."""
    for rank, (split, word) in enumerate(WORDS):
        for form, pattern in enumerate(FORMS):
            flags = re.IGNORECASE if form == 0 else 0
            if re.fullmatch(pattern.format(word=word, gap=NON_WORDS_CHARS), name, flags | re.DOTALL):
                return Match(split, rank * len(FORMS) + form, form == 0)
    return None


def divide(listing: Listing, asked: Collection[str]) -> list[Part]:
    """Assign the images to splits; all are `train` if no folder is named after a split.

    `asked` are the splits that the settings name: a top-level folder with such a name is a split too.
    """
    exact = [find_split(run, asked, only_exact=True) for run in listing.images]
    found = exact
    if not all(exact):
        found = [find_split(run, asked, only_exact=False) for run in listing.images]
    if not all(found) and any(exact):
        refuse_outside(listing, exact)
    if not all(found):
        refuse_names(listing)
        return [Part(run, "train", 0, run.parts) for run in listing.images]
    parts = []
    for run, match in zip(listing.images, found, strict=True):
        assert match is not None
        place, (split, rank, _) = match
        parts.append(Part(run, split, rank, run.parts[:place] + run.parts[place + 1 :]))
    return sorted(parts, key=lambda part: part.rank)


def find_split(run: Run, asked: Collection[str], only_exact: bool) -> tuple[int, Match] | None:
    """The topmost folder on a path that stands for a split: its position in the path, and the split."""
    for place, name in enumerate(run.parts):
        match = match_split(name)
        if match is not None and (match.is_exact or not only_exact):
            return place, match
        if place == 0 and name in asked:
            return place, Match(name, 0, True)
    return None


def refuse_outside(listing: Listing, found: list[tuple[int, Match] | None]) -> None:
    """Raise a `ValueError`: some images are in folders of splits, and others are not."""
    outside: Counter[str] = Counter()
    inside: Counter[str] = Counter()
    for run, match in zip(listing.images, found, strict=True):
        if match is None:
            outside[run.parts[0] if run.parts else "the folder itself"] += len(run.names)
        else:
            inside["/".join(run.parts[: match[0] + 1])] += len(run.names)
    rule = (
        f"have all its images in folders of splits or none, but {shorten(inside)} are named after splits and "
        f"{outside.total():,} images are outside of them: {shorten(outside)}. Move these into a folder `train`; "
        "a class of such a name needs another one, or all classes a folder `train` around them"
    )
    check("dataset_name", listing.root, False, rule)


def refuse_names(listing: Listing) -> None:
    """Raise if all files are named after splits, and after more than one: only folder names define splits."""
    splits = set()
    for run in listing.images:
        for name in run.names:
            match = match_split(name.as_py().rpartition(".")[0])
            if match is None:
                return
            splits.add(match.split)
    rule = f"have its splits as folders: its files are named after {', '.join(sorted(splits))}, so move them there"
    check("dataset_name", listing.root, len(splits) < 2, rule)


def class_depth(parts: list[Part]) -> int | None:
    """The number of folders above each image of a split, without the split's own folder; None if it varies."""
    depths = {len(part.classes) for part in parts}
    return depths.pop() if len(depths) == 1 else None


def class_lists(parts: list[Part]) -> tuple[list[str], dict[str, Counter[str]]]:
    """The sorted names of all classes (none if there are fewer than two), and the images per class in each split."""
    counts: dict[str, Counter[str]] = {}
    for split in {part.split: None for part in parts}:
        own = [part for part in parts if part.split == split]
        counts[split] = Counter()
        for part in own if class_depth(own) else []:
            counts[split][part.class_name] += len(part.run.names)
    names = sorted({name for counter in counts.values() for name in counter})
    return (names if len(names) > 1 else []), counts


def shorten(counts: Counter[str], most: int = 8) -> str:
    """The names with their counts, as text; at most `most` names."""
    listed = [f"{show(name)} ({count:,})" for name, count in list(counts.items())[:most]]
    return ", ".join(listed) + (f" and {len(counts) - most:,} more" if len(counts) > most else "")
