"""The layouts in which weights are stored, and pure functions between them and ours.

The tables of ConvNeXt V2 are here, those of ConvMAE in convmae_layouts.py; how names follow from them is in
layout_tables.py.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from conversion.convmae_layouts import CONVMAE_CODE, CONVMAE_LAYOUTS, CONVOLUTIONS, EASYCV
from conversion.families import CONVNEXTV2
from conversion.layout_tables import BACKBONE_NORMS, OURS, Layout, Row, names_of, under
from hf_convnextv2.configuration_convnextv2 import V1_MODEL_TYPE

Shape = tuple[int, ...]
# One row a module: ours, the dense official code's, the official trainer's (MinkowskiEngine), timm's and mmpretrain's.
# fmt: off
STEM = ("embeddings.", "downsample_layers.0.", "downsample_layers.0.", "stem.", "downsample_layers.0.")
EMBEDDINGS = (
    ("patch_embeddings", "0", "0", "0", "0"),
    ("layernorm",        "1", "1", "1", "1"),
)
STAGE = (
    "encoder.stages.{s}.", "downsample_layers.{s}.", "downsample_layers.{s}.", "stages.{s}.", "downsample_layers.{s}."
)
DOWNSAMPLING = (
    ("downsampling_layer.0", "0", "0.ln",          "downsample.0", "0"),
    ("downsampling_layer.1", "1", "1:kernel,bias", "downsample.1", "1"),
)
BLOCK = (
    "encoder.stages.{s}.layers.{b}.", "stages.{s}.{b}.", "stages.{s}.{b}.", "stages.{s}.blocks.{b}.", "stages.{s}.{b}."
)
LAYERS: tuple[Row, ...] = (
    ("dwconv",                 "dwconv",         "dwconv:kernel,bias", "conv_dw", "depthwise_conv"),
    ("layernorm",              "norm",           "norm.ln",            "norm",    "norm"),
    ("pwconv1",                "pwconv1",        "pwconv1.linear",     "mlp.fc1", "pointwise_conv1"),
    ("grn",                    "grn:gamma,beta", "grn:gamma,beta",     "mlp.grn", "grn:gamma,beta"),
    ("pwconv2",                "pwconv2",        "pwconv2.linear",     "mlp.fc2", "pointwise_conv2"),
    ("layer_scale_parameter:", "gamma:",         None,                 "gamma:",  "gamma:"),
)
FINAL_NORM: tuple[Row, ...] = (("layernorm", "norm", None, "head.norm", "norm{last}"),)
HEAD: tuple[Row, ...] = (("classifier", "head", None, "head.fc", "head.fc"),)
DECODER: tuple[Row, ...] = (
    ("decoder.proj",                 None, "proj",                       None, None),
    ("decoder.mask_token:",          None, "mask_token:",                None, None),
    ("decoder.layers.{b}.dwconv",    None, "decoder.{b}.dwconv",         None, None),
    ("decoder.layers.{b}.layernorm", None, "decoder.{b}.norm",           None, None),
    ("decoder.layers.{b}.pwconv1",   None, "decoder.{b}.pwconv1",        None, None),
    ("decoder.layers.{b}.grn",       None, "decoder.{b}.grn:gamma,beta", None, None),
    ("decoder.layers.{b}.pwconv2",   None, "decoder.{b}.pwconv2",        None, None),
    ("decoder.layers.{b}.layer_scale_parameter:", None, None,            None, None),
    ("decoder.pred",                 None, "pred",                       None, None),
    ("decoder.pred_feature",         None, None,                         None, None),
    ("decoder.fusion.stage{s}",      None, None,                         None, None),
)
# fmt: on
# The libraries, in the order of the columns.
OFFICIAL, MINKOWSKI, TIMM, MMPRETRAIN = "official", "minkowski", "timm", "mmpretrain"
COLUMNS = (OURS, OFFICIAL, MINKOWSKI, TIMM, MMPRETRAIN)
# mmpretrain's SparK stores its own pre-training beside the encoder: another decoder than FCMAE's, of no use here.
SPARK = r"(neck|enc_dec_norms|enc_dec_projectors|mask_tokens)\."
ENCODER: tuple[Row, ...] = (
    *under(STEM, EMBEDDINGS),
    *under(STAGE, DOWNSAMPLING),
    *under(BLOCK, LAYERS),
    *FINAL_NORM,
)


def convnextv2_layout(name: str, library: str, prefix: str = "", foreign: str | None = None) -> Layout:
    """A layout of ConvNeXt V2, from its library's column of the tables."""
    column = COLUMNS.index(library)
    names = names_of(ENCODER, column, prefix) | names_of(HEAD + DECODER, column)
    return Layout(name, CONVNEXTV2, library, names, prefix, keeps_prefix=library != OURS, foreign=foreign)


V1_LAYOUT = "transformers-convnext"  # of ConvNeXt V1
LAYOUTS = {
    layout.name: layout
    for layout in (
        convnextv2_layout("official", OFFICIAL),  # fine-tuned or supervised: dense, with final norm and head
        convnextv2_layout("official-fcmae", OFFICIAL),  # as released: the dense encoder alone, without the final norm
        convnextv2_layout("official-minkowski", MINKOWSKI, "encoder."),  # as the official trainer writes it
        convnextv2_layout("timm", TIMM),
        convnextv2_layout("mmpretrain", MMPRETRAIN, "backbone.", SPARK),
        convnextv2_layout("transformers", OURS, CONVNEXTV2.prefix, BACKBONE_NORMS),
        convnextv2_layout("ours", OURS, CONVNEXTV2.prefix, BACKBONE_NORMS),
        convnextv2_layout(V1_LAYOUT, OURS, f"{V1_MODEL_TYPE}.", BACKBONE_NORMS),
        *CONVMAE_LAYOUTS,
    )
}
# Whether a block has GRN and LayerScale: of V2, of V1, and neither.
V2_BLOCK, V1_BLOCK, PLAIN_BLOCK = (True, False), (False, True), (False, False)
# The blocks that a layout's library builds, where it does not build all of them. Official layouts are those of the code
# of ConvNeXt V1 where there is no GRN.
BLOCKS = {
    "official": (V2_BLOCK, V1_BLOCK, PLAIN_BLOCK),
    "official-fcmae": (V2_BLOCK, V1_BLOCK, PLAIN_BLOCK),
    "official-minkowski": (V2_BLOCK,),
    "transformers": (V2_BLOCK,),
    V1_LAYOUT: (V1_BLOCK, PLAIN_BLOCK),
}
# Names by which a layout is told from the others, in the order in which they are tried.
MARKS = {
    "official-minkowski": r"(^|\.)stages\.\d+\.\d+\.dwconv\.kernel$",
    "mmpretrain": r"(^|\.)stages\.\d+\.\d+\.depthwise_conv\.",
    "timm": r"^stages\.\d+\.blocks\.\d+\.conv_dw\.",
    "official": r"^stages\.\d+\.\d+\.dwconv\.",
    V1_LAYOUT: r"^convnext\.encoder\.stages\.\d+\.layers\.\d+\.dwconv\.",
    "transformers": r"(^|\.)encoder\.stages\.\d+\.layers\.\d+\.dwconv\.",
    "convmae-official-detector": r"^backbone\.bottom_up\.(windowed|global)_rel_pos_bias\.",
    "convmae-easycv-detector": r"^backbone\.(windowed|global)_rel_pos_bias\.",
    "convmae-official": r"^blocks1\.\d+\.conv[12]\.",
    "convmae-easycv": r"^encoder\.blocks1\.\d+\.conv[12]\.",
    "convmae-easycv-classifier": r"^backbone\.blocks1\.\d+\.conv[12]\.",
    "convmae": r"(^|\.)encoder\.stages\.\d+\.layers\.\d+\.conv[12]\.",
}
RULE = "hold the weights of a ConvNeXt V2, ConvNeXt V1 or ConvMAE in one of the layouts " + ", ".join(LAYOUTS)


def recognise_layout(names: Iterable[str]) -> Layout:
    """The layout that parameters of these names are stored in.

    Raises:
        ValueError: if they are another model's; the message says which, as far as the names tell.
    """
    names = list(names)
    biases = [name for name in names if re.search(r"(\.attn|(^|\.)rel_pos_bias)\.relative_position_bias_table$", name)]
    if biases and any("blocks1.0.conv1." in name for name in names):
        raise ValueError(
            f"The source must {RULE}, but is of a ConvMAE segmentation model: its attention has other relative "
            f"positions than a detector's, e.g. `{biases[0]}`, which no model here has."
        )
    found = next((layout for layout, mark in MARKS.items() if any(re.search(mark, name) for name in names)), None)
    if found is None:
        shown = ", ".join(names[:5]) or "nothing"
        raise ValueError(f"The source must {RULE}, but its parameters are of another model: {shown} ...")
    if found == "official" and not any(name.startswith(("norm.", "head.")) for name in names):
        found = "official-fcmae"
    if found == "transformers" and any(name.startswith("decoder.") for name in names):
        found = "ours"
    return LAYOUTS[found]


def read_parameter(tensor: Tensor, name: str, layout: Layout, shape: Shape) -> Tensor | None:
    """A stored tensor as our parameter `name` of this shape; None if its shape fits none in which it is stored.

    GRN comes in any rank with leading ones, a linear layer also as a 1x1 convolution.
    """
    if _is_kernel(name, layout, len(shape)):
        expected = stored_shape(name, shape, layout)
        return _from_kernel(tensor, *shape[2:]) if tuple(tensor.shape) == expected else None
    stored = tuple(tensor.shape)
    is_grn = ".grn." in name and _without_leading_ones(stored) == _without_leading_ones(shape)
    is_convolution = len(shape) == 2 and stored == (*shape, 1, 1)
    is_row = _has_row_bias(name, layout) and stored == (1, *shape)
    fits = stored == shape or is_grn or is_convolution or is_row
    return tensor.reshape(shape).contiguous() if fits else None


def write_parameter(tensor: Tensor, name: str, layout: Layout, conv_mlp: bool = False) -> Tensor:
    """Our parameter `name` as the layout stores it; `conv_mlp`: timm's variant with 1x1 convolutions in the blocks."""
    if _is_kernel(name, layout, tensor.ndim):
        return _to_kernel(tensor).reshape(stored_shape(name, tuple(tensor.shape), layout)).contiguous()
    return tensor.reshape(stored_shape(name, tuple(tensor.shape), layout, conv_mlp)).contiguous()


def stored_shape(name: str, shape: Shape, layout: Layout, conv_mlp: bool = False) -> Shape:
    """Shape in which the layout stores our parameter `name` of this shape."""
    if _is_kernel(name, layout, len(shape)):
        positions = shape[2] * shape[3]
        return (positions, shape[0]) if ".dwconv." in name else (positions, shape[1], shape[0])
    if ".grn." in name and layout.library in (TIMM, MMPRETRAIN):
        return shape[-1:]
    if ".grn." in name and layout.library == MINKOWSKI and name.startswith("encoder."):
        return (1, shape[-1])
    convolutions = {
        TIMM: r"encoder\..*\.pwconv[12]\.weight" if conv_mlp else None,
        MINKOWSKI: r"decoder\.(proj|pred)\.weight",
        CONVMAE_CODE: CONVOLUTIONS,
        EASYCV: CONVOLUTIONS,
    }
    convolution = convolutions.get(layout.library)
    if convolution is not None and re.fullmatch(convolution, name):
        return (*shape, 1, 1)
    return (1, *shape) if _has_row_bias(name, layout) else shape


def without_prefix(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stored tensors without the prefixes that wrappers put before every name."""
    tensors = {name: tensor for name, tensor in state_dict.items() if name != "n_averaged"}  # PyTorch's AveragedModel
    for prefix in ("module.", "_orig_mod.", "model."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            return without_prefix({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    return tensors


def _is_kernel(name: str, layout: Layout, rank: int) -> bool:
    """Whether the layout stores this parameter as a MinkowskiEngine kernel."""
    sparse = re.search(r"^encoder\..*(downsampling_layer\.1|dwconv)\.weight$", name) is not None
    return layout.library == MINKOWSKI and sparse and rank == 4


def _has_row_bias(name: str, layout: Layout) -> bool:
    """Whether the layout stores this bias as a row `(1, C)`: those of MinkowskiEngine's convolutions."""
    sparse = re.search(r"^encoder\..*(downsampling_layer\.1|dwconv)\.bias$", name) is not None
    return layout.library == MINKOWSKI and sparse


def _from_kernel(kernel: Tensor, height: int, width: int) -> Tensor:
    """`(positions, in, out)`, or `(positions, C)` of a depthwise convolution, as `(out, in, h, w)`.

    MinkowskiEngine counts positions down the columns: number h + height * w is row h of column w.
    """
    kernel = kernel.unsqueeze(1) if kernel.ndim == 2 else kernel
    return kernel.unflatten(0, (width, height)).permute(3, 2, 1, 0).contiguous()


def _to_kernel(weight: Tensor) -> Tensor:
    """The inverse of `_from_kernel`, with an axis of one input channel where the convolution is depthwise."""
    return weight.permute(3, 2, 1, 0).flatten(0, 1)


def _without_leading_ones(shape: Shape) -> Shape:
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape
