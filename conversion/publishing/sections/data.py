"""The data sets that a model was trained on."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from conversion.checkpoints import Checkpoint
from conversion.publishing.hub_ids import is_hub_id, is_local_setting
from conversion.publishing.wording import describe_origin

TRAINING = {
    "fcmae": "pre-trained by FCMAE on ImageNet-1k without labels",
    "fcmae-ft-in1k": "pre-trained by FCMAE and fine-tuned on ImageNet-1k",
    "fcmae-ft-in22k-in1k": "pre-trained by FCMAE, then fine-tuned on ImageNet-22k and on ImageNet-1k",
}


class DataSet(NamedTuple):
    """A data set as a run named it."""

    name: str
    is_local: bool  # a path on the machine of the run


@dataclass(frozen=True)
class DataSection:
    """What a card says of the training data."""

    data_sets: list[DataSet]
    description: str | None  # the data sets in words, if they are known
    note: str | None  # what the trainer says of them
    official: Checkpoint | None

    @property
    def training(self) -> str:
        """How the model was trained and on what, as far as the files say."""
        if self.official:
            return TRAINING[self.official.training]
        return f"trained on {self.description}" if self.description else "trained on data that its source does not name"


def read_data(settings: dict[str, Any], provenance: dict[str, Any], official: Checkpoint | None) -> DataSection:
    """The training data as a run's settings name it; of converted weights, as their source named it."""
    data_sets = data_sets_of(settings)
    of_source = "ImageNet-1k" if official else provenance.get("data")
    note = settings.get("data_note") or provenance.get("data_note")
    return DataSection(data_sets, describe_data_sets(settings) or of_source, note, official)


def data_sets_of(settings: dict[str, Any]) -> list[DataSet]:
    """The data sets that a run trained on."""
    if not settings.get("dataset_name"):
        return []
    data_sets = [DataSet(settings["dataset_name"], is_local_setting("dataset_name", settings))]
    local = settings.get("local")
    for name in settings.get("mixed_dataset_names") or []:
        is_local = name in local if isinstance(local, list) else not is_hub_id(name)
        data_sets.append(DataSet(name, is_local))
    return data_sets


def describe_data_sets(settings: dict[str, Any]) -> str | None:
    """The data sets that a run trained on, in words; None if it does not say."""
    names = [describe_origin(data_set.name, "the data set", data_set.is_local) for data_set in data_sets_of(settings)]
    if not names:
        return None
    before_last = ", ".join(names[:-1])
    return f"{before_last} and {names[-1]}" if before_last else names[-1]
