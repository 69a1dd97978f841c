"""Every recipe is read whole, says where it is from, and takes two steps at a tiny size."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from hf_convnextv2 import ConvMAEConfig, ConvNextV2Config, ConvNextV2FCMAEConfig
from hf_convnextv2.configuration_convnextv2 import SIZES
from tests.photographs import (
    WRITE_TINY,
    forget_accelerate,
    quick_datasets,
    write_folder,
    write_masked_folder,
    write_objects_folder,
    write_tiny_fcmae,
)
from training import detect, finetune, pretrain, segment
from training.evaluation.pictures import read_metrics
from training.models.layer_decay import layer_scale
from training.run.plan import make_plan
from training.settings.command_line import parse_settings
from training.settings.scripts import DetectSettings, FinetuneSettings, PretrainSettings, SegmentSettings

__all__ = ["quick_datasets"]
FOLDER = Path(__file__).parents[2] / "training"
RECIPES = sorted(path.stem for path in (FOLDER / "recipes").glob("*.yaml"))
SCRIPTS: dict[str, Any] = {"pretrain": (pretrain, PretrainSettings), "finetune": (finetune, FinetuneSettings)}
SCRIPTS |= {"segment": (segment, SegmentSettings), "detect": (detect, DetectSettings)}
IN_1K = ("atto", "femto", "pico", "nano", "tiny", "base", "large", "huge")
IN_22K = ("nano", "tiny", "base", "large", "huge")


def resolved(name, *flags):
    kind = SCRIPTS[name.split("_")[0]][1]
    required = ["--dataset_name", "images", "--output_dir", "out"]
    return parse_settings(kind, [*required, "--config", str(FOLDER / f"recipes/{name}.yaml"), *flags])


def values_of(name, *flags):
    return SimpleNamespace(**resolved(name, *flags).values())


def imagenet_plan(name, num_views=1):
    settings = resolved(name)
    return make_plan(settings.schedule, settings.data.per_device_train_batch_size, 1_281_167, 1, num_views)


def test_the_papers_runs_have_a_recipe_each():
    names = {f"finetune_{size}" for size in IN_1K}
    names |= {f"finetune_{stage}_{size}" for stage in ("22k", "22k_1k") for size in IN_22K}
    assert names | {"pretrain_atto", "pretrain_1600_epochs", "pretrain_small_images"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_its_source_cost_and_what_to_expect(name):
    header = (FOLDER / f"recipes/{name}.yaml").read_text().split("\n\n")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert "Cost" in header and "xpected" in header and "Measured" in header
    assert f"--config training/recipes/{name}.yaml" in header


# Paper, Tables 8 to 13, with the conflicts settled as the recipes' headers say: peak learning rate, images in a step,
# epochs, warm-up epochs, weight decay, layer decay and its kind, drop path, mixup, cutmix, smoothing.
PAPER = {
    "finetune_atto": (8e-4, 1024, 600, 0, 0.3, 0.9, "single", 0.1, 0, 0, 0.2),
    "finetune_femto": (8e-4, 1024, 600, 0, 0.05, 0.9, "single", 0, 0.3, 0.3, 0.2),
    "finetune_pico": (8e-4, 1024, 600, 0, 0.3, 0.9, "single", 0, 0.3, 0.3, 0.2),
    "finetune_nano": (8e-4, 1024, 600, 0, 0.3, 0.9, "single", 0.1, 0.5, 0.5, 0.2),
    "finetune_tiny": (3.2e-3, 1024, 300, 40, 0.05, 0.9, "single", 0.2, 0.8, 1.0, 0.1),
    "finetune_base": (2.5e-3, 1024, 100, 20, 0.05, 0.6, "group", 0.1, 0.8, 1.0, 0.1),
    "finetune_large": (2.5e-3, 1024, 100, 20, 0.05, 0.6, "group", 0.2, 0.8, 1.0, 0.1),
    "finetune_huge": (5e-4, 1024, 50, 10, 0.05, 0.75, "single", 0.3, 0.8, 1.0, 0.1),
    "finetune_22k_nano": (4e-3, 4096, 90, 5, 0.05, 0.9, "single", 0, 0.8, 1.0, 0.1),
    "finetune_22k_tiny": (4e-3, 4096, 90, 5, 0.05, 0.9, "single", 0, 0.8, 1.0, 0.1),
    "finetune_22k_base": (4e-3, 4096, 90, 5, 0.05, 0.8, "group", 0.1, 0.8, 1.0, 0.1),
    "finetune_22k_large": (4e-3, 4096, 90, 5, 0.05, 0.8, "group", 0.1, 0.8, 1.0, 0.1),
    "finetune_22k_huge": (4e-3, 4096, 90, 5, 0.05, 0.8, "single", 0.3, 0.8, 1.0, 0.1),
    "finetune_22k_1k_nano": (5e-5, 512, 90, 0, 1e-8, 0.9, "single", 0.1, 0, 0, 0.1),
    "finetune_22k_1k_tiny": (5e-5, 512, 90, 0, 1e-8, 0.9, "single", 0.1, 0, 0, 0.1),
    "finetune_22k_1k_base": (5e-5, 512, 30, 0, 1e-8, 0.8, "group", 0.2, 0, 0, 0.1),
    "finetune_22k_1k_large": (5e-5, 512, 30, 0, 1e-8, 0.8, "group", 0.3, 0, 0, 0.1),
    "finetune_22k_1k_huge": (5e-5, 512, 30, 0, 1e-8, 0.85, "single", 0.5, 0, 0, 0.1),
}


# Table 7 and the appendix, and ConvNeXt's first version where they are silent: learning rate, images in a step, steps,
# warm-up steps, weight decay, layer decay and its kind, drop path, width of the head, weight of the second head, crop.
ADE20K = {
    "segment_ade20k_tiny": (1e-4, 16, 160_000, 1500, 0.05, 0.9, "stage", 0.4, 512, 0.4, 512),
    "segment_ade20k_base": (1e-4, 16, 160_000, 1500, 0.05, 0.9, "stage", 0.4, 512, 0.4, 512),
    "segment_ade20k_large": (1e-4, 16, 160_000, 1500, 0.05, 0.9, "stage", 0.4, 512, 0.4, 512),
    "segment_ade20k_huge": (1e-4, 16, 160_000, 1500, 0.05, 0.9, "stage", 0.4, 512, 0.4, 512),
    "segment_ade20k_22k_huge": (1e-4, 16, 160_000, 1500, 0.05, 0.9, "stage", 0.4, 512, 0.4, 640),
}
PUBLISHED_MIOU = {"tiny": "46.7", "base": "52.1", "large": "53.7", "huge": "55.0", "22k_huge": "57.0"}


@pytest.mark.parametrize("name", ADE20K)
def test_a_recipe_of_ade20k_has_the_settings_of_paper_and_first_version(name):
    config = values_of(name)
    images = config.per_device_train_batch_size * config.gradient_accumulation_steps
    found = (config.learning_rate, images, config.max_train_steps, config.warmup_steps, config.weight_decay)
    found += (config.layer_decay, config.layer_decay_type, config.drop_path_rate, config.decoder_hidden_size)
    assert (*found, config.auxiliary_loss_weight, config.image_size) == ADE20K[name]
    assert (config.lr_scheduler_type, config.num_labels, config.reduce_labels) == ("polynomial", 150, True)
    assert (config.eval_scales, config.eval_flip) == ([0.75, 0.875, 1.0, 1.125, 1.25], True)
    size = name.removeprefix("segment_ade20k_")
    assert f"Expected: {PUBLISHED_MIOU[size]} mIoU" in (FOLDER / f"recipes/{name}.yaml").read_text()


def test_the_recipe_of_ade20k_for_convmae_has_the_settings_of_its_official_code():
    config = values_of("segment_ade20k_convmae_base")
    images = config.per_device_train_batch_size * config.gradient_accumulation_steps
    found = (config.learning_rate, config.layer_decay, config.drop_path_rate, config.decoder_hidden_size, images)
    assert found == (1e-4, 0.75, 0.2, 768, 16)
    assert (config.model_type, config.model_size, config.eval_window) == ("convmae", "base", 512)
    assert (config.eval_scales, config.eval_flip) == ([1.0], False)
    assert "Expected: 51.7 mIoU" in (FOLDER / "recipes/segment_ade20k_convmae_base.yaml").read_text()


# Appendix (36 epochs, 32 images, 1e-4, 0.05, large-scale jitter of 1024 pixels) and ConvNeXt's first version, for tiny
# all of it: learning rate, images in a step, epochs, divided by 10 after, weight decay, layer decay and its kind, drop
# path, factors on the size.
COCO = {
    "detect_coco_tiny": (1e-4, 16, 36, [27, 33], 0.05, 0.95, "group_v1", 0.4, [0.6, 1.0]),
    "detect_coco_base": (1e-4, 32, 36, [27, 33], 0.05, 0.95, "group_v1", 0.3, [0.1, 2.0]),
    "detect_coco_large": (1e-4, 32, 36, [27, 33], 0.05, 0.95, "group_v1", 0.4, [0.1, 2.0]),
    "detect_coco_huge": (1e-4, 32, 36, [27, 33], 0.05, 0.95, "group_v1", 0.5, [0.1, 2.0]),
}
PUBLISHED_AP = {"base": ("52.9", "46.6"), "large": ("54.4", "47.7"), "huge": ("55.7", "48.9"), "tiny": ("46.2", "41.7")}


@pytest.mark.parametrize("name", COCO)
def test_a_recipe_of_coco_has_the_settings_of_paper_and_first_version(name):
    config = values_of(name)
    images = config.per_device_train_batch_size * config.gradient_accumulation_steps
    found = (config.learning_rate, images, config.num_train_epochs, config.lr_step_epochs, config.weight_decay)
    found += (config.layer_decay, config.layer_decay_type, config.drop_path_rate, config.scale_range)
    assert found == COCO[name]
    assert (config.architecture, config.image_size, config.lr_scheduler_type) == ("mask_rcnn", 1024, "step")
    assert (config.decoder_hidden_size, config.box_head_size, config.box_batch_size) == (256, 1024, 512)
    assert config.anchor_sizes == [32, 64, 128, 256, 512]
    box, mask = PUBLISHED_AP[name.split("_")[-1]]
    assert f"box AP {box}, mask AP {mask}" in (FOLDER / f"recipes/{name}.yaml").read_text()


# Worked out by hand from the first version's rule for UPerNet: 0.9 ** (num_layers + 1 - id), num_layers 6 (tiny) or 12.
@pytest.mark.parametrize(("size", "num_layers"), [("tiny", 6), ("base", 12)])
def test_layer_decay_by_stage_is_the_rule_of_the_first_version(size, num_layers):
    scale = layer_scale(list(SIZES[size][0]), 0.9, "stage")
    expected = {"backbone.embeddings.patch_embeddings.weight": 0, "decode_head.classifier.weight": num_layers + 1}
    for stage in range(4):
        expected[f"backbone.encoder.stages.{stage}.layers.1.dwconv.weight"] = stage + 1
        if stage:
            expected[f"backbone.encoder.stages.{stage}.downsampling_layer.1.weight"] = 0
    for name, layer in expected.items():
        assert scale(name) == pytest.approx(0.9 ** (num_layers + 1 - layer)), name


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_of_the_paper_has_the_papers_settings(name):
    config = values_of(name)
    images = config.per_device_train_batch_size * config.gradient_accumulation_steps
    rate = config.base_learning_rate * images / 256
    found = (config.num_train_epochs, config.warmup_epochs, config.weight_decay, config.layer_decay)
    found += (config.layer_decay_type, config.drop_path_rate, config.mixup, config.cutmix, config.label_smoothing)
    assert (round(rate, 10), images, *found) == PAPER[name]
    assert (config.adam_beta1, config.adam_beta2, config.randaugment_num_ops) == (0.9, 0.999, 2)
    assert config.ema_decay == (
        0 if (name.startswith("finetune_22k_") and "1k" not in name) or "1k_huge" in name else 0.9999
    )


@pytest.mark.parametrize("size", IN_1K)
@pytest.mark.parametrize(("name", "epochs"), [("pretrain_atto", 800), ("pretrain_1600_epochs", 1600)])
def test_the_pretraining_recipes_have_the_settings_of_table_8_for_every_size(name, epochs, size):
    config = values_of(name, "--model_size", size)
    assert config.model_size == size and "--model_size base" in (FOLDER / f"recipes/{name}.yaml").read_text()
    images = config.per_device_train_batch_size * config.gradient_accumulation_steps
    assert (images, config.base_learning_rate * images / 256) == (4096, pytest.approx(2.4e-3))
    assert (config.num_train_epochs, config.warmup_epochs, config.weight_decay) == (epochs, 40, 0.05)
    assert (config.adam_beta1, config.adam_beta2, config.mask_ratio, config.norm_pix_loss) == (0.9, 0.95, 0.6, True)


def test_pretraining_without_a_recipe_has_the_optimizer_the_crops_and_the_learning_rate_of_table_8():
    plain = parse_settings(PretrainSettings, ["--dataset_name", "images", "--output_dir", "out"])
    table = resolved("pretrain_atto")
    assert plain.optimizer == table.optimizer and plain.augmentation == table.augmentation
    assert plain.schedule.base_learning_rate == table.schedule.base_learning_rate
    assert plain.autoencoder.norm_pix_loss is None and ConvNextV2FCMAEConfig().norm_pix_loss  # the model's
    assert table.autoencoder.norm_pix_loss


@pytest.mark.parametrize("name", ["pretrain_fast_atto", "pretrain_fast_fusion", "pretrain_fast_teacher"])
def test_the_recipes_on_views_have_as_many_views_as_table_8_has_images(name):
    config = values_of(name)
    views = 4 * config.per_device_train_batch_size * config.gradient_accumulation_steps
    plan = imagenet_plan(name, config.num_visible_sets)
    assert (config.num_visible_sets, views, 4 * config.num_train_epochs) == (4, 4096, 800)
    assert plan.learning_rate == pytest.approx(2.4e-3)
    assert plan.max_steps == pytest.approx(imagenet_plan("pretrain_atto").max_steps, abs=1)


# PRETRAIN.md and FINETUNE.md of the official code: peak learning rate, images in a step, epochs, warm-up epochs.
CONVMAE = {
    "pretrain_convmae_base": (1.8e-3, 3072, 1600, 40),
    "pretrain_fastconvmae_base": (1.2e-3, 512, 50, 10),
    "finetune_convmae_base": (2e-3, 1024, 100, 5),
}


@pytest.mark.parametrize("name", CONVMAE)
def test_the_recipes_of_convmae_have_the_settings_of_the_official_code(name):
    config = values_of(name)
    images = config.per_device_train_batch_size * config.gradient_accumulation_steps
    views = getattr(config, "num_visible_sets", None) or 1
    rate, *rest = CONVMAE[name]
    assert imagenet_plan(name, views).learning_rate == pytest.approx(rate)
    assert [images, config.num_train_epochs, config.warmup_epochs] == rest and config.weight_decay == 0.05
    if name.startswith("pretrain"):
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads")
        model = ConvMAEConfig.from_size(config.model_size)
        assert [getattr(config, f"decoder_{size}") for size in sizes] == [
            getattr(model, f"decoder_{size}") for size in sizes
        ]
        assert (config.model_type, config.model_size, config.adam_beta2) == ("convmae", "base", 0.95)
        assert (config.num_visible_sets, config.mask_ratio) in [(None, 0.75), (4, None)]
    else:
        found = (config.layer_decay, config.layer_decay_type, config.drop_path_rate, config.mixup, config.cutmix)
        assert (*found, config.label_smoothing) == (0.65, "single", 0.1, 0.8, 1.0, 0.1)


def test_the_recipe_of_convmaes_detector_has_the_settings_of_the_official_code():
    """`convmae_base_mask_rcnn_FPN_25ep.py`: 368,750 / 4 steps, of which 0.125 % * 4 warm up."""
    config = values_of("detect_coco_convmae_base")
    images = config.per_device_train_batch_size * config.gradient_accumulation_steps
    assert (config.window_size, config.use_relative_position_bias, config.image_size) == (16, True, 1024)
    assert (images, config.num_train_epochs, config.lr_scheduler_type) == (32, 25, "cosine")
    assert (config.learning_rate, config.weight_decay, config.drop_path_rate) == (8e-5, 0.1, 0.1)
    assert config.warmup_steps == round(368_750 / 4 * 0.00125 * 4)
    assert (config.layer_decay, config.max_grad_norm, config.scale_range) == (1, None, [0.1, 2.0])
    assert "box AP 53.2, mask AP 47.1" in (FOLDER / "recipes/detect_coco_convmae_base.yaml").read_text()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("recipes")
    splits = {"train": 2, "test": 1, "validation": 1}
    masked = write_masked_folder(root / "masked", splits)
    objects = write_objects_folder(root / "objects", splits)
    folders = {"segment": masked, "detect": objects, "images": write_folder(root / "images", splits)}
    tiny = {name: write(root / name) for name, write in WRITE_TINY.items()}
    return folders, {**tiny, "segment": write_tiny_fcmae(root / "segmented", 3)}  # the second head sees the third stage


@pytest.mark.usefixtures("quick_datasets")
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_takes_two_steps_at_a_tiny_size(name, images, tmp_path):
    folders, tiny = images
    family = "convmae" if "convmae" in name else "convnextv2"
    folder = folders.get(name.split("_")[0], folders["images"])
    model = tiny["segment" if name.startswith("segment") and family == "convnextv2" else family]
    flags = {"dataset_name": folder, "output_dir": tmp_path / "out", "model_name_or_path": model}
    flags["image_size"] = 32
    flags |= {"max_train_steps": 2, "warmup_steps": 1, "per_device_train_batch_size": 2, "num_workers": 0}
    flags |= {"gradient_accumulation_steps": 1, "mixed_precision": "no", "logging_steps": 1, "with_tracking": False}
    flags["min_learning_rate"] = 0  # the rate of two images is below the recipes' minimum
    settings = yaml.safe_load((FOLDER / f"recipes/{name}.yaml").read_text())
    architecture = {"model_type", "model_size", "patch_size", "num_stages", "decoder_hidden_size"}
    architecture |= {"decoder_num_hidden_layers", "decoder_num_attention_heads"}
    kept = {key: value for key, value in settings.items() if key not in architecture}
    if name.startswith("detect"):
        anchors = {"convnextv2": [8, 16, 32], "convmae": [8, 16, 32, 64]}[family]  # for its two or three stages
        kept |= {"anchor_sizes": anchors, "decoder_hidden_size": 8, "box_head_size": 16}
    if name.startswith("segment"):
        kept |= {"decoder_hidden_size": 8}
    kept |= {"fusion_stages": ["stage1"]} if "fusion_stages" in kept else {}  # of the tiny model's two
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(kept))  # of the stored tiny model's architecture
    arguments = [part for key, value in flags.items() for part in (f"--{key}", str(value))]
    script, kind = SCRIPTS[name.split("_")[0]]
    forget_accelerate()
    script.main(parse_settings(kind, ["--config", str(tmp_path / "recipe.yaml"), *arguments]))
    lines = [line for line in read_metrics(tmp_path / "out/metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2]
    assert json.loads((tmp_path / "out/all_results.json").read_text())["total_steps"] == 2
    if name.startswith("segment"):
        assert json.loads((tmp_path / "out/config.json").read_text())["use_auxiliary_head"]
    forget_accelerate()


# Layer-wise learning rates, worked out by hand from the official rules: the stem's layer, then each stage's
# downsampling and blocks, then norm and head.


def groups_of(depths, long_ids, groups=12):
    """Layer ids of `group`: stem; downsampling; blocks, the third stage's being given; norm and head."""
    return 0, [None, 2, 3, groups], [[1] * depths[0], [2] * depths[1], long_ids, [groups] * depths[3]], groups + 1


def singles_of(depths):
    first = [sum(depths[:stage]) + 1 for stage in range(4)]
    return (
        1,
        first,
        [list(range(start, start + depth)) for start, depth in zip(first, depths, strict=True)],
        sum(depths) + 1,
    )


LAYERS = {
    ("atto", "single"): singles_of([2, 2, 6, 2]),
    ("tiny", "single"): singles_of([3, 3, 9, 3]),
    ("base", "single"): singles_of([3, 3, 27, 3]),
    ("atto", "group"): groups_of([2, 2, 6, 2], [3, 3, 3, 4, 4, 4]),
    ("tiny", "group"): groups_of([3, 3, 9, 3], [3, 3, 3, 4, 4, 4, 5, 5, 5]),
    ("base", "group"): groups_of([3, 3, 27, 3], [3 + block // 3 for block in range(27)]),
    ("tiny", "group_v1"): groups_of([3, 3, 9, 3], [3, 3, 3, 4, 4, 4, 5, 5, 5], groups=6),
    ("base", "group_v1"): groups_of([3, 3, 27, 3], [3 + block // 3 for block in range(27)]),
    ("huge", "group_v1"): groups_of([3, 3, 27, 3], [3 + block // 3 for block in range(27)]),
}


@pytest.mark.parametrize(("size", "kind"), LAYERS)
def test_layer_wise_rates_are_those_of_the_reference_tables(size, kind):
    stem, downsampling, blocks, last = LAYERS[size, kind]
    expected = {"single": {"atto": 13, "tiny": 19, "base": 37}, "group_v1": {"tiny": 7}}
    assert last == expected.get(kind, {}).get(size, 13)
    depths = list(ConvNextV2Config.from_size(size).depths)
    assert size in SIZES and [len(stage) for stage in blocks] == depths
    scale = layer_scale(depths, 0.6, kind)
    encoder = "convnextv2.encoder.stages"
    rates = {"convnextv2.embeddings.patch_embeddings.weight": stem, "classifier.weight": last}
    rates["convnextv2.layernorm.weight"] = last
    for stage, layers in enumerate(blocks):
        rates |= {f"{encoder}.{stage}.layers.{i}.dwconv.weight": layer for i, layer in enumerate(layers)}
        if stage:
            rates[f"{encoder}.{stage}.downsampling_layer.1.weight"] = downsampling[stage]
    for name, layer in rates.items():
        assert scale(name) == pytest.approx(0.6 ** (last - layer)), name


# 0.95 ** (7 - layer) of tiny's 6 groups in ConvNeXt's first version, and ** (13 - layer) of base's 12.
@pytest.mark.parametrize(
    ("size", "rates"),
    [
        ("tiny", (0.698337, 0.735092, 0.773781, 0.814506, 0.857375, 0.9025, 0.95)),
        ("base", (0.513342, 0.540360, 0.568800, 0.598737, 0.630249, 0.663420, 0.95)),
    ],
)
def test_the_recipes_of_coco_have_the_rates_of_the_first_version(size, rates):
    optimizer = resolved(f"detect_coco_{size}").optimizer
    scale = layer_scale(list(SIZES[size][0]), optimizer.layer_decay, optimizer.layer_decay_type)
    stages = "backbone.encoder.stages"
    names = ["backbone.embeddings.patch_embeddings.weight", f"{stages}.0.layers.2.dwconv.weight"]
    names += [f"{stages}.1.layers.0.dwconv.weight", *(f"{stages}.2.layers.{i}.dwconv.weight" for i in (0, 3, 6))]
    names += [f"{stages}.3.downsampling_layer.1.weight"]
    assert [scale(name) for name in names] == pytest.approx(rates, abs=1e-6)
    for head in ("backbone.hidden_states_norms.stage1.weight", "roi_heads.box_head.fc6.weight"):
        assert scale(head) == 1


@pytest.mark.parametrize("path", sorted((FOLDER / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_configuration_files(path):
    config = load_config_from_file(str(path))
    assert config.num_machines <= config.num_processes
    if path.stem == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2
        assert "fsdp_transformer_layer_cls_to_wrap" not in config.fsdp_config  # each model says it of itself
