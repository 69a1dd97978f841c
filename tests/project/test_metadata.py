"""What describes the package to others: version, citation, and the checks before a commit."""

import re
import tomllib

import yaml

import hf_convnextv2
from tests.readme import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_the_version_is_the_same_everywhere():
    newest = re.findall(r"^## \[(\d[^]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)[0]
    assert {PROJECT["version"], hf_convnextv2.__version__, CITATION["version"], newest} == {PROJECT["version"]}


def test_the_citation_is_complete_and_names_the_paper_as_the_card_does():
    assert {"cff-version", "message", "title", "authors"} <= set(CITATION)  # what the format requires
    assert CITATION["license"] == PROJECT["license"] and CITATION["abstract"] == PROJECT["description"]
    paper, card = CITATION["preferred-citation"], (ROOT / "MODEL_CARD.md").read_text()
    assert f"title     = {{{paper['title']}}}" in card and f"year      = {{{paper['year']}}}" in card
    assert paper["url"] == PROJECT["urls"]["Paper"] and f"{{{paper['url']}}}" in card
    authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert f"author    = {{{authors}}}" in card


def test_the_hooks_before_a_commit_are_the_checks_of_make_style_and_need_no_network():
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook for repository in repositories for hook in repository["hooks"]]
    assert {repository["repo"] for repository in repositories} == {"local"}
    assert {hook["language"] for hook in hooks} == {"system"}
    style = (ROOT / "Makefile").read_text().split("\nstyle:")[1].split("\n\n")[0]
    assert re.findall(r"\$\(BIN\)/(ruff \w+|\w+)", style) == [
        re.match(r"ruff \w+|\w+", hook["entry"])[0]  # type: ignore[index]
        for hook in hooks
    ]


def test_the_issue_forms_ask_what_is_needed():
    forms = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    assert {form.stem for form in forms} == {"bug", "config", "feature"}
    for form in forms:
        content = yaml.safe_load(form.read_text())
        if form.stem != "config":
            assert {"name", "description", "body"} <= set(content)
            assert all({"label"} <= set(part["attributes"]) and part["id"] for part in content["body"])
