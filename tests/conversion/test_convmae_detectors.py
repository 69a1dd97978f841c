"""Detectors of the official ConvMAE and of EasyCV: their encoders, by names written out by hand."""

import pytest
import torch
from safetensors.torch import load_file

from conversion import official_convmae
from conversion.layouts import recognise_layout
from conversion.model_weights import from_state_dict
from hf_convnextv2 import ConvMAEBackbone, ConvMAEModel
from tests.conversion.test_convert_convmae import run, save
from tests.conversion.test_convmae_layouts import encoder, layer, random
from tests.hf_convnextv2.test_convmae_windows import last_map_by_hand
from tests.photographs import message_of
from tests.small_models import assert_close, difference

WINDOWED = [1, 2, 4, 5, 7, 8, 9]  # blocks of the official detector
PREFIXES = {"official": "backbone.bottom_up.", "easycv": "backbone."}
DETECTORS = pytest.mark.parametrize("code", PREFIXES)


def detector(code: str) -> dict[str, torch.Tensor]:
    """Images of 96 pixels, 6 x 6 tokens; windows of 2 x 2 tokens."""
    tables = {
        "windowed_rel_pos_bias.relative_position_bias_table": (9, 2),
        "global_rel_pos_bias.relative_position_bias_table": (121, 2),
    }
    shapes = {**encoder(widths=(8, 12, 16), depths=(1, 2, 11), num_tokens=36), **tables}
    heads = {
        "official": {
            **layer("backbone.fpn_lateral2", 4, 8, 1, 1),
            **layer("proposal_generator.rpn_head.conv.conv0", 4, 4, 3, 3),
            **layer("roi_heads.box_predictor.cls_score", 81, 4),
        },
        "easycv": {
            **layer("neck.lateral_convs.0.conv", 4, 8, 1, 1),
            **layer("rpn_head.rpn_cls", 3, 4, 1, 1),
            **layer("roi_head.bbox_head.fc_cls", 81, 4),
        },
    }[code]
    stored = random({**{f"{PREFIXES[code]}{name}": shape for name, shape in shapes.items()}, **heads})
    for name, num_tokens in (("windowed", 4), ("global", 36)):
        index = torch.zeros(num_tokens, num_tokens, dtype=torch.int64)
        stored[f"{PREFIXES[code]}{name}_rel_pos_bias.relative_position_index"] = index
    return stored


@torch.no_grad()
@DETECTORS
def test_a_detector_becomes_the_encoder_that_a_new_one_starts_from(tmp_path, capsys, code):
    stored = detector(code)
    source = save(tmp_path, {"model" if code == "official" else "state_dict": stored, "iteration": 92187})
    code_of_exit, printed = run(source, tmp_path / "ours", "--verify", capsys=capsys)
    assert code_of_exit == 0, printed
    assert f"layout convmae-{code}-detector, encoder" in printed and "last map of source and result differ" in printed
    assert "windowed_rel_pos_bias.relative_position_index" in printed and "which no model here has" in printed
    model, report = ConvMAEModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    config = model.config
    assert (config.image_size, config.window_size, config.num_attention_heads) == (96, 2, 2)
    assert config.window_block_indices == WINDOWED and config.use_relative_position_bias
    x = torch.randn(2, 3, 96, 96)
    official = {name.removeprefix(PREFIXES[code]): tensor for name, tensor in stored.items()}
    expected = official_convmae.last_map(official, x, num_heads=2)
    actual = model.eval()(x).last_hidden_state
    assert_close(actual, expected)
    assert_close(actual, last_map_by_hand(model, x, WINDOWED, 2))
    assert difference(actual, last_map_by_hand(model, x, [], 2)) > 1e-3
    _, report = ConvMAEBackbone.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert all(name.startswith("hidden_states_norms") for name in report["missing_keys"])


@DETECTORS
def test_every_parameter_is_accounted_for(code):
    stored = detector(code)
    heads = {name for name in stored if not name.startswith(PREFIXES[code]) or "fpn" in name}
    (note,) = from_state_dict(stored).notes
    left_out = note.removeprefix("left out: ").removesuffix(", which no model here has").split(", ")
    assert set(left_out) == heads | {name for name in stored if name.endswith("relative_position_index")}
    for name in stored.keys() - set(left_out):
        if ".blocks3." in name and ".blocks3.10." not in name:  # all blocks have the same names
            continue
        fewer = {other: tensor for other, tensor in stored.items() if other != name}
        if "windowed" in name:  # which shows that there are windows
            name = name.replace("windowed", "global")
        assert name in message_of(lambda fewer=fewer: from_state_dict(fewer, {"num_attention_heads": 2}))
    strange = {**stored, f"{PREFIXES[code]}blocks3.0.gamma_1": torch.ones(16)}
    assert "blocks3.0.gamma_1" in message_of(lambda: from_state_dict(strange))


def test_an_encoder_with_windows_has_no_place_in_the_official_pre_training(tmp_path, capsys):
    assert run(save(tmp_path, detector("official")), tmp_path / "ours", capsys=capsys)[0] == 0
    assert "encoder.stages.2.global_bias.relative_position_bias_table" in load_file(tmp_path / "ours/model.safetensors")
    for to in ("official", "easycv"):
        code, printed = run(tmp_path / "ours", tmp_path / to, "--to", to, capsys=capsys)
        assert code == 2 and f"`window_size` (=2) must be None for `--to {to}`" in printed
    assert run(tmp_path / "ours", tmp_path / "again", "--verify", capsys=capsys)[0] == 0


@pytest.mark.parametrize(
    "name", ["blocks3.0.attn.relative_position_bias_table", "rel_pos_bias.relative_position_bias_table"]
)
def test_a_segmentation_model_is_refused(name):
    names = [f"backbone.{part}" for part in ("blocks1.0.conv1.weight", name)]
    message = message_of(lambda: recognise_layout(names))
    assert "is of a ConvMAE segmentation model" in message and name in message
