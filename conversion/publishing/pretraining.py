"""Whether weights have gone through FCMAE pre-training, as the files beside them say."""

from typing import Any

from conversion.files import read_json
from conversion.model_folder import PROVENANCE, SETTINGS
from conversion.publishing.hub_ids import stored_file
from hf_convnextv2.configuration_convnextv2 import FCMAE_MODEL_TYPE

FROM_FCMAE = "is_from_fcmae"  # in the notes of a run and of a conversion


def is_from_fcmae(config: dict[str, Any], training: dict[str, Any], provenance: dict[str, Any]) -> bool:
    """Whether it is an FCMAE model, or weights that were trained from one or taken out of one.

    Args:
        config: of the model.
        training: what the training run noted.
        provenance: what the conversion noted.
    """
    is_direct = FCMAE_MODEL_TYPE in (config.get("model_type"), training.get("start"))
    return is_direct or any(notes.get(FROM_FCMAE, False) for notes in (training, provenance))


def starts_from_fcmae(base: str, revision: str | None = None) -> bool:
    """Whether training from `base`, a folder or a Hub id, goes on from FCMAE pre-training.

    A repository on the Hub holds no notes of training: it only says so as an FCMAE model or as a conversion.
    """
    files = (stored_file(base, name, revision) for name in ("config.json", SETTINGS, PROVENANCE))
    return is_from_fcmae(*map(read_json, files))
