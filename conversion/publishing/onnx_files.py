"""The ONNX files of a repository: those that an export wrote of the same weights, where transformers.js looks."""

from pathlib import Path
from typing import Any

from conversion.exporting.choices import CLASSIFICATION, FEATURES, RECONSTRUCTION, SEGMENTATION
from conversion.exporting.formats import ONNX
from conversion.exporting.record import RECORD, Record
from conversion.families import PRETRAINING
from conversion.files import link_files, read_json, sha256
from conversion.model_folder import weight_digests

# What the files of a kind of model compute: the answers that its repository is loaded for.
TASKS = {"classifier": CLASSIFICATION, "encoder": FEATURES, "segmenter": SEGMENTATION}
TASKS |= dict.fromkeys(PRETRAINING, RECONSTRUCTION)
# Of a configuration: what a model computes does not depend on it.
OF_STORAGE = ("architectures", "transformers_version", "dtype", "torch_dtype", "auto_map", "_name_or_path")
DATA = "_data"  # of the file with the weights of a large model, after the name of its graph


def check_onnx(onnx: Path, folder: Path, kind: str) -> None:
    """Raise unless an export has written ONNX files of the model in the folder, for what this kind of model does."""
    record = Record.read(onnx)
    if record.format != "onnx":
        raise ValueError(f"`--with_onnx` (={onnx}) must hold ONNX files, but holds those of {record.format}.")
    if record.task != TASKS.get(kind):
        raise ValueError(
            f"`--with_onnx` (={onnx}) must be exported for {TASKS.get(kind, 'another kind of model')} to lie beside a "
            f"{kind}, but is for {record.task}."
        )
    if record.weights != weight_digests(folder):
        raise ValueError(f"`--with_onnx` (={onnx}) must be exported from the weights in {folder}. Export them again.")
    changed = differing(read_json(onnx / "config.json"), read_json(folder / "config.json"))
    if changed:
        raise ValueError(
            f"`--with_onnx` (={onnx}) must be exported with the configuration in {folder}, which has another "
            f"`{changed[0]}`. Export it again."
        )
    for name, digest in (each for found in record.files.values() for each in found.sha256.items()):
        if not (onnx / name).is_file() or sha256(onnx / name) != digest:
            raise ValueError(f"`--with_onnx` (={onnx}) must hold {name} as it was exported. Export it again.")


def differing(exported: dict[str, Any], own: dict[str, Any]) -> list[str]:
    """What two configurations of a model say differently, apart from how they were stored.

    What one of them lacks is a default. A configuration within another is compared in the same way.
    """
    found = []
    for name in exported:
        if name not in own or name in OF_STORAGE or exported[name] == own[name]:
            continue
        if isinstance(own[name], dict) and "model_type" in own[name] and isinstance(exported[name], dict):
            found += [f"{name}.{each}" for each in differing(exported[name], own[name])]
        else:
            found.append(name)
    return found


def stage_onnx(onnx: Path, target: Path) -> None:
    """Links to the files and to the record of the export."""
    link_files((file for file in onnx.glob("onnx/*") if is_onnx(f"onnx/{file.name}")), target / "onnx")
    link_files([onnx / RECORD], target)


def is_onnx(name: str) -> bool:
    """Whether a file of a repository is one that `stage_onnx` links to."""
    return name == RECORD or name.removesuffix(DATA) in ONNX.files.values()


def settings_of_transformers_js(onnx: Path) -> dict[str, Any]:
    """What config.json says to transformers.js: which files have their weights beside them, if any do."""
    name = "transformers.js_config"
    stored = read_json(onnx / "config.json")
    return {name: stored[name]} if name in stored else {}
