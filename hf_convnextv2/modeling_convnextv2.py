"""ConvNeXt V2: encoder, backbone and image classifier, with the module names of Transformers' `convnextv2`.

They are those of its `convnext`, too: with the blocks of ConvNeXt V1, these are V1's models. What they compute is in
encoder_models.py; blocks are in layers.py.
"""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.core_model_loading import WeightRenaming

from .configuration_convnextv2 import V1_MODEL_TYPE, ConvNextV2Config
from .encoder_models import (
    ImageEncoderBackbone,
    ImageEncoderForImageClassification,
    ImageEncoderModel,
    StagedEncoder,
    drop_path_rates,
)
from .grn import ConvNextV2GRN
from .layers import ConvNextV2Embeddings, ConvNextV2Layer, ConvNextV2LayerNorm, ConvNextV2Stage
from .pretrained_model import ImageEncoderPreTrainedModel

# The prefix of an encoder's names beside a head, in Transformers' `convnext` and here.
V1_PREFIX, PREFIX = rf"^{V1_MODEL_TYPE}\.", "convnextv2."


class ConvNextV2PreTrainedModel(ImageEncoderPreTrainedModel):
    """Initialisation, loading and saving that all models share."""

    config_class: type[ConvNextV2Config] = ConvNextV2Config  # pyright: ignore[reportIncompatibleVariableOverride]
    config: ConvNextV2Config
    base_model_prefix = "convnextv2"
    _no_split_modules = ["ConvNextV2Layer"]  # noqa: RUF012

    def __init__(self, config: ConvNextV2Config, *args: Any, **kwargs: Any):
        # Transformers' own configuration is welcome: it lacks a few of our fields, which take their defaults.
        stock_types = (ConvNextV2Config.model_type, V1_MODEL_TYPE)
        if not isinstance(config, ConvNextV2Config) and getattr(config, "model_type", None) in stock_types:
            # A new configuration refuses some problem types that one changed in place may have.
            problem_type = config.problem_type
            config = self.config_class.from_dict({**config.to_dict(), "problem_type": None})
            config.problem_type = problem_type
        super().__init__(config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Weights of linear and convolution layers normal(0, `initializer_range`), biases and GRN 0, LayerNorm 1 and 0.

        The paper's, everywhere; the official trainer draws most of the encoder with a standard deviation of 1 instead.
        LayerScale, where there is one, is `layer_scale_init_value`.
        """
        super()._init_weights(module)
        if isinstance(module, ConvNextV2GRN):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        if isinstance(module, ConvNextV2Layer) and module.layer_scale_parameter is not None:
            init.constant_(module.layer_scale_parameter, self.config.layer_scale_init_value)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As `ImageEncoderPreTrainedModel.from_pretrained`, also of Transformers' `convnext`, ConvNeXt V1."""
        key_mapping = {V1_PREFIX: PREFIX, **(kwargs.pop("key_mapping", None) or {})}
        return super().from_pretrained(pretrained_model_name_or_path, *args, key_mapping=key_mapping, **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As in Transformers; a ConvNeXt V1 is saved as Transformers' `convnext`, which loads it."""
        # What Transformers renamed when it loaded weights, it names back when it saves them.
        renamings = getattr(self, "_weight_conversions", None) or []
        self._weight_conversions = [each for each in renamings if V1_PREFIX not in each._original_source_patterns]
        if self.config.is_convnext_v1:
            self._weight_conversions.append(WeightRenaming(V1_PREFIX, PREFIX))
        elif not self._weight_conversions:
            self._weight_conversions = None
        super().save_pretrained(*args, **kwargs)


class ConvNextV2Encoder(StagedEncoder):
    """The stages, one after the other."""

    def __init__(self, config: ConvNextV2Config):
        super().__init__(ConvNextV2Stage(config, index, rates) for index, rates in enumerate(drop_path_rates(config)))


class ConvNextV2Model(ImageEncoderModel, ConvNextV2PreTrainedModel):
    """The encoder with average pooling and a LayerNorm, as Transformers' `ConvNextV2Model`.

    `add_pooling_layer=False` leaves the LayerNorm out, so that no parameter is without a gradient where only the maps
    are used.
    """

    def __init__(self, config: ConvNextV2Config, add_pooling_layer: bool = True):
        super().__init__(config)
        config = self.config  # ours, also where Transformers' own was given
        self.embeddings = ConvNextV2Embeddings(config)
        self.encoder = ConvNextV2Encoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_sizes[-1], eps=config.layer_norm_eps) if add_pooling_layer else None
        self.post_init()


class ConvNextV2Backbone(ImageEncoderBackbone, ConvNextV2PreTrainedModel):
    """The encoder as a backbone for detection and segmentation, as Transformers' `ConvNextV2Backbone`."""

    def __init__(self, config: ConvNextV2Config):
        super().__init__(config)
        config = self.config  # ours, also where Transformers' own was given
        self.embeddings = ConvNextV2Embeddings(config)
        self.encoder = ConvNextV2Encoder(config)
        self.num_features = [config.hidden_sizes[0], *config.hidden_sizes]
        norms = {name: ConvNextV2LayerNorm(dim) for name, dim in zip(self.out_features, self.channels, strict=True)}
        self.hidden_states_norms = nn.ModuleDict(norms)
        self.post_init()


class ConvNextV2ForImageClassification(ImageEncoderForImageClassification, ConvNextV2PreTrainedModel):
    """The encoder with a linear classifier on its pooled features, as Transformers' class of the same name."""

    def __init__(self, config: ConvNextV2Config):
        super().__init__(config)
        config = self.config  # ours, also where Transformers' own was given
        self.num_labels = config.num_labels or 0
        self.convnextv2 = ConvNextV2Model(config)
        dim, num_labels = config.hidden_sizes[-1], self.num_labels
        self.classifier = nn.Linear(dim, num_labels) if num_labels > 0 else nn.Identity()
        self.post_init()
