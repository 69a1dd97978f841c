"""ConvNeXt V2 with FCMAE and ConvMAE on the Hugging Face stack (arXiv 2301.00808, 2205.03892)."""

from .configuration_convmae import ConvMAEConfig
from .configuration_convnextv2 import ConvNextV2Config, ConvNextV2FCMAEConfig
from .image_processing import create_image_processor, to_image
from .images import open_image
from .modeling_convmae import ConvMAEBackbone, ConvMAEForImageClassification, ConvMAEModel, ConvMAEPreTrainedModel
from .modeling_convmae_pretraining import ConvMAEForPreTraining, ConvMAEForPreTrainingOutput
from .modeling_convnextv2 import (
    ConvNextV2Backbone,
    ConvNextV2ForImageClassification,
    ConvNextV2Model,
    ConvNextV2PreTrainedModel,
)
from .modeling_fcmae import ConvNextV2FCMAEModel, ConvNextV2ForPreTraining, ConvNextV2ForPreTrainingOutput
from .registration import register, register_own_types, unregister

__version__ = "0.1.0"
__all__ = [
    "ConvMAEBackbone",
    "ConvMAEConfig",
    "ConvMAEForImageClassification",
    "ConvMAEForPreTraining",
    "ConvMAEForPreTrainingOutput",
    "ConvMAEModel",
    "ConvMAEPreTrainedModel",
    "ConvNextV2Backbone",
    "ConvNextV2Config",
    "ConvNextV2FCMAEConfig",
    "ConvNextV2FCMAEModel",
    "ConvNextV2ForImageClassification",
    "ConvNextV2ForPreTraining",
    "ConvNextV2ForPreTrainingOutput",
    "ConvNextV2Model",
    "ConvNextV2PreTrainedModel",
    "create_image_processor",
    "open_image",
    "register",
    "to_image",
    "unregister",
]

register_own_types()
