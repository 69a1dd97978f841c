"""Launched runs: what a run is given, what is noted of it, and that none begins after an error or a stop."""

from pathlib import Path
from threading import Event

import pytest

from conversion.files import read_json
from training.comparison import runner as module
from training.comparison.launching import arguments
from training.comparison.records import Times
from training.comparison.runner import Runner, side_by_side


@pytest.fixture
def runner(tmp_path):
    return Runner(tmp_path, Times(tmp_path), jobs=3, lock=7)


def test_a_run_goes_on_from_its_checkpoint_and_keeps_the_lock(runner, monkeypatch, tmp_path):
    found = []
    monkeypatch.setattr(module, "launch", lambda *given, **options: found.append((given, options)))
    runner.launch("pretrain", "recipe", tmp_path / "runs/a", "--seed=1")
    flags = ("--seed=1", f"--output_dir={tmp_path / 'runs/a'}", "--resume_from_checkpoint=latest")
    assert found == [(("pretrain", "recipe", *flags), {"at_a_time": 3, "lock": 7})]
    assert read_json(tmp_path / "times.json").keys() == {"runs/a"}


@pytest.mark.parametrize(("script", "name"), [("pretrain", "pretrain.py"), (Path("some/script.py"), "script.py")])
def test_a_failed_run_is_named_and_no_further_one_begins(script, name, runner, monkeypatch, tmp_path):
    def fail(*given, **options):
        raise SystemExit(3)

    monkeypatch.setattr(module, "launch", fail)
    with pytest.raises(ChildProcessError, match=f"{name} in .*runs/a ended with exit code 3"):
        runner.side_by_side([lambda: runner.launch(script, "recipe", tmp_path / "runs/a")])
    with pytest.raises(SystemExit) as error:
        runner.launch(script, "recipe", tmp_path / "runs/b")
    assert error.value.code == 75 and "runs/b" not in runner.times.seconds


def test_after_an_error_no_task_begins_though_an_earlier_one_goes_on():
    is_over, begun = Event(), []

    def go_on():
        assert is_over.wait(30)

    def fail():
        raise ValueError("of the second")

    with pytest.raises(ValueError, match="of the second"):
        side_by_side(2, [go_on, fail, *[lambda: begun.append(1)] * 20], is_over)
    assert begun == [] and is_over.is_set()
    side_by_side(2, [go_on, lambda: begun.append(1)])  # the control
    assert begun == [1]


def test_another_script_than_those_of_training_is_launched_by_its_path(monkeypatch):
    root = Path(__file__).parents[3]
    monkeypatch.chdir(root)
    words = arguments(root / "experiments/ablation/script.py", "pretrain_demo", "--task=pretrain")
    expected = ["experiments/ablation/script.py", "--config", "training/recipes/pretrain_demo.yaml", "--task=pretrain"]
    assert words[2:] == expected
    assert arguments("finetune", "finetune_demo")[2] == "training/finetune.py"


def test_runs_share_the_cores_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(4)))
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert arguments("finetune", "finetune_demo")[:2] == ["--num_cpu_threads_per_process", "4"]
    assert arguments("finetune", "finetune_demo", at_a_time=2)[:2] == ["--num_cpu_threads_per_process", "2"]
    assert arguments("finetune", "finetune_demo", at_a_time=9)[:2] == ["--num_cpu_threads_per_process", "1"]
