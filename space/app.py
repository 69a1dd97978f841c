"""Serve a page that shows a classifier, a pre-trained model, or both.

python -m space.app --classifier out/classifier --pretrained out/pretrain
MODEL=me/name PRETRAINED_MODEL=me/pretrained python -m space.app
"""

import argparse
import sys
from importlib.util import find_spec
from typing import Any

from space.settings import EXAMPLES, MODEL, PRETRAINED, TITLE, PageSettings, read_settings


def create_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    style: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser("python -m space.app", description=__doc__, **style)
    parser.add_argument("--classifier", help=f"classifier: folder or Hub id (default: the variable {MODEL})")
    parser.add_argument(
        "--pretrained", help=f"pre-trained model with its decoder: folder or Hub id (default: {PRETRAINED})"
    )
    parser.add_argument("--title", help=f"title of the page (default: {TITLE})")
    parser.add_argument("--examples", help=f"folder of pictures that a visitor can choose (default: {EXAMPLES})")
    parser.add_argument("--port", type=int, help="port of the page (default: GRADIO_SERVER_PORT, else a free one)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Load the models and serve the page until it is stopped; an error of the user ends it with one line and code 2."""
    parser = create_parser()
    options = parser.parse_args(arguments)
    given = {
        MODEL: options.classifier,
        PRETRAINED: options.pretrained,
        TITLE: options.title,
        EXAMPLES: options.examples,
    }
    try:
        page = load_page(read_settings(given))
    except (ValueError, ImportError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    from space.page import launch

    launch(page, options.port)


def load_page(settings: PageSettings) -> Any:
    """The page with its models loaded.

    Raises:
        ValueError: for a model that cannot be shown.
        ImportError: if gradio is not installed.
    """
    if find_spec("gradio") is None:
        raise ImportError("The page needs gradio: pip install -e '.[space]'")
    # Here, not above: they take seconds, and a wrong flag is to be reported at once.
    from space.classifier import Classifier
    from space.page import create_page
    from space.reconstructor import Reconstructor

    classifier = Classifier(settings.classifier) if settings.classifier else None
    reconstructor = Reconstructor(settings.pretrained) if settings.pretrained else None
    return create_page(settings, classifier, reconstructor)


if __name__ == "__main__":
    main(sys.argv[1:])
