"""ConvMAE: encoder, backbone and image classifier (arXiv 2205.03892).

What these compute is in encoder_models.py; blocks are in convmae_layers.py; pre-training is in
modeling_convmae_pretraining.py.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import initialization as init

from .configuration_convmae import ConvMAEConfig
from .convmae_layers import ConvMAEConvStage, ConvMAEEmbeddings, ConvMAETransformerStage, check_attention
from .encoder_models import (
    ImageEncoderBackbone,
    ImageEncoderForImageClassification,
    ImageEncoderModel,
    StagedEncoder,
    drop_path_rates,
)
from .layers import ConvNextV2LayerNorm
from .position_embeddings import PositionEmbeddings
from .pretrained_model import ImageEncoderPreTrainedModel
from .shared_config import height_and_width
from .window_attention import RelativePositionBias

POSITION_BIASES = r"\.relative_position_bias_table$"


class ConvMAEPreTrainedModel(ImageEncoderPreTrainedModel):
    """Initialisation, loading and saving that all models share."""

    config_class: type[ConvMAEConfig] = ConvMAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    config: ConvMAEConfig
    base_model_prefix = "convmae"
    _no_split_modules = ["ConvMAEConvLayer", "ConvMAELayer"]  # noqa: RUF012
    _supports_sdpa = True
    refuses_attentions: ClassVar[bool] = True
    adapted_settings: ClassVar[tuple[str, ...]] = ("num_channels", "image_size")
    # Pre-training has none: they start at zero, which changes nothing.
    _keys_to_ignore_on_load_missing = [POSITION_BIASES]  # noqa: RUF012

    def __init__(self, config: ConvMAEConfig, *args: Any, **kwargs: Any):
        # By its type too: a model whose code comes from the Hub may get the configuration of this package.
        if not isinstance(config, ConvMAEConfig) and getattr(config, "model_type", None) != ConvMAEConfig.model_type:
            name = type(self).__name__
            raise TypeError(
                f"`config` (a {type(config).__name__}) must be a ConvMAEConfig for {name}. Stored weights are loaded "
                f"with `{name}.from_pretrained(...)`."
            )
        super().__init__(config, *args, **kwargs)

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """As in Transformers, which knows of more implementations than there are here."""
        name = super().get_correct_attn_implementation(requested_attention, is_init_check)
        check_attention(name)
        return name

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the official code: Xavier in the transformer, PyTorch's own in convolutions, also those of 1x1."""
        super()._init_weights(module)
        if isinstance(module, PositionEmbeddings):
            init.copy_(module.weight, module.initial_weight())
        elif isinstance(module, RelativePositionBias):
            init.zeros_(module.relative_position_bias_table)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            _init_layer(module)

    def set_image_size(self, image_size: int | Sequence[int]) -> None:
        """Make the position embeddings, and biases of relative positions, those of images of another size, in place.

        Learned ones are interpolated and fixed ones computed. Images of any size can be given without this; it changes
        which size the parameters stand for.
        """
        least = self.config.target_size
        if min(height_and_width(image_size)) < least:
            raise ValueError(f"`image_size` (={image_size}) must be at least {least}, the size of a token.")
        self._adapt("image_size", image_size)


def _init_layer(module: nn.Conv2d | nn.Linear) -> None:
    """Xavier of a linear layer, PyTorch's default of a convolution: uniform within 1 / sqrt(inputs of an output)."""
    num_outputs, num_inputs = module.weight.flatten(1).shape
    default = num_inputs**-0.5
    xavier = (6 / (num_inputs + num_outputs)) ** 0.5
    is_linear = isinstance(module, nn.Linear) and not getattr(module, "is_convolution", False)
    bound = xavier if is_linear or getattr(module, "is_linear", False) else default
    init.uniform_(module.weight, -bound, bound)
    if module.bias is not None:
        init.uniform_(module.bias, -default, default)
        if is_linear:
            init.zeros_(module.bias)


class ConvMAEEncoder(StagedEncoder):
    """Two stages of convolutions and one of a transformer."""

    def __init__(self, config: ConvMAEConfig, learned_positions: bool = True):
        *of_convolutions, of_transformer = drop_path_rates(config)
        stages = [ConvMAEConvStage(config, index, rates) for index, rates in enumerate(of_convolutions)]
        super().__init__([*stages, ConvMAETransformerStage(config, of_transformer, learned_positions)])


class ConvMAEModel(ImageEncoderModel, ConvMAEPreTrainedModel):
    """The encoder with average pooling and a LayerNorm; all tokens are visible.

    `add_pooling_layer=False` leaves the LayerNorm out, so that no parameter is without a gradient where only the maps
    are used. `learned_positions=False` makes the position embeddings a buffer, the sines and cosines of the image's
    grid, as in pre-training; it is not for weights whose embeddings were learned.
    """

    # The folder of a pre-training model has no LayerNorm of pooled features.
    _keys_to_ignore_on_load_missing = [r"^layernorm\.", POSITION_BIASES]  # noqa: RUF012

    def __init__(self, config: ConvMAEConfig, add_pooling_layer: bool = True, learned_positions: bool = True):
        super().__init__(config)
        self.embeddings = ConvMAEEmbeddings(config)
        self.encoder = ConvMAEEncoder(config, learned_positions)
        self.layernorm = nn.LayerNorm(config.hidden_sizes[-1], eps=config.layer_norm_eps) if add_pooling_layer else None
        self.post_init()


class ConvMAEBackbone(ImageEncoderBackbone, ConvMAEPreTrainedModel):
    """The encoder as a backbone for detection and segmentation."""

    def __init__(self, config: ConvMAEConfig):
        super().__init__(config)
        self.embeddings = ConvMAEEmbeddings(config)
        self.encoder = ConvMAEEncoder(config)
        self.num_features = [config.hidden_sizes[0], *config.hidden_sizes]
        norms = {name: ConvNextV2LayerNorm(dim) for name, dim in zip(self.out_features, self.channels, strict=True)}
        self.hidden_states_norms = nn.ModuleDict(norms)
        self.post_init()


class ConvMAEForImageClassification(ImageEncoderForImageClassification, ConvMAEPreTrainedModel):
    """The encoder with a linear classifier on its pooled features."""

    def __init__(self, config: ConvMAEConfig):
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        self.convmae = ConvMAEModel(config)
        dim, num_labels = config.hidden_sizes[-1], self.num_labels
        self.classifier = nn.Linear(dim, num_labels) if num_labels > 0 else nn.Identity()
        self.post_init()
