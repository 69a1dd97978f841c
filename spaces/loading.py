"""Loading a model for the page; a model that is not there or of another kind is named in one sentence."""

from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig

from hf_convnextv2.images import MODES
from hf_convnextv2.registration import registered

from .settings import FLAGS

UNLOADABLE = (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError)  # raised by Transformers


class Loaded(NamedTuple):
    """A model in evaluation mode, on the GPU if there is one, its image processor and its configuration as stored."""

    model: Any
    processor: Any
    config: Any

    @property
    def num_channels(self) -> int:
        """The number of channels of its images."""
        return getattr(self.model.config, "num_channels", None) or 3


def load(
    setting: str,
    name: str,
    auto_class: Any,
    ending: str,
    kind: str,
    config_class: type = PreTrainedConfig,
    **overrides: Any,
) -> Loaded:
    """Load the model of a folder or Hub id, in float32, from safetensors and without code of the repository.

    Args:
        setting: the name of the setting that names it.
        ending: of the name of its class.
        kind: what it must be, in words.
        config_class: of its configuration.
        overrides: of its configuration.

    Raises:
        ValueError: if there is no model or image processor, weights are missing, or the model is of another kind or
            for other channels.
    """
    asked = f"`{setting}` or `{FLAGS[setting]}` (={name})"
    # Said, since Transformers would ask on the terminal whether to trust the repository.
    no_code: dict[str, Any] = {"trust_remote_code": False}
    with registered():
        try:
            config: Any = AutoConfig.from_pretrained(name, **no_code)
            classes = ", ".join(config.architectures or [f"a model of the type {config.model_type}"])
            if not classes.endswith(ending) or not isinstance(config, config_class):
                raise ValueError(f"it holds {classes}")
            processor = AutoImageProcessor.from_pretrained(name, **no_code)
            weights = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
            model, report = auto_class.from_pretrained(name, **weights, **no_code, **overrides)
            if report["missing_keys"]:
                raise ValueError(f"it lacks weights, e.g. `{min(report['missing_keys'])}`")
        except UNLOADABLE as error:
            found = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise ValueError(f"{asked} must be {kind}, a folder or a Hub id: {found}.") from error
    loaded = Loaded(model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), processor, config)
    if loaded.num_channels not in MODES:
        raise ValueError(
            f"{asked} must be a model of images with 1, 3 or 4 channels, since a picture has these, but its images "
            f"have {loaded.num_channels}."
        )
    return loaded
