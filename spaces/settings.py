"""What the page shows: as given, else as environment variables say, else as the file beside a Space's app.py says.

The page's modules import each other relatively: a Space has them in a folder of another name.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MODEL, PRETRAINED, TITLE, EXAMPLES = "MODEL", "PRETRAINED_MODEL", "TITLE", "EXAMPLES"
FILE = Path(__file__).resolve().parents[1] / "space.json"
FLAGS = {MODEL: "--classifier", PRETRAINED: "--pretrained"}
DEFAULT_TITLE = "ConvNeXt V2"
EXAMPLE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # that every browser shows


@dataclass(frozen=True)
class PageSettings:
    """What the page shows.

    classifier, pretrained: folders or Hub ids; one of them may be None.
    examples: a folder of pictures that a visitor can choose.
    """

    classifier: str | None
    pretrained: str | None
    title: str = DEFAULT_TITLE
    examples: Path | None = None


def read_settings(
    given: Mapping[str, str | None], environment: Mapping[str, str] = os.environ, file: Path = FILE
) -> PageSettings:
    """The settings by the names above.

    Raises:
        ValueError: if no model is named, the file is not a JSON object of texts, or the examples are no pictures.
    """
    stored = _read_file(file)

    def value(name: str) -> str | None:
        return given.get(name) or environment.get(name) or stored.get(name) or None

    classifier, pretrained, examples = value(MODEL), value(PRETRAINED), value(EXAMPLES)
    if not classifier and not pretrained:
        flags = " or ".join(FLAGS.values())
        raise ValueError(
            f"`{MODEL}` or `{PRETRAINED}` (both unset) must name a model: set one as an environment variable, or give "
            f"{flags}."
        )
    if examples:
        find_pictures(Path(examples))
    return PageSettings(classifier, pretrained, value(TITLE) or DEFAULT_TITLE, Path(examples) if examples else None)


def find_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder that a visitor can choose, by name.

    Raises:
        ValueError: if there are none.
    """
    found = sorted(file for file in folder.glob("*") if file.suffix.lower() in EXAMPLE_SUFFIXES)
    if not found:
        known = ", ".join(EXAMPLE_SUFFIXES)
        raise ValueError(f"`examples` (={folder}) must be a folder with pictures that end in {known}.")
    return found


def introduce(classifier: str | None, pretrained: str | None) -> str:
    """What a visitor can do, in Markdown."""
    sentences = ["Drop a picture."]
    if classifier:
        sentences.append(f"The classifier {_link(classifier)} says what it shows.")
    if pretrained:
        sentences.append(f"The pre-trained model {_link(pretrained)} sees some of its cells and paints the others.")
    return " ".join(sentences)


def _link(name: str) -> str:
    """A model's page on the Hub; of a folder only its name."""
    return f"`{Path(name).name}`" if Path(name).is_dir() else f"[{name}](https://huggingface.co/{name})"


def _read_file(file: Path) -> dict[str, str]:
    """The settings in a Space's file; its folders are named relative to the file."""
    if not file.is_file():
        return {}
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} must be JSON: {error}") from error
    if not isinstance(stored, dict) or not all(isinstance(value, str) for value in stored.values()):
        raise ValueError(f"{file} must hold a JSON object whose values are texts.")
    beside = {name: file.parent / value for name, value in stored.items()}
    return {name: str(beside[name]) if beside[name].is_dir() else value for name, value in stored.items()}
