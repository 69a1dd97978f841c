"""Checkpoints and output folders: whole or absent, of the right run, the oldest dropped."""

import json

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.testing import assert_close

from hf_convnextv2 import ConvNextV2FCMAEConfig, ConvNextV2ForPreTraining, create_image_processor
from tests.photographs import forget_accelerate, message_of
from training.checkpoints import Checkpoints, cut_lines, list_checkpoints
from training.config import FinetuneConfig, PretrainConfig
from training.output import check_output_dir, claim_output_dir, save_model
from training.plan import make_plan

TINY = {"hidden_sizes": [8, 8], "depths": [1, 1], "decoder_hidden_size": 8, "image_size": 32}


@pytest.fixture(autouse=True)
def accelerator():
    forget_accelerate()
    yield Accelerator(cpu=True)
    forget_accelerate()


def settings(folder, config_class=PretrainConfig, **fields):
    return config_class(dataset_name="images", output_dir=str(folder), **fields)


def checkpoints_of(accelerator, folder, resume=None, fields=None, **changes):
    model = ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig(**{**TINY, **(fields or {})}))
    config = settings(folder, resume_from_checkpoint=resume, **changes)
    processor = create_image_processor(model.config)
    return accelerator.prepare(model), Checkpoints(accelerator, config, model, processor, make_plan(config, 100, 1))


def test_a_checkpoint_brings_back_weights_and_step(accelerator, tmp_path):
    model, checkpoints = checkpoints_of(accelerator, tmp_path, resume="latest")
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checkpoints.save(3)
    torch.nn.init.ones_(model.decoder.mask_token)
    assert checkpoints.resume().step == 3
    assert_close(dict(model.state_dict()), saved, rtol=0, atol=0)


def test_latest_is_the_highest_step_and_nothing_starts_afresh(accelerator, tmp_path):
    _, checkpoints = checkpoints_of(accelerator, tmp_path, resume="latest")
    assert checkpoints.resume() == (0, [])
    for step in (9, 10):
        checkpoints.save(step)
    assert checkpoints.resume().step == 10
    (tmp_path / "checkpoint-11").mkdir()  # without a state: not one of ours, or not whole
    assert checkpoints.resume().step == 10


def test_only_the_newest_are_kept(accelerator, tmp_path):
    _, checkpoints = checkpoints_of(accelerator, tmp_path, checkpoints_total_limit=2)
    for step in (2, 4, 6, 10):
        checkpoints.save(step)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-6", "checkpoint-10"]


def test_a_checkpoint_that_could_not_be_written_leaves_no_folder(accelerator, tmp_path, monkeypatch):
    _, checkpoints = checkpoints_of(accelerator, tmp_path, resume="latest")
    checkpoints.save(1)
    monkeypatch.setattr(accelerator, "save_state", lambda path: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(2)
    assert checkpoints.resume().step == 1


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"hidden_sizes": [8, 16]}, "`hidden_sizes` is [8, 8], not [8, 16]."),
        ({"depths": [1, 2]}, "`depths` is [1, 1], not [1, 2]."),
        ({"decoder_hidden_size": 16}, "`decoder_hidden_size` is 8, not 16."),
    ],
)
def test_a_checkpoint_of_another_size_is_an_error_that_names_the_difference(accelerator, tmp_path, fields, named):
    checkpoints_of(accelerator, tmp_path)[1].save(1)
    forget_accelerate()
    _, other = checkpoints_of(Accelerator(cpu=True), tmp_path, resume=str(tmp_path / "checkpoint-1"), fields=fields)
    message = message_of(other.resume)
    assert f"`resume_from_checkpoint` (={tmp_path / 'checkpoint-1'}) must be of the model that is trained" in message
    assert message.endswith(named)


def test_a_folder_that_is_no_checkpoint_is_an_error(accelerator, tmp_path):
    _, checkpoints = checkpoints_of(accelerator, tmp_path, resume=str(tmp_path))
    assert f"`resume_from_checkpoint` (={tmp_path}) must be a whole checkpoint" in message_of(checkpoints.resume)


DAMAGES = {
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:-7]),
    "emptied": lambda file: file.write_bytes(b""),
    "deleted": lambda file: file.unlink(),
    "one bit flipped": lambda file: file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_and_said_so(damage, accelerator, tmp_path, capsys):
    model, checkpoints = checkpoints_of(accelerator, tmp_path, resume="latest")
    accelerator.prepare(torch.optim.AdamW(model.parameters()))
    for step in (1, 2):
        torch.nn.init.constant_(model.decoder.mask_token, step)
        checkpoints.save(step, batches={"samples_seen": step})
    newest = tmp_path / "checkpoint-2"
    names = sorted(path.name for path in newest.iterdir())
    assert {"model.safetensors", "optimizer.bin", "progress_0.json", "training_state.json"} < set(names)
    for name in names:
        kept = (newest / name).read_bytes()
        DAMAGES[damage](newest / name)
        resumed = checkpoints.resume()
        assert resumed == (1, [{"batches": {"samples_seen": 1}}]) and model.decoder.mask_token.unique() == 1
        printed = capsys.readouterr().out
        assert f"Warning: {newest} is damaged" in printed and name in printed and "checkpoint-1 after" in printed
        (newest / name).write_bytes(kept)
        assert checkpoints.resume().step == 2  # the control: whole again, it is taken
        assert "Warning" not in capsys.readouterr().out


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_afresh(accelerator, tmp_path):
    _, checkpoints = checkpoints_of(accelerator, tmp_path, resume="latest")
    for step in (1, 2):
        checkpoints.save(step)
        (tmp_path / f"checkpoint-{step}/model.safetensors").write_bytes(b"")
    assert "`resume_from_checkpoint` (=latest) must find a checkpoint" in message_of(checkpoints.resume)


def test_what_a_kill_while_saving_leaves_behind_is_removed_on_resume(accelerator, tmp_path):
    _, checkpoints = checkpoints_of(accelerator, tmp_path, resume="latest")
    checkpoints.save(1)
    (tmp_path / ".checkpoint-2.partial").mkdir()
    (tmp_path / ".checkpoint-2.partial/model.safetensors").write_bytes(b"half")
    assert checkpoints.resume().step == 1
    assert not list(tmp_path.glob(".checkpoint*"))


def test_metrics_are_cut_back_to_the_step_of_the_checkpoint(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 0.1}) for step in (2, 4, 4, 6)]
    file.write_text("\n".join(lines) + '\n{"step": 8, "lo')
    cut_lines(file, 4)
    assert file.read_text().splitlines() == lines[:3]
    file.write_text('{"step": 2, "loss": 1}\n{"step": 3, "lo')
    cut_lines(file, 4)
    assert file.read_text() == '{"step": 2, "loss": 1}\n'


def test_an_output_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    message = message_of(lambda: check_output_dir(settings(tmp_path)))
    assert message.startswith(f"`output_dir` (={tmp_path}) must be empty or hold a run of this script")
    check_output_dir(settings(tmp_path, overwrite_output_dir=True))
    claim_output_dir(settings(tmp_path, overwrite_output_dir=True))
    assert (tmp_path / "thesis.tex").exists()
    check_output_dir(settings(tmp_path / "new"))


def test_an_earlier_run_is_resumed_or_overwritten_on_request_only(accelerator, tmp_path):
    claim_output_dir(settings(tmp_path))
    checkpoints_of(accelerator, tmp_path)[1].save(1)
    assert "must not hold an earlier run" in message_of(lambda: check_output_dir(settings(tmp_path)))
    assert "holds something else" in message_of(lambda: check_output_dir(settings(tmp_path, FinetuneConfig)))
    check_output_dir(settings(tmp_path, resume_from_checkpoint="latest"))
    claim_output_dir(settings(tmp_path, resume_from_checkpoint="latest"))
    assert list_checkpoints(tmp_path)
    claim_output_dir(settings(tmp_path, overwrite_output_dir=True))
    assert not list_checkpoints(tmp_path)


class Processor:
    def save_pretrained(self, folder):
        (folder / "preprocessor_config.json").write_text("{}")


def test_the_final_folder_replaces_an_older_one_file_by_file(tmp_path):
    model = ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig(**TINY))
    (tmp_path / "model.safetensors").write_text("old")
    save_model(tmp_path, model, Processor(), {"eval_loss": 0.1})
    assert_close(load_file(tmp_path / "model.safetensors"), dict(model.state_dict()))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "all_results.json",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
