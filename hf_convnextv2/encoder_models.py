"""What the families share of their encoders, backbones and classifiers: all of `forward`.

B batch, C channels, H W height and width at the current stride. Maps are (B, C, H, W) in channels-last memory.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)
from transformers.utils.generic import can_return_tuple

from .classification_loss import classification_loss
from .input_checks import refuse_unknown_keywords
from .layers import call
from .packing import PackedCells, pack, unpack
from .pretrained_model import ImageEncoderPreTrainedModel
from .waiting import share_cores


class StagedEncoder(nn.Module):
    """The stages, one after the other."""

    def __init__(self, stages: Iterable[nn.Module]):
        super().__init__()
        self.stages = nn.ModuleList(stages)

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
        share_cores(features.device)
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


def drop_path_rates(config: Any) -> list[list[float]]:
    """The rate of each block of each stage: from 0 to `config.drop_path_rate`."""
    rates = torch.linspace(0, config.drop_path_rate, sum(config.depths), device="cpu").split(list(config.depths))
    return [rate.tolist() for rate in rates]


class ImageEncoderModel(ImageEncoderPreTrainedModel):
    """`embeddings` and `encoder`, average pooling and `layernorm`, if there is one."""

    embeddings: Any
    encoder: Any
    layernorm: nn.Module | None

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
            last_hidden_state `(B, C, height / stride, width / stride)`, with the last stage's stride (32 in published
            ConvNeXt V2, 16 in ConvMAE), pooler_output `(B, C)`, the embedding of an image, and, if asked for,
            hidden_states: the maps after the stem and after each stage, `(B, C, H, W)`, None in place of those that
            were not asked for.
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


class ImageEncoderBackbone(BackboneMixin, ImageEncoderPreTrainedModel):
    """`embeddings` and `encoder`, and `hidden_states_norms` of the maps of `out_features`."""

    has_attentions = False
    embeddings: Any
    encoder: Any
    hidden_states_norms: Any

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


class ImageEncoderForImageClassification(ImageEncoderPreTrainedModel):
    """A model with pooled features, and a linear `classifier` of these."""

    accepts_loss_kwargs = False
    classifier: nn.Module

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
            label_smoothing: share of the probability spread evenly over the classes, for both kinds of class labels;
                0 and 1 of several classes move by half of it towards each other. Transformers' Trainer takes every
                argument by the name of "label" for a column of the data, so this one is not in the signature.
        """
        # Given only where they differ from the defaults: a module that wraps the encoder takes none.
        keywords: dict[str, Any] = {} if self.config.return_dict else {"return_dict": True}
        keywords |= {} if output_hidden_states is None else {"output_hidden_states": output_hidden_states}
        keywords |= {"output_attentions": False} if self.config.output_attentions else {}
        outputs = self.base_model(pixel_values, **keywords)
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            loss = classification_loss(logits, labels, self.config, kwargs.get("label_smoothing", 0.0))
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=outputs.hidden_states)
