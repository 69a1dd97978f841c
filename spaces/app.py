"""Serve a page that shows a classifier, a pre-trained model, or both.

python -m spaces.app --classifier out/classifier --pretrained out/pretrain
MODEL=me/name PRETRAINED_MODEL=me/pretrained python -m spaces.app
"""

import argparse
import signal
import socket
import sys
from importlib.util import find_spec
from typing import Any

from .settings import EXAMPLES, MODEL, PRETRAINED, TITLE, PageSettings, read_settings


def create_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    style: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser("python -m spaces.app", description=__doc__, **style)
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
        settings = read_settings(given)
        if options.port is not None:
            _check_port(options.port)
        page = load_page(settings)
        from .page import launch

        # As Ctrl-C does: gradio then deletes the files of its visitors.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        launch(page, options.port)
    except (ValueError, ImportError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")


def load_page(settings: PageSettings) -> Any:
    """The page with its models loaded.

    Raises:
        ValueError: for a model that cannot be shown.
        ImportError: if gradio is not installed.
    """
    if find_spec("gradio") is None:
        raise ImportError("The page needs gradio: pip install -e '.[space]'")
    # Here, not above: they take seconds, and a wrong flag is to be reported at once.
    from .classifier import Classifier
    from .page import create_page
    from .reconstructor import Reconstructor

    classifier = Classifier(settings.classifier) if settings.classifier else None
    reconstructor = Reconstructor(settings.pretrained) if settings.pretrained else None
    return create_page(settings, classifier, reconstructor)


def _check_port(port: int) -> None:
    """Raise unless it can be a port, and nothing answers there."""
    if not 1 <= port <= 65535:
        raise ValueError(f"`--port` (={port}) must be between 1 and 65535.")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise ValueError(f"`--port` (={port}) must be free, but another program uses it. Choose another port.")


if __name__ == "__main__":
    main(sys.argv[1:])
