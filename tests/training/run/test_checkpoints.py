"""Checkpoints and output folders: whole or absent, of the right run, the oldest dropped."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.testing import assert_close

from hf_convnextv2 import ConvNextV2FCMAEConfig, ConvNextV2ForPreTraining, create_image_processor
from tests.photographs import forget_accelerate, message_of
from training.run import checkpoints
from training.run.checkpoints import Checkpoints, cut_lines, digest_of, numbered_folders, read_state
from training.run.output import OutputFolder, save_model
from training.run.plan import make_plan
from training.settings.scripts import FinetuneSettings, PretrainSettings

TINY = {"hidden_sizes": [8, 8], "depths": [1, 1], "decoder_hidden_size": 8, "image_size": 32}


@pytest.fixture(autouse=True)
def accelerator():
    forget_accelerate()
    yield Accelerator(cpu=True)
    forget_accelerate()


def settings(folder, config_class=PretrainSettings, **fields):
    return config_class(dataset_name="images", output_dir=str(folder), **fields)


def checkpoints_of(accelerator, folder, resume=None, fields=None, **changes):
    model = ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig(**{**TINY, **(fields or {})}))
    config = settings(folder, resume_from_checkpoint=resume, **changes)
    processor = create_image_processor(model.config)
    plan = make_plan(config.schedule, config.data.per_device_train_batch_size, 100, 1)
    own = (config.checkpoints, config.record(), model, processor, plan)
    return accelerator.prepare(model), Checkpoints(accelerator, Path(folder), *own)


def test_a_checkpoint_brings_back_weights_and_step(accelerator, tmp_path):
    model, checkpoints = checkpoints_of(accelerator, tmp_path, resume="latest")
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checkpoints.save(3)
    torch.nn.init.ones_(model.decoder.mask_token)
    assert checkpoints.resume().step == 3
    assert_close(dict(model.state_dict()), saved, rtol=0, atol=0)


def test_only_the_main_process_reads_what_all_had_saved(accelerator, tmp_path, monkeypatch):
    _, saved = checkpoints_of(accelerator, tmp_path)
    saved.save(1, batches={"samples_seen": 5})
    assert saved.read_progress(tmp_path / "checkpoint-1", 1) == [{"batches": {"samples_seen": 5}}]
    sent = [{"batches": {"samples_seen": 7}}]
    monkeypatch.setattr(checkpoints, "broadcast_object_list", lambda given: [sent])
    monkeypatch.setattr(saved, "accelerator", SimpleNamespace(is_main_process=False))
    assert saved.read_progress(tmp_path / "not there", 512) == sent


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
    assert [path.name for path in numbered_folders(tmp_path)] == ["checkpoint-6", "checkpoint-10"]


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


@pytest.mark.parametrize("names", [["dog", "zebra"], ["dog", "cat"], ["cat", "puppy"]])
def test_a_checkpoint_of_other_classes_or_of_another_order_is_refused(names, accelerator, tmp_path):
    """The order of the names is that of the head's weights: another one would give each class another's weights."""

    def resumed(names):
        forget_accelerate()
        fields = {"id2label": dict(enumerate(names))}
        return checkpoints_of(Accelerator(cpu=True), tmp_path, resume="latest", fields=fields)[1]

    resumed(["cat", "dog"]).save(1)
    message = message_of(resumed(names).resume)
    index = [before != now for before, now in zip(["cat", "dog"], names, strict=True)].index(True)
    assert f"but class {index} was `{['cat', 'dog'][index]}` and is `{names[index]}` now" in message
    assert resumed(["cat", "dog"]).resume().step == 1  # the control


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
        (tmp_path / "superseded-checkpoint-2").rename(newest)
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


def test_logs_are_cut_back_to_what_they_were_when_the_checkpoint_was_written(accelerator, tmp_path, capsys):
    _, checkpoints = checkpoints_of(accelerator, tmp_path, resume="latest")
    log = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 0.1}) + "\n" for step in (2, 4, 4)]
    log.write_text("".join(lines))
    checkpoints.save(4)
    log.write_text("".join(lines) + json.dumps({"step": 4, "eval_loss": 1}) + '\n{"step": 6, "lo')
    assert checkpoints.resume().step == 4
    assert log.read_text() == "".join(lines) and "Warning" not in capsys.readouterr().out
    log.write_text("".join(lines[:1]) + '{"step": 4, "lo')  # a disk that forgot what it was given
    assert checkpoints.resume().step == 4
    assert log.read_text() == lines[0]
    assert f"Warning: {log} has lost 2 of its 3 lines." in capsys.readouterr().out


def test_without_a_checkpoint_the_log_of_an_earlier_start_goes(accelerator, tmp_path):
    _, checkpoints = checkpoints_of(accelerator, tmp_path, resume="latest")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1}\n')
    (tmp_path / ".checkpoint-2.partial").mkdir()
    assert checkpoints.resume() == (0, [])
    assert (tmp_path / "metrics.jsonl").read_text() == "" and not list(tmp_path.glob(".checkpoint*"))
    cut_lines(tmp_path / "none.jsonl", 3)


def test_a_run_that_goes_on_in_another_folder_begins_a_log_of_its_own(accelerator, tmp_path):
    _, checkpoints = checkpoints_of(accelerator, tmp_path / "first")
    (tmp_path / "first").mkdir()
    lines = "".join(json.dumps({"step": step, "loss": 0.1}) + "\n" for step in (2, 4))
    (tmp_path / "first/metrics.jsonl").write_text(lines)
    checkpoints.save(4)
    (tmp_path / "second").mkdir()
    (tmp_path / "second/metrics.jsonl").write_text(lines.replace("0.1", "0.9"))  # of an earlier start there
    forget_accelerate()
    _, again = checkpoints_of(Accelerator(cpu=True), tmp_path / "second", resume=str(tmp_path / "first/checkpoint-4"))
    assert again.resume().step == 4
    assert (tmp_path / "second/metrics.jsonl").read_text() == ""
    assert (tmp_path / "first/metrics.jsonl").read_text() == lines


@pytest.mark.parametrize("max_steps", [3, 4, 5])
def test_a_run_is_taken_up_at_its_last_step_but_not_after_it(max_steps, accelerator, tmp_path):
    _, checkpoints = checkpoints_of(accelerator, tmp_path)
    checkpoints.save(4)
    forget_accelerate()
    _, again = checkpoints_of(Accelerator(cpu=True), tmp_path, resume="latest", max_train_steps=max_steps)
    if max_steps < 4:
        assert message_of(again.resume).startswith("`max_train_steps` (=3) must not end before")
    else:
        assert again.resume().step == 4


@pytest.mark.parametrize("damaged", [False, True])
def test_a_run_taken_up_early_keeps_its_new_checkpoints_and_sets_the_later_ones_aside(damaged, accelerator, tmp_path):
    _, checkpoints = checkpoints_of(accelerator, tmp_path, checkpointing_steps=4)
    for step in (4, 8, 12):
        checkpoints.save(step)
    for step in (8, 12) if damaged else ():
        (tmp_path / f"checkpoint-{step}/model.safetensors").write_bytes(b"")
    forget_accelerate()
    resume = "latest" if damaged else str(tmp_path / "checkpoint-4")
    _, again = checkpoints_of(Accelerator(cpu=True), tmp_path, resume=resume, checkpoints_total_limit=2)
    assert again.resume().step == 4
    again.save(6)
    assert [path.name for path in numbered_folders(tmp_path)] == ["checkpoint-4", "checkpoint-6"]
    assert {path.name for path in tmp_path.glob("superseded*")} == {
        "superseded-checkpoint-8",
        "superseded-checkpoint-12",
    }
    again.resume_from = "latest"
    assert again.resume().step == 6
    again.save(7)
    assert [path.name for path in numbered_folders(tmp_path)] == ["checkpoint-6", "checkpoint-7"]


def test_a_state_that_was_edited_is_damaged(accelerator, tmp_path, capsys):
    _, checkpoints = checkpoints_of(accelerator, tmp_path, resume="latest")
    for step in (1, 2):
        checkpoints.save(step)
    state = read_state(tmp_path / "checkpoint-2")
    assert state.pop("sha256") == digest_of(state)
    (tmp_path / "checkpoint-2/training_state.json").write_text(json.dumps({**state, "num_processes": 3, "sha256": "0"}))
    assert checkpoints.resume().step == 1
    assert "its training_state.json is damaged" in capsys.readouterr().out


def test_processes_that_write_to_different_folders_are_told_at_the_first_checkpoint(accelerator, tmp_path, monkeypatch):
    _, checkpoints = checkpoints_of(accelerator, tmp_path)
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    message = message_of(lambda: checkpoints.save(1))
    assert message == f"`output_dir` (={tmp_path}) must be a folder that all machines share, but process 1's is not."
    assert not numbered_folders(tmp_path)


def test_an_output_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    message = message_of(lambda: OutputFolder(settings(tmp_path)).check())
    assert message.startswith(f"`output_dir` (={tmp_path}) must be empty or hold a run of this script")
    OutputFolder(settings(tmp_path, overwrite_output_dir=True)).check()
    OutputFolder(settings(tmp_path, overwrite_output_dir=True)).claim()
    assert (tmp_path / "thesis.tex").exists()
    OutputFolder(settings(tmp_path / "new")).check()


def test_what_a_kill_at_the_first_file_leaves_is_no_run(tmp_path):
    (tmp_path / ".training_config.json.partial").write_text('{"run": ')
    OutputFolder(settings(tmp_path)).check()
    OutputFolder(settings(tmp_path, resume_from_checkpoint="latest")).check()


def test_an_earlier_run_is_resumed_or_overwritten_on_request_only(accelerator, tmp_path):
    OutputFolder(settings(tmp_path)).claim()
    checkpoints_of(accelerator, tmp_path)[1].save(1)
    assert "must not hold an earlier run" in message_of(lambda: OutputFolder(settings(tmp_path)).check())
    assert "holds something else" in message_of(lambda: OutputFolder(settings(tmp_path, FinetuneSettings)).check())
    OutputFolder(settings(tmp_path, resume_from_checkpoint="latest")).check()
    OutputFolder(settings(tmp_path, resume_from_checkpoint="latest")).claim()
    assert numbered_folders(tmp_path)
    OutputFolder(settings(tmp_path, overwrite_output_dir=True)).claim()
    assert not numbered_folders(tmp_path)


class Processor:
    def save_pretrained(self, folder):
        (folder / "preprocessor_config.json").write_text("{}")


def test_a_folder_that_a_crash_left_half_moved_does_not_say_that_it_is_whole(tmp_path, monkeypatch):
    model = ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig(**TINY))
    processor, replace = create_image_processor(model.config), os.replace
    save_model(tmp_path / "whole", model, processor, {"total_steps": 7})
    names = {file.name for file in (tmp_path / "whole").iterdir()}
    for count in range(len(names)):
        left, folder = iter(range(count)), tmp_path / str(count)

        def replace_so_many(source, target, left=left, folder=folder):
            if Path(target).parent == folder and next(left, None) is None:
                raise KeyboardInterrupt
            replace(source, target)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(os, "replace", replace_so_many)
            save_model(folder, model, processor, {"total_steps": 7})
        assert len([file for file in folder.iterdir() if file.is_file()]) == count
        assert not (folder / "all_results.json").exists()


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
