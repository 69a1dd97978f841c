"""Mask2Former and MaskFormer on a backbone of this package, trained and evaluated as semantic segmentation models.

Both predict masks, each with the probabilities of its classes. Of the classes of an image, every one is one mask to
find; pixels without a class are in no mask.
"""

from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional as F
from transformers import Mask2FormerConfig, MaskFormerConfig, MaskFormerDetrConfig
from transformers import Mask2FormerForUniversalSegmentation as StockMask2Former
from transformers import MaskFormerForInstanceSegmentation as StockMaskFormer
from transformers.modeling_outputs import SemanticSegmenterOutput

from hf_convnextv2.registration import registered
from training.models.creation import image_size_of
from training.models.families import EncoderConfig
from training.settings.checks import check
from training.settings.model import SegmenterSettings

HEAD_SIZE = 32  # channels of an attention head, as in both papers
MOST_POINTS = 12544  # of a mask that Mask2Former's loss is computed on, as in its paper


class SemanticForward:
    """Lets a model of Transformers take labels and give logits as models of semantic segmentation do.

    The loss is that of Transformers, with one difference. Its mask losses are sums over the masks of a process, divided
    by the number of masks in a pass, which is averaged over the processes. Transformers 5.23 divides that average by
    the number of processes once more: the mask losses of two processes would be twice those of one. The class losses
    are means over the queries of a process and pass, so they depend a little on how the images are split.
    """

    def __init__(self, config: Any) -> None:
        with registered():  # so that the backbone is this package's
            super().__init__(config)  # type: ignore[call-arg]
        self.criterion.get_num_masks = mean_num_masks  # type: ignore[attr-defined]

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> SemanticSegmenterOutput:
        """Images `(B, num_channels, H, W)` to `logits (B, num_labels, H, W)`, or with labels to the loss alone.

        Args:
            labels: class numbers `(B, H, W)` int64; pixels with any other number do not belong to a class.
        """
        predict: Any = super().forward  # type: ignore[misc]
        if labels is None:
            return SemanticSegmenterOutput(logits=log_scores(predict(pixel_values), pixel_values.shape[2:]))
        masks, classes = masks_of(labels, self.config.num_labels)  # type: ignore[attr-defined]
        return SemanticSegmenterOutput(loss=predict(pixel_values, mask_labels=masks, class_labels=classes).loss)


class Mask2FormerForUniversalSegmentation(SemanticForward, StockMask2Former):  # type: ignore[misc]
    """As Transformers' class of the same name, with the same parameters."""


class MaskFormerForInstanceSegmentation(SemanticForward, StockMaskFormer):  # type: ignore[misc]
    """As Transformers' class of the same name, with the same parameters."""


def mean_num_masks(class_labels: list[Tensor], device: torch.device) -> Tensor:
    """The number of masks in this pass, averaged over the processes; at least 1."""
    count = torch.tensor(float(sum(map(len, class_labels))), device=device)
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(count)
        count /= distributed.get_world_size()
    return count.clamp(min=1)


def masks_of(labels: Tensor, num_labels: int) -> tuple[list[Tensor], list[Tensor]]:
    """For each image of `labels (B, H, W)`, the masks `(K, H, W)` float32 of its classes, and the classes `(K,)`."""
    classes = [image.unique() for image in labels]
    classes = [found[(found >= 0) & (found < num_labels)] for found in classes]
    masks = [(image == found[:, None, None]).float() for image, found in zip(labels, classes, strict=True)]
    return masks, classes


def log_scores(outputs: Any, size: tuple[int, ...]) -> Tensor:
    """The logarithms of the score of each class at each pixel, `(B, num_labels, *size)`.

    The score of a class is the sum over the queries of the class's probability times the mask's, as in the
    post-processing of Transformers; masks are enlarged to the image before. The softmax of these logarithms is the
    share of each class in the scores of a pixel.
    """
    masks = F.interpolate(outputs.masks_queries_logits.float(), size=size, mode="bilinear", align_corners=False)
    classes = outputs.class_queries_logits.float().softmax(-1)[..., :-1]  # the last one is "no mask"
    with torch.autocast(masks.device.type, enabled=False):
        scores = torch.einsum("bqc,bqhw->bchw", classes, masks.sigmoid())
    return scores.clamp(min=torch.finfo(scores.dtype).tiny).log()


def create_mask2former(
    settings: SegmenterSettings, backbone_config: EncoderConfig, labels: dict[str, Any]
) -> Mask2FormerForUniversalSegmentation:
    """Mask2Former with new weights; `labels` are the names of the classes for its configuration."""
    width, strides = settings.decoder_hidden_size, list(backbone_config.strides)
    check_stages(backbone_config, 3)
    config = Mask2FormerConfig(
        backbone_config=backbone_config,
        feature_size=width,
        mask_feature_size=width,
        hidden_dim=width,
        encoder_feedforward_dim=4 * width,
        dim_feedforward=8 * width,
        num_attention_heads=width // HEAD_SIZE,
        num_queries=settings.num_queries,
        train_num_points=min(MOST_POINTS, (image_size_of(backbone_config) // strides[0]) ** 2),
        common_stride=strides[0],
        feature_strides=strides,
        **labels,
    )
    return Mask2FormerForUniversalSegmentation(config)


def create_maskformer(
    settings: SegmenterSettings, backbone_config: EncoderConfig, labels: dict[str, Any]
) -> MaskFormerForInstanceSegmentation:
    """MaskFormer with new weights; `labels` are the names of the classes for its configuration."""
    width, heads = settings.decoder_hidden_size, settings.decoder_hidden_size // HEAD_SIZE
    check_stages(backbone_config, 2)
    decoder = MaskFormerDetrConfig(
        d_model=width, decoder_attention_heads=heads, decoder_ffn_dim=8 * width, num_queries=settings.num_queries
    )
    config = MaskFormerConfig(
        backbone_config=backbone_config,
        decoder_config=decoder,
        fpn_feature_size=width,
        mask_feature_size=width,
        **labels,
    )
    return MaskFormerForInstanceSegmentation(config)


def check_stages(backbone_config: EncoderConfig, least: int) -> None:
    """Raise unless the backbone has as many stages as the pixel decoder reads."""
    count = len(backbone_config.depths)
    check("num_stages", count, count >= least, f"be at least {least}, the maps that the pixel decoder reads")
