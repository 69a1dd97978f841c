"""Configuration of ConvMAE: its encoder and its pre-training (arXiv 2205.03892); every setting is checked here."""

import math
from typing import Any, ClassVar, Self

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin
from transformers.utils import logging

from .shared_config import PreTrainingConfig, height_and_width, without

# `base` is the article's. The others are this package's own, for tests and few images: no published model has them.
CONVMAE_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "depths": [1, 1, 6],
        "hidden_sizes": [48, 96, 192],
        "num_attention_heads": 3,
        "decoder_hidden_size": 128,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 4,
    },
    "small": {
        "depths": [2, 2, 11],
        "hidden_sizes": [128, 192, 384],
        "num_attention_heads": 6,
        "decoder_hidden_size": 256,
        "decoder_num_hidden_layers": 4,
        "decoder_num_attention_heads": 8,
    },
    "base": {},
}
logger = logging.get_logger(__name__)
NUM_STAGES = 3
# Names of ViTMAE, of the official code and of EasyCV, for what is here a setting of another name, or none.
OTHER_NAMES = {
    "patch_size": "give `patch_sizes`, one for each stage",
    "hidden_size": "give `hidden_sizes`, one for each stage",
    "num_hidden_layers": "give `depths`, one for each stage",
    "intermediate_size": "give `mlp_ratio`",
    "decoder_intermediate_size": "give `mlp_ratio`",
    "qkv_bias": "queries, keys and values always have a bias",
    "hidden_dropout_prob": "there is no dropout but `drop_path_rate`",
    "attention_probs_dropout_prob": "there is no dropout but `drop_path_rate`",
    "img_size": "give `image_size`",
    "input_size": "give `image_size`",
    "in_channels": "give `num_channels`",
    "nb_classes": "give `num_labels`",
    "with_fuse": "give `fusion_stages`",
    "use_rel_pos_bias": "give `use_relative_position_bias`",
    "use_learnable_pos_embed": "a classifier always learns its position embeddings, and pre-training never does",
    "init_pos_embed_by_sincos": "position embeddings always begin as sines and cosines",
    "norm_layer": "it is always a LayerNorm: give `layer_norm_eps`",
    "in_chans": "give `num_channels`",
    "num_classes": "give `num_labels`",
    "embed_dim": "give `hidden_sizes`, one for each stage",
    "depth": "give `depths`, one for each stage",
    "num_heads": "give `num_attention_heads`",
    "decoder_embed_dim": "give `decoder_hidden_size`",
    "decoder_depth": "give `decoder_num_hidden_layers`",
    "decoder_num_heads": "give `decoder_num_attention_heads`",
    "norm_pix": "give `norm_pix_loss`",
    "drop_path": "give `drop_path_rate`",
    "drop_rate": "there is no dropout but `drop_path_rate`",
    "attn_drop_rate": "there is no dropout but `drop_path_rate`",
    "global_pool": "a classifier always takes the mean of all tokens",
}
NUM_GLOBAL_BLOCKS = 4  # that attend to the whole image where the others have windows


@strict
class ConvMAEConfig(BackboneConfigMixin, PreTrainingConfig):
    """Two stages of convolutions, one of a transformer, and their pre-training.

    The defaults are the official model's, but for `head_init_scale`.

    Args:
        image_size: of the position embeddings, which are interpolated or computed for images of other sizes; one number
            or height and width.
        patch_sizes: stride of each stage; their product, `target_size`, is the side of a token in pixels.
        num_attention_heads, mlp_ratio: of the blocks; the heads are those of the third stage.
        window_size: side in tokens of the windows within which blocks of the transformer attend, for large images;
            `None`: all attend to the whole image. Not for pre-training. The official detector has 16 for 1024 pixels.
        window_block_indices: the blocks that attend within windows; `None` resolves to all but four that are spread
            over the stage, the first and the last among them: to all but 0, 3, 6 and 10 of 11, as in that detector.
        use_relative_position_bias: add a learned number for each head and each distance of two tokens to the logits of
            attention; one table for all blocks with windows, and one for all others. Not for pre-training.
        layer_norm_eps: of the transformer; the convolutional stages have PyTorch's 1e-5, as in the official code.
        head_init_scale: factor on the initial weights of the classifier head (official: 0.001).
        cell_size: side in pixels of what is hidden or seen together, a multiple of `target_size`; `None` resolves to
            that: a cell of one token.
        mask_ratio: share of the cells hidden from the encoder; `None` resolves to 0.75, or as `num_visible_sets` says.
        num_visible_sets: K > 1 shares the cells of an image out to K sets, each of which a view of its own shows to the
            encoder, in one pass (FastConvMAE: 4); it hides 1 - 1/K of the cells from each.
        norm_pix_loss: regress each token's pixels normalised by their mean and standard deviation.
        fusion_stages: earlier stages whose maps are added to the encoder's output in pre-training (multi-scale fusion).
        decoder_hidden_size, decoder_num_hidden_layers, decoder_num_attention_heads: of the transformer that predicts.
        target_type, feature_target_dim, feature_target_on, feature_loss, feature_loss_weight: as in
            `ConvNextV2FCMAEConfig`; a cell there is a token here.

    Raises:
        ValueError: if a setting breaks its rule; the message names the setting, its value and the rule.
    """

    model_type = "convmae"
    default_mask_ratio: ClassVar[float] = 0.75

    num_channels: int = 3
    image_size: int | list[int] | tuple[int, int] = 224
    patch_sizes: list[int] | tuple[int, ...] = (4, 2, 2)
    hidden_sizes: list[int] | tuple[int, ...] = (256, 384, 768)
    depths: list[int] | tuple[int, ...] = (2, 2, 11)
    num_attention_heads: int = 12
    mlp_ratio: float | int = 4
    window_size: int | None = None
    window_block_indices: list[int] | tuple[int, ...] | None = None
    use_relative_position_bias: bool = False
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    head_init_scale: float | int = 1.0
    drop_path_rate: float | int = 0.0
    cell_size: int | None = None
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    fusion_stages: list[str] | tuple[str, ...] = ("stage1", "stage2")
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for name, advice in OTHER_NAMES.items():
            if name in kwargs:
                raise ValueError(f"`{name}` (={kwargs[name]}) must be left out: {advice}.")
        self._check_numbers()
        self._check_stages()
        self._check_images()
        self._check_attention("hidden_sizes", self.hidden_sizes[-1], "num_attention_heads")
        self._check_attention("decoder_hidden_size", self.decoder_hidden_size, "decoder_num_attention_heads")
        self._check_windows()
        self._check_channels_and_drop_path()
        self._resolve_mask_ratio()
        self.stage_names = ["stem", *(f"stage{index}" for index in range(1, NUM_STAGES + 1))]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)
        self._check_pretraining(NUM_STAGES, self.hidden_sizes[-1])

    def _check_numbers(self) -> None:
        """Raise unless the numbers of layers and of their first weights are finite and not negative."""
        for name in ("layer_norm_eps", "initializer_range", "head_init_scale", "mlp_ratio"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"`{name}` (={value}) must be finite and not negative.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` (={self.hidden_act!r}) must be one of {', '.join(sorted(ACT2FN))}.")

    def _check_stages(self) -> None:
        """Raise unless each of the three stages has a stride, a width and a depth."""
        for name in ("patch_sizes", "hidden_sizes", "depths"):
            values = list(getattr(self, name))
            if len(values) != NUM_STAGES or min(values) < 1:
                raise ValueError(f"`{name}` (={values}) must be {NUM_STAGES} positive numbers, one for each stage.")
        if self.mlp_ratio * min(*self.hidden_sizes, self.decoder_hidden_size) < 1:
            raise ValueError(f"`mlp_ratio` (={self.mlp_ratio}) must leave an MLP at least one channel.")

    def _check_images(self) -> None:
        """Raise unless an image has room for a token, and a cell whole tokens; resolves `cell_size`."""
        token = self.target_size
        if min(height_and_width(self.image_size)) < token:
            raise ValueError(f"`image_size` (={self.image_size}) must be at least {token}, the size of a token.")
        if self.cell_size is None:
            self.cell_size = token
        if self.cell_size < 1 or self.cell_size % token:
            raise ValueError(f"`cell_size` (={self.cell_size}) must be a multiple of {token}, the size of a token.")

    def _check_attention(self, name: str, width: int, heads_name: str) -> None:
        """Raise unless the width of a transformer can be shared out to its heads and to both axes of positions."""
        num_heads = getattr(self, heads_name)
        if num_heads < 1 or width % num_heads:
            raise ValueError(f"`{heads_name}` (={num_heads}) must divide the width of `{name}` (={width}).")
        if width < 1 or width % 4:
            raise ValueError(
                f"`{name}` (={width}) must be a multiple of 4 in a transformer: sines and cosines of both axes."
            )

    def _check_windows(self) -> None:
        """Raise unless windows and the blocks that have them fit together; resolves `window_block_indices`."""
        depth, indices = self.depths[-1], self.window_block_indices
        if self.window_size is None:
            if indices is not None:
                raise ValueError(f"`window_block_indices` (={indices}) must be left out without a `window_size`.")
            return
        if self.window_size < 1:
            raise ValueError(f"`window_size` (={self.window_size}) must be at least 1, or None for no windows.")
        if indices is None:
            of_images = {index * (depth - 1) // (NUM_GLOBAL_BLOCKS - 1) for index in range(NUM_GLOBAL_BLOCKS)}
            self.window_block_indices = indices = [index for index in range(depth) if index not in of_images]
            if not indices:
                logger.warning_once(
                    f"`window_size` (={self.window_size}) has no effect in a last stage of {depth} blocks: by default, "
                    f"{NUM_GLOBAL_BLOCKS} attend to the whole image. Give `window_block_indices`."
                )
        if len(set(indices)) != len(indices) or not set(indices) <= set(range(depth)):
            raise ValueError(
                f"`window_block_indices` (={indices}) must be numbers of blocks of the last stage, each once: from 0 "
                f"to {depth - 1}."
            )

    @classmethod
    def from_size(cls, name: str, **overrides: Any) -> Self:
        """The configuration of a size, e.g. `from_size("base", num_labels=10)`. Any other field is taken as given.

        "base" is the official model; "small" and "tiny" are this package's own, for tests and few images.
        """
        if name not in CONVMAE_SIZES:
            raise ValueError(f"`name` (={name!r}) must be one of {', '.join(CONVMAE_SIZES)}.")
        return cls(**{**CONVMAE_SIZES[name], **overrides})

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in Transformers, but the folder of another type of model is an error."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        cls._refuse_other_type(pretrained_model_name_or_path, config_dict, [cls.model_type])
        return config_dict, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As `PreTrainingConfig.from_dict`; a cell of one token follows other `patch_sizes`.

        Which blocks have windows follows other `depths`, and that there are none.
        """
        if "depths" in kwargs or ("window_size" in kwargs and kwargs["window_size"] is None):
            config_dict = without(config_dict, ["window_block_indices"])
        if "patch_sizes" in kwargs and config_dict.get("cell_size") == math.prod(config_dict.get("patch_sizes", ())):
            config_dict = without(config_dict, ["cell_size"])
        return super().from_dict(config_dict, **kwargs)

    @property
    def patch_sides(self) -> tuple[int, int]:
        """Height and width in pixels of a patch of the stem."""
        return self.patch_sizes[0], self.patch_sizes[0]

    @property
    def target_size(self) -> int:
        """Side of a token in pixels, of which the decoder predicts one at a time: 16 for the official model."""
        return math.prod(self.patch_sizes)

    @property
    def last_strides(self) -> tuple[int, int]:
        """Pixels from row to row, and from column to column, of the last map; no smaller image has one."""
        return self.target_size, self.target_size

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels from row to row of the map of each stage."""
        return tuple(math.prod(self.patch_sizes[: index + 1]) for index in range(NUM_STAGES))

    @property
    def token_sides(self) -> tuple[int, ...]:
        """Positions a side that a token has at each stage: 4, 2, 1 in the official model."""
        return tuple(math.prod(self.patch_sizes[index + 1 :]) for index in range(NUM_STAGES))
