"""A published Space as a visitor meets it: started as the Hub starts it, in a browser that drops files on it."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from spaces.publishing.contents import SpaceContents
from spaces.publishing.staging import stage_space
from tests.bad_files import bad_file
from tests.photographs import cut
from tests.spaces.saved_models import CLASSES, save_classifier, save_pretrained

pytestmark = pytest.mark.slow
BROWSERS = ("/usr/bin/chromium", "/usr/bin/google-chrome")
START_SECONDS = 120


@pytest.fixture(scope="module")
def browser():
    """Chromium of the system: Playwright's own is not downloaded."""
    found = [file for file in BROWSERS if Path(file).is_file()]
    assert found, "This test needs Chromium: apt-get install chromium"
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError as error:
        raise AssertionError("This test needs Playwright: pip install -e '.[space,space-test]'") from error
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found[0], args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A Space that runs, with `python app.py` in its folder."""
    folder = tmp_path_factory.mktemp("published")
    models = {
        "classifier": save_classifier(folder / "classifier"),
        "pretrained": save_pretrained(folder / "pretrained"),
    }
    (folder / "pictures").mkdir()
    cut("rocket", 1, 200)[0].save(folder / "pictures/rocket.png")
    contents = SpaceContents(**{name: str(path) for name, path in models.items()}, examples=str(folder / "pictures"))
    staged = stage_space(folder / "space", contents)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
    }
    with (folder / "log").open("w") as log:
        command = [sys.executable, "app.py"]
        process = subprocess.Popen(command, cwd=staged, env={**os.environ, **variables}, stdout=log, stderr=log)
        try:
            wait_for(f"http://127.0.0.1:{port}", process, folder / "log")
            yield f"http://127.0.0.1:{port}"
            assert any(path.is_file() for path in (folder / "uploads").rglob("*"))
        finally:
            process.terminate()
            process.wait()
    assert "Traceback" not in (folder / "log").read_text()
    left = [path.name for path in (folder / "uploads").rglob("*") if path.is_file()]
    assert set(left) <= {"rocket.png"}, "an example; visitors' files are deleted"


def wait_for(address: str, process: subprocess.Popen, log: Path) -> None:
    """Return when the page answers."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urlopen(address):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())


@pytest.fixture
def page(browser, address):
    """The page in a new window; a request to another machine, or an error of its scripts, fails the test."""
    context = browser.new_context(viewport={"width": 1100, "height": 1000})
    page = context.new_page()
    elsewhere, errors = [], []
    page.on("request", lambda request: elsewhere.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.get_by_text("Drop a picture.").wait_for()
    yield page
    own = (address, "data:", "blob:")
    assert [url for url in elsewhere if not url.startswith(own)] == [] and errors == []
    context.close()


def drop(page, file: Path) -> None:
    page.locator("input[type=file]").first.set_input_files(file)


def wait_for_cells(page, text: str) -> None:
    page.locator("#cells", has_text=text).wait_for(timeout=30_000)


def sources_of(page) -> list[str]:
    """The addresses of the three pictures."""
    pictures = page.locator("[data-testid=image] img, .image-frame img")
    return [pictures.nth(number).get_attribute("src") for number in range(pictures.count())]


def test_a_visitor_drops_a_picture_and_hides_other_cells(page, tmp_path):
    cut("coffee", 1, 200)[0].save(tmp_path / "cup.png")
    drop(page, tmp_path / "cup.png")
    wait_for_cells(page, "The encoder saw 6 of 16 cells.")
    answers = page.locator("[data-testid$=confidence-set], .confidence-set").all_inner_texts()
    assert len(answers) == 5 and all(any(name in answer for answer in answers) for name in CLASSES)
    before = sources_of(page)
    assert len(before) >= 3
    page.get_by_role("button", name="Hide other cells").click()
    page.wait_for_function("before => [...document.images].every(image => image.src != before)", arg=before[-2])
    share = page.get_by_label("number input for Hidden share")
    share.fill("0.25")
    share.press("Tab")
    wait_for_cells(page, "The encoder saw 12 of 16 cells.")
    page.screenshot(path=tmp_path / "page.png", full_page=True)


def test_a_visitor_chooses_an_example(page, tmp_path):
    page.locator(".gallery-item, [data-testid=examples] button, .gallery button").first.click()
    wait_for_cells(page, "The encoder saw 6 of 16 cells.")


def test_a_visitor_who_drops_no_picture_reads_why(page, tmp_path):
    file = tmp_path / "broken.png"
    file.write_bytes(bad_file("truncated", cut("coffee", 1, 200)[0]))
    drop(page, file)
    message = page.get_by_text("This file cannot be read as an image")
    message.first.wait_for(timeout=30_000)
    assert message.count() == 1, "reported once, by both models together"
    assert "Traceback" not in page.inner_text("body")
    page.screenshot(path=tmp_path / "page.png", full_page=True)
