"""From folders or Hub ids to a Space: what it holds, its header, its licence, and the upload in one commit."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from huggingface_hub import metadata_load

from spaces.publish import main, publish
from spaces.publishing.contents import SpaceContents, check_contents
from spaces.publishing.staging import is_ours, requirements, stage_space
from tests.hub_server import HubServer
from tests.photographs import cut, message_of
from tests.spaces.saved_models import save_classifier, save_pretrained

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MINE, OTHERS = "token-of-me", "token-of-other"


@pytest.fixture
def hub():
    with HubServer({MINE: "me", OTHERS: "other"}) as server:
        yield server


@pytest.fixture
def models(tmp_path) -> dict[str, str]:
    """Folders of both kinds of model."""
    return {
        "classifier": str(save_classifier(tmp_path / "out/classifier")),
        "pretrained": str(save_pretrained(tmp_path / "out/pretrain")),
    }


def run(hub: HubServer, home: Path, *arguments: object, token: str | None = MINE, code: int = 0) -> str:
    """What the command prints that ends with this code, with a user's token on the local Hub."""
    command = [sys.executable, "-m", "spaces.publish", *map(str, arguments)]
    environment = {**hub.environment(home, token), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=ROOT, check=False)
    printed = done.stdout + done.stderr
    assert done.returncode == code, printed
    assert MINE not in printed and OTHERS not in printed
    return printed


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# What a Space holds.


def test_a_space_holds_the_page_the_package_and_the_models(tmp_path, models):
    (tmp_path / "pictures").mkdir()
    cut("coffee", 1)[0].save(tmp_path / "pictures/cup.png")
    (tmp_path / "pictures/notes.txt").write_text("mine")
    staged = stage_space(tmp_path / "space", SpaceContents(**models, examples=str(tmp_path / "pictures")))
    names = names_in(staged)
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hf_convnextv2").glob("*.py")}
    files = {f"models/{kind}/{name}" for kind in models for name in ("config.json", "model.safetensors")}
    assert code | files | {"app.py", "page/app.py", "page/page.py", "LICENSE", "requirements.txt"} <= names
    assert "examples/cup.png" in names and "examples/notes.txt" not in names
    assert not any("publish" in name or "__pycache__" in name for name in names)
    assert not (staged / "spaces").exists(), "which gradio would take for the Hub's module"
    assert all(is_ours(name) or name == "README.md" for name in names) and not is_ours("mine.txt")
    weights = (staged / "models/pretrained/model.safetensors").read_bytes()
    assert weights == Path(models["pretrained"], "model.safetensors").read_bytes()
    assert str(tmp_path) not in (staged / "README.md").read_text() + (staged / "space.json").read_text()


# Loads the models of a Space from its folder, in a process that cannot import the rest of this checkout.
IN_THE_SPACE = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("training", "conversion", "tests", "spaces", "gradio"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
import hf_convnextv2, page.app
from page.classifier import Classifier
from page.reconstructor import Reconstructor
from page.settings import read_settings
settings = read_settings({}, {})
print(hf_convnextv2.__file__, page.app.__file__, settings.title)
print(max(Classifier(settings.classifier)("examples/cup.png").values()) > 0)
print(Reconstructor(settings.pretrained)("examples/cup.png", 0.5, 0).num_visible)
"""


def test_a_space_loads_its_models_without_this_checkout(tmp_path, models):
    (tmp_path / "pictures").mkdir()
    cut("coffee", 1)[0].save(tmp_path / "pictures/cup.png")
    contents = SpaceContents(**models, examples=str(tmp_path / "pictures"), title="Mine")
    staged = stage_space(tmp_path / "space", contents)
    environment = {name: value for name, value in os.environ.items() if name not in ("MODEL", "PRETRAINED_MODEL")}
    command = [sys.executable, "-W", "error", "-c", IN_THE_SPACE]
    done = subprocess.run(command, cwd=staged, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    package, page, *rest = done.stdout.split()
    assert Path(package).parent == staged / "hf_convnextv2" and Path(page).parent == staged / "page"
    assert rest == ["Mine", "True", "8"]


def test_the_header_is_what_the_hub_reads(tmp_path, models):
    staged = stage_space(tmp_path / "space", SpaceContents("me/name", models["pretrained"], "A title: mine"))
    header = metadata_load(staged / "README.md") or {}
    assert (header["title"], header["sdk"], header["app_file"]) == ("A title: mine", "gradio", "app.py")
    assert f"gradio>={header['sdk_version']}" in PROJECT["optional-dependencies"]["space"]
    assert header["models"] == ["me/name"] and isinstance(header["python_version"], str)
    least = [int(number) for number in PROJECT["requires-python"].removeprefix(">=").split(".")]
    assert [int(number) for number in header["python_version"].split(".")] >= least
    colors = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {header["colorFrom"], header["colorTo"]} <= colors
    text = (staged / "README.md").read_text()
    assert "[me/name](https://huggingface.co/me/name)" in text and "`pretrain`" in text and "None" not in text
    assert json.loads((staged / "space.json").read_text())["MODEL"] == "me/name"
    assert not (staged / "models/classifier").exists()


def test_the_space_installs_what_the_package_needs():
    lines = requirements().splitlines()
    assert lines[0].startswith("--extra-index-url https://") and lines[0].endswith("/cpu")
    named = {re.split("[>=]", line)[0] for line in lines[1:]}
    assert named == {re.split("[>=]", line)[0] for line in PROJECT["dependencies"]} | {"torchvision"}


# What is refused.


def test_models_of_the_wrong_kind_and_folders_that_are_not_complete_are_named(tmp_path, models):
    for contents, expected in (
        (SpaceContents(), "`--classifier` or `--pretrained` (both missing)"),
        (SpaceContents(models["pretrained"]), f"`--classifier` (={models['pretrained']}) must hold a classifier model"),
        (SpaceContents(None, models["classifier"]), "must hold a fcmae or convmae model, but holds a classifier."),
        (SpaceContents(str(tmp_path)), f"`--classifier` (={tmp_path}) must hold config.json."),
        (SpaceContents("me/name", examples=str(tmp_path)), "must be a folder with pictures"),
    ):
        assert expected in message_of(lambda contents=contents: check_contents(contents))


def test_the_licence_is_that_of_what_the_space_carries(tmp_path, models):
    def state(kind: str, license: str) -> None:
        (Path(models[kind]) / "README.md").write_text(f"---\nlicense: {license}\n---\n")

    assert SpaceContents("me/name").settled_license == "apache-2.0"  # the code alone
    assert SpaceContents(**models).settled_license == "unknown"  # weights of which nobody has said it
    state("classifier", "mit")
    state("pretrained", "mit")
    assert SpaceContents(**models).settled_license == "mit"
    state("pretrained", "apache-2.0")
    assert SpaceContents(**models).settled_license == "mit"
    state("pretrained", "cc-by-nc-4.0")
    assert "`--license` must be given" in message_of(lambda: SpaceContents(**models).settled_license)
    said = message_of(lambda: SpaceContents(**models, license="mit").settled_license)
    assert "must be cc-by-nc-4.0: that of the official weights stays" in said
    assert SpaceContents(**models, license="cc-by-nc-4.0").settled_license == "cc-by-nc-4.0"


# The command.


def test_a_dry_run_lists_the_files_and_shows_the_readme(capsys, models):
    assert publish("me/demo", SpaceContents(**models), dry_run=True) is None
    printed = capsys.readouterr().out
    assert "models/classifier/model.safetensors" in printed and "sdk: gradio" in printed and "files of code" in printed
    assert "Nobody has stated the licence" in printed
    main(["--repo_id", "me/demo", "--classifier", "me/name", "--dry_run"])
    assert "Loaded from the Hub: me/name" in capsys.readouterr().out


@pytest.mark.slow
def test_a_space_is_published_in_one_commit_and_a_new_version_leaves_nothing_of_the_old_one(tmp_path, hub, models):
    flags = ["--repo_id", "demo", "--pretrained", models["pretrained"]]
    printed = run(hub, tmp_path / "home", *flags, "--classifier", models["classifier"])
    assert f"Published: {hub.url}/spaces/me/demo/commit/" in printed
    repo = hub.repos["spaces/me/demo"]
    assert repo.sdk == "gradio" and [commit.message for commit in repo.commits[1:]] == ["Upload page"]
    files = hub.files("spaces/me/demo")
    staged = stage_space(tmp_path / "space", SpaceContents(**models))
    assert set(files) == names_in(staged) | {".gitattributes"}
    assert all(files[name] == (staged / name).read_bytes() for name in names_in(staged))
    assert "is taken: it holds" in run(hub, tmp_path / "home", *flags, code=2)

    weights = {name: Path(models["classifier"], name).read_bytes() for name in ("config.json", "model.safetensors")}
    hub.add_repo("me/name", weights, private=True)
    flags += ["--exist_ok", "--classifier", "me/name", "--commit_message", "Take the model from the Hub"]
    printed = run(hub, tmp_path / "home", *flags)
    assert "me/name is private: give the Space a token" in printed
    assert repo.commits[-1].message == "Take the model from the Hub"
    files = set(hub.files("spaces/me/demo"))
    assert "models/pretrained/model.safetensors" in files
    assert not any(name.startswith("models/classifier") for name in files)
    hub.repos.pop("me/name")
    assert "me/name is not on the Hub" in run(hub, tmp_path / "home", *flags, code=2)
    assert len(repo.commits) == 3


@pytest.mark.slow
def test_nothing_is_published_without_a_token_or_to_others(tmp_path, hub, models):
    flags = ["--classifier", models["classifier"]]
    said = run(hub, tmp_path / "home", "--repo_id", "me/demo", *flags, token=None, code=2)
    assert "No token for the Hub" in said and len(said.strip().splitlines()) == 1
    said = run(hub, tmp_path / "home", "--repo_id", "other/demo", *flags, code=2)
    assert "must be yours, but you are me" in said and hub.repos == {}
