"""The weights that a model comes from: those that training started from, or those that were converted."""

from dataclasses import dataclass
from typing import Any

from conversion.checkpoints import Checkpoint, checkpoint_table
from conversion.publishing.hub_ids import is_local_setting
from conversion.publishing.pretraining import is_from_fcmae
from conversion.publishing.wording import describe_origin
from hf_convnextv2.configuration_convnextv2 import FCMAE_MODEL_TYPE

PRETRAINED = {FCMAE_MODEL_TYPE: "the FCMAE pre-training"}  # by the `model_type`


@dataclass(frozen=True)
class OriginSection:
    """What a card says of the weights that the model comes from."""

    settings: dict[str, Any]  # of the training run, if the folder is one's
    provenance: dict[str, Any]  # what `conversion.convert` noted, if it wrote the weights
    official: Checkpoint | None  # the official checkpoint that was converted

    @property
    def base(self) -> str | None:
        """The model that training started from, a Hub id or a path; None: random weights."""
        return self.settings.get("model_name_or_path")

    @property
    def hub_id(self) -> str | None:
        """The repository on the Hub that the weights come from."""
        if self.base and not is_local_setting("model_name_or_path", self.settings):
            return self.base
        return self.provenance.get("hub_id")

    @property
    def base_in_words(self) -> str | None:
        """The model that training started from."""
        if not self.base:
            return None
        kind = f"{PRETRAINED.get(self.settings.get('start', ''), 'the weights')} in the trainer's folder"
        return describe_origin(self.base, kind, is_local_setting("model_name_or_path", self.settings))

    @property
    def teacher_in_words(self) -> str:
        """The model whose features are predicted."""
        name = self.settings.get("teacher_name_or_path")
        if not name:
            return "the average of its own weights"
        return describe_origin(name, "the folder", is_local_setting("teacher_name_or_path", self.settings))

    @property
    def is_from_fcmae(self) -> bool:
        """Whether training started from weights of FCMAE pre-training, or the conversion was given such."""
        return is_from_fcmae({}, self.settings, self.provenance)

    @property
    def has_new_norm(self) -> bool:
        """Whether the conversion has added the norm before `pooler_output`, which nobody has trained."""
        return any(note.startswith("added: `layernorm`") for note in self.provenance.get("notes", []))


def read_origin(settings: dict[str, Any], provenance: dict[str, Any], kind: str) -> OriginSection:
    """The origin of a model of this kind."""
    official = checkpoint_table().get(str(provenance.get("checkpoint")))
    if official and official.training == "fcmae" and kind == "classifier":
        official = None  # the head beside the official encoder is somebody else's
    return OriginSection(settings, provenance, official)
