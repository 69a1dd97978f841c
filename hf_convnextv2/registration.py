"""Auto classes: our own types on import, Transformers' `convnextv2` and `convnext` only when asked."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForPreTraining,
)
from transformers import ConvNextConfig as StockConvNextConfig
from transformers import ConvNextV2Config as StockConvNextV2Config
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils.import_utils import is_torchvision_available

from .configuration_convmae import ConvMAEConfig
from .configuration_convnextv2 import ConvNextV2Config, ConvNextV2FCMAEConfig
from .configuration_rcnn import ConvNextV2RCNNConfig
from .modeling_convmae import ConvMAEBackbone, ConvMAEForImageClassification, ConvMAEModel
from .modeling_convmae_pretraining import ConvMAEForPreTraining
from .modeling_convnextv2 import ConvNextV2Backbone, ConvNextV2ForImageClassification, ConvNextV2Model
from .modeling_fcmae import ConvNextV2FCMAEModel, ConvNextV2ForPreTraining

_FASTER: tuple[tuple[Any, type], ...] = (
    (AutoModel, ConvNextV2Model),
    (AutoModelForImageClassification, ConvNextV2ForImageClassification),
    (AutoBackbone, ConvNextV2Backbone),
)
# What each registry held before `register()`: (registry, key, value or None). Empty while we are not registered.
_replaced: list[tuple[dict[Any, Any], Any, Any]] = []


def register() -> None:
    """Let `AutoConfig`, `AutoModel`, `AutoModelForImageClassification`, `AutoBackbone` and so `pipeline` use this
    package's classes for every `convnextv2` and `convnext` model of this process, under our configuration and
    Transformers' own.

    Importing the package does not do this. `unregister()` restores what was there; calling either twice is harmless.
    """
    if _replaced:
        return
    for model_type in (ConvNextV2Config.model_type, StockConvNextConfig.model_type):
        _replace(CONFIG_MAPPING._extra_content, model_type, ConvNextV2Config)
    for auto_class, model_class in _FASTER:
        for config_class in (ConvNextV2Config, StockConvNextV2Config, StockConvNextConfig):
            _replace(auto_class._model_mapping._extra_content, config_class, model_class)


def unregister() -> None:
    """Undo `register()`: the Auto classes return exactly what they returned before it."""
    while _replaced:
        registry, key, value = _replaced.pop()
        if value is None:
            del registry[key]
        else:
            registry[key] = value


@contextmanager
def registered() -> Iterator[None]:
    """Within the block, `register()` is in force; afterwards all is as before."""
    was_registered = bool(_replaced)
    register()
    try:
        yield
    finally:
        if not was_registered:
            unregister()


def register_own_types() -> None:
    """`convnextv2_fcmae` for `AutoConfig`, `AutoModelForPreTraining` and `AutoModel`, `convmae` for these and for
    `AutoModelForImageClassification` and `AutoBackbone`, and `convnextv2_rcnn` for `AutoConfig` and, where torchvision
    is installed, `AutoModelForObjectDetection`; nothing is overridden."""
    AutoConfig.register(ConvNextV2FCMAEConfig.model_type, ConvNextV2FCMAEConfig, exist_ok=True)
    AutoModelForPreTraining.register(ConvNextV2FCMAEConfig, ConvNextV2ForPreTraining, exist_ok=True)
    AutoModel.register(ConvNextV2FCMAEConfig, ConvNextV2FCMAEModel, exist_ok=True)
    AutoConfig.register(ConvMAEConfig.model_type, ConvMAEConfig, exist_ok=True)
    AutoModelForPreTraining.register(ConvMAEConfig, ConvMAEForPreTraining, exist_ok=True)
    AutoModel.register(ConvMAEConfig, ConvMAEModel, exist_ok=True)
    AutoModelForImageClassification.register(ConvMAEConfig, ConvMAEForImageClassification, exist_ok=True)
    AutoBackbone.register(ConvMAEConfig, ConvMAEBackbone, exist_ok=True)
    AutoConfig.register(ConvNextV2RCNNConfig.model_type, ConvNextV2RCNNConfig, exist_ok=True)
    if is_torchvision_available():
        from .modeling_rcnn import ConvNextV2RCNNForObjectDetection

        AutoModelForObjectDetection.register(ConvNextV2RCNNConfig, ConvNextV2RCNNForObjectDetection, exist_ok=True)


def _replace(registry: dict[Any, Any], key: Any, value: Any) -> None:
    """Set an entry and remember what was there."""
    _replaced.append((registry, key, registry.get(key)))
    registry[key] = value
