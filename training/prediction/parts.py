"""The answers of an unfinished run, in parts, so that the same command goes on after a stop or a kill."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from conversion.files import atomic_path, read_json, write_json
from training.settings.checks import check

SECONDS_BETWEEN_PARTS = 20.0
MOST_RECORDS = 10_000  # in memory
Answer = dict[str, Any]  # what is said of one image


class Parts:
    """Answers to consecutive images, in files of a folder beside the output: `part-FIRST-END.jsonl`.

    A part is there as a whole or not at all, so the parts say how many images are done. `record` is all that the
    answers depend on: parts with another record are not continued.
    """

    def __init__(self, output: Path, record: dict[str, Any]) -> None:
        self.folder = output.with_name(f"{output.name}.partial")
        self.output, self.record = output, json.loads(json.dumps(record))
        self.num_done = 0  # images in parts
        self.pending: list[Answer] = []
        self.last_part = time.monotonic()

    @property
    def is_new(self) -> bool:
        """Whether no run has begun that could be continued."""
        return not (self.folder / "record.json").exists()

    def begin(self, overwrite: bool) -> int:
        """The number of images that are done. With `overwrite`, parts of other settings are deleted."""
        stored = read_json(self.folder / "record.json")
        if stored != self.record:
            changed = [name for name in {**stored, **self.record} if stored.get(name) != self.record.get(name)]
            rule = f"go on as it began, but {differences(stored, self.record, changed)}. Start with `--overwrite true`"
            check("output_file", self.output, overwrite or not stored, rule)
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "record.json", self.record)
        for file in self.files():
            first, end = bounds(file)
            if first == self.num_done:
                self.num_done = end
            else:  # what lies after a gap is done again
                file.unlink()
        return self.num_done

    def add(self, answers: list[Answer]) -> None:
        """Add the answers to the next images; they are written from time to time."""
        self.pending += answers
        is_late = time.monotonic() - self.last_part >= SECONDS_BETWEEN_PARTS
        if is_late or len(self.pending) >= MOST_RECORDS:
            self.write()

    def write(self) -> None:
        """Write the answers that are in no part."""
        if self.pending:
            end = self.num_done + len(self.pending)
            with atomic_path(self.folder / f"part-{self.num_done:012d}-{end:012d}.jsonl") as new:
                new.write_text("".join(f"{json.dumps(answer)}\n" for answer in self.pending), encoding="utf-8")
            self.num_done, self.pending = end, []
        self.last_part = time.monotonic()

    def __iter__(self) -> Iterator[Answer]:
        """The answers to all images that are done, in order."""
        for file in self.files():
            with file.open(encoding="utf-8") as lines:
                yield from map(json.loads, lines)

    def files(self) -> list[Path]:
        """The parts in order."""
        return sorted(self.folder.glob("part-*.jsonl"))

    def remove(self) -> None:
        """Delete the folder; without its record first, what a kill leaves of it is not continued."""
        with suppress(OSError):
            (self.folder / "record.json").unlink()
        shutil.rmtree(self.folder, ignore_errors=True)


def bounds(file: Path) -> tuple[int, int]:
    """The first image of a part, and the one after its last."""
    _, first, end = file.stem.split("-")
    return int(first), int(end)


def differences(before: dict[str, Any], now: dict[str, Any], names: list[str]) -> str:
    """What changed, as text."""
    return ", ".join(f"`{name}` was {before.get(name)} and is {now.get(name)}" for name in names)
