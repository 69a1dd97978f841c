"""ConvNeXt V2: encoder, backbone and image classifier, with the module names of Transformers' `convnextv2`.

B batch, C channels, H W height and width at the current stride. Maps are (B, C, H, W) in channels-last memory.
"""

import copy
import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import resolve_hidden_states_indices, selected_hidden_states

from .classification_loss import classification_loss
from .configuration_convnextv2 import ConvNextV2Config, without
from .grn import ConvNextV2GRN
from .input_checks import refuse_unknown_keywords
from .layers import ConvNextV2Embeddings, ConvNextV2LayerNorm, ConvNextV2Stage, call
from .packing import PackedCells, pack, unpack

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class ConvNextV2PreTrainedModel(PreTrainedModel):
    """Initialisation, loading and saving that all models share."""

    config_class: type[ConvNextV2Config] = ConvNextV2Config  # pyright: ignore[reportIncompatibleVariableOverride]
    config: ConvNextV2Config
    base_model_prefix = "convnextv2"
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    _input_embed_layer = "patch_embeddings"  # whose output requires a gradient where only adapters are trained
    _no_split_modules = ["ConvNextV2Layer"]  # noqa: RUF012
    _can_compile_fullgraph = True
    # The folder of an FCMAE model also holds its decoder, which no other model needs.
    _keys_to_ignore_on_load_unexpected = [r"^decoder\."]  # noqa: RUF012

    def __init__(self, config: ConvNextV2Config, *args: Any, **kwargs: Any):
        # Transformers' own configuration is welcome: it lacks a few of our fields, which take their defaults.
        if not isinstance(config, ConvNextV2Config) and getattr(config, "model_type", None) == "convnextv2":
            # A new configuration refuses some problem types that one changed in place may have.
            problem_type = config.problem_type
            config = self.config_class.from_dict({**config.to_dict(), "problem_type": None})
            config.problem_type = problem_type
        super().__init__(config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Weights of linear and convolution layers normal(0, `initializer_range`), biases and GRN 0, LayerNorm 1 and 0.

        The paper's, everywhere; the official trainer draws most of the encoder with a standard deviation of 1 instead.
        """
        super()._init_weights(module)
        if isinstance(module, ConvNextV2GRN):
            init.zeros_(module.weight)
            init.zeros_(module.bias)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in Transformers; weights stored for another `num_channels` are adapted (see `set_num_channels`).

        Raises:
            ValueError: if the encoder's parameters and the stored ones have different names: a model of another size.
                `ignore_mismatched_sizes=True` loads what fits, as for different shapes.
        """
        source, with_report = pretrained_model_name_or_path, kwargs.pop("output_loading_info", False)
        num_channels = kwargs.get("num_channels", getattr(kwargs.get("config"), "num_channels", None))
        if source is not None and num_channels is not None:
            kwargs = cls._with_stored_channels(source, kwargs)
        loaded: Any = super().from_pretrained(source, *args, output_loading_info=True, **kwargs)
        model, report = loaded
        if source is not None and not kwargs.get("ignore_mismatched_sizes", False):
            _check_encoder_is_complete(source, report)
        if source is not None and num_channels not in (None, model.config.num_channels):
            model.set_num_channels(num_channels)
        return loaded if with_report else model

    @classmethod
    def _with_stored_channels(cls, source: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of `from_pretrained` that load a model of the stored number of channels."""
        hub_kwargs = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        stored = cls.config_class.from_pretrained(source, **hub_kwargs).num_channels
        if kwargs.get("config") is None:
            return {**kwargs, "num_channels": stored}
        config = copy.deepcopy(kwargs["config"])
        config.num_channels = stored
        return without({**kwargs, "config": config}, ["num_channels"])

    def set_num_channels(self, num_channels: int) -> None:
        """Adapt the weights that touch pixels to images of `num_channels` channels, in place.

        One channel: the sum of the input kernels (and the mean of the rows that predict pixels); n channels: the
        kernels repeated and scaled by old / n (the rows repeated).
        """
        if not isinstance(num_channels, int) or num_channels < 1:
            raise ValueError(f"`num_channels` (={num_channels!r}) must be an integer of at least 1.")
        for module in self.modules():
            adapt = getattr(module, "set_num_channels", None)
            if adapt is not None and not isinstance(module, ConvNextV2PreTrainedModel):
                adapt(num_channels)
        self.config.num_channels = num_channels

    def _asked_for_maps(self, output_hidden_states: bool | int | list[int] | None) -> bool | int | list[int]:
        """Which maps are asked for, by the argument or the configuration: all, none, or those of these numbers."""
        asked = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return asked or False

    def _select_maps(self, maps: tuple[Tensor, ...] | None, asked: bool | int | list[int]) -> Any:
        """The maps that are asked for, None in place of others, as Transformers has them; None where none is."""
        if maps is None or not asked:
            return None
        numbers = selected_hidden_states(asked)
        if numbers is None:
            return maps
        chosen = resolve_hidden_states_indices(self, numbers, num_hidden_states=len(maps))
        return tuple(map_ if number in chosen else None for number, map_ in enumerate(maps))


def _check_encoder_is_complete(source: Any, report: dict[str, Any]) -> None:
    """Raise where Transformers only warns: blocks that stay at their initial weights, or that the model lacks."""
    for kind, verb in (("missing_keys", "lacks"), ("unexpected_keys", "also holds")):
        names = sorted(name for name in report[kind] if re.search(r"(^|\.)(embeddings|encoder)\.", name))
        if names:
            raise ValueError(
                f"`{source}` must hold a model of the size of the configuration, but {verb} {len(names)} of the "
                f"encoder's weights, e.g. `{names[0]}`. Leave the configuration out, or load what fits with "
                "`ignore_mismatched_sizes=True`."
            )


class ConvNextV2Encoder(nn.Module):
    """The stages, one after the other."""

    def __init__(self, config: ConvNextV2Config):
        super().__init__()
        rates = torch.linspace(0, config.drop_path_rate, sum(config.depths), device="cpu").split(list(config.depths))
        self.stages = nn.ModuleList(ConvNextV2Stage(config, i, rate.tolist()) for i, rate in enumerate(rates))

    def forward(
        self,
        features: Tensor,
        cells: tuple[PackedCells, ...] | None = None,
        output_hidden_states: bool = False,
        images: tuple[PackedCells, ...] | None = None,
    ) -> tuple[Tensor, ...]:
        """The maps after the stem and after each stage, or the last one alone; packed where `cells` are given.

        `images` says for each map where its packed cells lie in whole images: then all maps are returned as maps of
        those.
        """
        if images is not None:
            assert cells is not None
            return self._forward_by_images(features, cells, images)
        maps = (features,)
        for index, stage in enumerate(self.stages):
            features = call(stage, features, None if cells is None else cells[index])
            maps = (*maps, features) if output_hidden_states else (features,)
        return maps

    def _forward_by_images(
        self, features: Tensor, cells: tuple[PackedCells, ...], images: tuple[PackedCells, ...]
    ) -> tuple[Tensor, ...]:
        """Each stage computes on what is taken out of the map before it, so that all maps get gradients."""
        maps = (unpack(features, images[0]),)
        for index, stage in enumerate(self.stages):
            features = call(stage, pack(maps[-1], images[index]), cells[index])
            maps = (*maps, unpack(features, images[index + 1]))
        return maps


class ConvNextV2Model(ConvNextV2PreTrainedModel):
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

    @can_return_tuple
    @refuse_unknown_keywords()
    def forward(
        self,
        pixel_values: Tensor | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPoolingAndNoAttention:
        """Images `(B, num_channels, height, width)` to features.

        Args:
            output_hidden_states: True for all maps, or the numbers of some, of which the stem's is 0.

        Returns:
            last_hidden_state `(B, C, height / cell, width / cell)` with cell = `config.cell_size` (32 by default),
            pooler_output `(B, C)`, the embedding of an image, and, if asked for, hidden_states: the maps after the stem
            and after each stage, `(B, C, H, W)`, None in place of those that were not asked for.
        """
        if pixel_values is None:
            raise ValueError("`pixel_values` (=None) must be a tensor (batch, channels, height, width).")
        asked = self._asked_for_maps(output_hidden_states)
        keywords = {"output_hidden_states": True} if asked else {}  # none for a module that wraps the encoder
        maps = self.encoder(self.embeddings(pixel_values), **keywords)
        pooled = self.layernorm(maps[-1].mean([-2, -1])) if self.layernorm is not None else None
        return BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=maps[-1], pooler_output=pooled, hidden_states=self._select_maps(maps, asked)
        )


class ConvNextV2Backbone(BackboneMixin, ConvNextV2PreTrainedModel):
    """The encoder as a backbone for detection and segmentation, as Transformers' `ConvNextV2Backbone`."""

    has_attentions = False

    def __init__(self, config: ConvNextV2Config):
        super().__init__(config)
        config = self.config  # ours, also where Transformers' own was given
        self.embeddings = ConvNextV2Embeddings(config)
        self.encoder = ConvNextV2Encoder(config)
        self.num_features = [config.hidden_sizes[0], *config.hidden_sizes]
        norms = {name: ConvNextV2LayerNorm(dim) for name, dim in zip(self.out_features, self.channels, strict=True)}
        self.hidden_states_norms = nn.ModuleDict(norms)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    @refuse_unknown_keywords()
    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | int | list[int] | None = None,
        **kwargs: Any,
    ) -> BackboneOutput:
        """Images `(B, num_channels, height, width)` to the normalised maps of `out_features`, `(B, C, H, W)` each."""
        maps = self.encoder(self.embeddings(pixel_values), output_hidden_states=True)
        by_name = dict(zip(self.stage_names, maps, strict=True))
        names = [name for name in self.stage_names if name in self.out_features]
        feature_maps = tuple(self.hidden_states_norms[name](by_name[name]) for name in names)
        return BackboneOutput(feature_maps=feature_maps, hidden_states=maps)


class ConvNextV2ForImageClassification(ConvNextV2PreTrainedModel):
    """The encoder with a linear classifier on its pooled features, as Transformers' class of the same name."""

    accepts_loss_kwargs = False

    def __init__(self, config: ConvNextV2Config):
        super().__init__(config)
        config = self.config  # ours, also where Transformers' own was given
        self.num_labels = config.num_labels or 0
        self.convnextv2 = ConvNextV2Model(config)
        dim, num_labels = config.hidden_sizes[-1], self.num_labels
        self.classifier = nn.Linear(dim, num_labels) if num_labels > 0 else nn.Identity()
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is getattr(self, "classifier", None) and isinstance(module, nn.Linear):
            init.normal_(module.weight, std=self.config.initializer_range * self.config.head_init_scale)

    @can_return_tuple
    @refuse_unknown_keywords("label_smoothing")
    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutputWithNoAttention:
        """Images `(B, num_channels, height, width)` to `logits (B, num_labels)`.

        Args:
            labels: class indices `(B,)` or `(B, 1)`, or class probabilities `(B, num_labels)` float (mixup,
                distillation) for the soft cross-entropy. `config.problem_type` "multi_label_classification" takes 0/1
                targets `(B, num_labels)` and "regression" values, as in Transformers. Where it is None, rows of floats
                that do not sum to 1 are an error: Transformers would take them, and probabilities too, for 0/1 targets.
                The configuration is never changed.
            label_smoothing: share of the probability spread evenly over the classes, for both kinds of class labels.
                Transformers' Trainer takes every argument by the name of "label" for a column of the data, so this one
                is not in the signature.
        """
        # Given only where they differ from the defaults: a module that wraps the encoder takes none.
        keywords: dict[str, Any] = {} if self.config.return_dict else {"return_dict": True}
        keywords |= {} if output_hidden_states is None else {"output_hidden_states": output_hidden_states}
        outputs = self.convnextv2(pixel_values, **keywords)
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            loss = classification_loss(logits, labels, self.config, kwargs.get("label_smoothing", 0.0))
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=outputs.hidden_states)
