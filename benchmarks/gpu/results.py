"""What was found, in the JSON file from the first row on: the command may be killed at any second."""

import json
from pathlib import Path
from typing import Any


class Results:
    """The machine, what is left out there, and the parts with their rows.

    Parts that an earlier run wrote to the same file, and this one does not run again, are kept; those of another
    machine with a description of it.
    """

    def __init__(self, output: str, parts: list[str]) -> None:
        self.path = Path(output) if output else None
        self.of_this_run = ["machine", *parts]
        self.machine: dict[str, str] = {}
        self.left_out: list[str] = []
        earlier = json.loads(self.path.read_text()) if self.path and self.path.exists() else {"parts": {}}
        self.parts: dict[str, dict[str, Any]] = {
            name: {"machine": earlier["machine"], **part}
            for name, part in earlier["parts"].items()
            if name not in self.of_this_run
        }

    def describe(self, machine: dict[str, str], left_out: list[str]) -> None:
        """Say what this run is on."""
        self.machine, self.left_out = machine, left_out
        for part in self.parts.values():
            if part.get("machine") == machine:
                del part["machine"]
        self.write()

    def set(self, name: str, part: dict[str, Any]) -> None:
        """Keep what a part has found so far, and write it if it is more than before."""
        before = self.parts.get(name, {"rows": None, "error": None})
        self.parts[name] = part
        if any(before[key] != part[key] for key in ("rows", "error")):
            self.write()

    def write(self) -> None:
        """Write a whole file beside the old one, and then put it in its place."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.partial")
        found = {"machine": self.machine, "left_out": self.left_out, "parts": self.parts}
        temporary.write_text(json.dumps(found, indent=2) + "\n")
        temporary.replace(self.path)

    def failures(self) -> list[str]:
        """A line for each part of this run that failed and each of its rows that is wrong."""
        parts = {name: part for name, part in self.parts.items() if name in self.of_this_run}
        failed = [f"{name}: {part['error']}" for name, part in parts.items() if part["error"]]
        for name, part in parts.items():
            failed += [f"{name}: {json.dumps(row)}" for row in part["rows"] if row.get("ok") is False]
        return failed
