"""What a repository is to hold, gathered in a temporary folder: the model's own stays as it is."""

import contextlib
import io
import shutil
from dataclasses import replace
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import transformers
from transformers.dynamic_module_utils import get_relative_import_files

import hf_convnextv2
from conversion.analyses import ANALYSIS
from conversion.checkpoint_reader import read_checkpoint
from conversion.convert import convert
from conversion.detectors import DETECTORS, RCNN
from conversion.files import link_files, read_json, write_json
from conversion.model_folder import (
    CARD,
    CONFUSIONS,
    LOADED,
    PER_CLASS,
    PROCESSOR,
    PROVENANCE,
    RESULTS,
    SETTINGS,
    read_config,
    weight_files,
)
from conversion.model_weights import from_state_dict
from conversion.publishing.card import is_generated, render_card
from conversion.publishing.contents import read_contents
from conversion.publishing.licenses import read_license
from conversion.publishing.onnx_files import is_onnx, settings_of_transformers_js, stage_onnx
from conversion.publishing.publication import Publication
from conversion.publishing.sections.results import ANALYSES, PICTURES, analyses_of
from conversion.segmenters import SEGMENTERS, convnextv2_supported
from hf_convnextv2 import ConvMAEConfig
from hf_convnextv2.configuration_convnextv2 import FCMAE_MODEL_TYPE, V1_MODEL_TYPE
from hf_convnextv2.registration import registered

UPLOADED = (*LOADED, *PICTURES, RESULTS, "eval_results.json", "metrics.jsonl", PROVENANCE, PER_CLASS, CONFUSIONS)
CONVMAE = ConvMAEConfig.model_type
NEEDS_CODE = (RCNN, CONVMAE)  # of which Transformers can load nothing without it


class Code(NamedTuple):
    """The code of a type of model that Transformers does not have."""

    modules: tuple[str, ...]
    auto_map: dict[str, str]


# By `model_type`.
CODE = {
    FCMAE_MODEL_TYPE: Code(
        ("modeling_fcmae.py",),
        {
            "AutoConfig": "configuration_convnextv2.ConvNextV2FCMAEConfig",
            "AutoModel": "modeling_fcmae.ConvNextV2FCMAEModel",
            "AutoModelForPreTraining": "modeling_fcmae.ConvNextV2ForPreTraining",
        },
    ),
    CONVMAE: Code(
        ("modeling_convmae.py", "modeling_convmae_pretraining.py"),
        {
            "AutoConfig": "configuration_convmae.ConvMAEConfig",
            "AutoModel": "modeling_convmae.ConvMAEModel",
            "AutoBackbone": "modeling_convmae.ConvMAEBackbone",
            "AutoModelForImageClassification": "modeling_convmae.ConvMAEForImageClassification",
            "AutoModelForPreTraining": "modeling_convmae_pretraining.ConvMAEForPreTraining",
        },
    ),
    RCNN: Code(
        ("modeling_rcnn.py",),
        {
            "AutoConfig": "configuration_rcnn.ConvNextV2RCNNConfig",
            "AutoModelForObjectDetection": "modeling_rcnn.ConvNextV2RCNNForObjectDetection",
        },
    ),
}


def check_folder(folder: Path, setting: str = "folder") -> str:
    """The kind of model in the folder, e.g. encoder or detector; raises unless the folder is complete.

    Args:
        setting: what names the folder, for errors.
    """
    asked = f"`{setting}` (={folder})"
    if not folder.is_dir():
        raise ValueError(f"{asked} must be a folder that exists.")
    fixes = {
        "config.json": "Save the model with `save_pretrained`, or convert it with `python -m conversion.convert`.",
        PROCESSOR: "Make one: `hf_convnextv2.create_image_processor(config).save_pretrained(folder)`.",
    }
    for file, fix in fixes.items():
        if not (folder / file).is_file():
            raise ValueError(f"{asked} must hold {file}. {fix}")
    if not weight_files(folder):
        raise ValueError(f"{asked} must hold the weights as safetensors. {fixes['config.json']}")
    model_type = read_json(folder / "config.json").get("model_type")
    if model_type in SEGMENTERS:
        check_weights(folder, asked, getattr(transformers, SEGMENTERS[model_type].auto_class))
        return "segmenter"
    if model_type in DETECTORS:
        check_weights(folder, asked, transformers.AutoModelForObjectDetection)
        return "detector"
    source = read_checkpoint(str(folder))
    if not str(source.config.get("model_type", "")).startswith((V1_MODEL_TYPE, CONVMAE)):
        known = "`convnextv2`, `convnextv2_fcmae`, `convnext` or `convmae`"
        raise ValueError(f"{asked} must hold a model of the type {known} for Transformers.")
    return from_state_dict(source.tensors, source.config).kind


def check_weights(folder: Path, asked: str, auto_class: Any) -> None:
    """Raise unless the folder holds the weights of the model that its configuration describes, and no others.

    Args:
        asked: the setting that names the folder and its value, for errors.
    """
    read_config(folder)  # raises unless the model or its backbone is one of ours
    with registered(), convnextv2_supported():  # else a backbone without GRN would be Transformers', which has it
        _, report = auto_class.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)
    mismatched = {name for name, *_ in report["mismatched_keys"]}
    wrong = sorted({*report["missing_keys"], *report["unexpected_keys"], *mismatched})
    if wrong:
        raise ValueError(
            f"{asked} must hold the weights that its config.json describes, but {len(wrong)} differ, e.g. `{wrong[0]}`."
        )


def stage(folder: Path, target: Path, publication: Publication) -> Path:
    """Links to the files to upload, the card and, if asked for or needed, the code.

    An R-CNN and a ConvMAE always take their code along; the encoder of an FCMAE model loads without any.
    """
    target.mkdir()
    config = read_json(folder / "config.json")
    model_type = str(config.get("model_type"))
    publication = replace(publication, with_code=publication.with_code or model_type in NEEDS_CODE)
    card = _card(folder, publication)
    files = {file for pattern in (*UPLOADED, *analyses_of(folder)) for file in folder.glob(pattern)}
    if (folder / ANALYSIS).is_dir() and not analyses_of(folder):
        print(f"Left out: {folder / ANALYSIS}, which is no analysis of these weights.", flush=True)
    files |= {file for file in folder.glob("*.png") if f"({file.name})" in card}
    for parent in {file.parent for file in files}:
        link_files((file for file in files if file.parent == parent), target / parent.relative_to(folder))
    (target / CARD).write_text(card, encoding="utf-8")
    if publication.onnx is not None:
        stage_onnx(publication.onnx, target)
    config = {name: value for name, value in config.items() if name not in ("auto_map", "_name_or_path")}
    if publication.onnx is not None:
        config |= settings_of_transformers_js(publication.onnx)
    if publication.with_code:
        config["auto_map"] = CODE[model_type].auto_map
        for file in code_files(model_type):
            shutil.copy(file, target)
    (target / "config.json").unlink()
    write_json(target / "config.json", config)
    return target


@cache
def code_files(model_type: str) -> list[Path]:
    """The files that the code of a type of model consists of."""
    modules = [Path(hf_convnextv2.__file__).parent / name for name in CODE[model_type].modules]
    imported = {file for module in modules for file in map(Path, get_relative_import_files(module))}
    return [*modules, *sorted(imported - set(modules))]


def is_ours(name: str) -> bool:
    """Whether a file of a repository is one that a publication writes, under this name."""
    is_code = any(name == file.name for model_type in CODE for file in code_files(model_type))
    is_made = any(fnmatch(name, pattern) and "/" not in name for pattern in UPLOADED)
    return is_code or is_made or is_onnx(name) or name in ANALYSES


def stage_encoder(folder: Path, target: Path, repo_id: str, model: Publication) -> Path:
    """The encoder of a pre-training model as stock Transformers loads it; its card names the model's repository."""
    card = folder / CARD
    license = read_license(card) if card.is_file() and not is_generated(card) else None
    license = license or read_contents(folder.resolve(), model).license
    with contextlib.redirect_stdout(io.StringIO()):
        convert(str(folder), target, to="transformers", license=license)
    card = render_card(target, Publication(repo_id, companion=model.repo_id, license=license))
    (target / CARD).write_text(card, encoding="utf-8")
    return target


def _card(folder: Path, publication: Publication) -> str:
    """The folder's card, written anew for the repository unless somebody has edited it."""
    card = folder / CARD
    if not card.is_file():
        return render_card(folder, publication)
    text = card.read_text(encoding="utf-8")
    can_be_made_anew = (folder / SETTINGS).is_file() or (folder / PROVENANCE).is_file() or "## Recipe" not in text
    if is_generated(card) and can_be_made_anew:
        return render_card(folder, publication)
    if publication.license not in (None, read_license(card)):
        raise ValueError(
            f"`--license` (={publication.license}) must stand in {card}: a card of your own is not changed."
        )
    if publication.onnx is not None:
        print(f"{card} is a card of your own: how to run the ONNX files is in {publication.onnx / CARD}.", flush=True)
    return text
