"""From a checkpoint of ConvMAE to a folder that this package loads, and back: what is written, refused and said."""

import argparse
import json
from pathlib import Path

import pytest
import skimage.data
import torch
from huggingface_hub import metadata_load
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms import v2 as transforms
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    pipeline,
)

from conversion import official_convmae
from hf_convnextv2 import (
    ConvMAEBackbone,
    ConvMAEConfig,
    ConvMAEForImageClassification,
    ConvMAEForPreTraining,
    ConvMAEModel,
    ConvNextV2Model,
    create_image_processor,
)
from tests.conversion.conversion_command import FILES, run
from tests.conversion.test_convmae_layouts import CLASSIFIER, EASYCV, EASYCV_CLASSIFIER, PRETRAINING, random
from tests.small_models import awake, run_python, small_config, small_convmae_config

ENCODER_HEADS = ("--num_attention_heads", 2)
HEADS = (*ENCODER_HEADS, "--decoder_num_attention_heads", 4)


def save(folder: Path, stored, name: str = "source.pth") -> str:
    torch.save(stored, folder / name)
    return str(folder / name)


# --- What comes out ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_trainers_checkpoint_becomes_a_pretraining_folder_and_official_again(tmp_path, capsys):
    stored, arguments = random(PRETRAINING), argparse.Namespace(mask_ratio=0.75, norm_pix_loss=False, input_size=224)
    source = save(tmp_path, {"model": stored, "optimizer": {"state": {}}, "epoch": 1599, "args": arguments})
    code, printed = run(source, tmp_path / "ours", *HEADS, "--verify", capsys=capsys)
    assert code == 0 and "layout convmae-official, convmae" in printed and "painted tokens" in printed
    assert "num_visible_sets 1: this package's defaults" in printed and "norm_pix_loss False" not in printed
    assert {file.name for file in (tmp_path / "ours").iterdir()} == FILES
    model, report = AutoModelForPreTraining.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(model) is ConvMAEForPreTraining and not any(report.values())
    assert model.config.norm_pix_loss is False and model.config.image_size == 64
    x, hidden = torch.randn(2, 3, 64, 64), official_convmae.hidden_tokens(16).repeat(2, 1)
    expected = official_convmae.predicted_tokens(stored, x, hidden, num_heads=2, decoder_num_heads=4)
    torch.testing.assert_close(model(x, bool_masked_pos=hidden).logits, expected, rtol=0, atol=1e-5)
    fast = ConvMAEForPreTraining.from_pretrained(tmp_path / "ours", num_visible_sets=4)
    assert fast(x).logits.shape == (8, 16, 768)

    code, printed = run(tmp_path / "ours", tmp_path / "back", "--to", "official", "--with_pt", capsys=capsys)
    assert code == 0 and "`decoder_num_attention_heads` is 4, which official does not store" in printed
    back = load_file(tmp_path / "back/model.safetensors")
    assert back.keys() == stored.keys() and all(torch.equal(back[name], tensor) for name, tensor in stored.items())
    for_scripts = torch.load(tmp_path / "back/model.pt", weights_only=True)
    assert for_scripts.keys() == {"model"} and for_scripts["model"].keys() == stored.keys()
    assert "(https://github.com/Alpha-VL/ConvMAE)" in (tmp_path / "back/README.md").read_text()


@torch.no_grad()
@pytest.mark.parametrize(("shapes", "to"), [(CLASSIFIER, "official"), (EASYCV_CLASSIFIER, "easycv")])
def test_a_classifier_becomes_a_folder_that_the_auto_classes_load_and_its_layout_again(tmp_path, capsys, shapes, to):
    stored = random(shapes)
    source = save(tmp_path, {"model": stored} if to == "official" else {"meta": {"epoch": 100}, "state_dict": stored})
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\ne\n")
    options = ("--labels", tmp_path / "names.txt", "--num_labels", 5, "--image_size", 64, "--verify")
    code, printed = run(source, tmp_path / "ours", *ENCODER_HEADS, *options, capsys=capsys)
    assert code == 0 and "logits of source and result differ by" in printed
    assert ("EasyCV leaves the first one out" in printed) == (to == "easycv")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "ours")
    assert type(model) is ConvMAEForImageClassification
    official, x = official_convmae.without_easycv_names(stored), torch.randn(2, 3, 64, 64)
    expected = official_convmae.logits(official, x, num_heads=2)
    torch.testing.assert_close(model(x).logits, expected, rtol=0, atol=1e-5)
    answers = pipeline("image-classification", model=str(tmp_path / "ours"))(Image.fromarray(skimage.data.chelsea()))
    assert {answer["label"] for answer in answers} == set("abcde")
    assert run(tmp_path / "ours", tmp_path / "back", "--to", to, "--verify", capsys=capsys)[0] == 0
    back = load_file(tmp_path / "back/model.safetensors")
    assert back.keys() == stored.keys() and all(torch.equal(back[name], tensor) for name, tensor in stored.items())


def test_easycvs_pre_training_has_four_sets_and_becomes_easycvs_again(tmp_path, capsys):
    stored = random(EASYCV)
    source = save(tmp_path, {"meta": {"epoch": 50}, "state_dict": stored, "optimizer": {"state": {}}})
    code, printed = run(source, tmp_path / "ours", *HEADS, "--verify", capsys=capsys)
    assert code == 0 and "layout convmae-easycv, convmae" in printed and "painted tokens" in printed
    config = json.loads((tmp_path / "ours/config.json").read_text())
    assert config["num_visible_sets"] == 4 and config["mask_ratio"] == 0.75
    assert run(tmp_path / "ours", tmp_path / "back", "--to", "easycv", capsys=capsys)[0] == 0
    back = load_file(tmp_path / "back/model.safetensors")
    assert back.keys() == stored.keys() and all(torch.equal(back[name], tensor) for name, tensor in stored.items())


def test_an_encoder_is_stored_as_the_official_fine_tuning_reads_it(tmp_path, capsys):
    """Which asserts that exactly the norm of pooled features and the head are missing."""
    model = awake(ConvMAEModel(small_convmae_config()))
    model.save_pretrained(tmp_path / "encoder")
    create_image_processor(model.config).save_pretrained(tmp_path / "encoder")
    missing = {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    code, printed = run(tmp_path / "encoder", tmp_path / "trained", "--to", "official", "--with_pt", capsys=capsys)
    assert code == 0 and "model.pt: without fc_norm.weight, fc_norm.bias, which main_finetune.py starts anew" in printed
    assert "without fc_norm.weight" in (tmp_path / "trained/README.md").read_text()
    for_scripts = torch.load(tmp_path / "trained/model.pt", weights_only=True)["model"]
    assert for_scripts.keys() == CLASSIFIER.keys() - missing
    assert "fc_norm.weight" in load_file(tmp_path / "trained/model.safetensors")
    code, printed = run(tmp_path / "trained", tmp_path / "ours", *ENCODER_HEADS, "--verify", capsys=capsys)
    assert code == 0 and "last map of source and result differ" in printed
    ours = AutoModel.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_an_encoder_without_a_norm_gets_one_that_changes_nothing_and_loses_it_again(tmp_path, capsys):
    stored = {n: t for n, t in random(CLASSIFIER).items() if not n.startswith(("fc_norm", "head"))}
    code, printed = run(save(tmp_path, stored), tmp_path / "ours", *ENCODER_HEADS, capsys=capsys)
    assert code == 0 and "added: `layernorm`" in printed
    _, report = ConvMAEBackbone.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert all("hidden_states_norms" in name for name in report["missing_keys"])
    for to, flags in (("official", ["--with_pt"]), ("easycv", [])):
        code, printed = run(tmp_path / "ours", tmp_path / to, "--to", to, *flags, capsys=capsys)
        assert code == 0 and "without fc_norm" not in printed  # it is in none of the files
        assert load_file(tmp_path / to / "model.safetensors").keys() == stored.keys()


def test_the_processor_prepares_images_as_the_official_evaluation(tmp_path, capsys):
    run(save(tmp_path, random(CLASSIFIER)), tmp_path / "out", *ENCODER_HEADS, capsys=capsys)
    photograph = Image.fromarray(skimage.data.chelsea())
    official = transforms.Compose(
        [
            transforms.Resize(int(64 / (224 / 256)), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(64),
            transforms.PILToTensor(),
            transforms.ToDtype(torch.float32, scale=True),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    actual = processor(photograph, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(actual, official(photograph), rtol=0, atol=1e-5)


# --- Cards ------------------------------------------------------------------------------------------------------------


def test_the_card_names_the_architecture_and_says_that_nobody_has_stated_a_licence(tmp_path, capsys):
    run(save(tmp_path, random(EASYCV)), tmp_path / "out", *HEADS, capsys=capsys)
    card, front = (tmp_path / "out/README.md").read_text(), metadata_load(tmp_path / "out/README.md")
    assert front["license"] == "unknown" and front["tags"] == ["vision", "convmae", "masked-image-modeling"]
    assert "by FastConvMAE, which is [ConvMAE](https://arxiv.org/abs/2205.03892)" in card
    assert "none of them states a licence of its weights" in card and "gao2022convmae" in card
    assert "ConvNeXt" not in card and "FCMAE" not in card and "CC-BY-NC" not in card
    shown = sum(tensor.numel() for tensor in random(EASYCV).values())
    assert f"{shown:,} parameters" in card
    run(save(tmp_path, random(CLASSIFIER)), tmp_path / "mine", *ENCODER_HEADS, "--license", "mit", capsys=capsys)
    card, front = (tmp_path / "mine/README.md").read_text(), metadata_load(tmp_path / "mine/README.md")
    assert front["license"] == "mit" and "No licence is stated" not in card
    assert "A [ConvMAE](https://arxiv.org/abs/2205.03892) image classifier" in card and "ConvNeXt" not in card


def test_the_code_of_cards_runs(tmp_path, capsys):
    Image.fromarray(skimage.data.chelsea()).save(tmp_path / "photo.jpg")
    run(save(tmp_path, random(PRETRAINING)), tmp_path / "pretrained", *HEADS, capsys=capsys)
    run(save(tmp_path, random(CLASSIFIER)), tmp_path / "classifier", *ENCODER_HEADS, capsys=capsys)
    code = ""
    for name in ("pretrained", "classifier"):
        code += (tmp_path / name / "README.md").read_text().split("```python\n")[1].split("```")[0]
    printed = run_python(f"{code}\nprint(*reconstructed.shape, len(classifier.model.config.id2label))", cwd=tmp_path)
    assert printed.split()[-5:] == ["1", "3", "64", "64", "5"]


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "timm"], "`--to` (=timm) must be ours, official, easycv or left out for a ConvMAE"),
        (["--to", "transformers"], "`--to` (=transformers) must be ours, official, easycv or left out"),
        (["--image_size", 96], "`--image_size` (=96) must be 64, as the position embeddings say"),
        (["--num_labels", 7], "head.weight (5, 16) instead of (7, 16)"),
        (["--model_size", "atto"], "`--model_size` (=atto) must be tiny, small, base for a ConvMAE"),
        (["--model_size", "base"], "instead of (256, 3, 4, 4)"),
        (["--num_attention_heads", 3], "`num_attention_heads` (=3) must divide"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing_behind(tmp_path, capsys, options, message):
    source = save(tmp_path, {"model": random(CLASSIFIER)})
    code, printed = run(source, tmp_path / "new" / "out", *ENCODER_HEADS, *options, capsys=capsys)
    assert code == 2 and message in printed and not (tmp_path / "new").exists()


def test_heads_are_asked_for_where_no_size_tells_them(tmp_path, capsys):
    code, printed = run(save(tmp_path, random(CLASSIFIER)), tmp_path / "out", capsys=capsys)
    assert code == 2 and "`--num_attention_heads` must be given" in printed and not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", ["--num_attention_heads", "--decoder_num_attention_heads"])
def test_heads_that_a_folder_says_otherwise_are_refused(tmp_path, capsys, flag):
    model = ConvMAEForPreTraining(small_convmae_config(decoder_num_attention_heads=2))
    model.save_pretrained(tmp_path / "ours")
    code, printed = run(tmp_path / "ours", tmp_path / "out", flag, 4, capsys=capsys)
    assert code == 2 and f"`{flag}` (=4) must be 2, as the configuration beside the weights says" in printed
    assert run(tmp_path / "ours", tmp_path / "same", flag, 2, capsys=capsys)[0] == 0


def test_a_size_whose_heads_a_folder_says_otherwise_is_refused(tmp_path, capsys):
    tiny = ConvMAEConfig.from_size("tiny", image_size=64, num_labels=5)
    for heads in (tiny.num_attention_heads, 2 * tiny.num_attention_heads):
        config = ConvMAEConfig.from_dict({**tiny.to_dict(), "num_attention_heads": heads})
        ConvMAEForImageClassification(config).save_pretrained(tmp_path / f"{heads}")
        code, printed = run(tmp_path / f"{heads}", tmp_path / f"out-{heads}", "--model_size", "tiny", capsys=capsys)
        assert code == (0 if heads == tiny.num_attention_heads else 2)
    assert f"`--model_size` (=tiny) must be a size with {heads} attention heads, as the configuration" in printed


@torch.no_grad()
@pytest.mark.parametrize(
    ("unseen", "told"),
    [
        (
            {"window_size": 2, "window_block_indices": [0, 4], "use_relative_position_bias": True},
            "layer_norm_eps 1e-06, window_block_indices [3]: this package's defaults",
        ),
        ({"image_size": [32, 128]}, "square images of 64 pixels: tokens do not say how they lie"),
        (
            {"layer_norm_eps": 1e-3, "hidden_act": "relu"},
            "hidden_act gelu, layer_norm_eps 1e-06: this package's defaults",
        ),
    ],
)
def test_the_configuration_beside_a_file_of_weights_holds_as_for_the_folder(unseen, told, tmp_path, capsys):
    """No shape shows which blocks have windows, the activation, the epsilon, or how the tokens of an image lie."""
    model = awake(ConvMAEModel(small_convmae_config(depths=[1, 2, 5], **unseen))).eval()
    model.save_pretrained(tmp_path / "ours")
    code, printed = run(tmp_path / "ours/model.safetensors", tmp_path / "out", "--verify", capsys=capsys)
    assert code == 0 and "defaults" not in printed and "square" not in printed
    x = torch.randn(2, 3, 32, 128)
    expected = model(x).last_hidden_state
    assert torch.equal(ConvMAEModel.from_pretrained(tmp_path / "out").eval()(x).last_hidden_state, expected)
    (tmp_path / "ours/config.json").unlink()  # the control
    code, printed = run(tmp_path / "ours/model.safetensors", tmp_path / "alone", *ENCODER_HEADS, capsys=capsys)
    assert code == 0 and told in printed
    assert not torch.equal(ConvMAEModel.from_pretrained(tmp_path / "alone").eval()(x).last_hidden_state, expected)


def test_tokens_that_fill_no_square_need_a_configuration(tmp_path, capsys):
    ConvMAEModel(small_convmae_config(image_size=[32, 96])).save_pretrained(tmp_path / "ours")
    assert run(tmp_path / "ours/model.safetensors", tmp_path / "out", capsys=capsys)[0] == 0
    (tmp_path / "ours/config.json").unlink()
    code, printed = run(tmp_path / "ours", tmp_path / "alone", *ENCODER_HEADS, capsys=capsys)
    assert code == 2 and "tokens, which fill no square: give the folder with the config.json" in printed


def test_weights_that_are_not_finite_are_refused(tmp_path, capsys):
    stored = random(CLASSIFIER)
    stored["norm.bias" if "norm.bias" in stored else "fc_norm.bias"][3] = float("nan")
    code, printed = run(save(tmp_path, stored), tmp_path / "out", *ENCODER_HEADS, capsys=capsys)
    assert code == 2 and "must hold finite numbers, but fc_norm.bias have NaN or infinity" in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("overrides", [{"fusion_stages": ["stage2"]}, {"patch_sizes": [2, 4, 2]}])
def test_pre_training_that_the_official_code_does_not_know_is_refused(tmp_path, capsys, overrides):
    model = ConvMAEForPreTraining(small_convmae_config(**overrides))
    model.save_pretrained(tmp_path / "ours")
    code, printed = run(tmp_path / "ours", tmp_path / "out", "--to", "official", capsys=capsys)
    assert code == 2 and f"`{next(iter(overrides))}`" in printed and "for `--to official`" in printed
    assert run(tmp_path / "ours", tmp_path / "again", "--verify", capsys=capsys)[0] == 0
    again = load_file(tmp_path / "again/model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("model_class", [ConvMAEModel, ConvMAEForImageClassification, ConvMAEForPreTraining])
@pytest.mark.parametrize("to", ["official", "easycv"])
def test_another_epsilon_than_that_of_the_official_code_is_refused(tmp_path, capsys, model_class, to):
    model_class(small_convmae_config(image_size=96, layer_norm_eps=1e-5)).save_pretrained(tmp_path / "ours")
    code, printed = run(tmp_path / "ours", tmp_path / "out", "--to", to, capsys=capsys)
    assert code == 2 and "`layer_norm_eps` (=1e-05) must be 1e-06" in printed and not (tmp_path / "out").exists()


def test_a_segmentation_model_is_refused_by_its_type(tmp_path, capsys):
    """Its config.json has no widths, so that those of no model would be read from it."""
    (tmp_path / "model").mkdir()
    save_file(ConvMAEModel(small_convmae_config()).state_dict(), tmp_path / "model/model.safetensors")
    config = {"model_type": "upernet", "backbone_config": small_convmae_config().to_dict()}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    code, printed = run(tmp_path / "model", tmp_path / "out", capsys=capsys)
    assert code == 2 and "must be an encoder, a classifier or a pre-training model, but is a upernet" in printed


def test_options_of_convmae_are_refused_for_convnextv2(tmp_path, capsys):
    ConvNextV2Model(small_config()).save_pretrained(tmp_path / "other")
    code, printed = run(tmp_path / "other", tmp_path / "out", "--to", "easycv", capsys=capsys)
    assert code == 2 and "`--to` (=easycv) must be another for a ConvNeXt V2" in printed
    code, printed = run(tmp_path / "other", tmp_path / "out", *ENCODER_HEADS, capsys=capsys)
    assert code == 2 and "must be left out for a ConvNeXt V2, which has no attention" in printed
