"""What README and docs/ name is there: commands with flags, paths, tests, links; each block is run or accounted for."""

import ast
import importlib
import re
import shlex
import tomllib
from functools import cache
from itertools import dropwhile, pairwise
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.launch import launch_command_parser

from benchmarks.gpu import settings as gpu_settings
from conversion import convert, export, publish
from docs.hooks import SCRIPTS, help_of, read_help
from spaces import app as spaces_app
from spaces import publish as spaces_publish
from tests.readme import PAGES, README, ROOT, blocks, commands
from training.settings.analysis import AnalyzeSettings
from training.settings.command_line import parse_settings
from training.settings.comparison import CompareSettings
from training.settings.embedding import EmbedSettings, NearestSettings
from training.settings.prediction import PredictSettings
from training.settings.scripts import (
    DetectSettings,
    FinetuneSettings,
    PretrainSettings,
    SegmentSettings,
    ValidateSettings,
)

SETTINGS: dict[str, Any] = {"pretrain": PretrainSettings, "finetune": FinetuneSettings}
SETTINGS |= {
    "segment": SegmentSettings,
    "detect": DetectSettings,
    "validate": ValidateSettings,
    "predict": PredictSettings,
    "embed": EmbedSettings,
    "nearest": NearestSettings,
    "compare": CompareSettings,
    "analyze": AnalyzeSettings,
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {"benchmarks.gpu": gpu_settings, "conversion.convert": convert, "conversion.publish": publish}
MODULES |= {"conversion.export": export, "spaces.app": spaces_app, "spaces.publish": spaces_publish}
LINKED = [*PAGES, ROOT / "CHANGELOG.md"]

# Of the blocks of output: what our code prints, of which the page shows an example.
PRINTED = {
    "data.md": ("Split {", "left out: {"),
    "images.md": ("Split {", "images are transparent: {", "composited on {"),
    "stopping.md": ("saving after the step under way. A second Ctrl-C ends at once.", "Saved {"),
    "labels.md": ("Labels of split {", "in no image", "images have no class"),
    "monitoring.md": ("% waiting for data", "evaluation after step {", "always the largest class: {"),
    "segmentation.md": ("Split {", "share of the pixels (images) of each class: {"),
    "detection.md": ("Split {", "objects (images) of each class: {", "images have no object"),
    "code.md": (),  # the folders of the repository, see below
}


def test_every_block_is_run_or_accounted_for():
    """Python by test_snippets.py, commands below and by test_commands.py, output by what prints it."""
    for page in PAGES:
        languages = {block.language for block in blocks(page)}
        assert languages <= {"python", "bash", "text", "bibtex"}, page.name
        assert len(blocks(page)) == page.read_text().count("\n```") / 2, page.name
        assert ("text" in languages) == (page.name in PRINTED), page.name


@pytest.mark.parametrize("page", PRINTED)
def test_what_a_page_shows_as_printed_is_what_the_code_prints(page):
    code = "".join(file.read_text() for file in (ROOT / "training").rglob("*.py"))
    shown = "".join(block.text for block in blocks(ROOT / "docs" / page) if block.language == "text")
    for text in PRINTED[page]:
        assert text in code and text.split("{")[0] in shown, text


def test_the_layout_shows_the_folders_that_there_are():
    (shown,) = [block.text for block in blocks(ROOT / "docs/code.md") if block.language == "text"]
    folders, parent = [], Path()
    for line in shown.splitlines():
        name = line.split()[0].removesuffix("/")
        parent = parent if line.startswith(" ") else Path(name)
        folders.append(parent / name if line.startswith(" ") else parent)
    assert all((ROOT / folder).is_dir() for folder in folders)
    packages = {file.parent.relative_to(ROOT) for file in ROOT.glob("*/__init__.py")}
    packages |= {file.parent.relative_to(ROOT) for file in ROOT.glob("training/*/__init__.py")}
    assert packages <= set(folders)


# The commands.


def is_make_target(words: list[str]) -> bool:
    return re.search(rf"^{re.escape(words[1])}:", (ROOT / "Makefile").read_text(), re.M) is not None


def is_installable(words: list[str]) -> bool:
    """Whether it installs this package, from its repository or from a clone, and its extras are there."""
    if words[1] != "install":
        return False
    if words[2] != "-e":
        return words[2:] == ["git+$REPOSITORY"]
    extras = re.fullmatch(r"\.(?:\[([\w,]+)\])?", words[-1])
    known = PROJECT["optional-dependencies"]
    return extras is not None and set((extras[1] or "").split(",")) - {""} <= set(known)


def is_clone(words: list[str]) -> bool:
    return words in (["git", "clone"], ["git", "clone", "$REPOSITORY", "hf_convnextv2"])


def is_the_clone(words: list[str]) -> bool:
    return words == ["cd", "hf_convnextv2"]


def is_launch(words: list[str]) -> bool:
    """Whether `accelerate launch` knows its flags, and what follows them is a run of a script."""
    scripts = [index for index, word in enumerate(words) if word.endswith(".py")]
    end = scripts[0] if scripts else len(words)
    flags = [word for word in words[2:end] if word.startswith("--")]
    files = [word for word in words[2:end] if word.endswith(".yaml")]
    known = all(flag in launcher_flags() for flag in flags) and all((ROOT / file).is_file() for file in files)
    return words[1] == "launch" and known and (not scripts or is_run(words[end:]))


def is_torchrun(words: list[str]) -> bool:
    return words[1:3] == ["--nproc_per_node", "2"] and is_run(words[3:])


def is_run(words: list[str]) -> bool:
    """Whether script, recipe and flags are there, and every value is one that the script takes."""
    script, arguments = Path(words[0]), words[1:]
    if not (ROOT / script).is_file() or script.parent != Path("training"):
        return False
    if arguments in ([], ["..."], ["--help"]):  # in a sentence
        return True
    parse_settings(
        SETTINGS[script.stem], [str(ROOT / word) if word.startswith("training/") else word for word in arguments]
    )
    return True


def is_module(words: list[str]) -> bool:
    """Whether it is a script, or a module of ours that knows these flags."""
    if words[1].endswith(".py"):
        return is_run(words[1:]) if words[1].startswith("training/") else (ROOT / words[1]).is_file()
    if words[1:3] == ["-m", "pytest"]:
        return all((ROOT / word).exists() for word in words if word.startswith("tests/"))
    flags = [word.removeprefix("--") for word in words[3:] if word.startswith("--")]
    if words[1] == "-m" and words[2] in MODULES:
        return {f"--{flag}" for flag in flags} <= set(MODULES[words[2]].create_parser()._option_string_actions)
    file = ROOT / Path(*words[2].split(".")).with_suffix(".py")
    if words[1] != "-m" or not file.is_file():
        return False
    text = file.read_text()
    shared = re.findall(r"^from experiments\.(\w+) import .*add_options", text, re.MULTILINE)
    text += "".join((ROOT / f"experiments/{name}.py").read_text() for name in shared)
    return all(re.search(rf'\b{flag}=|"--{flag}"', text) for flag in flags)


def is_docker(words: list[str]) -> bool:
    """Whether it builds the image with arguments that the Dockerfile has, or runs a script in it."""
    if words[1] == "build":
        given = [value.split("=")[0] for flag, value in pairwise(words) if flag == "--build-arg"]
        return words[-1] == "." and set(given) <= set(
            re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.M)
        )
    images = [index for index, word in enumerate(words) if word.split(":")[0] == "hf_convnextv2"]
    command = words[images[0] + 1 :] if images else []
    return words[1] == "run" and is_run([word.replace("/images", "path/to/images") for word in command])


KNOWN = {
    **{"make": is_make_target, "pip": is_installable, "git": is_clone, "cd": is_the_clone},
    **{"accelerate": is_launch, "torchrun": is_torchrun, "python": is_module},
    "docker": is_docker,
}


def without_environment(words: list[str]) -> list[str]:
    return list(dropwhile(lambda word: re.fullmatch(r"[A-Z_]+=\S+", word), words))


def spans(page: Path) -> list[str]:
    """What stands between single backticks, outside of the blocks."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


def typed(page: Path) -> list[list[str]]:
    """The commands of the blocks and those in sentences and tables."""
    sentences = [span.removeprefix("exec ") for span in spans(page)]
    starts = tuple(f"{name} " for name in KNOWN)
    found = [*commands(page), *(span for span in sentences if span.startswith(starts))]
    return [without_environment(shlex.split(command)) for command in found]


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_every_command_is_one_that_is_there(page, tmp_path, monkeypatch):
    """With every flag and value; the slow tests in test_commands.py run those that compute."""
    for name in (
        "path/to/images",
        "path/to/labelled",
        "path/to/masked",
        "path/to/objects",
        "path/to/tagged",
        "out/pretrain/checkpoint-5000",
    ):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "photo.jpg").touch()
    monkeypatch.chdir(tmp_path)
    for words in typed(page):
        assert words[0] in KNOWN and KNOWN[words[0]](words), shlex.join(words)


def test_every_command_of_the_notebook_is_one_that_is_there(tmp_path, monkeypatch):
    text = (ROOT / "docs/notebook.py").read_text()
    calls = [
        node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and ast.unparse(node.func) == "run"
    ]
    monkeypatch.chdir(tmp_path)
    assert len(calls) == 5
    for call in calls:
        command = re.sub(r"\{.*?\}", "8", "".join(ast.unparse(call.args[0])).strip("f'\""))
        words = ["python", *shlex.split(command)]
        assert is_module(words), command


def test_the_readme_has_the_commands_that_a_stranger_needs():
    assert {words[0] for words in typed(README)} == {"make", "pip", "git", "cd", "accelerate", "python"}
    assert len(commands(README)) >= 7 and len(typed(README)) >= 14
    assert {"make demo", "make test"} <= {shlex.join(words) for words in typed(README)}
    assert len(README.read_text().splitlines()) <= 120


@pytest.mark.parametrize(
    "wrong",
    [
        *("make dinner", "pip install -e '.[trainig]'", "pip install convnext", "git clone elsewhere"),
        *("docker build --build-arg DEVIC=cuda .", "docker run hf_convnextv2 training/pretrian.py"),
        *(
            "python -m conversion.convertt a b",
            "python -m conversion.convert a b --verfy",
            "python training/pretrian.py",
        ),
        *("python -m benchmarks.views --szes atto", "accelerate launch --config_fil x training/pretrain.py"),
        "accelerate launch --config_file training/accelerate/no_gpu.yaml training/pretrain.py",
    ],
)
def test_a_command_that_is_not_there_is_found(wrong):
    words = shlex.split(wrong)
    assert not KNOWN[words[0]](words)


# What sentences name.


@cache
def launcher_flags() -> set[str]:
    return set(launch_command_parser()._option_string_actions)


@cache
def known_flags() -> set[str]:
    """Of the training scripts, the modules with parsers and `accelerate launch`."""
    settings = {f"--{row.name}" for script in SCRIPTS for rows in read_help(help_of(script)).values() for row in rows}
    modules = {flag for module in MODULES.values() for flag in module.create_parser()._option_string_actions}
    return settings | modules | launcher_flags() | {"--help", "--ipc", "--gpus"}  # the last two are Docker's


def is_path(span: str) -> bool:
    folders = "hf_convnextv2|training|conversion|spaces|experiments|benchmarks|tests|docs"
    return re.fullmatch(rf"(?:{folders})/[\w./*-]*", span) is not None


def test_every_flag_that_a_page_names_is_there():
    named = {flag for page in PAGES for span in spans(page) if span[:2] == "--" for flag in re.findall(r"--\w+", span)}
    assert len(named) > 40 and named - known_flags() == set()


def test_every_path_that_a_page_names_is_there():
    named = {span for page in LINKED for span in spans(page) if is_path(span)}
    assert len(named) > 30 and {span for span in named if not list(ROOT.glob(span.rstrip("/")))} == set()
    recipes = {
        span
        for page in LINKED
        for span in spans(page)
        if re.fullmatch(r"(?:pretrain|finetune|segment|detect)_[\w*]+\.yaml", span)
    }
    assert len(recipes) > 5 and {name for name in recipes if not list(ROOT.glob(f"training/recipes/{name}"))} == set()


def test_every_test_that_a_page_names_is_there():
    named = {span for page in PAGES for span in spans(page) if re.match(r"test_\w+(\.py|\.\.\.)", span)}
    texts = {file.name: file.read_text() for file in (ROOT / "tests").rglob("test_*.py")}
    assert len(named) > 10
    for span in named:
        file, _, name = span.partition("::") if ".py" in span else ("", "", span)
        text = texts[file] if file else "".join(texts.values())
        assert f"def {name.removesuffix('...')}" in text, span


def anchors(page: Path) -> set[str]:
    """Of the headings, as Markdown makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_the_public_names_are_all_in_the_reference():
    package = importlib.import_module("hf_convnextv2")
    named = re.findall(r"^::: hf_convnextv2\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.M)
    assert sorted(named) == sorted(package.__all__)
