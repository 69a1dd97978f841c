"""Convert a checkpoint of ConvNeXt V2 or V1 or of ConvMAE into a folder that its classes load, or another layout.

python -m conversion.convert convnextv2_tiny_1k_224_ema.pt out/tiny
python -m conversion.convert timm:convnextv2_atto.fcmae_ft_in1k out/atto --verify
python -m conversion.convert out/pretrain out/encoder --to transformers
python -m conversion.convert out/classifier out/official --to official --with_pt
python -m conversion.convert convmae_base.pth out/convmae
python -m conversion.convert --list
"""

import sys

from conversion.command_line import MODEL_SIZES, V1_ONLY_MODEL_SIZES, Parser

WITH_SCRIPTS = ("official", "official-minkowski")  # layouts of the official code
# Settings of pre-training, by the kind of model, that neither names nor shapes of parameters show.
UNSTATED = {
    "fcmae": ("mask_ratio", "norm_pix_loss"),
    "convmae": ("mask_ratio", "norm_pix_loss", "num_visible_sets"),
}
# Settings of all models of Transformers and of this package that only a config.json says.
UNSTATED_BY_OURS = ("hidden_act", "layer_norm_eps", "window_block_indices")
TARGETS = ("transformers", "ours", *WITH_SCRIPTS, "timm", "mmpretrain", "easycv")
DTYPES = ("float32", "float16", "bfloat16")


def create_parser() -> Parser:
    """The parser of the command line."""
    parser = Parser("python -m conversion.convert", __doc__)
    parser.add_argument("source", nargs="?", help="a file, a folder, a Hub id, timm:NAME or a name that --list shows")
    parser.add_argument("output_dir", nargs="?", help="the folder to write, which must not exist")
    parser.add_argument("--to", choices=TARGETS, help="layout of the result (default: what Transformers loads)")
    parser.add_argument("--dtype", choices=DTYPES, help="data type of the result (default: the source's)")
    sizes = (*MODEL_SIZES, *V1_ONLY_MODEL_SIZES)
    parser.add_argument("--model_size", choices=sizes, help="expected size (default: as the tensors say)")
    parser.add_argument("--num_labels", type=int, help="expected number of classes (default: as the tensors say)")
    parser.add_argument("--image_size", type=int, help="side of the images in pixels (default: as the source says)")
    parser.add_argument("--num_attention_heads", type=int, help="of a ConvMAE's encoder (default: those of its size)")
    parser.add_argument("--decoder_num_attention_heads", type=int, help="of a ConvMAE's decoder (likewise)")
    parser.add_argument("--labels", help="file with the names of the classes: JSON, or one name a line")
    parser.add_argument("--use_ema", action="store_true", help="take the moving average that a trainer stored")
    parser.add_argument("--license", help="licence of the weights, e.g. apache-2.0 (default: as the source says)")
    parser.add_argument(
        "--verify", nargs="?", const=True, metavar="PHOTO", help="run source and result on the same photograph"
    )
    parser.add_argument(
        "--with_pt", action="store_true", help="also write model.pt for the official scripts (with --to official)"
    )
    parser.add_argument("--list", action="store_true", help="print the table of official checkpoints")
    return parser


if __name__ == "__main__":  # before the imports below, which take seconds: reports a wrong flag at once
    create_parser().parse_args(sys.argv[1:])

from functools import partial
from pathlib import Path
from typing import Any

import torch

from conversion.checkpoint_reader import StoredCheckpoint, read_checkpoint
from conversion.checkpoints import list_checkpoints
from conversion.families import CONVMAE, describe_size, family_of, size_of
from conversion.folder_writer import write_folder
from conversion.image_processor import DEFAULT_SIZE, image_processor_of, image_size_of
from conversion.known_settings import known_settings
from conversion.labels import IMAGENET_CLASSES, read_id2label
from conversion.layout_tables import OURS, Layout
from conversion.model_weights import ModelWeights, from_state_dict
from conversion.targets import EASYCV_CLASSIFIER, POOLED_BY_EASYCV, check_target, fit_to_target, target_layout
from conversion.verify import compare_outputs


def main(arguments: list[str] | None = None) -> None:
    """The command line: a bad input ends it with one line and code 2, and nothing is written."""
    parser = create_parser()
    options = parser.parse_args(arguments)
    if options.list:
        print(list_checkpoints())
        return
    if options.source is None or options.output_dir is None:
        parser.error("SOURCE and OUTPUT_DIR must be given (or --list).")
    try:
        convert(**{name: value for name, value in vars(options).items() if name != "list"})
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))


def convert(
    source: str,
    output_dir: str | Path,
    to: str | None = None,
    dtype: str | None = None,
    model_size: str | None = None,
    num_labels: int | None = None,
    image_size: int | None = None,
    num_attention_heads: int | None = None,
    decoder_num_attention_heads: int | None = None,
    labels: str | Path | None = None,
    use_ema: bool = False,
    license: str | None = None,
    verify: str | bool | None = None,
    with_pt: bool = False,
) -> Path:
    """Convert; the settings are those of the command line. The folder appears whole or not at all.

    Raises:
        ValueError: for a source that cannot be read or does not fit, and for an output folder that exists.
    """
    output = Path(output_dir)
    _check_request(output, to, image_size, with_pt)
    stored = read_checkpoint(source, use_ema)
    _refuse_dense_model(source, stored.config)
    asked = {
        "num_labels": num_labels,
        "num_attention_heads": num_attention_heads,
        "decoder_num_attention_heads": decoder_num_attention_heads,
    }
    weights = from_state_dict(stored.tensors, known_settings(stored, model_size, asked))
    size = describe_size(weights.config)
    print(f"{source}: layout {weights.layout.name}, {weights.kind}, {size}, {weights.dtype}")
    _check_identity(stored, weights)
    weights = fit_to_target(weights, to)
    check_target(weights, to)
    if weights.kind != "classifier" and (labels or num_labels):
        raise ValueError("`--labels` and `--num_labels` must be left out for a model without a head.")
    _complete_config(weights, stored, image_size, labels)
    processor = image_processor_of(stored, weights.config)
    layout = target_layout(weights, to)
    cast: torch.dtype | None = getattr(torch, dtype) if dtype else None
    check = None
    if verify:
        photo = None if verify is True else Path(verify)
        check = partial(_print_comparison, stored, weights, layout, photo, cast)
    write_folder(output, weights, layout, processor, stored, cast, license, check, with_pt)
    for note in weights.notes:
        print(f"  {note}")
    print(f"{output}: layout {layout.name}, {weights.kind}")
    return output


def _check_request(output: Path, to: str | None, image_size: int | None, with_pt: bool) -> None:
    """Raise for what no source can make right."""
    if image_size is not None and image_size < 1:
        raise ValueError(f"`image_size` (={image_size}) must be at least 1.")
    if output.exists():
        raise ValueError(f"`output_dir` (={output}) must not exist yet: nothing is overwritten.")
    if with_pt and to not in WITH_SCRIPTS:
        raise ValueError(
            f"`--with_pt` must come with `--to {'` or `--to '.join(WITH_SCRIPTS)}`, whose scripts read it."
        )


def _refuse_dense_model(source: str, config: dict[str, Any]) -> None:
    """Raise for a segmentation model or a detector, whose config.json holds its backbone's."""
    if "backbone_config" in config:
        raise ValueError(
            f"`source` (={source}) must be an encoder, a classifier or a pre-training model, but is a "
            f"{config.get('model_type')}: give what that one started from."
        )


def _check_identity(source: StoredCheckpoint, weights: ModelWeights) -> None:
    """Raise if a source has not the shape of the official checkpoint that it is named after."""
    official, config = source.official, weights.config
    if official is None:
        if not source.config:
            _note_unusual_depths(weights)
        return
    is_classifier = weights.kind == "classifier"
    has_right_head = weights.kind == "encoder" or (is_classifier and config.num_labels == IMAGENET_CLASSES)
    if size_of(config) != official.size or not has_right_head:
        classes = f" with {config.num_labels:,} classes" if is_classifier else ""
        raise ValueError(
            f"`source` (={source.name}) is named as the official {official.name}, so it must be an encoder or a "
            f"classifier of size {official.size} with {IMAGENET_CLASSES:,} classes, but is a {weights.kind} of size "
            f"{describe_size(config)}{classes}. Rename it if it is another model; else it is not complete."
        )


def _note_unusual_depths(weights: ModelWeights) -> None:
    """Note depths that no published model of these widths has."""
    depths, widths = list(weights.config.depths or ()), list(weights.config.hidden_sizes or ())
    sizes = family_of(weights.config).sizes.values()
    published = [list(size_depths) for size_depths, size_widths in sizes if list(size_widths) == widths]
    if published and depths not in published:
        weights.notes.append(f"depths {depths} are of no published size: is a block missing?")


def _complete_config(
    weights: ModelWeights, source: StoredCheckpoint, image_size: int | None, labels: str | Path | None
) -> None:
    """Set resolution and class names in the configuration, and note where they are from."""
    config: Any = weights.config
    if weights.family is CONVMAE:
        _check_image_size(config, image_size)
        if "model_type" not in source.config:
            weights.notes.append(f"square images of {config.image_size} pixels: tokens do not say how they lie")
    else:
        _set_image_size(weights, source, image_size)
    _note_assumptions(weights, source)
    if source.averaged:
        weights.notes.append("taken: the trainer's moving average of the weights")
    if weights.kind == "classifier":
        id2label, origin = read_id2label(source, config.num_labels, Path(labels) if labels else None)
        weights.notes.append(f"class names: {origin}")
        if id2label is not None:
            config.id2label, config.label2id = id2label, {name: number for number, name in id2label.items()}


def _check_image_size(config: Any, image_size: int | None) -> None:
    """Raise if the position embeddings are those of images of another size."""
    if image_size not in (None, config.image_size):
        raise ValueError(
            f"`--image_size` (={image_size}) must be {config.image_size}, as the position embeddings say. Change it "
            "when you load the result: `from_pretrained(folder, image_size=...)`."
        )


def _set_image_size(weights: ModelWeights, source: StoredCheckpoint, image_size: int | None) -> None:
    """Set the size of the images, on which no weight of a ConvNeXt V2 depends."""
    config = weights.config
    side = image_size or image_size_of(source)
    is_rectangle_of_source = (
        not image_size and not isinstance(config.image_size, int) and min(config.image_size) == side
    )
    if not is_rectangle_of_source:
        config.image_size = side or DEFAULT_SIZE
    if not side:
        weights.notes.append(f"images of {DEFAULT_SIZE} pixels: the source does not say (see --image_size)")


def _note_assumptions(weights: ModelWeights, source: StoredCheckpoint) -> None:
    """Note settings that the source does not say."""
    stated = {**weights.layout.settings, **source.arguments}
    names = [name for name in UNSTATED.get(weights.kind, ()) if name not in stated]
    if weights.layout.library == OURS:  # other libraries have one activation and one epsilon
        names += [name for name in UNSTATED_BY_OURS if getattr(weights.config, name, None) is not None]
    if weights.layout.name == EASYCV_CLASSIFIER:
        weights.notes.append(f"the features of all tokens are averaged; {POOLED_BY_EASYCV}")
    if names and "model_type" not in source.config:
        values = ", ".join(f"{name} {getattr(weights.config, name)}" for name in names)
        weights.notes.append(f"{values}: this package's defaults, since the source does not say")


def _print_comparison(
    source: StoredCheckpoint,
    weights: ModelWeights,
    layout: Layout,
    photo: Path | None,
    cast: torch.dtype | None,
    folder: Path,
) -> None:
    """Print what `--verify` finds."""
    print(f"  verify: {compare_outputs(source, weights, layout, folder, photo, cast)}")


if __name__ == "__main__":
    main(sys.argv[1:])
