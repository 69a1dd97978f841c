"""Model cards: valid front matter, measured figures only, code that runs, nothing of this machine."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, metadata_load
from PIL import Image
from transformers import AutoImageProcessor

from conversion.convert import main as convert
from conversion.publishing import hub_ids
from conversion.publishing.card import write_card
from conversion.publishing.hub_ids import is_hub_id
from conversion.publishing.licenses import inherited_license, settle_license
from conversion.publishing.pretraining import starts_from_fcmae
from conversion.publishing.publication import Publication
from conversion.publishing.staging import is_ours, stage
from hf_convnextv2 import (
    ConvMAEConfig,
    ConvMAEForImageClassification,
    ConvMAEForPreTraining,
    ConvNextV2Config,
    ConvNextV2FCMAEConfig,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
    ConvNextV2Model,
    create_image_processor,
)
from tests.photographs import save_turned
from tests.small_models import SMALL_CONVMAE, small_config, small_fcmae_config
from training.run.output import OutputFolder
from training.settings.scripts import FinetuneSettings, PretrainSettings, TrainingSettings

TINY = {"depths": [1, 1], "hidden_sizes": [8, 16], "image_size": 32}
V1 = {"use_grn": False, "layer_scale_init_value": 1e-6}
V1_PAPER, V2_PAPER = "https://arxiv.org/abs/2201.03545", "https://arxiv.org/abs/2301.00808"
TINY_CONVMAE = {**SMALL_CONVMAE, "image_size": 32, "patch_sizes": [2, 2, 2]}
PETS = {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}


@dataclass
class Settings:
    dataset_name: str = "ILSVRC/imagenet-1k"
    model_name_or_path: str | None = None
    dataset_config_name: str | None = None
    train_split: str = "train"
    eval_split: str = "validation"
    image_size: int = 32
    base_learning_rate: float = 1.5e-4
    mixup: float = 0.0
    streaming: bool = False
    seed: int = 42
    output_dir: str = "/somewhere/private"
    hub_model_id: str | None = None
    hub_token: str = "a-secret"


def claim(settings: TrainingSettings) -> None:
    """Have a run with these settings take its folder."""
    OutputFolder(settings).claim()


def card_of(folder: Path, settings: Any, results: dict[str, Any]) -> str:
    """The card of a folder in which a run with these settings and results left a model."""
    if isinstance(settings, TrainingSettings):
        settings = settings.values()
    settings = settings if isinstance(settings, dict) else asdict(settings)
    (folder / "training_config.json").write_text(json.dumps(settings))
    (folder / "all_results.json").write_text(json.dumps(results))
    return write_card(folder)


def save_classifier(folder: Path, settings: Any, results: dict[str, Any], **overrides: Any) -> str:
    model = ConvNextV2ForImageClassification(ConvNextV2Config(**{**TINY, **PETS, **overrides}))
    return save_model(folder, model, settings, results)


def save_pretraining(folder: Path, settings: Any, results: dict[str, Any], **overrides: Any) -> str:
    model = ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig(**{**TINY, "decoder_hidden_size": 8, **overrides}))
    return save_model(folder, model, settings, results)


def save_convmae_classifier(folder: Path, settings: Any, results: dict[str, Any], **overrides: Any) -> str:
    model = ConvMAEForImageClassification(ConvMAEConfig(**{**TINY_CONVMAE, **PETS, **overrides}))
    return save_model(folder, model, settings, results)


def save_convmae_pretraining(folder: Path, settings: Any, results: dict[str, Any], **overrides: Any) -> str:
    model = ConvMAEForPreTraining(ConvMAEConfig(**{**TINY_CONVMAE, **overrides}))
    return save_model(folder, model, settings, results)


def save_model(folder: Path, model: Any, settings: Any, results: dict[str, Any]) -> str:
    model.save_pretrained(folder)
    create_image_processor(model.config).save_pretrained(folder)
    return card_of(folder, settings, results)


def blanks(value: Any, path: str = "") -> list[str]:
    """Paths of the front matter that hold nothing."""
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in blanks(item, f"{path}.{key}")] or [path] * (not value)
    if isinstance(value, list):
        return [found for i, item in enumerate(value) for found in blanks(item, f"{path}[{i}]")] or [path] * (not value)
    return [path] if value is None or value == "" else []


def python_code(card: str) -> str:
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)[0]


OF_CLASSIFIER = {"eval_accuracy": 0.8125, "eval_loss": 0.5, "train_loss": 0.7}
OF_PRETRAINING = {"train_loss": 0.75, "total_steps": 1200}
CLASSIFICATION, FEATURES = "image-classification", "image-feature-extraction"
SAVERS = pytest.mark.parametrize(
    ("save", "task", "results"),
    [
        (save_classifier, CLASSIFICATION, OF_CLASSIFIER),
        (save_pretraining, FEATURES, OF_PRETRAINING),
        (save_convmae_classifier, CLASSIFICATION, OF_CLASSIFIER),
        (save_convmae_pretraining, FEATURES, OF_PRETRAINING),
    ],
)


@SAVERS
def test_front_matter_is_complete_and_nothing_is_blank(tmp_path, save, task, results):
    card = save(tmp_path / "run", Settings(model_name_or_path="me/some-base"), results)
    metadata = metadata_load(tmp_path / "run" / "README.md")
    assert metadata is not None and blanks(metadata) == []
    assert metadata["license"] == "unknown" and metadata["library_name"] == "transformers"
    is_convmae = save in (save_convmae_classifier, save_convmae_pretraining)
    assert metadata["pipeline_tag"] == task
    assert {"convnextv2", "convmae"} & set(metadata["tags"]) == {"convmae" if is_convmae else "convnextv2"}
    assert ("2205.03892" in card, "2301.00808" in card) == (is_convmae, not is_convmae)
    assert "2201.03545" not in card
    assert metadata["datasets"] == ["ILSVRC/imagenet-1k"] and metadata["base_model"] == "me/some-base"
    assert metadata["model-index"][0]["name"] == "run"
    for unfinished in ("More Information Needed", "None", "{{", "{%", "| |", "TODO"):
        assert unfinished not in card
    assert not re.search(r"\n{4,}|^#.*\n+(#|\Z)", card, flags=re.MULTILINE), "an empty section"


def test_blanks_are_found():
    assert blanks({"a": "", "b": [None, {"c": []}], "d": 0}) == [".a", ".b[0]", ".b[1].c"]


@SAVERS
def test_figures_are_the_runs_own(tmp_path, save, task, results):
    card = save(tmp_path / "run", Settings(), results)
    figures = card.split("## Figures")[1].split("## ")[0]
    values = {float(value.replace(",", "")) for value in re.findall(r"\| ([\d.,]+) \|", figures)}
    assert values == set(results.values())
    (result,) = metadata_load(tmp_path / "run" / "README.md")["model-index"][0]["results"]  # type: ignore[index]
    (metric,) = result["metrics"]
    expected = results.get("eval_accuracy", results["train_loss"])
    assert metric["value"] == expected and result["dataset"]["split"] == (
        "validation" if "eval_loss" in results else "train"
    )


@SAVERS
def test_without_figures_there_is_no_empty_section(tmp_path, save, task, results):
    card = save(tmp_path / "run", Settings(), {"train_loss": float("nan")})
    assert "## Figures" not in card and "nan" not in card.split("## Recipe")[1]


@SAVERS
def test_nothing_of_the_machine_reaches_the_card(tmp_path, save, task, results):
    data, base = tmp_path / "photos", tmp_path / "earlier"
    data.mkdir(), base.mkdir()
    card = save(tmp_path / "run", Settings(dataset_name=str(data), model_name_or_path=str(base)), results)
    assert "photos" in card and "earlier" in card
    for private in (str(tmp_path), "/somewhere", "a-secret"):
        assert private not in card
    metadata = metadata_load(tmp_path / "run" / "README.md")
    assert metadata is not None and not {"datasets", "base_model"} & set(metadata)


@SAVERS
@pytest.mark.parametrize("num_channels", [1, 3, 4])
def test_the_code_in_the_card_runs(tmp_path, monkeypatch, capsys, save, task, results, num_channels):
    card = save(tmp_path / "run", Settings(), results, num_channels=num_channels)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    exec(python_code(card), namespace)
    if task == FEATURES:
        assert namespace["reconstructed"].shape == (1, num_channels, 32, 32)
    else:
        assert re.search("cat|dog", capsys.readouterr().out)


def test_the_code_in_the_card_of_a_pretraining_turns_photographs(tmp_path, monkeypatch):
    save_pretraining(tmp_path / "run", Settings(), {})
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    upright = save_turned(picture, tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    exec(python_code((tmp_path / "run/README.md").read_text()), namespace)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "run")
    expected, lying = (
        processor(image, return_tensors="pt").pixel_values for image in (upright, Image.open("photo.jpg"))
    )
    assert torch.equal(namespace["pixel_values"], expected) and not torch.equal(lying, expected)


def test_a_card_says_what_views_and_teacher_there_were(tmp_path, monkeypatch):
    (tmp_path / "somewhere/vit").mkdir(parents=True)
    settings = PretrainSettings(
        dataset_name="me/images",
        output_dir="out",
        target_type="pixel+feature",
        teacher_name_or_path=str(tmp_path / "somewhere/vit"),
        max_train_steps=9,
    ).values()
    settings["local"] = ["teacher_name_or_path"]
    views = {"num_visible_sets": 4, "fusion_stages": ["stage1"], "target_type": "pixel+feature"}
    card = " ".join(save_pretraining(tmp_path / "run", settings, {}, image_size=64, **views).split())
    assert "are shared out to 4 views" in card and "the 75 % that it does not see" in card
    assert (
        "The decoder sees stage1 too" in card
        and "features of visible cells too; the teacher is the folder `vit`" in card
    )
    assert "somewhere" not in card and "teacher_decay" not in card and "`feature_target_norm` | layer_norm" in card
    namespace: dict[str, Any] = {}
    Image.new("RGB", (70, 80)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    exec(python_code((tmp_path / "run/README.md").read_text()), namespace)
    assert namespace["reconstructed"].shape == (4, 3, 64, 64)
    views |= {"target_type": "feature", "feature_target_on": "masked"}
    card = save_pretraining(tmp_path / "features", {**settings, "target_type": "feature"}, {}, image_size=64, **views)
    assert "paint" not in card and "instead of pixels" in card
    exec(python_code(card), namespace)
    assert namespace["predicted"].shape == (4, 64, 16)


@pytest.mark.parametrize(("num_labels", "shown"), [(2, False), (5, False), (6, True)])
def test_top5_is_shown_where_it_says_something(tmp_path, num_labels, shown):
    names = {i: str(i) for i in range(num_labels)}
    card = save_classifier(tmp_path, Settings(), {"eval_accuracy_top5": 0.99}, id2label=names, label2id=None)
    assert ("accuracy_top5" in card) == ("top-5" in card) == shown


def test_a_card_tells_a_reader_elsewhere_what_training_started_from(tmp_path):
    save_pretraining(tmp_path / "earlier", Settings(), {})
    starts = {str(tmp_path / "earlier"): "starting from the FCMAE pre-training in the trainer's folder `earlier`"}
    save_classifier(tmp_path / "other", Settings(), {})
    starts |= {str(tmp_path / "other"): "starting from the weights in the trainer's folder `other`"}
    starts |= {None: "starting from random weights", "me/base": "starting from `me/base`"}
    for base, words in starts.items():
        config = FinetuneSettings(dataset_name="me/images", output_dir=str(tmp_path / "run"), model_name_or_path=base)
        claim(config.replace(overwrite_output_dir=True))
        settings = json.loads((tmp_path / "run/training_config.json").read_text())
        card = " ".join(save_classifier(tmp_path / "run", settings, {}).split())
        assert words in card and str(tmp_path) not in card


def finetuned_card(folder: Path, base: Path | None) -> str:
    """The card of a classifier with V1's blocks that a run from `base` left."""
    name = None if base is None else str(base)
    claim(FinetuneSettings(dataset_name="me/images", output_dir=str(folder), model_name_or_path=name))
    return save_classifier(folder, json.loads((folder / "training_config.json").read_text()), {}, **V1)


def citations(card: str) -> list[str]:
    """What the card asks to cite."""
    return re.findall(r"@inproceedings{[^@]*url +=? {(.*)}\n}", card.split("```bibtex")[1])


def test_a_card_of_convnext_v1_has_its_paper_alone(tmp_path):
    card = finetuned_card(tmp_path / "scratch", None)
    assert f"A [ConvNeXt V1]({V1_PAPER}) image classifier" in card and citations(card) == [V1_PAPER]
    assert "title     = {A ConvNet for the 2020s}" in card and "ConvNeXt V2:" not in card
    tags = metadata_load(tmp_path / "scratch/README.md")["tags"]  # type: ignore[index]
    assert "convnext" in tags and "convnextv2" not in tags
    assert citations(finetuned_card(tmp_path / "again", tmp_path / "scratch")) == [V1_PAPER]


def test_a_card_of_convnext_v1_has_the_paper_of_v2_too_after_fcmae(tmp_path):
    fcmae, classifier, encoder = (tmp_path / name for name in ("fcmae", "classifier", "encoder"))
    card = save_pretraining(fcmae, Settings(), {}, **V1)
    assert f"A [ConvNeXt V1]({V1_PAPER}) encoder" in card and citations(card) == [V1_PAPER, V2_PAPER]
    card = finetuned_card(classifier, fcmae)
    assert f"A [ConvNeXt V1]({V1_PAPER}) image classifier" in card and citations(card) == [V1_PAPER, V2_PAPER]
    convert([str(fcmae), str(encoder), "--to", "transformers"])
    convert([str(classifier), str(tmp_path / "converted")])
    for number, folder in enumerate((encoder, tmp_path / "converted", classifier)):
        assert citations((folder / "README.md").read_text()) == [V1_PAPER, V2_PAPER]
        assert citations(finetuned_card(tmp_path / str(number), folder)) == [V1_PAPER, V2_PAPER], "further on"


def test_a_start_from_fcmae_on_the_hub_is_known(tmp_path, monkeypatch):
    for revision, config in (("main", small_config(**V1)), ("v2", small_fcmae_config(**V1))):
        config.save_pretrained(tmp_path / revision)

    def cached(name: str, file: str, revision: str | None = None, **options: Any) -> str | None:
        found = tmp_path / (revision or "main") / file
        return str(found) if found.exists() else None

    monkeypatch.setattr(hub_ids, "cached_file", cached)
    assert [starts_from_fcmae("me/mine", revision) for revision in (None, "v2")] == [False, True]


@pytest.mark.parametrize("model_class", [ConvNextV2Model, ConvNextV2ForPreTraining])
def test_a_norm_that_nobody_trained_is_named_where_there_is_one(tmp_path, model_class):
    is_fcmae = model_class is ConvNextV2ForPreTraining
    model_class(small_fcmae_config() if is_fcmae else small_config()).save_pretrained(tmp_path / "source")
    convert([str(tmp_path / "source"), str(tmp_path / "made"), "--to", "transformers"])
    assert ("has not been trained" in (tmp_path / "made/README.md").read_text()) == is_fcmae


def test_pictures_appear_only_if_they_exist(tmp_path):
    (tmp_path / "loss_curves.png").touch()
    card = save_pretraining(tmp_path, Settings(), {})
    assert "(loss_curves.png)" in card and "reconstructions.png" not in card


def leave_analysis(folder: Path) -> None:
    (folder / "analysis").mkdir(parents=True)
    for name in ("analysis/context.png", "analysis/mine.png", "analysis/README.md", "loss_curves.png"):
        (folder / name).write_text(name)


def note_weights(folder: Path) -> None:
    """Have the analysis name the weights in the folder as its own."""
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "analysis/analysis.json").write_text(json.dumps({"weights": {"model.safetensors": digest}}))


def test_pictures_of_an_analysis_go_into_the_card_and_along_with_it(tmp_path):
    leave_analysis(tmp_path / "run")
    save_pretraining(tmp_path / "run", Settings(), {})
    note_weights(tmp_path / "run")
    staged = stage(tmp_path / "run", tmp_path / "staged", Publication("me/name"))
    card = (staged / "README.md").read_text()
    assert "](analysis/context.png)" in card and "](loss_curves.png)" in card and "mine.png" not in card
    assert [file.name for file in (staged / "analysis").iterdir()] == ["context.png"]
    assert (staged / "analysis/context.png").read_text() == "analysis/context.png"
    assert is_ours("analysis/context.png") and is_ours("analysis/layers.png"), "else a new version would leave old ones"
    assert not is_ours("analysis/mine.png") and not is_ours("other/loss_curves.png") and not is_ours("context.png")


def test_pictures_of_an_analysis_of_other_weights_stay_behind(tmp_path, capsys):
    leave_analysis(tmp_path / "run")
    save_pretraining(tmp_path / "run", Settings(), {})
    note_weights(tmp_path / "run")
    save_pretraining(tmp_path / "run", Settings(), {})  # a new run into the same folder
    staged = stage(tmp_path / "run", tmp_path / "staged", Publication("me/name"))
    assert "analysis/" not in (staged / "README.md").read_text() and not (staged / "analysis").exists()
    assert "no analysis of these weights" in capsys.readouterr().out


def test_recipe_shows_what_is_in_force(tmp_path):
    config = FinetuneSettings(
        dataset_name="beans", output_dir="o", streaming=False, learning_rate=1.5e-4, layer_decay=0.9, metrics=["f1"]
    )
    recipe = save_classifier(tmp_path, config, {}).split("## Recipe")[1].split("## ")[0]
    shown = dict(re.findall(r"\| `(\w+)` \| (.+) \|", recipe))
    assert shown["learning_rate"] == "0.00015" and shown["seed"] == "0" and shown["crop_scale"] == "0.08, 1"
    assert shown["model_size"] == "atto" and shown["layer_decay"] == "0.9"
    hidden = {
        "base_learning_rate",
        "shuffle_buffer_size",
        "randaugment_magnitude",
        "output_dir",
        "ddp_timeout",
        "metrics",
    }
    assert not hidden & set(shown) and shown["mixup"] == "0" and shown["streaming"] == "no"
    based = save_classifier(tmp_path, config.replace(model_name_or_path="me/base"), {})
    assert "`model_size`" not in based


@pytest.mark.parametrize(
    ("given", "hidden"),
    [
        ({"warmup_steps": 3}, {"warmup_epochs": 0.5}),
        ({"learning_rate": 1e-3}, {"base_learning_rate": 1e-4}),
        ({"max_train_steps": 5}, {"num_train_epochs": 7}),
        ({"model_name_or_path": "me/base"}, {"model_size": "pico", "patch_size": 2, "num_stages": 3}),
    ],
)
def test_what_another_setting_puts_out_of_force_is_not_in_the_recipe(tmp_path, given, hidden):
    """As a run notes its recipe, and of the folders of earlier runs, which did not."""
    for fields, expected in ((hidden, True), ({**given, **hidden}, False)):
        config = FinetuneSettings(dataset_name="beans", output_dir="o", **fields)
        assert [name in config.record().recipe for name in hidden] == [expected] * len(hidden)
        recipe = save_classifier(tmp_path, config, {}).split("## Recipe")[1].split("## ")[0]
        assert [f"`{name}`" in recipe for name in hidden] == [expected] * len(hidden)


@dataclass
class MixedSettings(Settings):
    mixed_dataset_names: list[str] = field(default_factory=lambda: ["/somewhere/private/photos", "me/more"])
    mixture_weights: list[float] = field(default_factory=lambda: [0.5, 0.25, 0.25])


def test_every_data_set_of_a_mixture_is_named(tmp_path):
    text = save_pretraining(tmp_path, MixedSettings(), {"train_loss": 0.5})
    metadata = ModelCard.load(tmp_path / "README.md").data
    assert metadata.datasets == ["ILSVRC/imagenet-1k", "me/more"]
    assert "`ILSVRC/imagenet-1k`, the data set `photos` and `me/more`" in text
    assert "photos, me/more" in text and "0.5, 0.25, 0.25" in text and "/somewhere" not in text


def test_a_name_with_a_bar_stays_in_its_cell(tmp_path):
    config = FinetuneSettings(dataset_name="beans", output_dir="-", label_column=["x|y", "cat"])
    assert recipe_of(config, tmp_path / "run")["label_column"] == "x\\|y, cat"


def recipe_of(config: Any, folder: Path) -> dict[str, str]:
    """The recipe in the card of a run with these settings, which notes them as runs do."""
    config = config.replace(output_dir=str(folder))
    claim(config)
    settings = json.loads((folder / "training_config.json").read_text())
    save = save_pretraining if isinstance(config, PretrainSettings) else save_classifier
    table = save(folder, settings, {}).split("## Recipe")[1].split("## ")[0]
    return dict(re.findall(r"\| `(\w+)` \| (.+) \|", table))


def test_what_is_switched_off_is_a_part_of_the_recipe_and_how_the_run_was_carried_out_is_not(tmp_path):
    off = {"norm_pix_loss": False, "weight_decay": 0.0, "horizontal_flip": 0.0}
    carried_out = {"ddp_timeout": 60, "reconstruction_steps": 5, "num_workers": 0, "report_to": "all", "dry_run": False}
    config = PretrainSettings(dataset_name="me/images", output_dir="-", **off, **carried_out)  # type: ignore[arg-type]
    shown = recipe_of(config, tmp_path / "run")
    assert {name: shown[name] for name in off} == {"norm_pix_loss": "no", "weight_decay": "0", "horizontal_flip": "0"}
    assert not set(carried_out) & set(shown)
    settings = config.values()  # as earlier runs wrote them: without a note of what the recipe is
    earlier = save_pretraining(tmp_path / "earlier", settings, {}).split("## Recipe")[1].split("## ")[0]
    earlier_shown = dict(re.findall(r"\| `(\w+)` \| (.+) \|", earlier))
    assert earlier_shown.items() >= shown.items() and not set(carried_out) & set(earlier_shown)


def test_a_setting_that_another_puts_out_of_force_is_no_part_of_the_recipe(tmp_path):
    plain = FinetuneSettings(dataset_name="me/images", output_dir="-", randaugment_num_ops=2, layer_decay=0.9)
    shown = recipe_of(plain, tmp_path / "a")
    assert {"base_learning_rate", "randaugment_magnitude", "layer_decay_type", "num_train_epochs"} <= set(shown)
    other = plain.replace(learning_rate=0.1, randaugment_num_ops=0, layer_decay=1.0, max_train_steps=9)
    changed = recipe_of(other, tmp_path / "b")
    assert set(shown) - set(changed) == {
        "base_learning_rate",
        "randaugment_magnitude",
        "layer_decay_type",
        "num_train_epochs",
    }
    assert set(changed) - set(shown) == {"learning_rate", "max_train_steps"}


@SAVERS
def test_no_licence_is_claimed_that_nobody_stated(tmp_path, save, task, results):
    config_class = PretrainSettings if task == FEATURES else FinetuneSettings
    config = config_class(dataset_name="me/images", output_dir=str(tmp_path))
    for stated, shown in ((None, "unknown"), ("mit", "mit")):
        claim(config.replace(license=stated, overwrite_output_dir=True))
        card = save(tmp_path, json.loads((tmp_path / "training_config.json").read_text()), results)
        assert metadata_load(tmp_path / "README.md")["license"] == shown  # type: ignore[index]
        assert ("No licence is stated" in card) == (stated is None) and "apache" not in card


def test_a_licence_that_earlier_runs_noted_by_themselves_is_not_repeated(tmp_path):
    earlier = {**asdict(Settings()), "license": "apache-2.0"}
    card = save_classifier(tmp_path / "run", earlier, {})
    assert "license: unknown" in card and inherited_license(str(tmp_path / "run")) == "unknown"
    convert([str(tmp_path / "run"), str(tmp_path / "made")])
    assert "license: unknown" in (tmp_path / "made/README.md").read_text()
    assert "license: apache-2.0" in save_classifier(tmp_path / "run", {**earlier, "recipe": []}, {})  # was told
    assert inherited_license(str(tmp_path / "run")) == "apache-2.0"


def test_licence_of_the_base_is_kept(tmp_path):
    assert inherited_license(None) == "unknown"
    assert inherited_license("me/mine") == inherited_license(str(tmp_path)) == "unknown"
    assert inherited_license("facebook/convnextv2-atto-1k-224") == "cc-by-nc-4.0"
    ModelCard("---\nlicense: cc-by-nc-4.0\n---\n").save(tmp_path / "converted" / "README.md")
    card = save_classifier(tmp_path / "run", Settings(model_name_or_path=str(tmp_path / "converted")), {})
    assert "license: cc-by-nc-4.0" in card and "not for commercial use" in card


def test_a_licence_is_that_of_the_revision_asked_for(tmp_path, monkeypatch):
    for revision, license in (("main", "mit"), ("v2", "openrail")):
        ModelCard(f"---\nlicense: {license}\n---\n").save(tmp_path / revision / "README.md")

    def cached(name: str, file: str, revision: str | None = None, **options: Any) -> str:
        assert name == "me/mine"
        return str(tmp_path / (revision or "main") / file)

    monkeypatch.setattr(hub_ids, "cached_file", cached)
    assert [inherited_license("me/mine", revision) for revision in (None, "v2")] == ["mit", "openrail"]


def test_a_licence_that_is_asked_for_goes_before_what_the_weights_say_but_not_the_official_one():
    assert settle_license("mit", "openrail") == settle_license("mit", None) == settle_license(None, "mit") == "mit"
    assert settle_license(None, None) == "unknown"
    assert settle_license("cc-by-nc-4.0", "cc-by-nc-4.0") == settle_license(None, "cc-by-nc-4.0") == "cc-by-nc-4.0"
    with pytest.raises(ValueError, match="that of the official weights stays"):
        settle_license("mit", "cc-by-nc-4.0")


def test_hub_ids_are_told_from_paths(tmp_path, monkeypatch):
    (tmp_path / "data" / "train").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("ILSVRC/imagenet-1k") and is_hub_id("beans")
    assert not any(map(is_hub_id, ["data/train", "data", "out/demo/data", "data/*.parquet", "/data", "../x", "", None]))


CONVERSIONS = [
    (ConvNextV2ForImageClassification, "transformers", "image-classification", "transformers"),
    (ConvNextV2ForImageClassification, "timm", "image-classification", "timm"),
    (ConvNextV2ForImageClassification, "official", "image-classification", "pytorch"),
    (ConvNextV2Model, "transformers", "image-feature-extraction", "transformers"),
    (ConvNextV2Model, "mmpretrain", "image-feature-extraction", "pytorch"),
    (ConvNextV2ForPreTraining, "ours", "image-feature-extraction", "transformers"),
    (ConvNextV2ForPreTraining, "official-minkowski", "image-feature-extraction", "pytorch"),
]


@pytest.mark.parametrize(("model_class", "target", "task", "library"), CONVERSIONS)
def test_cards_of_conversions_are_complete_and_their_code_runs(
    tmp_path, monkeypatch, capsys, model_class, target, task, library
):
    is_fcmae = model_class is ConvNextV2ForPreTraining
    model = model_class(small_fcmae_config() if is_fcmae else small_config())
    model.save_pretrained(tmp_path / "source")
    convert([str(tmp_path / "source"), str(tmp_path / "made"), "--to", target])
    file = tmp_path / "made" / "README.md"
    card, metadata = file.read_text(), metadata_load(file)
    assert metadata is not None and blanks(metadata) == []
    assert (metadata["pipeline_tag"], metadata["library_name"]) == (task, library)
    assert metadata["license"] == "unknown" and "that of the source is not known" in card
    for unfinished in ("More Information Needed", "None", "{{", "{%", "| |\n\n", "TODO", str(tmp_path)):
        assert unfinished not in card
    assert not re.search(r"\n{4,}|^#.*\n+(#|\Z)", card, flags=re.MULTILINE), "an empty section"
    assert "model-index" not in metadata and "## Figures" not in card and "figures hold" not in card
    parameters = sum(p.numel() for p in model.parameters())
    assert f"{parameters:,} parameters" in card
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    exec(python_code(card), {})
