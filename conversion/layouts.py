"""The layouts in which ConvNeXt V2's weights are stored, as tables, and pure functions between them and ours.

"Ours" are the names and shapes of this package's models, which are Transformers' own. The encoder's names carry no
prefix here; `convnextv2.` is added where a head or a decoder stands beside it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

Shape = tuple[int, ...]
Row = tuple[str, ...]
# One row a module: ours, the dense official code's, the official trainer's (MinkowskiEngine), timm's and mmpretrain's.
# {s} a stage, {b} a block of it, {last} the last stage. Parameters are `weight,bias` unless others stand after a colon.
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
LAYERS = (
    ("dwconv",    "dwconv",         "dwconv:kernel,bias", "conv_dw", "depthwise_conv"),
    ("layernorm", "norm",           "norm.ln",            "norm",    "norm"),
    ("pwconv1",   "pwconv1",        "pwconv1.linear",     "mlp.fc1", "pointwise_conv1"),
    ("grn",       "grn:gamma,beta", "grn:gamma,beta",     "mlp.grn", "grn:gamma,beta"),
    ("pwconv2",   "pwconv2",        "pwconv2.linear",     "mlp.fc2", "pointwise_conv2"),
)
FINAL_NORM = (("layernorm", "norm", None, "head.norm", "norm{last}"),)
HEAD = (("classifier", "head", None, "head.fc", "head.fc"),)
DECODER = (
    ("decoder.proj",                 None, "proj",                       None, None),
    ("decoder.mask_token:",          None, "mask_token:",                None, None),
    ("decoder.layers.{b}.dwconv",    None, "decoder.{b}.dwconv",         None, None),
    ("decoder.layers.{b}.layernorm", None, "decoder.{b}.norm",           None, None),
    ("decoder.layers.{b}.pwconv1",   None, "decoder.{b}.pwconv1",        None, None),
    ("decoder.layers.{b}.grn",       None, "decoder.{b}.grn:gamma,beta", None, None),
    ("decoder.layers.{b}.pwconv2",   None, "decoder.{b}.pwconv2",        None, None),
    ("decoder.pred",                 None, "pred",                       None, None),
    ("decoder.pred_feature",         None, None,                         None, None),
    ("decoder.fusion.stage{s}",      None, None,                         None, None),
)
# fmt: on
OURS, OFFICIAL, MINKOWSKI, TIMM, MMPRETRAIN = range(5)
# mmpretrain's SparK stores its own pre-training beside the encoder: another decoder than FCMAE's, of no use here.
SPARK = r"(neck|enc_dec_norms|enc_dec_projectors|mask_tokens)\."
# A backbone's norms of the maps that it hands to a detector: no other model has them.
BACKBONE_NORMS = r"hidden_states_norms\."


def _under(paths: Row, rows: Iterable[Row]) -> Iterable[Row]:
    """The rows with the path of their layout before each name."""
    return (tuple(path + name for path, name in zip(paths, row, strict=True)) for row in rows)


ENCODER = (*_under(STEM, EMBEDDINGS), *_under(STAGE, DOWNSAMPLING), *_under(BLOCK, LAYERS), *FINAL_NORM)


def _parameters(row: str) -> list[str]:
    """`a:b,c` as `a.b`, `a.c`; `a` as `a.weight`, `a.bias`; `a:` as the parameter `a` itself."""
    module, colon, parameters = row.partition(":")
    if colon and not parameters:
        return [module]
    return [f"{module}.{parameter}" for parameter in (parameters or "weight,bias").split(",")]


@dataclass(frozen=True)
class Layout:
    """One way to store the weights: the name of every parameter and the prefix of the encoder's."""

    name: str
    column: int
    prefix: str = ""  # of the encoder's names, where a head or decoder may stand beside it
    foreign: str | None = None  # names that belong to something that none of our models has
    names: dict[str, str] = field(init=False)  # ours to theirs, as templates

    def __post_init__(self) -> None:
        names = {}
        for rows, prefix in ((ENCODER, self.prefix), (HEAD + DECODER, "")):
            for row in rows:
                theirs = row[self.column]
                if theirs is not None:
                    names |= dict(zip(_parameters(str(row[OURS])), _parameters(prefix + theirs), strict=True))
        object.__setattr__(self, "names", names)


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("official", OFFICIAL),  # fine-tuned or supervised: dense, with final norm and head
        Layout("official-fcmae", OFFICIAL),  # as released: the dense encoder alone, without the final norm
        Layout("official-minkowski", MINKOWSKI, prefix="encoder."),  # as the official trainer writes it
        Layout("timm", TIMM),
        Layout("mmpretrain", MMPRETRAIN, prefix="backbone.", foreign=SPARK),
        Layout("transformers", OURS, prefix="convnextv2.", foreign=BACKBONE_NORMS),
        Layout("ours", OURS, prefix="convnextv2.", foreign=BACKBONE_NORMS),
    )
}
# Names by which a layout is told from the others, in the order in which they are tried.
MARKS = {
    "official-minkowski": r"(^|\.)stages\.\d+\.\d+\.dwconv\.kernel$",
    "mmpretrain": r"(^|\.)stages\.\d+\.\d+\.depthwise_conv\.",
    "timm": r"^stages\.\d+\.blocks\.\d+\.conv_dw\.",
    "official": r"^stages\.\d+\.\d+\.dwconv\.",
    "transformers": r"(^|\.)encoder\.stages\.\d+\.layers\.\d+\.dwconv\.",
}
RULE = "hold the weights of a ConvNeXt V2 in one of the layouts " + ", ".join(LAYOUTS)


def recognise_layout(names: Iterable[str]) -> Layout:
    """The layout that parameters of these names are stored in.

    Raises:
        ValueError: if they are another model's; the message says which, as far as the names tell.
    """
    names = list(names)
    found = next((layout for layout, mark in MARKS.items() if any(re.search(mark, name) for name in names)), None)
    if found is None:
        shown = ", ".join(names[:5]) or "nothing"
        raise ValueError(f"The source must {RULE}, but its parameters are of another model: {shown} ...")
    v1 = [name for name in names if re.search(r"(^|\.)\d+\.(gamma|layer_scale_parameter)$", name)]
    if v1:
        raise ValueError(f"The source must {RULE}, but is a ConvNeXt V1: it has layer scales, e.g. `{v1[0]}`.")
    if found == "official" and not any(name.startswith(("norm.", "head.")) for name in names):
        found = "official-fcmae"
    if found == "transformers" and any(name.startswith("decoder.") for name in names):
        found = "ours"
    return LAYOUTS[found]


def our_name(name: str, layout: Layout, num_stages: int) -> str | None:
    """Our name, without prefix, of a parameter of the layout; None if the layout has no such parameter."""
    for ours, pattern in _patterns(layout):
        match = pattern.fullmatch(name)
        if match:
            numbers = {key: int(value) for key, value in match.groupdict().items()}
            is_there = numbers.pop("last", num_stages - 1) == num_stages - 1
            return ours.format(**numbers) if is_there else None
    return None


def their_name(name: str, layout: Layout, num_stages: int, is_encoder: bool) -> str | None:
    """The layout's name of our parameter (without prefix); None if the layout has no place for it.

    `is_encoder`: nothing stands beside the encoder, whose names then carry no prefix in Transformers' layout.
    """
    keys = {"stages.": "s", "layers.": "b", "fusion.stage": "s"}
    numbered = r"(stages\.|layers\.|fusion\.stage)(\d+)"
    numbers = {keys[before]: int(number) for before, number in re.findall(numbered, name)}
    template = re.sub(numbered, lambda found: f"{found[1]}{{{keys[found[1]]}}}", name)
    theirs = layout.names.get(template)
    if theirs is None:
        return None
    theirs = theirs.format(**numbers, last=num_stages - 1)
    return theirs.removeprefix(layout.prefix) if is_encoder and layout.column == OURS else theirs


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
    if ".grn." in name and layout.column in (TIMM, MMPRETRAIN):
        return shape[-1:]
    if ".grn." in name and layout.column == MINKOWSKI and name.startswith("encoder."):
        return (1, shape[-1])
    convolutions = {TIMM: r"encoder\..*\.pwconv[12]" if conv_mlp else None, MINKOWSKI: r"decoder\.(proj|pred)"}
    convolution = convolutions.get(layout.column)
    if convolution is not None and re.fullmatch(convolution + r"\.weight", name):
        return (*shape, 1, 1)
    return (1, *shape) if _has_row_bias(name, layout) else shape


def without_prefix(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stored tensors without the prefixes that wrappers put before every name."""
    tensors = {name: tensor for name, tensor in state_dict.items() if name != "n_averaged"}  # PyTorch's AveragedModel
    for prefix in ("module.", "_orig_mod.", "model."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            return without_prefix({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    return tensors


def _patterns(layout: Layout) -> list[tuple[str, re.Pattern[str]]]:
    """Our templates beside patterns of theirs, in which the prefix may be left out."""
    patterns = []
    for ours, theirs in layout.names.items():
        pattern = re.escape(theirs.removeprefix(layout.prefix))
        pattern = re.sub(r"\\\{(s|b|last)\\\}", r"(?P<\1>0|[1-9]\\d*)", pattern)
        prefix = f"({re.escape(layout.prefix)})?" if theirs.startswith(layout.prefix) else ""
        patterns.append((ours, re.compile(prefix + pattern)))
    return patterns


def _is_kernel(name: str, layout: Layout, rank: int) -> bool:
    """Whether the layout stores this parameter as a MinkowskiEngine kernel."""
    sparse = re.search(r"^encoder\..*(downsampling_layer\.1|dwconv)\.weight$", name) is not None
    return layout.column == MINKOWSKI and sparse and rank == 4


def _has_row_bias(name: str, layout: Layout) -> bool:
    """Whether the layout stores this bias as a row `(1, C)`: those of MinkowskiEngine's convolutions."""
    sparse = re.search(r"^encoder\..*(downsampling_layer\.1|dwconv)\.bias$", name) is not None
    return layout.column == MINKOWSKI and sparse


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
