"""The page served in this process, and asked as gradio's clients ask it."""

import gc
import json
from urllib.request import Request, urlopen

import gradio
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from spaces.app import load_page
from spaces.classifier import Classifier
from spaces.page import PICTURES, launch, picture_input
from spaces.reconstructor import Reconstructor
from spaces.settings import PageSettings
from tests.bad_files import bad_file
from tests.image_kinds import deep_kinds, transparent_kinds, turned
from tests.photographs import cut
from tests.spaces.saved_models import CLASSES, save_classifier, save_pretrained

PHOTOGRAPH = cut("coffee", 1, 64)[0]
# gradio leaves event loops and their sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module", autouse=True)
def nothing_left_for_other_tests():
    yield
    gc.collect()


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> PageSettings:
    folder = tmp_path_factory.mktemp("models")
    classifier = save_classifier(folder / "classifier", background="#20c040")
    return PageSettings(str(classifier), str(save_pretrained(folder / "pretrained")), "A title")


@pytest.fixture(scope="module")
def client(models):
    page = load_page(models)
    _, address, _ = launch(page, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    client = Client(address, verbose=False)
    yield client
    client.close()
    page.close()


def labels_of(page) -> list[str]:
    """The labels of what a page shows."""
    return [part["props"].get("label") for part in page.config["components"] if part["props"].get("visible", True)]


@pytest.mark.parametrize("kind", ["transparent", "16 bits", "turned"])
def test_the_page_answers_as_the_classifier_does_of_the_file(client, models, tmp_path, kind):
    stored = {
        "transparent": transparent_kinds(PHOTOGRAPH)["RGBA, PNG"],
        "16 bits": deep_kinds(PHOTOGRAPH)["16 bits, PNG"],
    }
    file = tmp_path / ("dropped.jpg" if kind == "turned" else "dropped.png")
    file.write_bytes(stored[kind] if kind in stored else turned(PHOTOGRAPH, 6))
    expected = Classifier(models.classifier or "")(file)
    answer = client.predict(handle_file(file), api_name="/classify")
    found = {each["label"]: each["confidence"] for each in answer["confidences"]}
    assert found == pytest.approx(expected, abs=1e-5) and set(found) == set(CLASSES)
    assert answer["label"] == max(found, key=found.__getitem__)


def test_gradios_own_input_would_change_a_transparent_file(tmp_path):
    """The control of the test above."""
    file = tmp_path / "dropped.png"
    file.write_bytes(transparent_kinds(PHOTOGRAPH)["RGBA, PNG"])
    payload = gradio.Image.data_model(path=str(file), orig_name="dropped.png")
    assert picture_input().preprocess(payload) == str(file)
    changed = gradio.Image(type="filepath").preprocess(payload)
    assert isinstance(changed, str)
    with Image.open(changed) as picture:
        assert picture.mode == "RGB"


def test_the_page_paints_as_the_model_does(client, models, tmp_path):
    file = tmp_path / "dropped.png"
    PHOTOGRAPH.save(file)
    expected = Reconstructor(models.pretrained or "")(file, 0.75, 5)
    *files, told = client.predict(handle_file(file), 0.75, 5, api_name="/reconstruct")
    assert "The encoder saw 4 of 16 cells." in told and "brightness and contrast" in told
    for found, picture in zip(files, (expected.visible, expected.painted, expected.original), strict=True):
        shown = np.asarray(Image.open(found["path"] if isinstance(found, dict) else found).convert("RGB")).astype(int)
        larger = picture.resize((384, 384), Image.Resampling.BICUBIC)
        assert shown.shape == (384, 384, 3) and np.abs(shown - np.asarray(larger)).max() <= 1


@pytest.mark.parametrize("kind", ["truncated", "empty", "wrong type", "decompression bomb"])
def test_a_file_that_is_no_picture_is_a_sentence_for_the_visitor(client, tmp_path, kind):
    file = tmp_path / "dropped.png"
    file.write_bytes(bad_file(kind, PHOTOGRAPH))
    for arguments in ([handle_file(file)], [handle_file(file), 0.5, 0]):
        name = "/classify" if len(arguments) == 1 else "/reconstruct"
        with pytest.raises(AppError) as raised:
            client.predict(*arguments, api_name=name)
        said = str(raised.value)
        assert said.startswith("This file cannot be read as an image") and "Traceback" not in said
        assert "/tmp" not in said and str(file.name) not in said


def test_a_share_that_leaves_nothing_visible_is_a_sentence_too(client, tmp_path):
    file = tmp_path / "dropped.png"
    PHOTOGRAPH.save(file)
    with pytest.raises(AppError, match="must leave at least one visible"):
        client.predict(handle_file(file), 0.95, 0, api_name="/reconstruct")


def test_a_file_of_the_server_that_nobody_dropped_is_not_opened(client, tmp_path):
    """Asked without gradio's client, which would upload the file."""
    PHOTOGRAPH.save(tmp_path / "private.png")
    file = {"path": str(tmp_path / "private.png"), "meta": {"_type": "gradio.FileData"}}
    address = f"{client.src}gradio_api/call/classify"
    body, header = json.dumps({"data": [file]}).encode(), {"Content-Type": "application/json"}
    with urlopen(Request(address, body, header)) as answer:
        event = json.load(answer)["event_id"]
    with urlopen(f"{address}/{event}") as answer:
        said = answer.read().decode()
    assert "event: error" in said and "confidences" not in said


def test_clients_may_call_these_two(client):
    assert set(client.view_api(return_format="dict", print_info=False)["named_endpoints"]) == {
        "/classify",
        "/reconstruct",
    }


def test_a_page_shows_the_parts_of_the_models_that_it_has(models, tmp_path):
    PHOTOGRAPH.save(tmp_path / "cup.png")
    both = load_page(models)
    classifier = load_page(PageSettings(models.classifier, None, examples=tmp_path))
    pretrained = load_page(PageSettings(None, models.pretrained))
    assert {"Answer", *PICTURES, "Hidden share", "Seed"} <= set(labels_of(both))
    assert "Answer" in labels_of(classifier) and not set(PICTURES) & set(labels_of(classifier))
    assert "Examples" in labels_of(classifier) and "Examples" not in labels_of(both)
    assert set(PICTURES) <= set(labels_of(pretrained)) and "Answer" not in labels_of(pretrained)
