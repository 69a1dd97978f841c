"""The study of views and families: every arm gets the same time, and the table has means and spreads of the seeds."""

import argparse
import json
from pathlib import Path

import pytest

from experiments import views as views_study
from experiments.arms import GROUPS, ONE_VIEW, UNTRAINED, Arm, same_model, trained
from experiments.label_efficiency import RECIPE, keep_apart
from experiments.solar_cells import RECIPES, scratch_flags
from experiments.views import num_parameters, plan, save_all_untrained, table
from hf_convnextv2 import ConvMAEConfig, ConvMAEForPreTraining, ConvMAEModel, ConvNextV2FCMAEConfig, ConvNextV2Model
from tests.small_models import small_convmae_config
from training.settings.command_line import parse_settings
from training.settings.scripts import FinetuneSettings, PretrainSettings

FAMILIES = GROUPS["families"]
OPTIONS = argparse.Namespace(epochs=4, jobs=1)


def settings_of(kind, recipe, *flags):
    required = ["--dataset_name", "images", "--output_dir", "out", "--config", str(RECIPES / f"{recipe}.yaml")]
    return parse_settings(kind, [*required, *flags]).values()


@pytest.mark.parametrize("arms", GROUPS.values(), ids=GROUPS)
def test_every_pretrained_arm_has_the_steps_of_the_first_ones_time(arms, tmp_path, monkeypatch):
    rates = {name: 0.5 * (1 + index) for index, name in enumerate(trained(arms))}
    monkeypatch.setattr(views_study, "measure_rates", lambda *_: rates)
    found = plan(tmp_path, arms, OPTIONS, (), 640)
    assert found["seconds"] == 80 and found["steps"] == {name: 80 * rate for name, rate in rates.items()}
    assert not any(UNTRAINED in name for name in found["steps"])
    monkeypatch.setattr(views_study, "measure_rates", lambda *_: pytest.fail("the rates were measured again"))
    assert plan(tmp_path, arms, OPTIONS, (), 640) == json.loads(json.dumps(found))


@pytest.mark.parametrize("arms", GROUPS.values(), ids=GROUPS)
def test_every_arm_sees_the_recipes_images_and_64_views_in_a_step(arms):
    expected = settings_of(PretrainSettings, RECIPE)
    for arm in trained(arms).values():
        found = settings_of(PretrainSettings, RECIPE, *arm.flags)
        assert (found["image_size"], found["crop_scale"]) == (expected["image_size"], expected["crop_scale"])
        assert found["per_device_train_batch_size"] == arm.images_in_step
        assert arm.images_in_step * (found["num_visible_sets"] or 1) == 64


def test_families_are_of_the_sizes_whose_encoders_are_nearest():
    config = ConvNextV2FCMAEConfig.from_size("atto")
    atto = num_encoder_parameters(ConvNextV2Model(config))
    sizes = {name: num_encoder_parameters(ConvMAEModel(ConvMAEConfig.from_size(name))) for name in ("tiny", "small")}
    assert min(sizes, key=lambda name: abs(sizes[name] - atto)) == "tiny"
    values = {name: settings_of(PretrainSettings, RECIPE, *arm.flags) for name, arm in trained(FAMILIES).items()}
    found = {name: (row["model_type"], row["model_size"]) for name, row in values.items()}
    convmae = ("convmae", "tiny")
    assert found == {"FCMAE": ("convnextv2", "atto"), "ConvMAE": convmae, "FastConvMAE": convmae}


def num_encoder_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", [name for name in FAMILIES if UNTRAINED in name])
def test_fine_tuning_from_random_weights_has_the_arms_model(name):
    found = settings_of(FinetuneSettings, "finetune_demo", *scratch_flags(RECIPE), *FAMILIES[name].model)
    pretrained = settings_of(PretrainSettings, RECIPE, *FAMILIES[same_model(FAMILIES, name)].flags)
    names = ("model_type", "model_size", "patch_size", "num_stages", "image_size")
    assert {name: found[name] for name in names} == {name: pretrained[name] for name in names}
    assert found["layer_decay"] == 1.0


def test_untrained_models_have_the_shape_of_the_first_arm_with_their_model(tmp_path):
    arms = {"first": Arm(), "a, b": Arm(("--x",)), "c": Arm(("--x",), ("--y",)), "none": Arm(("--x",), None)}
    assert {name: same_model(arms, name) for name in arms} == {
        "first": "first",
        "a, b": "a, b",
        "c": "c",
        "none": "a, b",
    }
    shape = tmp_path / "rates/0-a_b"
    model = ConvMAEForPreTraining(small_convmae_config())
    model.save_pretrained(shape)
    (shape / "preprocessor_config.json").write_text("{}")
    save_all_untrained(tmp_path, arms, [3, 4])
    folders = sorted(Path(tmp_path, "pretrain").iterdir())
    assert [folder.name for folder in folders] == ["none-3", "none-4"]
    encoder = num_encoder_parameters(model.convmae)
    expected = {"encoder": encoder, "pre-training": num_encoder_parameters(model)}
    assert num_parameters(folders[0]) == expected and encoder < expected["pre-training"]


def test_a_folder_holds_one_study(tmp_path):
    output = tmp_path / "new"
    for _ in range(2):
        keep_apart(output, {"compare": "views", "epochs": 9})
    with pytest.raises(SystemExit, match="folder of its own"):
        keep_apart(output, {"compare": "families", "epochs": 9})


def test_the_table_has_means_and_deviations_over_the_seeds():
    figures = [{"20 nearest neighbours": x, "linear probe": x, "fine-tuned": 2 * x} for x in (0.2, 0.3, 0.4)]
    found, sizes = {ONE_VIEW: dict(zip("012", figures, strict=True))}, {ONE_VIEW: {"encoder": 3_387_400}}
    lines = table(found, {ONE_VIEW: 1200}, sizes).splitlines()
    assert lines[-1] == "| one view | 3.4 M | 1,200 | 30.0 ± 10.0 | 30.0 ± 10.0 | 60.0 ± 20.0 |"
