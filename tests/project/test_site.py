"""The site: its pages, and what it makes of the scripts' `--help`, the changelog and the model card."""

import re
from types import SimpleNamespace

import pytest
import yaml

from docs.hooks import COPIES, SCRIPTS, help_of, on_page_markdown, read_help, settings_table
from tests.readme import ROOT

CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def shown(name: str) -> str:
    """The Markdown of a page of the site."""
    page = SimpleNamespace(file=SimpleNamespace(src_uri=name))
    return on_page_markdown((ROOT / "docs" / name).read_text(), page=page)


def test_every_page_is_in_the_navigation_once():
    pages = [
        page
        for section in CONFIG["nav"]
        for entries in section.values()
        for entry in entries
        for page in entry.values()
    ]
    written = {file.name for file in (ROOT / "docs").glob("*.md")} - {CONFIG["not_in_nav"]}
    assert len(pages) == len(set(pages)) and set(pages) == written
    assert all(f"]({page})" in (ROOT / "docs/index.md").read_text() for page in written - {"index.md"})


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_settings_of_a_script_are_all_in_its_table(script):
    flags = re.findall(r"^  --(?!help)(\w+)", help_of(script), re.M)
    rows = re.findall(r"^\| `(\w+)` \|", settings_table(script), re.M)
    assert len(flags) > 20 and [name for name in rows if name in flags] == flags
    assert set(flags) == set(rows)
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in settings_table(script).splitlines() if line[:1] == "|"}
    assert columns == {4}


def test_every_key_of_a_recipe_is_on_the_page_of_settings():
    page = shown("settings.md")
    keys = {key for file in (ROOT / "training/recipes").glob("*.yaml") for key in yaml.safe_load(file.read_text())}
    assert len(keys) > 20 and {key for key in keys if f"| `{key}` |" not in page} == set()


def test_help_that_is_not_understood_is_an_error():
    text = "usage: x\n\noptions:\n  --one INT            a number (default: 1)\n  --two\n{}a switch\n\nThe end.\n"
    (settings,) = read_help(text.format(" " * 12)).values()
    assert settings == [("one", "INT", "a number (default: 1)"), ("two", "", "a switch")]
    with pytest.raises(ValueError, match="a switch"):
        read_help(text.format("  "))


@pytest.mark.parametrize("name", COPIES)
def test_a_copied_page_has_its_title_and_links_that_hold_in_docs(name):
    text = shown(name)
    assert text.lstrip().startswith("# ") and "front matter" not in text and not text.startswith("---")
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        assert target.startswith("https://") or (ROOT / "docs" / target).exists(), target
