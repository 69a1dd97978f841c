"""What a repository is to hold, gathered in a temporary folder: the model's own stays as it is."""

import contextlib
import io
import shutil
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

import hf_convnextv2
from conversion.convert import convert
from conversion.files import read_json, write_json
from conversion.publishing.card import is_generated, render_card
from conversion.publishing.facts import (
    CONFUSIONS,
    PER_CLASS,
    PICTURES,
    PROVENANCE,
    SETTINGS,
    WEIGHTS,
    Facts,
    Publication,
    weight_files,
)
from conversion.publishing.licenses import read_license
from conversion.sources import read_source
from conversion.weights import understand

UPLOADED = ("config.json", *WEIGHTS, "model.safetensors.index.json", "preprocessor_config.json", *PICTURES)
UPLOADED += ("all_results.json", "eval_results.json", "metrics.jsonl", PROVENANCE, PER_CLASS, CONFUSIONS)
CODE = Path(hf_convnextv2.__file__).parent / "modeling_fcmae.py"
AUTO_MAP = {
    "AutoConfig": "configuration_convnextv2.ConvNextV2FCMAEConfig",
    "AutoModel": "modeling_fcmae.ConvNextV2FCMAEModel",
    "AutoModelForPreTraining": "modeling_fcmae.ConvNextV2ForPreTraining",
}


def check_folder(folder: Path) -> str:
    """The kind of model that the folder holds: encoder, classifier or fcmae; raises unless it is complete."""
    if not folder.is_dir():
        raise ValueError(f"`folder` (={folder}) must be a folder that exists.")
    fixes = {
        "config.json": "Save the model with `save_pretrained`, or convert it with `python -m conversion.convert`.",
        "preprocessor_config.json": "Make one: `hf_convnextv2.create_image_processor(config).save_pretrained(folder)`.",
    }
    for file, fix in fixes.items():
        if not (folder / file).is_file():
            raise ValueError(f"`folder` (={folder}) must hold {file}. {fix}")
    if not weight_files(folder):
        raise ValueError(f"`folder` (={folder}) must hold the weights as safetensors. {fixes['config.json']}")
    source = read_source(str(folder))
    if not str(source.config.get("model_type", "")).startswith("convnextv2"):
        raise ValueError(f"`folder` (={folder}) must hold a `convnextv2` or `convnextv2_fcmae` model for Transformers.")
    return understand(source.tensors, source.config).kind


def stage(folder: Path, target: Path, publication: Publication) -> Path:
    """Links to the files to upload, the card and, if asked for, the code."""
    target.mkdir()
    card = _card(folder, publication)
    shown = [file for file in folder.glob("*.png") if f"({file.name})" in card]
    for file in {*shown, *(file for pattern in UPLOADED for file in folder.glob(pattern))}:
        (target / file.name).symlink_to(file.resolve())
    (target / "README.md").write_text(card, encoding="utf-8")
    config = read_json(folder / "config.json")
    config = {name: value for name, value in config.items() if name not in ("auto_map", "_name_or_path")}
    if publication.with_code:
        config["auto_map"] = AUTO_MAP
        for file in code_files():
            shutil.copy(file, target)
    (target / "config.json").unlink()
    write_json(target / "config.json", config)
    return target


@cache
def code_files() -> list[Path]:
    """The files that a pre-training model's code consists of."""
    return [CODE, *map(Path, get_relative_import_files(CODE))]


def is_ours(name: str) -> bool:
    """Whether a file of a repository is one that a publication writes, under this name, at its top."""
    is_code = name in {file.name for file in code_files()}
    return is_code or any(fnmatch(name, pattern) and "/" not in name for pattern in UPLOADED)


def stage_encoder(folder: Path, target: Path, repo_id: str, model: Publication) -> Path:
    """The encoder of a pre-training model as stock Transformers loads it; its card names the model's repository."""
    card = folder / "README.md"
    license = read_license(card) if card.is_file() and not is_generated(card) else None
    license = license or Facts(folder.resolve(), model).license
    with contextlib.redirect_stdout(io.StringIO()):
        convert(str(folder), target, to="transformers", license=license)
    card = render_card(target, Publication(repo_id, companion=model.repo_id, license=license))
    (target / "README.md").write_text(card, encoding="utf-8")
    return target


def _card(folder: Path, publication: Publication) -> str:
    """The folder's card, written anew for the repository unless somebody has edited it."""
    card = folder / "README.md"
    has_facts = (folder / SETTINGS).is_file() or (folder / PROVENANCE).is_file()
    is_all_that_is_left = card.is_file() and not has_facts and "## Recipe" in card.read_text(encoding="utf-8")
    if not card.is_file() or (is_generated(card) and not is_all_that_is_left):
        return render_card(folder, publication)
    if publication.license not in (None, read_license(card)):
        raise ValueError(
            f"`--license` (={publication.license}) must stand in {card}: a card of your own is not changed."
        )
    return card.read_text(encoding="utf-8")
