"""What a Space is to show, as its owner says, checked before anything is written."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from conversion.families import PRETRAINING
from conversion.publishing.contents import read_contents
from conversion.publishing.hub_ids import is_hub_id
from conversion.publishing.licenses import settle_license
from conversion.publishing.publication import Publication
from conversion.publishing.staging import check_folder
from spaces.settings import DEFAULT_TITLE, FLAGS, MODEL, PRETRAINED, find_pictures

CODE_LICENSE = "apache-2.0"
KINDS = {MODEL: ("classifier",), PRETRAINED: PRETRAINING}


@dataclass(frozen=True)
class SpaceContents:
    """What a Space shows.

    classifier, pretrained: folders, whose files the Space carries, or Hub ids; one of them may be None.
    examples: a folder of pictures that the Space carries.
    license: of the Space; None: that of the code, or of the weights that it carries.
    """

    classifier: str | None = None
    pretrained: str | None = None
    title: str = DEFAULT_TITLE
    examples: str | None = None
    license: str | None = None

    @property
    def models(self) -> dict[str, str]:
        """The models by the setting that names them."""
        named = {MODEL: self.classifier, PRETRAINED: self.pretrained}
        return {setting: name for setting, name in named.items() if name}

    @property
    def hub_ids(self) -> list[str]:
        """The models that the Space loads from the Hub."""
        return [name for name in self.models.values() if is_hub_id(name)]

    @property
    def folders(self) -> dict[str, Path]:
        """The folders of models that the Space carries, by setting."""
        return {setting: Path(name) for setting, name in self.models.items() if not is_hub_id(name)}

    @cached_property
    def settled_license(self) -> str:
        """The licence of the Space: the one asked for, else that of the weights that it carries, else the code's.

        Raises:
            ValueError: if weights under two licences are in it and none is asked for, or another one than the
                official weights' is asked for.
        """
        stated = {read_contents(folder.resolve(), Publication()).license for folder in self.folders.values()}
        stated -= {CODE_LICENSE}
        for license in stated:
            settle_license(self.license, license)
        if self.license is None and len(stated) > 1:
            listed = " and ".join(sorted(stated))
            raise ValueError(f"`--license` must be given: the Space carries models under {listed}.")
        return self.license or next(iter(stated), CODE_LICENSE)


def check_contents(contents: SpaceContents) -> None:
    """Raise unless models in folders are complete and of the right kinds, and the examples are pictures."""
    if not contents.models:
        raise ValueError("`--classifier` or `--pretrained` (both missing) must name a model: a folder or a Hub id.")
    for setting, folder in contents.folders.items():
        flag, expected = FLAGS[setting], KINDS[setting]
        kind = check_folder(folder, flag)
        if kind not in expected:
            raise ValueError(f"`{flag}` (={folder}) must hold a {' or '.join(expected)} model, but holds a {kind}.")
    if contents.examples is not None:
        find_pictures(Path(contents.examples))
    _ = contents.settled_license  # raises if it is not clear
