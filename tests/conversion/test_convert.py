"""From a file to a folder that Transformers loads: what is written, what is refused, and nothing left behind."""

import argparse
import json
import os
import pickle
import re
from pathlib import Path

import pytest
import skimage.data
import timm
import torch
import transformers
import yaml
from huggingface_hub import metadata_load
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

from conversion import checkpoints, convert
from conversion.checkpoints import checkpoint_table, find_file, find_repository, list_checkpoints
from conversion.layouts import LAYOUTS
from conversion.model_weights import encoder_of, from_state_dict, to_state_dict
from conversion.publishing.card import render_card
from conversion.publishing.publication import Publication
from hf_convnextv2 import (
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
    ConvNextV2Model,
    create_image_processor,
)
from tests.conversion.conversion_command import FILES, run
from tests.small_models import awake, run_python, small_config, small_fcmae_config


def state_dict(layout: str, model=None) -> dict[str, torch.Tensor]:
    """A small classifier's (or the model's) weights in a layout."""
    model = model or awake(ConvNextV2ForImageClassification(small_config()))
    return to_state_dict(from_state_dict(model.state_dict()), LAYOUTS[layout])[0]


def atto() -> ConvNextV2ForImageClassification:
    """A model of an official size, untrained."""
    return ConvNextV2ForImageClassification(ConvNextV2Config.from_size("atto", num_labels=1000))


def save(folder: Path, stored, name: str = "source.pt") -> str:
    folder.mkdir(exist_ok=True)
    torch.save(stored, folder / name)
    return str(folder / name)


# --- What comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["official", "timm", "mmpretrain", "transformers"])
@torch.no_grad()
def test_a_classifier_becomes_a_folder_of_stock_transformers(tmp_path, capsys, layout):
    model = awake(ConvNextV2ForImageClassification(small_config(layer_norm_eps=1e-6)))
    source = save(tmp_path, {"model": state_dict(layout, model)})
    code, printed = run(source, tmp_path / "out", "--image_size", 64, capsys=capsys)
    assert code == 0 and f"layout {layout}, classifier" in printed
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES
    loaded, report = AutoModelForImageClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(loaded) is transformers.ConvNextV2ForImageClassification
    assert not any(report.values())
    pixel_values = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(loaded(pixel_values).logits, model(pixel_values).logits, rtol=0, atol=1e-4)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == ["ConvNextV2ForImageClassification"] and config["model_type"] == "convnextv2"
    assert config["layer_norm_eps"] == 1e-6 and not {"use_grn", "head_init_scale", "auto_map"} & set(config)


@pytest.mark.parametrize("layout", ["official-fcmae", "timm", "official-minkowski"])
@torch.no_grad()
def test_an_encoder_becomes_a_model_without_a_head(tmp_path, capsys, layout):
    model = awake(ConvNextV2Model(small_config()))
    stored = {n: t for n, t in state_dict(layout, model).items() if not n.startswith(("norm.", "head."))}
    code, printed = run(save(tmp_path, stored), tmp_path / "out", capsys=capsys)
    assert code == 0 and "added: `layernorm`" in printed
    loaded, report = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(loaded) is transformers.ConvNextV2Model and not any(report.values())
    pixel_values = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(
        loaded(pixel_values).last_hidden_state, model(pixel_values).last_hidden_state, rtol=0, atol=1e-4
    )


@torch.no_grad()
def test_a_trainers_checkpoint_becomes_a_pretraining_folder_and_its_encoder_a_plain_one(tmp_path, capsys):
    """With the official trainer's arguments, optimizer and wrapper's prefix in the file."""
    model = awake(ConvNextV2ForPreTraining(small_fcmae_config(mask_ratio=0.5)))
    stored = {f"module.{name}": tensor for name, tensor in state_dict("official-minkowski", model).items()}
    arguments = argparse.Namespace(mask_ratio=0.5, norm_pix_loss=True, input_size=64, output_dir="/somewhere")
    optimizer = {"state": {}, "param_groups": [{"lr": 1e-3}]}
    source = save(
        tmp_path, {"model": stored, "optimizer": optimizer, "epoch": 3, "args": arguments}, "checkpoint-3.pth"
    )
    assert run(source, tmp_path / "fcmae", capsys=capsys)[0] == 0
    loaded = ConvNextV2ForPreTraining.from_pretrained(tmp_path / "fcmae")
    assert loaded.config.mask_ratio == 0.5 and loaded.config.image_size == 64
    batch = {"pixel_values": torch.randn(2, 3, 64, 64), "noise": torch.rand(2, 4)}
    assert torch.equal(loaded(**batch).loss, model(**batch).loss)

    code, printed = run(tmp_path / "fcmae", tmp_path / "encoder", "--to", "transformers", "--verify", capsys=capsys)
    assert code == 0 and "left out: decoder.mask_token" in printed and "of the largest value" in printed
    encoder = AutoModel.from_pretrained(tmp_path / "encoder")
    assert type(encoder) is transformers.ConvNextV2Model
    assert not {"mask_ratio", "decoder_hidden_size"} & set(json.loads((tmp_path / "encoder/config.json").read_text()))
    expected = model.convnextv2(batch["pixel_values"]).last_hidden_state
    torch.testing.assert_close(encoder(batch["pixel_values"]).last_hidden_state, expected, rtol=0, atol=1e-4)

    assert run(tmp_path / "fcmae", tmp_path / "back", "--to", "official-minkowski", capsys=capsys)[0] == 0
    back = load_file(tmp_path / "back/model.safetensors")
    assert all(torch.equal(back[n.removeprefix("module.")], tensor) for n, tensor in stored.items())


@torch.no_grad()
def test_a_trainers_arguments_say_whether_its_model_predicts_normalised_pixels(tmp_path, capsys):
    model = awake(ConvNextV2ForPreTraining(small_fcmae_config(norm_pix_loss=False)))
    arguments = argparse.Namespace(mask_ratio=0.6, norm_pix_loss=False, input_size=64)
    source = save(tmp_path, {"model": state_dict("official-minkowski", model), "args": arguments})
    assert run(source, tmp_path / "out", capsys=capsys)[0] == 0
    loaded = ConvNextV2ForPreTraining.from_pretrained(tmp_path / "out")
    pixel_values, noise = 3 * torch.randn(2, 3, 64, 64) + 1, torch.rand(2, 4)
    out = loaded(pixel_values, noise=noise)
    hidden = out.mask[..., None].bool().expand_as(out.logits)
    expected = (out.logits - model.patchify(pixel_values))[hidden].square().mean()  # of the pixels as they are
    torch.testing.assert_close(out.loss, expected, rtol=1e-5, atol=0)


def test_what_only_pre_training_has_is_left_out_of_an_encoder_and_refused_by_a_trainer_without_it(tmp_path, capsys):
    settings = {"num_visible_sets": 4, "fusion_stages": ["stage1"], "target_type": "pixel+feature"}
    model = awake(ConvNextV2ForPreTraining(small_fcmae_config(**settings)))
    model.save_pretrained(tmp_path / "fcmae")
    assert run(tmp_path / "fcmae", tmp_path / "again", "--verify", capsys=capsys)[0] == 0
    again = ConvNextV2ForPreTraining.from_pretrained(tmp_path / "again")
    assert again.config.num_visible_sets == 4
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in again.state_dict().items())
    assert run(tmp_path / "fcmae", tmp_path / "encoder", "--to", "transformers", "--verify", capsys=capsys)[0] == 0
    written = json.loads((tmp_path / "encoder/config.json").read_text())
    assert not {"num_visible_sets", "fusion_stages", "target_type", "feature_target_dim"} & set(written)
    code, printed = run(tmp_path / "fcmae", tmp_path / "back", "--to", "official-minkowski", capsys=capsys)
    assert code != 0 and "`fusion_stages` (=['stage1']) must be empty" in printed
    plain = {**settings, "fusion_stages": []}
    ConvNextV2ForPreTraining(small_fcmae_config(**plain)).save_pretrained(tmp_path / "plain")
    code, printed = run(tmp_path / "plain", tmp_path / "back", "--to", "official-minkowski", capsys=capsys)
    assert code == 0 and "decoder.pred_feature" in printed


@pytest.mark.parametrize("kept", ["float16", "bfloat16"])
def test_the_data_type_is_kept_unless_another_is_asked_for(tmp_path, capsys, kept):
    dtype = getattr(torch, kept)
    source = save(tmp_path, {name: tensor.to(dtype) for name, tensor in state_dict("official").items()})
    run(source, tmp_path / "kept", capsys=capsys)
    run(source, tmp_path / "float32", "--dtype", "float32", capsys=capsys)
    assert {t.dtype for t in load_file(tmp_path / "kept/model.safetensors").values()} == {dtype}
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "kept").dtype == dtype
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "float32").dtype == torch.float32
    assert "every number is the source's" in (tmp_path / "kept/README.md").read_text()
    assert f"{kept}, stored here as float32" in (tmp_path / "float32/README.md").read_text()


@pytest.mark.parametrize(("size", "shown"), [(224, (224, 224)), (384, (384, 384))])
def test_the_processor_follows_the_resolution(tmp_path, capsys, size, shown):
    """Against timm's own transform for the checkpoint: 224 resized and cropped, 384 warped."""
    run(save(tmp_path, state_dict("official")), tmp_path / "out", "--image_size", size, capsys=capsys)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    photograph = Image.fromarray(skimage.data.chelsea()[:260, :400])
    name = "convnextv2_tiny.fcmae_ft_in22k_in1k" + ("_384" if size == 384 else "")
    expected = timm.data.create_transform(**timm.data.resolve_data_config(timm.get_pretrained_cfg(name).to_dict()))(
        photograph
    )
    actual = processor(photograph, return_tensors="pt").pixel_values[0]
    assert tuple(actual.shape[1:]) == shown
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_a_thousand_classes_get_imagenets_names_and_a_file_of_labels_any(tmp_path, capsys):
    model = ConvNextV2ForImageClassification(small_config(num_labels=1000))
    run(save(tmp_path, state_dict("official", model)), tmp_path / "out", capsys=capsys)
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "out").config.id2label[281] == "tabby, tabby cat"
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\ne\n")
    source = save(tmp_path, state_dict("timm"))
    run(source, tmp_path / "named", "--labels", tmp_path / "names.txt", capsys=capsys)
    answers = pipeline("image-classification", model=str(tmp_path / "named"))(Image.fromarray(skimage.data.chelsea()))
    assert {answer["label"] for answer in answers} == set("abcde")


def test_a_trainers_average_is_taken_when_asked_for(tmp_path, capsys):
    raw, averaged = state_dict("official"), state_dict("official")
    source = save(tmp_path, {"model": raw, "model_ema": averaged})
    run(source, tmp_path / "raw", capsys=capsys)
    code, printed = run(source, tmp_path / "average", "--use_ema", capsys=capsys)
    assert code == 0 and "moving average" in printed
    for folder, expected in (("raw", raw), ("average", averaged)):
        weight = load_file(tmp_path / folder / "model.safetensors")["classifier.weight"]
        assert torch.equal(weight, expected["head.weight"])


@pytest.mark.parametrize("wrap", [torch.compile, AveragedModel, torch.nn.DataParallel], ids=lambda wrap: wrap.__name__)
def test_weights_stored_with_a_wrapper_around_the_model_are_the_models(tmp_path, capsys, wrap):
    model = awake(ConvNextV2ForImageClassification(small_config()))
    stored = wrap(model).state_dict()
    assert not set(stored) & set(model.state_dict())  # each name has a prefix
    code, printed = run(save(tmp_path, {"model": stored}), tmp_path / "out", capsys=capsys)
    assert code == 0, printed
    weights = load_file(tmp_path / "out/model.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_the_image_size_asked_for_goes_before_that_of_the_source(tmp_path, capsys):
    config = small_config(image_size=64)
    ConvNextV2ForImageClassification(config).save_pretrained(tmp_path / "in")
    create_image_processor(config).save_pretrained(tmp_path / "in")
    for flags, expected in (((), 64), (("--image_size", 96), 96)):
        out = tmp_path / f"out{expected}"
        code, printed = run(tmp_path / "in", out, *flags, capsys=capsys)
        assert code == 0, printed
        assert json.loads((out / "config.json").read_text())["image_size"] == expected
        assert json.loads((out / "preprocessor_config.json").read_text())["size"]["shortest_edge"] == expected


def test_a_folder_keeps_its_names_statistics_and_licence(tmp_path, capsys):
    """Also where its weights are in several files, as large models on the Hub."""
    config = small_config(id2label={i: f"class {i}" for i in range(5)}, label2id=None)
    ConvNextV2ForImageClassification(config).save_pretrained(tmp_path / "in", max_shard_size="20KB")
    create_image_processor(config, image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path / "in")
    (tmp_path / "in/README.md").write_text("---\nlicense: mit\n---\n")
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 1
    code, printed = run(tmp_path / "in", tmp_path / "out", "--verify", capsys=capsys)
    assert code == 0 and "differ by" in printed
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert loaded.config.id2label[3] == "class 3" and loaded.config.image_size == 64
    assert list(AutoImageProcessor.from_pretrained(tmp_path / "out").image_mean) == [0.1, 0.2, 0.3]
    assert metadata_load(tmp_path / "out/README.md")["license"] == "mit"  # type: ignore[index]


@torch.no_grad()
def test_timm_loads_the_folder_written_for_it(tmp_path, capsys):
    source = awake(ConvNextV2ForImageClassification(ConvNextV2Config.from_size("atto", num_labels=7, num_channels=4)))
    source.save_pretrained(tmp_path / "in")
    code, printed = run(tmp_path / "in", tmp_path / "out", "--to", "timm", capsys=capsys)
    assert code == 0, printed
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    pixel_values = torch.randn(1, 4, 64, 64)
    torch.testing.assert_close(loaded(pixel_values), source(pixel_values).logits, rtol=0, atol=1e-3)
    run(tmp_path / "out", tmp_path / "again", capsys=capsys)
    again = load_file(tmp_path / "again/model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in source.state_dict().items())


def test_image_statistics_go_to_timm_and_back(tmp_path, capsys):
    config, statistics = small_config(image_size=64), {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    ConvNextV2ForImageClassification(config).save_pretrained(tmp_path / "in")
    create_image_processor(config, **statistics).save_pretrained(tmp_path / "in")
    assert run(tmp_path / "in", tmp_path / "timm", "--to", "timm", capsys=capsys)[0] == 0
    loaded = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    prepared = timm.data.resolve_model_data_config(loaded)
    assert prepared["input_size"] == (3, 64, 64)
    assert (list(prepared["mean"]), list(prepared["std"])) == tuple(statistics.values())
    assert run(tmp_path / "timm", tmp_path / "back", capsys=capsys)[0] == 0
    back = AutoImageProcessor.from_pretrained(tmp_path / "back")
    assert (list(back.image_mean), list(back.image_std)) == tuple(statistics.values())


@pytest.mark.parametrize("size", [224, 384, 512])
def test_timm_prepares_images_for_the_folder_written_for_it_as_transformers_does(tmp_path, capsys, size):
    """Of 384 pixels and more, a photograph is warped to a square; below, its sides are cut."""
    source = save(tmp_path, state_dict("official"))
    for to in ("timm", "transformers"):
        assert run(source, tmp_path / to, "--to", to, "--image_size", size, capsys=capsys)[0] == 0
    loaded = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    photograph = Image.fromarray(skimage.data.chelsea()[:260, :400])
    actual = timm.data.create_transform(**timm.data.resolve_model_data_config(loaded))(photograph)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "transformers", backend="pil")
    expected = processor(photograph, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_an_official_file_is_known_by_its_name(tmp_path, capsys):
    model = ConvNextV2ForImageClassification(ConvNextV2Config.from_size("tiny", num_labels=1000))
    source = save(tmp_path, {"model": state_dict("official", model)}, "convnextv2_tiny_22k_384_ema.pt")
    run(source, tmp_path / "out", capsys=capsys)
    card, metadata = (tmp_path / "out/README.md").read_text(), metadata_load(tmp_path / "out/README.md")
    assert metadata is not None and metadata["license"] == "cc-by-nc-4.0" and "not for commercial use" in card
    results = metadata["model-index"][0]["results"][0]
    assert results["metrics"][0]["value"] == 0.85098 and results["source"]["name"].startswith("timm")
    assert "85.10 %" in card and "ImageNet-22k" in card and "dl.fbaipublicfiles.com" in card
    assert json.loads((tmp_path / "out/preprocessor_config.json").read_text())["size"] == {"shortest_edge": 384}
    # What is made of the result is still theirs.
    run(tmp_path / "out", tmp_path / "timm", "--to", "timm", capsys=capsys)
    assert metadata_load(tmp_path / "timm/README.md")["license"] == "cc-by-nc-4.0"  # type: ignore[index]


def test_the_official_licence_cannot_be_changed_and_another_can(tmp_path, capsys):
    official, own = "convnextv2_atto_1k_224_ema.pt", "own.pt"
    for name in (official, own):
        save(tmp_path, state_dict("official", atto()), name)
    exit_code, printed = run(tmp_path / official, tmp_path / "a", "--license", "mit", capsys=capsys)
    assert exit_code == 2 and "must be cc-by-nc-4.0: that of the official weights stays" in printed
    assert run(tmp_path / own, tmp_path / "b", "--license", "mit", capsys=capsys)[0] == 0
    assert metadata_load(tmp_path / "b/README.md")["license"] == "mit"  # type: ignore[index]
    run(tmp_path / official, tmp_path / "c", capsys=capsys)
    with pytest.raises(ValueError, match=r"must be cc-by-nc-4\.0"):
        render_card(tmp_path / "c", Publication(license="mit"))


def test_weights_that_have_changed_since_are_not_the_official_ones_but_keep_their_licence(tmp_path, capsys):
    source = save(tmp_path, state_dict("official", atto()), "convnextv2_atto_1k_224_ema.pt")
    run(source, tmp_path / "out", capsys=capsys)
    assert "76.64" in render_card(tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    (tmp_path / "out/config.json").write_text(json.dumps({**config, "architectures": None}))
    atto().save_pretrained(tmp_path / "other")
    (tmp_path / "out/model.safetensors").write_bytes((tmp_path / "other/model.safetensors").read_bytes())
    card = render_card(tmp_path / "out")
    assert "76.64" not in card and "every number is the source's" not in card
    assert "license: cc-by-nc-4.0" in card and "image classifier (atto" in card


def test_what_a_run_was_trained_on_stays_with_what_is_made_of_it(tmp_path, capsys):
    ConvNextV2ForPreTraining(small_fcmae_config()).save_pretrained(tmp_path / "run")
    (tmp_path / "run/training_config.json").write_text('{"dataset_name": "/home/me/cells", "data_note": "Of roofs."}')
    (tmp_path / "run/README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    run(tmp_path / "run", tmp_path / "encoder", "--to", "transformers", capsys=capsys)
    run(tmp_path / "encoder", tmp_path / "timm", "--to", "timm", capsys=capsys)
    for folder in ("encoder", "timm"):
        card = (tmp_path / folder / "README.md").read_text()
        assert "license: cc-by-4.0" in card and "Of roofs." in card and "/home/me" not in card
    assert "trained on the data set `cells`" in (tmp_path / "encoder/README.md").read_text()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_verification_runs_for_any_channels_and_allows_for_rounding(tmp_path, capsys, dtype):
    model = awake(ConvNextV2ForImageClassification(small_config(num_channels=5)))
    source = save(tmp_path, state_dict("official", model))
    Image.fromarray(skimage.data.camera()).save(tmp_path / "grey.png")
    flags = ["--image_size", 64, "--dtype", dtype, "--to", "timm", "--verify", tmp_path / "grey.png"]
    exit_code, printed = run(source, tmp_path / "out", *flags, capsys=capsys)
    assert exit_code == 0 and "logits of source and result differ by" in printed, printed


def test_a_file_named_as_an_official_one_but_of_another_size_is_not_taken_for_it(tmp_path, capsys):
    source = save(tmp_path, state_dict("official"), "convnextv2_tiny_1k_224_ema.pt")
    cut = {n: t for n, t in state_dict("official", atto()).items() if not n.startswith("stages.2.5.")}
    shorter = save(tmp_path, cut, "convnextv2_atto_1k_224_ema.pt")
    for file, name in ((source, "convnextv2_tiny_1k_224_ema"), (shorter, "convnextv2_atto_1k_224_ema")):
        exit_code, printed = run(file, tmp_path / "out", capsys=capsys)
        assert exit_code == 2 and f"is named as the official {name}, so it must be" in printed
        assert "but is a classifier of size depths" in printed
    exit_code, printed = run(save(tmp_path, cut), tmp_path / "out", capsys=capsys)
    assert exit_code == 0 and "depths [2, 2, 5, 2] are of no published size: is a block missing?" in printed


def test_a_file_named_as_an_official_one_with_other_classes_is_told_of_the_count(tmp_path, capsys):
    name = "convnextv2_atto_1k_224_ema"
    model = ConvNextV2ForImageClassification(ConvNextV2Config.from_size("atto", num_labels=37))
    exit_code, printed = run(save(tmp_path, state_dict("official", model), f"{name}.pt"), tmp_path / "x", capsys=capsys)
    assert exit_code == 2 and not (tmp_path / "x").exists()
    rule = f"named as the official {name}, so it must be an encoder or a classifier of size atto with 1,000 classes"
    assert rule in printed and "but is a classifier of size atto with 37 classes. Rename it" in printed
    assert run(save(tmp_path, state_dict("official", model)), tmp_path / "x", capsys=capsys)[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [[], ["--to", "official-minkowski"], ["--to", "timm", "--dtype", "float16"], ["--to", "official", "--with_pt"]],
)
def test_converting_the_largest_takes_little_more_memory_than_its_weights(tmp_path, flags):
    """Of the whole process, Python and its libraries included: at most 2.2 times the file."""
    with torch.device("meta"):
        model = ConvNextV2ForImageClassification(ConvNextV2Config.from_size("huge", num_labels=1000))
    tensors = {name: torch.full(t.shape, 0.5) for name, t in model.state_dict().items()}
    torch.save({"model": to_state_dict(from_state_dict(tensors), LAYOUTS["official"])[0]}, tmp_path / "huge.pt")
    del tensors
    # Not ru_maxrss, which a process takes over from the one that starts it.
    code = (
        "import sys; from conversion.convert import main; main(sys.argv[1:]); print(open('/proc/self/status').read())"
    )
    printed = run_python(code, tmp_path / "huge.pt", tmp_path / "out", *flags, cwd=tmp_path)
    peak = 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", printed)[0])
    assert peak <= 2.2 * (tmp_path / "huge.pt").stat().st_size


def test_a_size_that_is_expected_is_checked_and_changes_nothing(tmp_path, capsys):
    source = save(tmp_path, state_dict("official", atto()))
    run(source, tmp_path / "plain", capsys=capsys)
    exit_code, _ = run(source, tmp_path / "checked", "--model_size", "atto", "--num_labels", 1000, capsys=capsys)
    assert exit_code == 0
    assert (tmp_path / "plain/config.json").read_bytes() == (tmp_path / "checked/config.json").read_bytes()


def test_an_encoder_made_of_a_classifier_claims_no_classes_and_no_accuracy(tmp_path, capsys):
    source = save(tmp_path, state_dict("official", atto()), "convnextv2_atto_1k_224_ema.pt")
    flags = ["--to", "official-minkowski", "--verify"]
    exit_code, printed = run(source, tmp_path / "out", *flags, capsys=capsys)
    assert exit_code == 0 and "left out: classifier.weight, classifier.bias" in printed
    assert "not run: result (official-minkowski" in printed
    card, metadata = (tmp_path / "out/README.md").read_text(), metadata_load(tmp_path / "out/README.md")
    assert metadata is not None and metadata["pipeline_tag"] == "image-feature-extraction"
    assert "model-index" not in metadata and "classifier (" not in card and "76.64" not in card


def test_an_encoder_keeps_no_setting_of_a_head():
    names = {i: f"class {i}" for i in range(5)}
    config = small_config(problem_type="multi_label_classification", id2label=names, label2id=None)
    weights = from_state_dict(ConvNextV2ForImageClassification(config).state_dict(), config.to_dict())
    assert weights.config.problem_type == "multi_label_classification" and weights.config.id2label == names
    encoder = encoder_of(weights)
    assert encoder.kind == "encoder" and encoder.config.problem_type is None
    assert not set(names.values()) & set((encoder.config.id2label or {}).values())


def test_an_official_files_accuracy_is_told_of_its_own_resolution_alone(tmp_path, capsys):
    source = save(tmp_path, state_dict("official", atto()), "convnextv2_atto_1k_224_ema.pt")
    for size, told in ((224, True), (256, False)):
        assert run(source, tmp_path / str(size), "--image_size", size, capsys=capsys)[0] == 0
        card, metadata = (tmp_path / f"{size}/README.md").read_text(), metadata_load(tmp_path / f"{size}/README.md")
        assert metadata is not None and ("76.64" in card) is ("model-index" in metadata) is told


def test_images_that_are_not_square_stay_so(tmp_path, capsys):
    model = ConvNextV2ForPreTraining(small_fcmae_config(image_size=[64, 96]))
    model.save_pretrained(tmp_path / "in")
    create_image_processor(model.config).save_pretrained(tmp_path / "in")
    run(tmp_path / "in", tmp_path / "out", "--to", "transformers", "--verify", capsys=capsys)
    assert json.loads((tmp_path / "out/config.json").read_text())["image_size"] == [64, 96]
    assert "images of 64 x 96 pixels give maps of 2 x 3 positions" in (tmp_path / "out/README.md").read_text()


# --- What is refused --------------------------------------------------------------------------------------------------


class Malicious:
    """What unpickles it makes a folder."""

    def __init__(self, trace: Path):
        self.trace = str(trace)

    def __reduce__(self):
        return (os.mkdir, (self.trace,))


def truncated(folder: Path) -> Path:
    source = Path(save(folder, state_dict("official")))
    source.write_bytes(source.read_bytes()[:-5000])
    return source


def truncated_safetensors(folder: Path) -> Path:
    save_file(state_dict("official"), folder / "model.safetensors")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    return folder / "model.safetensors"


def empty(folder: Path) -> Path:
    (folder / "empty.pt").touch()
    return folder / "empty.pt"


def text(folder: Path) -> Path:
    (folder / "notes.pt").write_text("no weights")
    return folder / "notes.pt"


def code(folder: Path, protocol: int = 2) -> Path:
    with (folder / "code.pt").open("wb") as stream:
        pickle.dump({"model": Malicious(folder / "it-ran")}, stream, protocol)
    return folder / "code.pt"


def code_in_a_newer_pickle(folder: Path) -> Path:
    return code(folder, protocol=4)


def code_in_an_archive(folder: Path) -> Path:
    return Path(save(folder, {"model": state_dict("official"), "extra": Malicious(folder / "it-ran")}))


def resnet(folder: Path) -> Path:
    return Path(save(folder, timm.create_model("resnet18").state_dict()))


def one_missing(folder: Path) -> Path:
    return Path(save(folder, {n: t for n, t in state_dict("official").items() if n != "stages.2.1.grn.beta"}))


def one_too_many(folder: Path) -> Path:
    return Path(save(folder, {**state_dict("timm"), "head.extra.weight": torch.ones(2)}))


def one_misshapen(folder: Path) -> Path:
    return Path(save(folder, {**state_dict("official"), "stages.1.0.dwconv.weight": torch.ones(16, 1, 5, 5)}))


def a_parameter_twice(folder: Path) -> Path:
    stored = state_dict("transformers")
    return Path(save(folder, {**stored, "encoder.stages.0.layers.0.dwconv.bias": torch.zeros(8)}))


def whole_numbers(folder: Path) -> Path:
    return Path(save(folder, {name: tensor.to(torch.int8) for name, tensor in state_dict("official").items()}))


def not_a_configuration(folder: Path) -> Path:
    save_file(state_dict("transformers"), folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "convnextv2", "depths": "abc"}')
    return folder


def not_a_processor(folder: Path) -> Path:
    save_file(state_dict("transformers"), folder / "model.safetensors")
    (folder / "preprocessor_config.json").write_text('{"image_mean": null}')
    return folder


def no_tensors(folder: Path) -> Path:
    return Path(save(folder, {"epoch": 3, "loss": 0.5}))


def empty_folder(folder: Path) -> Path:
    (folder / "nothing").mkdir()
    return folder / "nothing"


BAD_SOURCES = {
    truncated: "is damaged, or not a .pt file",
    truncated_safetensors: "is damaged, or not a .safetensors file",
    empty: "empty.pt is empty",
    text: "is not a file of weights",
    code: "code.pt wants `posix.mkdir` to be run. Nothing in it was run.",
    code_in_a_newer_pickle: "code.pt is not a file of weights (Unsupported operand 149). Nothing in it was run.",
    code_in_an_archive: "source.pt wants `posix.mkdir` to be run. Nothing in it was run.",
    resnet: "its parameters are of another model: conv1.weight",
    one_missing: "1 missing: stages.2.1.grn.beta (1, 1, 1, 96)",
    one_too_many: "1 unexpected: head.extra.weight",
    one_misshapen: "1 of the wrong shape: stages.1.0.dwconv.weight (16, 1, 5, 5) instead of (16, 1, 7, 7)",
    a_parameter_twice: "must hold each parameter once, but has convnextv2.encoder.stages.0.layers.0.dwconv.bias twice",
    whole_numbers: "must hold dense numbers of a floating type, but downsample_layers.0.0.weight",
    not_a_configuration: "The configuration beside the weights is not valid",
    not_a_processor: "The image processor beside the weights is not valid",
    no_tensors: "must hold a state dict, tensors by name, but holds epoch, loss",
    empty_folder: "must hold one file of weights",
}


@pytest.mark.parametrize("make", BAD_SOURCES, ids=lambda make: make.__name__)
def test_a_bad_source_is_one_clear_line_and_nothing_is_written(tmp_path, capsys, make):
    (tmp_path / "in").mkdir()
    source = make(tmp_path / "in")
    before = sorted(tmp_path.rglob("*"))
    exit_code, printed = run(source, tmp_path / "out", capsys=capsys)
    *understood, error = printed.splitlines()
    assert exit_code == 2 and BAD_SOURCES[make] in error, printed
    assert error.startswith("python -m conversion.convert: error: ") and "Traceback" not in printed
    assert all(": layout " in line for line in understood)
    assert sorted(tmp_path.rglob("*")) == before, "something was written, or the file's code ran"


def test_the_code_in_a_pickle_would_have_run(tmp_path):
    """The negative control: read as pickles, the files of the test above do what they say."""
    for make in (code, code_in_a_newer_pickle):
        with make(tmp_path).open("rb") as stream:
            pickle.load(stream)
        (tmp_path / "it-ran").rmdir()
    torch.load(code_in_an_archive(tmp_path), weights_only=False)
    assert (tmp_path / "it-ran").is_dir()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--labels", "names.txt"], "(=names.txt, 3 names) must name the head's 5 classes"),
        (["--num_labels", "10"], "head.weight (5, 32) instead of (10, 32)"),
        (["--model_size", "atto"], "(layout official, classifier, atto) does not fit"),
        (["--use_ema"], "must hold averaged weights"),
        (["--labels", "missing.txt"], "must be a text file"),
        (["--to", "unknown"], "argument --to: invalid choice: 'unknown'"),
        (["--image_size", "0"], "`image_size` (=0) must be"),
        (["--verify", "missing.jpg"], "`--verify` (=missing.jpg) must be a photograph"),
        (["--dtype", "float16"], "`--dtype` (=float16) must hold every number, but not those of classifier.weight"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, monkeypatch, capsys, flags, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    stored = state_dict("official")
    source = save(tmp_path, {**stored, "head.weight": 1e6 * stored["head.weight"]})
    before = sorted(tmp_path.rglob("*"))
    exit_code, printed = run(source, "new/out", *flags, capsys=capsys)
    assert exit_code == 2 and said in printed, printed
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_is_there_stays_byte_for_byte(tmp_path, capsys):
    source = save(tmp_path, state_dict("official"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model.safetensors").write_bytes(b"mine")
    exit_code, printed = run(source, tmp_path / "out", capsys=capsys)
    assert exit_code == 2 and "must not exist yet" in printed
    assert [file.read_bytes() for file in (tmp_path / "out").iterdir()] == [b"mine"]


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "conversion.folder_writer.write_card", lambda *a: (_ for _ in ()).throw(OSError("no space left"))
    )
    exit_code, printed = run(save(tmp_path / "in", state_dict("official")), tmp_path / "out", capsys=capsys)
    assert exit_code == 2 and "no space left" in printed
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    "change", [{"hidden_act": "relu"}, {"patch_size": 2}, {"depths": [1, 1], "hidden_sizes": [8, 16]}]
)
def test_what_another_library_cannot_build_is_not_written_for_it(tmp_path, capsys, change):
    ConvNextV2ForImageClassification(small_config(**change)).save_pretrained(tmp_path / "in")
    exit_code, printed = run(tmp_path / "in", tmp_path / "out", "--to", "timm", capsys=capsys)
    assert exit_code == 2 and "for `--to timm`, which has no other" in printed


def test_settings_of_a_head_are_refused_where_there_is_none(tmp_path, capsys):
    source = save(tmp_path, state_dict("official-fcmae", ConvNextV2ForPreTraining(small_fcmae_config())))
    exit_code, printed = run(source, tmp_path / "out", "--num_labels", 10, capsys=capsys)
    assert exit_code == 2 and "must be left out for a model without a head" in printed


@pytest.mark.parametrize("layout", ["official", "timm", "transformers"])
def test_numbers_that_are_none_are_refused_by_their_names_in_the_source(tmp_path, capsys, layout):
    stored = state_dict(layout)
    name = next(name for name in stored if name.endswith("bias"))
    source = save(tmp_path, {**stored, name: stored[name] * torch.nan})
    exit_code, printed = run(source, tmp_path / "out", capsys=capsys)
    assert exit_code == 2 and f"must hold finite numbers, but {name} have NaN or infinity in them" in printed


def test_a_result_that_computes_something_else_is_refused(tmp_path, monkeypatch, capsys):
    """`--verify` with a conversion that loses GRN's numbers, as the official loader does."""
    written = convert.write_folder

    def lossy(output, weights, *arguments):
        lost = {n: torch.zeros_like(t) if ".grn." in n else t for n, t in weights.tensors.items()}
        weights.tensors.update(lost)
        written(output, weights, *arguments)

    monkeypatch.setattr(convert, "write_folder", lossy)
    source = save(tmp_path / "in", state_dict("official"))
    model_size = ["--image_size", 64, "--verify"]
    exit_code, printed = run(source, tmp_path / "out", *model_size, capsys=capsys)
    assert exit_code == 2 and "`--verify`: logits of source and result differ by" in printed, printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("shift", "expected"), [(0.0005, 0), (0.0015, 2)])
def test_verification_allows_a_ten_thousandth_of_the_largest_logit(tmp_path, monkeypatch, capsys, shift, expected):
    """With a head of biases alone the logits are known, whatever the photograph."""
    written = convert.write_folder

    def shifted(output, weights, *arguments):
        weights.tensors.update({"classifier.bias": weights.tensors["classifier.bias"] + shift})
        written(output, weights, *arguments)

    monkeypatch.setattr(convert, "write_folder", shifted)
    head = {"head.weight": torch.zeros(5, 32), "head.bias": torch.tensor([1.0, 2.0, 3.0, 4.0, -10.0])}
    source = save(tmp_path, {**state_dict("official"), **head})
    exit_code, printed = run(source, tmp_path / "out", "--image_size", 64, "--verify", capsys=capsys)
    assert exit_code == expected and f"differ by {shift / 10:.1e} of the largest value" in printed, printed


# --- The table --------------------------------------------------------------------------------------------------------


def test_the_table_has_every_official_file_as_timm_knows_them():
    table = checkpoint_table()
    assert len(table) == 26 and sum(c.training == "fcmae" for c in table.values()) == 8
    for checkpoint in table.values():
        known = timm.get_pretrained_cfg(checkpoint.timm.removeprefix("timm/"))
        assert (known.url, known.hf_hub_id, known.license) == (checkpoint.url, checkpoint.timm, checkpoint.license)
        assert known.input_size[1] == checkpoint.image_size
        assert (known.num_classes == 0) == (checkpoint.training == "fcmae") == (not checkpoint.accuracy)
        assert all(0 < top1 < top5[0] for top1, *top5 in checkpoint.accuracy.values() if top5)
        official = checkpoint.accuracy.get("official", [0])[0]
        assert all(abs(values[0] - official) < 0.15 for values in checkpoint.accuracy.values())
        assert find_repository(checkpoint.timm) is checkpoint is find_file(f"/x/{checkpoint.name}.pt")
    assert find_repository("facebook/convnextv2-huge-22k-512").image_size == 512  # type: ignore[union-attr]
    assert find_repository("me/convnextv2_tiny_1k_224_ema") is None


def test_the_table_is_printed_without_a_download(capsys):
    exit_code, printed = run("--list", capsys=capsys)
    assert exit_code == 0 and printed == list_checkpoints() + "\n"
    assert all(name in printed for name in checkpoint_table()) and "82.95" in printed


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A table of one file that a server of this machine has; the file's bytes, and how often it was asked for."""
    import http.server
    import threading

    asked, body = [], Path(save(tmp_path / "server", {"model": state_dict("official", atto())})).read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if self.path.endswith("cut.pt") else body)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    row = {"size": "atto", "image_size": 384, "training": "fcmae-ft-in1k", "timm": "timm/x"}
    rows = {name: {"file": f"{name}.pt", **row} for name in ("whole", "cut")}
    url = f"http://127.0.0.1:{server.server_address[1]}/"
    table = {"base_url": url, "license": "cc-by-nc-4.0", "checkpoints": rows}
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(table))
    monkeypatch.setattr(checkpoints, "TABLE", tmp_path / "table.yaml")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    checkpoint_table.cache_clear()
    yield asked
    server.shutdown()
    server.server_close()
    checkpoint_table.cache_clear()


def test_a_file_of_the_table_is_fetched_once_and_remembered(tmp_path, published, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert run("whole", tmp_path / "a", capsys=capsys)[0] == 0
    assert run("whole", tmp_path / "b", capsys=capsys)[0] == 0
    assert published == ["/whole.pt"]
    assert json.loads((tmp_path / "a/config.json").read_text())["image_size"] == 384
    file = tmp_path / "hub/checkpoints/whole.pt"
    file.write_bytes(file.read_bytes() + b"x")
    exit_code, printed = run("whole", tmp_path / "c", capsys=capsys)
    assert exit_code == 2 and "has changed since it was downloaded" in printed


def test_a_cut_download_leaves_no_file(tmp_path, published, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    exit_code, printed = run("cut", tmp_path / "a", capsys=capsys)
    assert exit_code == 2 and "cut.pt" in printed and not (tmp_path / "a").exists()
    assert not list((tmp_path / "hub/checkpoints").iterdir())
