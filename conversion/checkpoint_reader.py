"""Reading a checkpoint from a file, a folder, the Hub or the table; nothing in it is ever run."""

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from conversion.checkpoints import Checkpoint, checkpoint_table, download, find_file, find_repository
from conversion.command_line import first_line
from conversion.files import read_json, sha256
from conversion.layouts import without_prefix
from conversion.model_folder import PROCESSOR, SETTINGS, read_provenance

PICKLES = (".pt", ".pth", ".bin")
# Where trainers keep the weights in what they save, and where their moving average.
WEIGHT_KEYS = ("model", "state_dict")
AVERAGE_KEYS = ("model_ema", "state_dict_ema")
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
RULE = "be a file (.pt, .pth, .bin, .safetensors), a folder, a Hub id, timm:NAME or a name that --list shows"


@dataclass
class StoredCheckpoint:
    """A checkpoint as it was stored, and what is stored beside it."""

    name: str  # what the user asked for
    tensors: dict[str, Tensor]
    sha256: str  # of the file with the weights
    config: dict[str, Any] = field(default_factory=dict)  # a config.json beside the weights
    processor: dict[str, Any] = field(default_factory=dict)  # a preprocessor_config.json beside them
    arguments: dict[str, Any] = field(default_factory=dict)  # of the training script, as the official one stores them
    provenance: dict[str, Any] = field(default_factory=dict)  # a conversion.json beside them
    training: dict[str, Any] = field(default_factory=dict)  # a training_config.json of this package beside them
    hub_id: str | None = None
    folder: Path | None = None
    official: Checkpoint | None = None  # the row of the table that this is
    averaged: bool = False  # the trainer's moving average of the weights

    @property
    def timm_settings(self) -> dict[str, Any]:
        """What timm's config.json says of preparation, classes and licence."""
        settings = self.config.get("pretrained_cfg")
        return settings if isinstance(settings, dict) else {}


def read_checkpoint(name: str, use_ema: bool = False) -> StoredCheckpoint:
    """The checkpoint that `name` stands for; downloads only what is named by a Hub id, timm's name or the table's.

    Raises:
        ValueError: if there is none, or it is damaged, empty or needs code to be run.
    """
    file = Path(name)
    if file.is_dir():
        return _read_folder(name, file, use_ema)
    if file.is_file():
        if file.name in WEIGHT_FILES and (file.parent / "config.json").is_file():
            return _read_folder(name, file.parent, use_ema, file=file)
        return _read_files(name, [file], use_ema, find_file(name))
    official = find_file(name)
    if official is not None and name == official.name:
        return _read_files(name, [download(official)], use_ema, official)
    if file.suffix in (".safetensors", *PICKLES) or name.startswith((".", "/", "~")):
        raise ValueError(f"`source` (={name}) must {RULE}; there is no such file.")
    hub_id = _timm_id(name.removeprefix("timm:")) if name.startswith("timm:") else name
    return _read_folder(name, _download_repository(hub_id, name), use_ema, hub_id)


def _read_folder(
    name: str, folder: Path, use_ema: bool, hub_id: str | None = None, file: Path | None = None
) -> StoredCheckpoint:
    """A folder of Transformers or timm: the weights, of this file if it has several, and the settings beside them."""
    file = file or _find_weights(name, folder)
    weights = _shards(file) if file.suffix == ".json" else [file]
    provenance = read_provenance(folder)
    official = checkpoint_table().get(str(provenance.get("checkpoint")))
    if official is None:
        official = find_repository(hub_id) if hub_id else find_file(file.name)
    source = _read_files(name, weights, use_ema, official)
    source.provenance, source.training = provenance, read_json(folder / SETTINGS)
    source.config = read_json(folder / "config.json")
    source.processor = read_json(folder / PROCESSOR)
    source.hub_id, source.folder = hub_id, folder
    return source


def _find_weights(name: str, folder: Path) -> Path:
    """The file with the weights, or with the list of their files: one of the usual names, or the only one there is."""
    usual = [folder / file for file in WEIGHT_FILES if (folder / file).is_file()]
    if usual:
        return usual[0]
    others = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", *PICKLES))
    if len(others) != 1:
        found = ", ".join(file.name for file in others) or "none"
        raise ValueError(
            f"`source` (={name}) must hold one file of weights ({', '.join(WEIGHT_FILES)}), but has {found}."
        )
    return others[0]


def _shards(index: Path) -> list[Path]:
    """The files over which an index says that the weights are distributed."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"{index} must say in which files the weights are (`weight_map`).")
    return [index.parent / file for file in sorted({str(file) for file in shards.values()})]


def _read_files(name: str, files: list[Path], use_ema: bool, official: Checkpoint | None) -> StoredCheckpoint:
    tensors: dict[str, Tensor] = {}
    arguments, averaged = {}, False
    for file in files:
        stored = _load(file)
        arguments = _arguments(stored)
        found, averaged = _state_dict(stored, file, use_ema)
        tensors |= found
    digest = sha256(files[0])
    return StoredCheckpoint(name, tensors, digest, arguments=arguments, official=official, averaged=averaged)


def _load(file: Path) -> Any:
    """What is stored in a file; tensors stay on the disk until they are used."""
    if not file.is_file():
        raise ValueError(f"{file} does not exist.")
    if file.stat().st_size == 0:
        raise ValueError(f"{file} is empty.")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            # Whatever its protocol, what a pickle holds is read or refused.
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            # Before its files were archives (2020), PyTorch had a format that cannot be mapped.
            return torch.load(file, map_location="cpu", weights_only=True, mmap=_is_archive(file))
    except pickle.UnpicklingError as error:
        needed = re.findall(r"GLOBAL ([\w.]+)", str(error))
        said = str(error).split("WeightsUnpickler error:")[-1].strip().splitlines()[0]
        why = f"wants `{needed[0]}` to be run" if needed else f"is not a file of weights ({said})"
        fix = "Nothing in it was run. Save the tensors alone: torch.save(model.state_dict(), file), or as safetensors."
        raise ValueError(f"{file} {why}. {fix}") from error
    except (SafetensorError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{file} is damaged, or not a {file.suffix} file: {first_line(error)}") from error


def _state_dict(stored: Any, file: Path, use_ema: bool) -> tuple[dict[str, Tensor], bool]:
    """The tensors by name, and whether they are the trainer's average."""
    keys = (*AVERAGE_KEYS, *WEIGHT_KEYS) if use_ema else WEIGHT_KEYS
    key = next((key for key in keys if isinstance(stored, dict) and key in stored), None)
    is_average = key in AVERAGE_KEYS
    if use_ema and not is_average:
        raise ValueError(
            f"{file} must hold averaged weights ({' or '.join(AVERAGE_KEYS)}) for `--use_ema`, but has none."
        )
    state_dict = stored
    if key is not None and isinstance(stored[key], Mapping):
        state_dict = stored[key]
    _check_state_dict(state_dict, file)
    return without_prefix(state_dict), is_average


def _check_state_dict(state_dict: Any, file: Path) -> None:
    """Raise unless this is tensors by name, at least one and nothing else."""
    is_mapping = isinstance(state_dict, Mapping)
    others = [str(name) for name, value in state_dict.items() if not _is_parameter(name, value)] if is_mapping else []
    if others:
        what = f"holds {', '.join(others[:5])}"
    elif not is_mapping or not state_dict:
        what = f"holds {type(state_dict).__name__} without any"
    else:
        return
    raise ValueError(f"{file} must hold a state dict, tensors by name, but {what}.")


def _is_parameter(name: Any, value: Any) -> bool:
    """Whether this is a tensor, with numbers, under a name."""
    return isinstance(name, str) and isinstance(value, Tensor) and not (value.is_meta or value.is_quantized)


def _arguments(stored: Any) -> dict[str, Any]:
    """The settings of the run that wrote the file, if it says them."""
    arguments = stored.get("args") if isinstance(stored, dict) else None
    arguments = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    return dict(arguments) if isinstance(arguments, dict) else {}


def _download_repository(hub_id: str, name: str) -> Path:
    """The repository's weights and settings in the cache."""
    try:
        validate_repo_id(hub_id)
        patterns = ["*.json", "README.md", "*.safetensors"]
        folder = Path(snapshot_download(hub_id, allow_patterns=patterns))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(hub_id, allow_patterns=[*patterns, "*.bin"]))
        return folder
    except HFValidationError as error:
        raise ValueError(f"`source` (={name}) must {RULE}; nothing of that name is here.") from error
    except RepositoryNotFoundError as error:
        raise ValueError(f"`source` (={name}) must {RULE}; the Hub has no such model, or it is private.") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ValueError(f"`source` (={name}) must {RULE}; the Hub was not reached: {first_line(error)}") from error


def _timm_id(name: str) -> str:
    """The repository of timm's pre-trained weights of that name."""
    try:
        from timm.models import get_pretrained_cfg
    except ImportError as error:
        raise ValueError(f"`source` (=timm:{name}) needs timm: `pip install timm`.") from error
    try:
        settings = get_pretrained_cfg(name)
    except RuntimeError:
        settings = None
    if settings is None or not settings.hf_hub_id:
        raise ValueError(
            f"`source` (=timm:{name}) must be a model for which timm has weights, e.g. timm:convnextv2_atto.fcmae."
        )
    return settings.hf_hub_id


def _is_archive(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(2) == b"PK"
