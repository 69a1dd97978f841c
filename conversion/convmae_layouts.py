"""The layouts in which ConvMAE's weights are stored, as tables.

The official code of ConvMAE and of FastConvMAE has the same names. EasyCV, which has FastConvMAE alone, puts `encoder.`
before those of the encoder in pre-training and `backbone.` in a classifier; its encoder also holds what only the
decoder sees. The detectors of both attend in windows, with biases by relative position.
"""

from conversion.families import CONVMAE
from conversion.layout_tables import BACKBONE_NORMS, OURS, Layout, Row, names_of

CONVOLUTION = ("norm1", "conv1", "attn", "conv2", "norm2", "mlp.fc1", "mlp.fc2")
TRANSFORMER = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
BLOCKS = (CONVOLUTION, CONVOLUTION, TRANSFORMER)
# fmt: off
ENCODER: tuple[Row, ...] = (
    ("embeddings.patch_embeddings",                  "patch_embed1.proj"),
    ("embeddings.layernorm",                         "patch_embed1.norm"),
    ("encoder.stages.1.patch_embed.proj",            "patch_embed2.proj"),
    ("encoder.stages.1.patch_embed.norm",            "patch_embed2.norm"),
    ("encoder.stages.2.patch_embed.proj",            "patch_embed3.proj"),
    ("encoder.stages.2.patch_embed.norm",            "patch_embed3.norm"),
    ("encoder.stages.2.proj",                        "patch_embed4"),
    ("encoder.stages.2.position_embeddings.weight:", "pos_embed:"),
    *(
        (f"encoder.stages.{stage}.layers.{{b}}.{layer}", f"blocks{stage + 1}.{{b}}.{layer}")
        for stage, layers in enumerate(BLOCKS) for layer in layers
    ),
    ("layernorm",                                    "fc_norm"),
)
# Of the encoder of a detector, ours and that of the official code and of EasyCV.
POSITION_BIASES: tuple[Row, ...] = tuple(
    (
        f"encoder.stages.2.{name}_bias.relative_position_bias_table:",
        f"{name}_rel_pos_bias.relative_position_bias_table:",
    )
    for name in ("windowed", "global")
)
# Ours, the official code's, EasyCV's.
HEAD: tuple[Row, ...] = (("classifier", "head", "head_0.fc_cls"),)
DECODER: tuple[Row, ...] = (
    ("decoder.fusion.stage1",               "stage1_output_decode", "encoder.stage1_output_decode"),
    ("decoder.fusion.stage2",               "stage2_output_decode", "encoder.stage2_output_decode"),
    ("decoder.norm",                        "norm",                 "encoder.norm"),
    ("decoder.embed",                       "decoder_embed",        "decoder.decoder_embed"),
    ("decoder.mask_token:",                 "mask_token:",          "decoder.mask_token:"),
    ("decoder.position_embeddings.weight:", "decoder_pos_embed:",   "decoder.decoder_pos_embed:"),
    *(
        (f"decoder.layers.{{b}}.{layer}", f"decoder_blocks.{{b}}.{layer}", f"decoder.decoder_blocks.{{b}}.{layer}")
        for layer in TRANSFORMER
    ),
    ("decoder.layernorm",                   "decoder_norm",         "decoder.decoder_norm"),
    ("decoder.pred",                        "decoder_pred",         "decoder.decoder_pred"),
    ("decoder.pred_feature",                None,                   None),
)
# fmt: on
CONVMAE_CODE, EASYCV = "convmae", "easycv"  # libraries
# Linear layers of ours that others store as 1x1 convolutions.
CONVOLUTIONS = r"encoder\.stages\.[01]\.layers\.\d+\.(conv[12]|mlp\.fc[12])\.weight"
# What only the decoder sees of an encoder that is stored without one.
BEFORE_DECODER = r"decoder\.(fusion|norm)\."
# Of a detector: what is behind its encoder, and which entry of a table each pair of tokens has.
PAIRS = r"(windowed|global)_rel_pos_bias\.relative_position_index$"
DETECTRON2_HEADS = r"backbone\.fpn_|proposal_generator\.|roi_heads\.|pixel_(mean|std)$"
MMDET_HEADS = r"neck\.|rpn_head\.|roi_head\."
DETECTRON2_BACKBONE = "backbone.bottom_up."

CONVMAE_LAYOUTS = (
    Layout("convmae-official", CONVMAE, CONVMAE_CODE, names_of(ENCODER, 1) | names_of(HEAD + DECODER, 1)),
    Layout(
        "convmae-easycv",  # in pre-training; an encoder alone as its classifiers and detectors start from it
        CONVMAE,
        EASYCV,
        names_of(ENCODER, 1, "encoder.") | names_of(DECODER, 2),
        prefix="encoder.",
        keeps_prefix=False,
        settings={"mask_ratio": 0.75, "num_visible_sets": 4},
    ),
    Layout(
        "convmae-easycv-classifier",
        CONVMAE,
        EASYCV,
        names_of(ENCODER, 1, "backbone.") | names_of(HEAD, 2),
        prefix="backbone.",
    ),
    Layout(
        "convmae-official-detector",
        CONVMAE,
        CONVMAE_CODE,
        names_of((*ENCODER, *POSITION_BIASES), 1, DETECTRON2_BACKBONE),
        prefix=DETECTRON2_BACKBONE,
        foreign=rf"{DETECTRON2_HEADS}|backbone\.bottom_up\.{PAIRS}",
    ),
    Layout(
        "convmae-easycv-detector",
        CONVMAE,
        EASYCV,
        names_of((*ENCODER, *POSITION_BIASES), 1, "backbone."),
        prefix="backbone.",
        foreign=rf"{MMDET_HEADS}|backbone\.{PAIRS}",
    ),
    Layout(
        "convmae",
        CONVMAE,
        OURS,
        names_of((*ENCODER, *POSITION_BIASES), 0, CONVMAE.prefix) | names_of(HEAD + DECODER, 0),
        prefix=CONVMAE.prefix,
        keeps_prefix=False,
        foreign=BACKBONE_NORMS,
    ),
)
