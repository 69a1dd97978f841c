"""All that a model card says, section by section."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from conversion.families import PRETRAINING
from conversion.files import read_json
from conversion.model_folder import CARD, SETTINGS, read_provenance
from conversion.publishing.earlier_runs import has_license_of_nobody
from conversion.publishing.licenses import UNKNOWN, inherited_license, read_license, settle_license
from conversion.publishing.publication import Publication
from conversion.publishing.sections.data import DataSection, read_data
from conversion.publishing.sections.model import ModelSection, read_model
from conversion.publishing.sections.origin import OriginSection, read_origin
from conversion.publishing.sections.recipe import read_recipe
from conversion.publishing.sections.results import ResultsSection


@dataclass(frozen=True)
class CardContents:
    """What the files of a folder say, for the card of a publication."""

    folder: Path
    publication: Publication
    repo_id: str  # or the folder's name, where no repository is known
    settings: dict[str, Any]  # of the training run; empty if the folder is not one's
    model: ModelSection
    data: DataSection
    origin: OriginSection
    results: ResultsSection

    @property
    def name(self) -> str:
        """The name of the repository without its owner."""
        return self.repo_id.split("/")[-1]

    @property
    def recipe(self) -> list[tuple[str, str]]:
        """The settings that the result depends on."""
        return read_recipe(self.settings)

    @property
    def schedule(self) -> str:
        """The schedule of the learning rate; earlier runs knew no other than the cosine."""
        return self.settings.get("lr_scheduler_type", "cosine")

    @cached_property
    def license(self) -> str:
        """The licence asked for, or that the run or the conversion noted, or that of the weights it started from."""
        stated = self.settings.get("license") or self.origin.provenance.get("license")
        if has_license_of_nobody(self.settings):
            stated = UNKNOWN
        if stated is None:  # a folder that says nothing but in its card, if that
            stated = inherited_license(self.origin.base) if self.settings else read_license(self.folder / CARD)
        return settle_license(self.publication.license, stated)

    @property
    def base_model(self) -> str | None:
        """The repository on the Hub that the weights come from."""
        if self.model.kind == "encoder" and self.publication.companion:
            return self.publication.companion
        return self.origin.hub_id

    @property
    def is_self_supervised(self) -> bool:
        """Whether the weights are those of masked pre-training, or their encoder."""
        official = self.origin.official
        is_official_fcmae = official is not None and official.training == "fcmae"
        return self.model.kind in PRETRAINING or is_official_fcmae or bool(self.publication.companion)

    @property
    def is_from_fcmae(self) -> bool:
        """Whether FCMAE pre-training is a part of how the weights were trained, as far as the files tell."""
        return self.is_self_supervised or self.origin.is_from_fcmae


def read_contents(folder: Path, publication: Publication, foreign_config: Any = None) -> CardContents:
    """What a folder says.

    `foreign_config`: the model's, where the folder has none because another library is to read it.
    """
    settings, provenance = read_json(folder / SETTINGS), read_provenance(folder)
    model = read_model(folder, settings, provenance, foreign_config)
    origin = read_origin(settings, provenance, model.kind)
    data = read_data(settings, provenance, origin.official)
    results = ResultsSection(folder, model, origin.official)
    repo_id = publication.repo_id or settings.get("hub_model_id") or folder.name
    return CardContents(folder, publication, repo_id, settings, model, data, origin, results)
