"""Every code block of the README runs, or is a command of which another test shows that it does what it says."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch

import hf_convnextv2
from tests.readme import OFFICIAL, README, ROOT, blocks, commands, make_stand_ins
from training.settings.command_line import parse_settings
from training.settings.scripts import FinetuneSettings, PretrainSettings, ValidateSettings

CONFIGS = {"pretrain": PretrainSettings, "finetune": FinetuneSettings, "validate": ValidateSettings}
PAGES = [README, ROOT / "MODEL_CARD.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run_in_their_order(page, tmp_path, monkeypatch):
    """In a folder with small models where the blocks name models."""
    make_stand_ins(tmp_path)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    try:
        for block in [block for block in blocks(page) if block.language == "python"]:
            exec(compile(block.text, f"{page.name}: {block.heading}", "exec"), namespace)
    finally:
        hf_convnextv2.unregister()
    assert type(namespace["classifier"].model).__name__ == "ConvNextV2ForImageClassification"  # type: ignore[attr-defined]
    if page == README:
        outputs = namespace["outputs"]
        assert torch.isfinite(outputs.loss) and outputs.mask.shape == (8, 6 * 8)  # type: ignore[attr-defined]
        assert type(namespace["pretrained"]) is hf_convnextv2.ConvNextV2ForPreTraining


def test_the_first_python_block_needs_nothing_but_the_package():
    first = next(block.text for block in blocks(README) if block.language == "python")
    assert "from_pretrained" not in first and "model=" not in first and not any(name in first for name in OFFICIAL)


def test_every_block_is_python_a_command_or_a_citation():
    for page, languages in zip(PAGES, ({"python", "bash"}, {"python", "bibtex"}), strict=True):
        assert {block.language for block in blocks(page)} == languages
        assert len(blocks(page)) == page.read_text().count("\n```") / 2


def is_make_target(words: list[str]) -> bool:
    return re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M) is not None


def is_installable(words: list[str]) -> bool:
    """Whether the extras that the command names are there."""
    extras = re.findall(r"\[([\w,]+)\]", words[-1])
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return words[1:3] == ["install", "-e"] and set(",".join(extras).split(",")) - {""} <= set(known)


def is_a_run(words: list[str]) -> bool:
    """Whether script, recipe and flags are there, and every value is one that the script takes."""
    script = Path(words[2])
    arguments = [str(ROOT / word) if word.startswith("training/") else word for word in words[3:]]
    parse_settings(CONFIGS[script.stem], arguments)
    return words[1] == "launch" and (ROOT / script).is_file()


def is_a_module(words: list[str]) -> bool:
    """Whether it is one of those that the slow tests run as the README writes them."""
    return words[1:3] in (["-m", "conversion.convert"], ["-m", "conversion.publish"])


KNOWN = {"make": is_make_target, "pip": is_installable, "accelerate": is_a_run, "python": is_a_module}


def test_every_command_of_the_readme_is_one_that_is_there(tmp_path, monkeypatch):
    """`make` and `pip` by what they name; the slow tests in test_commands.py run all the others."""
    for name in ("path/to/images", "path/to/labelled"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    found = commands(README)
    assert len(found) >= 14 and {shlex.split(command)[0] for command in found} == set(KNOWN)
    for command in found:
        words = shlex.split(command)
        assert KNOWN[words[0]](words), command


@pytest.mark.parametrize("wrong", ["make dinner", "pip install -e '.[trainig]'", "python -m conversion.convertt a b"])
def test_a_command_that_is_not_there_is_found(wrong):
    words = shlex.split(wrong)
    assert not KNOWN[words[0]](words)
