"""The files of a model's folder: their names, and what can be read from them without loading the model."""

from math import prod
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open

from conversion.command_line import one_line
from conversion.files import read_json, sha256
from hf_convnextv2 import ConvMAEConfig, ConvNextV2Config, ConvNextV2FCMAEConfig
from hf_convnextv2.configuration_convnextv2 import V1_MODEL_TYPE

WEIGHT_PATTERNS = ("model.safetensors", "model-*-of-*.safetensors")
SETTINGS = "training_config.json"  # of the training run
RESULTS = "all_results.json"  # of the training run
PROVENANCE = "conversion.json"  # what `conversion.convert` notes
PROCESSOR = "preprocessor_config.json"
CARD = "README.md"
LOADED = ("config.json", *WEIGHT_PATTERNS, "model.safetensors.index.json", PROCESSOR)  # by `from_pretrained`
# Of the evaluation of each class or value.
PER_CLASS, PER_VALUE, CONFUSIONS = "eval_per_class.csv", "eval_per_value.csv", "eval_confusions.csv"
CONFUSION_MATRIX, MOST_CONFUSED = "confusion_matrix.png", "most_confused.png"
PREDICTIONS = "predictions.png"  # of a segmentation model or a detector

MADE_BY_CONVERSION = {"source", "layout", "sha256", "dtype", "is_cast", "notes", "stored_as", "made_sha256"}


CONFIGS = {
    config_class.model_type: config_class for config_class in (ConvNextV2Config, ConvNextV2FCMAEConfig, ConvMAEConfig)
}

BACKBONES = (ConvNextV2Config.model_type, V1_MODEL_TYPE, ConvMAEConfig.model_type)


def read_config(folder: Path) -> Any:
    """The model's configuration; of a model that has a backbone, the backbone's with the model's classes.

    Raises:
        ValueError: if it is not one of ConvNeXt V2's or ConvMAE's.
    """
    config = read_json(folder / "config.json")
    if "backbone_config" in config:
        labels = {name: config[name] for name in ("id2label", "label2id") if name in config}
        kind = config["backbone_config"].get("model_type")
        if kind not in BACKBONES:
            known = " or ".join(BACKBONES)
            raise ValueError(f"{folder / 'config.json'} must have a backbone of the type {known}, but it is {kind}.")
        config = {**config["backbone_config"], **labels}
    config_class = CONFIGS.get(config.get("model_type", ""), ConvNextV2Config)
    try:
        return config_class.from_dict(config)
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{folder / 'config.json'} is not valid: {one_line(error)}") from error


def read_provenance(folder: Path) -> dict[str, Any]:
    """What `conversion.convert` noted of the weights in a folder; nothing if they have been replaced since."""
    noted = read_json(folder / PROVENANCE)
    if noted and not set(noted) >= MADE_BY_CONVERSION:
        raise ValueError(f"{folder / PROVENANCE} must be as `conversion.convert` writes it. Delete it.")
    weights = folder / "model.safetensors"
    return noted if weights.is_file() and noted.get("made_sha256") == sha256(weights) else {}


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the model's weights."""
    return [file for pattern in WEIGHT_PATTERNS for file in folder.glob(pattern)]


def weight_digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each of these files, by name."""
    return {file.name: sha256(file) for file in weight_files(folder)}


def parameter_sizes(folder: Path) -> dict[str, int]:
    """How many numbers each stored parameter has, from the headers of the files."""
    sizes = {}
    for file in weight_files(folder):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118
                sizes[name] = prod(weights.get_slice(name).get_shape())
    return sizes
