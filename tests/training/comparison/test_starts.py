"""The starts: their flags, the images that fit each, and settings that do not go together."""

import json
from pathlib import Path

import pytest
from transformers import ConvNextImageProcessor, ViTImageProcessor

from hf_convnextv2 import ConvNextV2ForImageClassification, ConvNextV2ForPreTraining
from tests.photographs import message_of
from tests.small_models import small_config, small_fcmae_config
from training.comparison.runs import finetuning_flags, pretraining_flags
from training.comparison.starts import create_starts, recipe_of, short, size_of, slug
from training.settings.command_line import parse_settings
from training.settings.comparison import CompareSettings
from training.settings.scripts import FinetuneSettings, PretrainSettings

KINDS = {"pretrain": PretrainSettings, "finetune": FinetuneSettings}


def settings_of(**fields):
    return CompareSettings(dataset_name="me/images", output_dir="out", **fields)


def save_classifier(folder, processor, **config):
    ConvNextV2ForImageClassification(small_config(**config)).save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return str(folder)


def parsed(task, settings, flags):
    """The settings that the script of a task makes of its flags."""
    required = ["--config", str(recipe_of(settings, task)), "--dataset_name", "me/images", "--output_dir", "out"]
    return parse_settings(KINDS[task], [*required, *flags]).values()


def test_random_weights_and_fcmae_have_one_shape_and_the_same_images():
    settings = settings_of(model_size="femto", image_size=64, image_mean=[0.1, 0.2, 0.3], image_std=[1, 2, 3])
    random, fcmae = create_starts(settings)
    assert random.pretraining is None and (random.key, fcmae.key) == ("random", "fcmae")
    trained = parsed("pretrain", settings, pretraining_flags(settings, fcmae, 5))
    found = parsed("finetune", settings, finetuning_flags(settings, random, 5, 100))
    names = ("model_type", "model_size", "image_size", "num_channels", "image_mean", "image_std", "seed")
    assert {name: found[name] for name in names} == {name: trained[name] for name in names}
    assert (found["model_size"], found["image_size"], found["image_std"], found["seed"]) == ("femto", 64, [1, 2, 3], 5)
    assert (found["layer_decay"], found["max_train_steps"], found["eval_split"]) == (1.0, 160, "test")


def test_all_starts_have_the_same_budget_and_differ_in_weights_images_and_layer_decay_alone(tmp_path):
    checkpoint = save_classifier(tmp_path / "classifier", None)
    settings = settings_of(checkpoint=[checkpoint], finetune_steps=7, pretrain_epochs=9)
    starts = create_starts(settings)
    found = [parsed("finetune", settings, finetuning_flags(settings, start, 2, 50)) for start in starts]
    differing = {name for name in found[0] if any(row[name] != found[0][name] for row in found)}
    assert differing == {"model_name_or_path", "image_size", "layer_decay", "model_type"}
    assert found[0]["max_train_steps"] == 7
    trained = [parsed("pretrain", settings, pretraining_flags(settings, s, 2)) for s in starts if s.pretraining]
    assert len(trained) == 2 and {(row["num_train_epochs"], row["warmup_epochs"]) for row in trained} == {(9.0, 1.0)}


def test_a_checkpoint_has_the_images_of_its_own_processor(tmp_path):
    processor = ConvNextImageProcessor(size={"shortest_edge": 96}, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    name = save_classifier(tmp_path / "classifier", processor)  # its configuration says 64
    _, _, stored, continued = create_starts(settings_of(checkpoint=[name]))
    for task, flags in (("finetune", stored.finetuning), ("pretrain", continued.pretraining)):
        found = parsed(task, settings_of(), flags)
        assert (found["image_size"], found["image_mean"], found["image_std"]) == (96, [0.5] * 3, [0.25] * 3)
        assert found["model_name_or_path"] == name
    assert stored.model.image_size is None  # frozen features: the processor itself
    asked = create_starts(settings_of(checkpoint=[name], checkpoint_image_size=64))[2]
    assert parsed("finetune", settings_of(), asked.finetuning)["image_size"] == asked.model.image_size == 64


def test_without_a_processor_the_configuration_says_the_size(tmp_path):
    name = save_classifier(tmp_path / "classifier", None)
    start = create_starts(settings_of(checkpoint=[name], starts=["random", "checkpoint"]))[1]
    assert start.model.image_size == 64 and "--image_size=64" in start.finetuning


def test_a_checkpoint_of_oblong_images_needs_a_size(tmp_path):
    name = save_classifier(tmp_path / "classifier", ViTImageProcessor(size={"height": 64, "width": 96}))
    message = message_of(lambda: create_starts(settings_of(checkpoint=[name])))
    assert "`checkpoint_image_size` (=None) must be given" in message and "is for images of (64, 96) pixels" in message
    stored = create_starts(settings_of(checkpoint=[name], checkpoint_image_size=64))[2]
    found = parsed("finetune", settings_of(), stored.finetuning)
    assert found["image_size"] == stored.model.image_size == 64  # the frozen features too


def test_a_checkpoint_of_other_channels_is_adapted_and_named(tmp_path, capsys):
    processor = ConvNextImageProcessor(size={"shortest_edge": 64})
    name = save_classifier(tmp_path / "classifier", processor)
    start = create_starts(settings_of(checkpoint=[name], starts=["random", "checkpoint"], num_channels=1))[1]
    assert "has 3 channels: its weights are adapted to 1" in capsys.readouterr().out
    found = parsed("finetune", settings_of(), start.finetuning)
    assert found["num_channels"] == 1 and len(found["image_mean"]) == 1 and start.model.num_channels == 1


def test_a_published_name_has_its_published_size():
    assert size_of("facebook/convnextv2-tiny-22k-384", {"size": {"shortest_edge": 224}}, 224) == 384
    assert size_of("me/unknown", {"size": {"shortest_edge": 224}, "crop_size": 96, "do_center_crop": True}, 64) == 96
    assert size_of("me/unknown", {}, 64) == 64


def test_weights_that_change_in_their_folder_are_another_start(tmp_path):
    names = set()
    for _ in range(2):
        names.add(slug(save_classifier(tmp_path / "classifier", None)))
        (tmp_path / "classifier/model.safetensors").unlink()
    assert len(names) == 2 and all(name.startswith("classifier-") for name in names)
    assert short("me/name") == "me/name" and short("/some/where/name") == "name"


def test_continued_pre_training_of_features_predicts_pixels(tmp_path):
    config = small_fcmae_config(target_type="pixel+feature", feature_target_dim=4)
    ConvNextV2ForPreTraining(config).save_pretrained(tmp_path / "student")
    start = create_starts(settings_of(checkpoint=[str(tmp_path / "student")], starts=["random", "continued"]))[1]
    assert parsed("pretrain", settings_of(), start.pretraining)["target_type"] == "pixel"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"starts": ["random", "checkpoint"]}, "`checkpoint` (=None) must be given with `--starts checkpoint`"),
        ({"starts": ["random", "teacher"]}, "`teacher_name_or_path` (=None) must be given with `--starts teacher`"),
        ({"starts": ["random", "fcmae"], "checkpoint": ["a/b"]}, "must come with the start checkpoint or continued"),
        ({"starts": ["random"]}, "be two or more"),
        ({"starts": ["random", "imagenet"]}, "be some of random, fcmae, checkpoint, continued, teacher"),
        ({"checkpoint": ["./nowhere"]}, "`checkpoint` (=./nowhere) must be a folder that exists"),
        ({"label_shares": [0.0, 1.0]}, "`label_shares` (=[0.0, 1.0]) must be in (0, 1]"),
        ({"seeds": [1, 1]}, "`seeds` (=[1, 1]) must be different"),
        ({"methods": ["knn"]}, "be some of fine_tuning, linear_probe, nearest_neighbours"),
        ({"finetune_config": "nowhere.yaml"}, "`finetune_config` (=nowhere.yaml) must be a YAML file"),
        ({"eval_split": "train"}, "be another split than `train_split`"),
        ({"num_channels": 5, "image_mean": [0.5]}, "have one number for each of the 5 channels"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(fields, said):
    assert said in message_of(lambda: settings_of(**fields))


def test_weights_that_do_not_fit_are_refused_by_the_name_of_the_setting(tmp_path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text(json.dumps({"model_type": "bert"}))
    message = message_of(lambda: create_starts(settings_of(checkpoint=[str(tmp_path / "bert")])))
    assert "`checkpoint`" in message and "type bert" in message
    name = save_classifier(tmp_path / "classifier", None)
    fields = {"checkpoint": [name], "checkpoint_image_size": 72}
    assert "`--checkpoint_image_size 64`" in message_of(lambda: create_starts(settings_of(**fields)))
    fields = {"teacher_name_or_path": str(tmp_path / "bert")}
    assert "`teacher_name_or_path`" in message_of(lambda: create_starts(settings_of(**fields)))


def test_recipes_are_checked_before_the_runs(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("mask_ration: 0.5")
    for name in ("pretrain_config", "finetune_config"):
        message = message_of(lambda name=name: create_starts(settings_of(**{name: str(recipe)})))
        assert "recipe.yaml: `mask_ration` is not a setting" in message


def test_new_models_of_xlarge_have_the_blocks_that_the_recipe_says(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("use_grn: false")
    random, _ = create_starts(settings_of(model_size="xlarge", pretrain_config=str(recipe)))
    assert (random.model.model_size, random.model.use_grn) == ("xlarge", False)
    message = message_of(lambda: create_starts(settings_of(model_size="xlarge")))
    assert "`model_size` (=xlarge) must come with `use_grn` false" in message


def test_two_models_of_one_name_have_titles_that_tell_them_apart(tmp_path):
    names = [save_classifier(tmp_path / place / "classifier", None) for place in "ab"]
    first, other, fcmae = create_starts(settings_of(checkpoint=names, starts=["checkpoint", "fcmae"]))
    assert first.title == f"classifier ({first.key})" != other.title == f"classifier ({other.key})"
    assert fcmae.title == "FCMAE"


def test_the_output_may_not_lie_in_the_images(tmp_path):
    (tmp_path / "images").mkdir()
    fields = {"dataset_name": str(tmp_path / "images"), "output_dir": str(Path(tmp_path, "images/out"))}
    assert "not lie in `dataset_name`" in message_of(lambda: CompareSettings(**fields))
