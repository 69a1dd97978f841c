"""What a Space is to hold, gathered in a folder: page, package, requirements, README and the models in folders."""

import shutil
from pathlib import Path

from huggingface_hub import SpaceCard, SpaceCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from conversion.files import write_json
from conversion.model_folder import CARD, PROCESSOR, WEIGHT_PATTERNS
from conversion.publishing.hub_ids import is_hub_id
from space.publishing.contents import SpaceContents, space_license
from space.publishing.requirements import ROOT, gradio_version, requirements
from space.settings import EXAMPLES, FILE, MODEL, PRETRAINED, TITLE, find_pictures

PYTHON = "3.12"  # a Space has 3.10 unless its header says otherwise, and the package needs 3.11
START = '''"""Started by the Space: the page is in space/, the models' code in the package hf_convnextv2."""

from space.app import main

main([])
'''
MODELS = {MODEL: "models/classifier", PRETRAINED: "models/pretrained"}  # folders of a Space
OURS = ("app.py", "requirements.txt", "LICENSE", FILE.name, "space/", "hf_convnextv2/", "models/", "examples/")
PUBLISHES = ("publish.py",)  # modules of the page's folder that a Space has no use for


def stage_space(target: Path, contents: SpaceContents) -> Path:
    """Fill a new folder with the files of a Space; models and pictures are links."""
    target.mkdir()
    _copy_modules(ROOT / "space", target / "space", without=PUBLISHES)
    if contents.repository is None:
        _copy_modules(ROOT / "hf_convnextv2", target / "hf_convnextv2")
    shutil.copy(ROOT / "LICENSE", target)
    (target / "app.py").write_text(START, encoding="utf-8")
    (target / "requirements.txt").write_text(requirements(contents.repository), encoding="utf-8")
    for setting, folder in contents.folders.items():
        _link_model(folder, target / MODELS[setting])
    if contents.examples is not None:
        _link(find_pictures(Path(contents.examples)), target / "examples")
    write_json(target / FILE.name, page_settings(contents))
    (target / CARD).write_text(render_readme(contents), encoding="utf-8")
    return target


def page_settings(contents: SpaceContents) -> dict[str, str]:
    """What the Space's page reads: Hub ids, and folders beside it."""
    settings = {**contents.models, **{setting: MODELS[setting] for setting in contents.folders}}
    if contents.examples is not None:
        settings[EXAMPLES] = "examples"
    return {**settings, TITLE: contents.title}


def render_readme(contents: SpaceContents) -> str:
    """README.md of the Space: the header that the Hub reads, and what the page is."""
    header = SpaceCardData(
        title=contents.title,
        emoji="🧩",
        colorFrom="indigo",
        colorTo="blue",
        sdk="gradio",
        sdk_version=gradio_version(),
        python_version=PYTHON,
        app_file="app.py",
        pinned=False,
        license=space_license(contents),
        models=contents.hub_ids or None,
        tags=["vision", *(["masked-image-modeling"] if contents.pretrained else [])],
    )
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, keep_trailing_newline=True
    )
    shown = {"classifier": _described(contents.classifier), "pretrained": _described(contents.pretrained)}
    text = environment.get_template("readme.md").render(title=contents.title, **shown)
    return str(SpaceCard(f"---\n{header.to_yaml()}\n---\n\n{text}"))


def is_ours(name: str) -> bool:
    """Whether a file of a Space is one that a publication writes, under this name."""
    return any(name.startswith(ours) if ours.endswith("/") else name == ours for ours in OURS)


def _copy_modules(source: Path, target: Path, without: tuple[str, ...] = ()) -> None:
    """Copy the modules of a folder, without those in folders of it."""
    target.mkdir()
    for file in source.glob("*.py"):
        if file.name not in without:
            shutil.copy(file, target)


def _link_model(folder: Path, target: Path) -> None:
    """Links to what `from_pretrained` reads, and to the card, which says where the weights come from."""
    names = ("config.json", *WEIGHT_PATTERNS, "model.safetensors.index.json", PROCESSOR, CARD)
    _link([file for name in names for file in folder.glob(name)], target)


def _link(files: list[Path], target: Path) -> None:
    target.mkdir(parents=True)
    for file in files:
        (target / file.name).symlink_to(file.resolve())


def _described(name: str | None) -> str | None:
    """A model as text: a link to its page on the Hub, or the name of its folder."""
    if name is None:
        return None
    return f"[{name}](https://huggingface.co/{name})" if is_hub_id(name) else f"`{Path(name).name}`"
