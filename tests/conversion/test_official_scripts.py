"""`conversion.convert --to official --with_pt`: a file that the official scripts read, all of it."""

import math

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models.convnext import checkpoint_filter_fn
from torch.testing import assert_close

from conversion import convert
from conversion.layouts import LAYOUTS
from conversion.model_weights import from_state_dict, to_state_dict
from hf_convnextv2 import ConvNextV2ForImageClassification, ConvNextV2ForPreTraining
from tests.small_models import SMALL, awake, small_config, small_fcmae_config


def classifier() -> ConvNextV2ForImageClassification:
    return awake(ConvNextV2ForImageClassification(small_config(layer_norm_eps=1e-6)))


def written(folder, model, to: str) -> dict[str, torch.Tensor]:
    """What both official scripts take out of the file."""
    model.save_pretrained(folder / "in")
    convert.main([str(folder / "in"), str(folder / "out"), "--to", to, "--with_pt"])
    checkpoint = torch.load(folder / "out/model.pt", map_location="cpu", weights_only=True)
    assert set(checkpoint) == {"model"}
    return checkpoint["model"]


def as_finetuning_loads(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `main_finetune.py --finetune` gives to its dense model, for which GRN gets two more axes in any case."""
    loaded = {}
    for stored_name, tensor in stored.items():
        name = stored_name
        if any(part in name for part in ("decoder", "mask_token", "proj", "pred")):
            continue
        name = name.removeprefix("encoder.")
        if name.endswith("kernel"):
            side = math.isqrt(len(tensor))
            kernel = tensor.permute(2, 1, 0) if tensor.ndim == 3 else tensor.T.unsqueeze(1)
            loaded[name.removesuffix("kernel") + "weight"] = kernel.unflatten(2, (side, side)).transpose(3, 2)
        else:
            loaded[name.replace(".ln.", ".").replace(".linear.", ".")] = tensor
    for name, tensor in loaded.items():
        if name.endswith("bias") and tensor.ndim != 1:
            loaded[name] = tensor.reshape(-1)
        elif "grn" in name:
            loaded[name] = tensor.unsqueeze(0).unsqueeze(1)
    return loaded


def dense(model) -> dict[str, torch.Tensor]:
    """The parameters of the official dense model, `(1, 1, 1, C)` in GRN, which `load_state_dict` wants as they are."""
    return to_state_dict(from_state_dict(model.state_dict()), LAYOUTS["official"])[0]


@torch.no_grad()
def test_a_classifier_is_what_resuming_loads(tmp_path):
    model = classifier()
    stored = written(tmp_path, model, "official")
    assert_close(stored, dense(model), rtol=0, atol=0)
    theirs = timm.create_model("convnextv2_tiny", num_classes=5, depths=SMALL["depths"], dims=SMALL["hidden_sizes"])
    theirs.load_state_dict(checkpoint_filter_fn(stored, theirs))
    pixel_values = torch.randn(2, 3, 64, 96)
    assert_close(theirs.eval()(pixel_values), model(pixel_values).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("to", ["official", "official-minkowski"])
def test_an_encoder_is_what_fine_tuning_loads_with_all_of_grn(tmp_path, to):
    model = awake(ConvNextV2ForPreTraining(small_fcmae_config()))
    expected = {n: t for n, t in dense(model).items() if not n.startswith("norm.")}
    loaded = as_finetuning_loads(written(tmp_path, model, to))
    assert_close(loaded, expected, rtol=0, atol=0)
    assert any(".grn." in name and tensor.abs().sum() > 0 for name, tensor in loaded.items())


def test_the_dense_layout_would_lose_grn_in_fine_tuning(tmp_path):
    written(tmp_path, awake(ConvNextV2ForPreTraining(small_fcmae_config())), "official")
    loaded = as_finetuning_loads(load_file(tmp_path / "out/model.safetensors"))
    assert {tensor.ndim for name, tensor in loaded.items() if ".grn." in name} == {6}


def test_a_pretraining_model_is_what_pretraining_resumes(tmp_path):
    model = awake(ConvNextV2ForPreTraining(small_fcmae_config()))
    expected = to_state_dict(from_state_dict(model.state_dict()), LAYOUTS["official-minkowski"])[0]
    assert_close(written(tmp_path, model, "official-minkowski"), expected, rtol=0, atol=0)


def test_nothing_that_was_left_out_comes_along_in_the_file(tmp_path):
    whole = classifier().state_dict()
    flat = torch.cat([tensor.flatten() for tensor in whole.values()])
    parts = flat.split([tensor.numel() for tensor in whole.values()])
    torch.save({n: part.view_as(whole[n]) for n, part in zip(whole, parts, strict=True)}, tmp_path / "flat.pt")
    convert.main([str(tmp_path / "flat.pt"), str(tmp_path / "out"), "--to", "official", "--with_pt"])
    sizes = [(tmp_path / "out" / name).stat().st_size for name in ("model.pt", "model.safetensors")]
    assert sizes[0] < 1.5 * sizes[1]
    stored = torch.load(tmp_path / "out/model.pt", weights_only=True)["model"]
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in stored.values())


@pytest.mark.parametrize("to", ["official", "official-minkowski"])
def test_the_file_is_read_back_and_the_card_says_how_it_is_used(tmp_path, capsys, to):
    model = awake(ConvNextV2ForPreTraining(small_fcmae_config()))
    written(tmp_path, model, to)
    use = {"official": "main_finetune.py --finetune", "official-minkowski": "main_pretrain.py --resume"}[to]
    assert f"model.pt: for {use}" in capsys.readouterr().out
    assert f"python {use} model.pt" in (tmp_path / "out/README.md").read_text()
    convert.main([str(tmp_path / "out/model.pt"), str(tmp_path / "back"), "--to", "transformers"])
    back = load_file(tmp_path / "back/model.safetensors")
    assert_close({n: back[n] for n in model.convnextv2.state_dict()}, model.convnextv2.state_dict(), rtol=0, atol=0)


def test_safetensors_alone_are_written_by_default_and_other_layouts_have_no_such_file(tmp_path, capsys):
    classifier().save_pretrained(tmp_path / "in")
    convert.main([str(tmp_path / "in"), str(tmp_path / "out"), "--to", "official"])
    assert not (tmp_path / "out/model.pt").exists() and "model.pt" not in (tmp_path / "out/README.md").read_text()
    for flags in ([], ["--to", "timm"]):
        with pytest.raises(SystemExit) as end:
            convert.main([str(tmp_path / "in"), str(tmp_path / "other"), "--with_pt", *flags])
        assert end.value.code == 2
        assert "`--with_pt` must come with `--to official`" in capsys.readouterr().err
        assert not (tmp_path / "other").exists()
