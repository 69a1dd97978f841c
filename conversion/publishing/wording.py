"""Values and names as the text of a card."""

from pathlib import Path
from typing import Any


def describe_origin(name: str, kind: str, is_local: bool) -> str:
    """A Hub id as it is; of a local path only its last part, since the rest tells a reader elsewhere nothing."""
    return f"{kind} `{Path(name).name}`" if is_local else f"`{name}`"


def format_value(value: Any, is_path: bool = False) -> str:
    """A setting or figure as text for a table in Markdown; of a path only its last part."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(format_value(each, is_path) for each in value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return in_cell(Path(value).name if is_path else str(value))


def format_cell(column: str, value: str) -> str:
    """A cell of the table of classes, in Markdown: shares in percent, the name of a class in one line."""
    if column in ("precision", "recall", "f1", "iou", "ap", "ap50", "mask_ap"):
        return f"{100 * float(value):.1f} %" if value else "-"
    return in_cell(value)


def in_cell(text: str) -> str:
    """A text in a table in Markdown: one line, no HTML, and no end of a cell."""
    return format_name(text).replace("|", "\\|")


def format_name(name: str) -> str:
    """The name of a class in Markdown: in one line, and no HTML."""
    return " ".join(name.split()).replace("<", "&lt;")


def format_number(text: str) -> str:
    """A cell of the table of values; a dash where there is none."""
    return f"{float(text):.4g}" if text else "-"
