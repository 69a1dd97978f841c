"""How scripts end: a user's mistake is one line, told before PyTorch is imported; a bug keeps its traceback."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from training.console import errors
from training.console.errors import message_for_user, told_in_a_line
from training.data.decoding import BadImageError
from training.settings.checks import check

SCRIPTS = ("pretrain", "finetune", "validate", "predict", "embed", "nearest")
# Run as a script, each with a wrong flag, a wrong value, a wrong recipe and `--help`: the exit codes, then whether
# PyTorch was imported.
PARSE_ALL = """
import runpy, sys
for script in {scripts}:
    for arguments in ({wrong}):
        sys.argv = [script, *arguments]
        try:
            runpy.run_path(f"training/{{script}}.py", run_name="__main__")
        except SystemExit as stop:
            print("code", stop.code)
print("torch" in sys.modules)
"""


class Images(Dataset):
    def __init__(self, fail):
        self.fail = fail

    def __len__(self):
        return 1

    def __getitem__(self, index):
        self.fail()


def raised(action) -> Exception:
    with pytest.raises(Exception) as caught:
        action()
    return caught.value


def refuse():
    check("seed", -1, False, "be at least 0")


def refuse_image():
    from training.data.decoding import decode_image

    decode_image({"bytes": b"no image", "path": "cats/1.png"}, 3, "example 0")


def mistake():
    return {}["weights"]


def lost_peer():
    said = "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:13337"
    exec("raise RuntimeError(said)", {"said": said})  # not in a file of ours


def value_error_of_python():
    return int("x")


def test_what_our_code_refuses_is_told_and_a_bug_is_not():
    assert message_for_user(raised(refuse)) == "`seed` (=-1) must be at least 0."
    assert "cats/1.png" in (message_for_user(raised(refuse_image)) or "")
    for bug in (mistake, value_error_of_python, lambda: torch.zeros(2) @ torch.zeros(3)):
        assert message_for_user(raised(bug)) is None


def test_what_the_system_refuses_is_told():
    assert message_for_user(raised(Path("no/such/file").read_text)) == (
        "[Errno 2] No such file or directory: 'no/such/file'"
    )


def test_too_little_memory_of_a_device_is_told_with_what_helps():
    said = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1.00 GiB."
    told = message_for_user(torch.OutOfMemoryError(said)) or ""
    assert told.startswith("CUDA out of memory. Give smaller `--per_device_train_batch_size`")


@pytest.mark.parametrize(("rank", "lines"), [("0", ["pretrain.py: interrupted"]), ("1", [])])
def test_an_interrupt_before_the_first_step_is_a_line_at_once(rank, lines, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["training/pretrain.py"])
    monkeypatch.setattr(errors.time, "sleep", lambda seconds: pytest.fail("it waits"))
    monkeypatch.setenv("LOCAL_RANK", rank)
    with pytest.raises(SystemExit) as stop, told_in_a_line():
        raise KeyboardInterrupt
    assert stop.value.code == 130 and capsys.readouterr().err.splitlines() == lines


def test_of_a_worker_the_same_is_told():
    def in_worker(fail):
        return raised(lambda: next(iter(DataLoader(Images(fail), num_workers=1))))

    bad_image = in_worker(refuse_image)
    assert isinstance(bad_image, BadImageError) and "Traceback" in str(bad_image)
    assert message_for_user(bad_image) == message_for_user(raised(refuse_image))
    assert message_for_user(in_worker(refuse)) == "`seed` (=-1) must be at least 0."
    assert message_for_user(in_worker(value_error_of_python)) is None
    assert message_for_user(in_worker(mistake)) is None


def test_a_refusal_ends_a_script_with_one_line_and_code_1(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["training/pretrain.py"])
    with pytest.raises(SystemExit) as stop, told_in_a_line():
        refuse()
    assert stop.value.code == 1
    assert capsys.readouterr().err == "pretrain.py: error: `seed` (=-1) must be at least 0.\n"


def test_a_bug_and_whoever_asks_for_them_get_tracebacks(monkeypatch):
    with pytest.raises(KeyError), told_in_a_line():
        mistake()
    monkeypatch.setenv("CONVNEXTV2_TRACEBACK", "1")
    with pytest.raises(ValueError, match="must be at least 0"), told_in_a_line():
        refuse()


@pytest.mark.parametrize(
    ("fail", "kind", "rank", "waits"),
    [
        (refuse, SystemExit, "0", False),
        (refuse, SystemExit, "1", True),
        (mistake, KeyError, "0", False),
        (mistake, KeyError, "1", True),
        (lost_peer, RuntimeError, "0", True),  # another process ended: it has the reason
    ],
)
def test_a_process_that_may_fail_for_another_one_leaves_that_one_time_to_say_it(fail, kind, rank, waits, monkeypatch):
    waited = []
    monkeypatch.setattr(errors.time, "sleep", waited.append)
    monkeypatch.setenv("LOCAL_RANK", rank)
    with pytest.raises(kind), told_in_a_line():
        fail()
    assert waited == [errors.LAUNCHER_SECONDS] * waits


WRONG_FOR_ANY_MODEL = [
    ["--report_to", "tensorbord"],
    ["--background", "blurple"],
    ["--target_type", "pixels"],
    ["--feature_loss", "l1"],
    ["--feature_target_on", "all"],
    ["--fusion_stages", "stag1"],
    ["--image_size", "50"],
    ["--image_mean", "0.5", "0.5"],
    ["--output_dir", "pyproject.toml"],
]


def test_a_value_that_is_wrong_for_any_model_is_told_before_torch_is_imported(tmp_path):
    given = ["--dataset_name", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    wrong = ", ".join(str([*given, *flags]) for flags in WRONG_FOR_ANY_MODEL)
    command = PARSE_ALL.format(scripts=("pretrain",), wrong=wrong)
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", command], cwd=root, capture_output=True, text=True, timeout=120)
    lines = [line for line in done.stdout.splitlines() if line.startswith("code") or line in ("True", "False")]
    assert lines == [*["code 2"] * len(WRONG_FOR_ANY_MODEL), "False"]
    for flags, line in zip(WRONG_FOR_ANY_MODEL, done.stderr.splitlines(), strict=True):
        assert line.startswith(f"pretrain.py: error: `{flags[0].removeprefix('--')}` (=")


def test_a_wrong_setting_and_help_are_told_before_torch_is_imported(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("learning_rat: 1\n")
    missing = ["--dataset_name", "x", "--output_dir", "y", "--model_name_or_path", "/no/such/folder"]
    wrong = [["--help"], ["--learning_rat", "1"], missing, ["--config", str(recipe)]]
    command = PARSE_ALL.format(scripts=SCRIPTS, wrong=", ".join(map(str, wrong)))
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", command], cwd=root, capture_output=True, text=True, timeout=120)
    lines = [line for line in done.stdout.splitlines() if line.startswith("code") or line in ("True", "False")]
    assert lines == [*["code 0", "code 2", "code 2", "code 2"] * len(SCRIPTS), "False"]
    errors_told = done.stderr.splitlines()
    assert len(errors_told) == 3 * len(SCRIPTS) and all(": error: " in line for line in errors_told)
