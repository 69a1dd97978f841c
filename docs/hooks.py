"""What the site shows beyond its pages: the settings of the scripts, the changelog and the model card."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ("pretrain", "finetune", "segment", "detect", "validate", "predict", "embed", "nearest", "compare", "analyze")
COPIES = {"changelog.md": "CHANGELOG.md", "model_card.md": "MODEL_CARD.md"}
SETTING = re.compile(r"  --(?P<name>\w+)(?: (?P<value>\S.*?))?(?:  +(?P<help>\S.*))?")


class Setting(NamedTuple):
    """A flag as `--help` prints it."""

    name: str
    value: str
    help: str


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by MkDocs with the text of each page."""
    name = page.file.src_uri
    if name == "settings.md":
        return "\n".join([markdown, *map(settings_table, SCRIPTS)])
    return copied(ROOT / COPIES[name]) if name in COPIES else markdown


def copied(file: Path) -> str:
    """A page at the root of the repository, without front matter, with its links as seen from here."""
    text = re.sub(r"\A---\n.*?\n---\n", "", file.read_text(encoding="utf-8"), flags=re.S)
    return text.replace("](docs/", "](")


def settings_table(script: str) -> str:
    """The settings of a script as Markdown: a section for each group, a row for each flag."""
    lines = [f"\n## {script}.py"]
    for group, settings in read_help(help_of(script)).items():
        lines += [
            "",
            f"### {group.capitalize() if group.islower() else group}",
            "",
            "| Setting | Value | Meaning |",
            "|---|---|---|",
        ]
        lines += [
            f"| `{name}` | {value and f'`{value}`'} | {cell(text)} |"
            for name, value, text in settings
            if name != "help"
        ]
    return "\n".join(lines)


def cell(text: str) -> str:
    """Text in a table: no column may end in it, and nothing in it is a tag."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def help_of(script: str) -> str:
    """What `--help` prints, with each setting on one line."""
    command = [sys.executable, f"training/{script}.py", "--help"]
    environment = {**os.environ, "COLUMNS": "2000", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout


def read_help(text: str) -> dict[str, list[Setting]]:
    """The settings of each group of a page of `--help`.

    Raises:
        ValueError: for a line that is neither a flag nor the help of the flag above, which would be left out.
    """
    groups: dict[str, list[Setting]] = {}
    group = None
    for line in text.splitlines():
        if re.fullmatch(r"\S.*:", line):
            group = groups.setdefault(line.removesuffix(":"), [])
        elif group is None or not line.strip():
            continue
        elif found := SETTING.fullmatch(line):
            group.append(Setting(found["name"], found["value"] or "", found["help"] or ""))
        elif line.startswith("   ") and group:
            group[-1] = group[-1]._replace(help=f"{group[-1].help} {line.strip()}".strip())
        elif not line.startswith(" "):
            group = None  # what follows the flags
        else:
            raise ValueError(f"`--help` (={line!r}) must be a setting, or the help of one.")
    return {title: settings for title, settings in groups.items() if settings}
