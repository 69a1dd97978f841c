"""The commands tell a wrong flag in one line, at once, with the nearest right one."""

import subprocess
import sys
from pathlib import Path

import pytest

from conversion import convert, publish
from hf_convnextv2.configuration_convnextv2 import SIZES

ROOT = Path(__file__).parents[2]
# Run as a command with a wrong flag and with `--help`: the exit codes, then whether PyTorch was imported.
RUN = """
import runpy, sys
for arguments in (["out/a", "--{wrong}", "x"], ["--help"]):
    sys.argv = ["command", *arguments]
    try:
        runpy.run_module("conversion.{command}", run_name="__main__")
    except SystemExit as stop:
        print("code", stop.code)
print("torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("command", "wrong", "right"),
    [
        ("convert", "model_sise", "model_size"),
        ("export", "formatt", "format"),
        ("publish", "repo_idd", "repo_id"),
    ],
)
def test_a_wrong_flag_and_the_help_are_told_before_pytorch_is_imported(command, wrong, right):
    code = RUN.format(command=command, wrong=wrong)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert (
        done.stderr
        == f"python -m conversion.{command}: error: `--{wrong}` is not an option. Did you mean `--{right}`?\n"
    )
    assert lines[0] == "code 2" and lines[-2:] == ["code 0", "False"]


def test_a_missing_argument_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        publish.main(["out/a"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "python -m conversion.publish: error: the following arguments are required: --repo_id"
    ]


def test_the_sizes_are_those_of_the_models():
    assert set(convert.MODEL_SIZES) == set(SIZES)
