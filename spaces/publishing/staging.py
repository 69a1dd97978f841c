"""What a Space is to hold, gathered in a folder: page, package, requirements, README and the models in folders."""

import shutil
import tomllib
from pathlib import Path
from typing import Any

from huggingface_hub import SpaceCard, SpaceCardData

from conversion.files import link_files, write_json
from conversion.model_folder import CARD, LOADED
from spaces.publishing.contents import SpaceContents
from spaces.settings import EXAMPLES, FILE, MODEL, PRETRAINED, TITLE, find_pictures, introduce

ROOT = Path(__file__).resolve().parents[2]
# Folders of this repository, and what a Space calls them. gradio takes a module `spaces` for the one that the Hub has.
CODE = {"spaces": "page", "hf_convnextv2": "hf_convnextv2"}
START = '''"""Started by the Space: the page is in page/, the models' code in hf_convnextv2/."""

from page.app import main

main([])
'''
PUBLISHES = "publish.py"  # beside the page, which has no use for it
MODELS = {MODEL: "models/classifier", PRETRAINED: "models/pretrained"}  # folders of a Space
OURS = ("app.py", "requirements.txt", "LICENSE", FILE.name, "models/", "examples/", *(f"{to}/" for to in CODE.values()))
PYTHON = "3.12"  # a Space has 3.10 unless its header says otherwise, and the package needs 3.11
TORCHVISION = "detection"  # the extra that brings it: images are resized as in training
CPU_WHEELS = "--extra-index-url https://download.pytorch.org/whl/cpu"  # without gigabytes of CUDA's libraries
ADVICE = """
The variables `MODEL` and `PRETRAINED_MODEL` in the settings of this Space name other models, `TITLE` another title. A
private model needs a token that may read it, as the secret `HF_TOKEN`.

`requirements.txt` asks for PyTorch for CPUs. If the Space gets a GPU, remove its first line.
"""


def stage_space(target: Path, contents: SpaceContents) -> Path:
    """Fill a new folder with the files of a Space; models and pictures are links."""
    target.mkdir()
    for source, name in CODE.items():
        (target / name).mkdir()
        for file in (ROOT / source).glob("*.py"):
            if file.name != PUBLISHES:
                shutil.copy(file, target / name)
    shutil.copy(ROOT / "LICENSE", target)
    (target / "app.py").write_text(START, encoding="utf-8")
    (target / "requirements.txt").write_text(requirements(), encoding="utf-8")
    for setting, folder in contents.folders.items():
        # The card says where the weights come from.
        link_files((file for name in (*LOADED, CARD) for file in folder.glob(name)), target / MODELS[setting])
    if contents.examples is not None:
        link_files(find_pictures(Path(contents.examples)), target / "examples")
    write_json(target / FILE.name, page_settings(contents))
    (target / CARD).write_text(render_readme(contents), encoding="utf-8")
    return target


def page_settings(contents: SpaceContents) -> dict[str, Any]:
    """What the Space's page reads: Hub ids, and folders beside it."""
    settings = {**contents.models, **{setting: MODELS[setting] for setting in contents.folders}}
    if contents.examples is not None:
        settings[EXAMPLES] = "examples"
    return {**settings, TITLE: contents.title}


def requirements() -> str:
    """The text of requirements.txt: what the package needs. README.md names the version of gradio."""
    project = _project()
    lines = [CPU_WHEELS, *project["dependencies"], *project["optional-dependencies"][TORCHVISION]]
    return "\n".join(lines) + "\n"


def render_readme(contents: SpaceContents) -> str:
    """README.md of the Space: the header that the Hub reads, and what the page is."""
    # The version that the page was tested with.
    (gradio,) = (line for line in _project()["optional-dependencies"]["space"] if line.startswith("gradio>="))
    header = SpaceCardData(
        title=contents.title,
        emoji="🧩",
        colorFrom="indigo",
        colorTo="blue",
        sdk="gradio",
        sdk_version=gradio.removeprefix("gradio>="),
        python_version=PYTHON,
        app_file="app.py",
        pinned=False,
        license=contents.settled_license,
        models=contents.hub_ids or None,
        tags=["vision", *(["masked-image-modeling"] if contents.pretrained else [])],
    )
    introduction = introduce(contents.classifier, contents.pretrained)
    return str(SpaceCard(f"---\n{header.to_yaml()}\n---\n\n# {contents.title}\n\n{introduction}\n{ADVICE}"))


def is_ours(name: str) -> bool:
    """Whether a file of a Space is one that a publication writes, under this name."""
    return any(name.startswith(ours) if ours.endswith("/") else name == ours for ours in OURS)


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
