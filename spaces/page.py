"""The page: a visitor drops a picture; the classifier names it, the pre-trained model paints what it does not see."""

import functools
import html
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]
import gradio.themes as themes  # pyright: ignore[reportMissingImports]
from PIL import Image

from .classifier import Classifier
from .pictures import remarks
from .reconstructor import LARGEST_SEED, Reconstructor
from .settings import PageSettings, find_pictures, introduce

NUM_CLASSES = 5  # the most probable ones are shown
SHOWN_SIDE = 384  # pixels; smaller pictures are enlarged
KEPT_SECONDS = 3600  # a visitor's file
PICTURES = ("Visible to the encoder", "Reconstruction of the rest", "Original")
BUTTONS = ["download", "fullscreen"]  # none that shares a picture with others
SYSTEM_FONTS = ["system-ui", "sans-serif"]  # nothing is loaded from elsewhere
CSS = ".gradio-container {max-width: 1000px !important; margin: 0 auto}"


def create_page(
    settings: PageSettings, classifier: Classifier | None, reconstructor: Reconstructor | None
) -> gr.Blocks:
    """The page for one model or both."""
    # Every so many seconds, gradio deletes what is older than so many.
    with gr.Blocks(title=settings.title, analytics_enabled=False, delete_cache=(600, KEPT_SECONDS)) as page:
        gr.Markdown(f"# {settings.title}\n\n{introduce(settings.classifier, settings.pretrained)}")
        with gr.Row():
            with gr.Column():
                picture = picture_input()
                remarked = gr.Markdown(elem_id="remarks")
                _add_examples(settings.examples, picture)
            with gr.Column():
                answers = _add_answers(classifier) if classifier else None
                controls = _add_controls(reconstructor) if reconstructor else []
        shown: list[Any] = []
        if reconstructor:
            with gr.Row():
                options: dict[str, Any] = {"format": "png", "interactive": False, "height": 320, "buttons": BUTTONS}
                shown = [gr.Image(label=label, **options) for label in PICTURES]
            shown.append(gr.Markdown(elem_id="cells"))
        gr.Markdown("Your picture goes to the computer that serves this page, which deletes it after about an hour.")
        _connect(picture, remarked, answers, controls, shown, classifier, reconstructor)
    return page


def launch(page: gr.Blocks, port: int | None = None, **options: Any) -> Any:
    """Serve the page; gradio's environment variables say where, if the port is not given."""
    theme = themes.Default(font=SYSTEM_FONTS, font_mono=["ui-monospace", "monospace"])
    shown: dict[str, Any] = {"theme": theme, "css": CSS, "footer_links": ["api", "gradio"], "run_history": False}
    return page.launch(server_port=port, max_file_size="50mb", **shown, **options)


def picture_input() -> gr.Image:
    """A picture as the visitor's file: gradio would drop transparency, clip 16 bits and hide what is wrong with it."""
    picture = gr.Image(type="filepath", sources=["upload", "clipboard"], label="Picture", height=320)
    # Not in a class of its own: gradio writes a stub beside the file of each.
    picture.preprocess = lambda payload: None if payload is None else payload.path
    return picture


def _add_examples(folder: Path | None, picture: gr.Image) -> None:
    if folder is not None:
        files = [[str(file)] for file in find_pictures(folder)]
        gr.Examples(files, [picture], cache_examples=False, label="Examples")


def _add_answers(classifier: Classifier) -> gr.Label:
    return gr.Label(label="Answer", num_top_classes=NUM_CLASSES, show_heading=classifier.gives_one_class)


def _add_controls(reconstructor: Reconstructor) -> list[Any]:
    """The share of hidden cells, and the seed that says which ones."""
    side = reconstructor.cell_size
    label, told = "Hidden share", f"of the cells of {side} x {side} pixels; {reconstructor.mask_ratio:.0%} in training"
    ratio = gr.Slider(0.05, 0.95, reconstructor.mask_ratio, step=0.05, label=label, info=told)
    with gr.Row(equal_height=True):
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=LARGEST_SEED, min_width=80)
        another = gr.Button("Hide other cells", min_width=120)
    another.click(lambda: random.randrange(1000), None, seed, api_visibility="private", show_progress="hidden")
    return [ratio, seed]


def _connect(
    picture: gr.Image,
    remarked: gr.Markdown,
    answers: gr.Label | None,
    controls: list[Any],
    shown: list[Any],
    classifier: Classifier | None,
    reconstructor: Reconstructor | None,
) -> None:
    """Answer when the picture changes, and paint anew when a control does. Clients call /classify and /reconstruct."""

    def classify(file: str | None) -> Any:
        return classifier(file) if classifier and file else None

    def reconstruct(file: str | None, mask_ratio: float, seed: int | None) -> tuple[Any, ...]:
        return _pictures(reconstructor, file, mask_ratio, seed or 0) if reconstructor and file else (None,) * 4

    # One function for both answers: a file that is no picture is reported once.
    def answer(file: str | None, *values: Any) -> list[Any]:
        found = [*([classify(file)] if classifier else ()), *(reconstruct(file, *values) if reconstructor else ())]
        return [*found, " ".join(remarks(file)) if file else ""]

    outputs = [*([answers] if classifier else ()), *shown, remarked]
    latest: dict[str, Any] = {"trigger_mode": "always_last"}
    picture.change(_reported(answer), [picture, *controls], outputs, api_visibility="private", **latest)
    if answers is not None:
        for_clients = gr.Button(visible=False)
        for_clients.click(_reported(classify), [picture], [answers], api_name="classify")
    if reconstructor:
        ratio, seed = controls
        triggers = [ratio.release, seed.change]
        gr.on(triggers, _reported(reconstruct), [picture, ratio, seed], shown, api_name="reconstruct", **latest)


def _pictures(reconstructor: Reconstructor, file: str, mask_ratio: float, seed: int) -> tuple[Any, ...]:
    found = reconstructor(file, mask_ratio, seed)
    told = f"The encoder saw {found.num_visible} of {found.num_cells} cells."
    if reconstructor.is_normalised:
        told += (
            " The model predicts each hidden cell up to brightness and contrast: these two are the original's, so look "
            "at shapes and edges."
        )
    return (*map(_enlarged, (found.visible, found.painted, found.original)), told)


def _enlarged(picture: Image.Image) -> Image.Image:
    """A small picture in a whole multiple of its size, for the browser would show it small."""
    scale = max(1, SHOWN_SIDE // max(picture.size))
    return picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.BICUBIC)


def _reported(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with what it refuses as a message to the visitor instead of an error of the server."""

    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except ValueError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error

    return wrapper
