"""The answers of an unfinished run, in parts, so that the same command goes on after a stop or a kill."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from conversion.files import atomic_path, leftovers_of, read_json, write_json
from training.run.locks import LOCK, only_one
from training.settings.checks import check
from training.settings.prediction import check_new, folder_of_parts

SECONDS_BETWEEN_PARTS = 20.0
MOST_RECORDS = 10_000  # in memory
RECORD = "record.json"
Answer = dict[str, Any]  # what is said of one image: `image` (its name), and `error` if there is nothing else to say


class PartForm(Protocol):
    """How answers are stored in the file of a part."""

    suffix: str

    @property
    def most_answers(self) -> int:
        """The number of answers of the largest part."""
        ...

    def write(self, file: Path, answers: list[Answer]) -> None:
        """Write the answers of a part."""
        ...

    def read(self, file: Path) -> Iterator[Any]:
        """What `Parts` iterates over."""
        ...


class JsonLines:
    """An answer in each line."""

    suffix = ".jsonl"

    @property
    def most_answers(self) -> int:
        return MOST_RECORDS

    def write(self, file: Path, answers: list[Answer]) -> None:
        file.write_text("".join(f"{json.dumps(answer, allow_nan=False)}\n" for answer in answers), encoding="utf-8")

    def read(self, file: Path) -> Iterator[Answer]:
        with file.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


class Parts:
    """Answers to consecutive images, in files of a folder beside the output: `part-FIRST-END-BAD.jsonl`.

    BAD is the number of answers with an error. A part is there as a whole or not at all, so the parts say how many
    images are done. `record` is all that the answers depend on: parts with another record are not continued.
    """

    def __init__(self, output: Path, record: dict[str, Any], form: PartForm) -> None:
        self.folder = folder_of_parts(output)
        self.output, self.record, self.form = output, json.loads(json.dumps(record)), form
        self.num_done = 0  # images in parts
        self.num_bad = 0  # images with an error, in parts and pending
        self.pending: list[Answer] = []
        self.last_part = time.monotonic()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lock the folder against a second command; it goes if the block has not begun, or has removed it."""
        with only_one(self.folder, "output_file", self.output):
            try:
                yield
            finally:
                if not (self.folder / RECORD).exists():
                    self.remove()

    def starts_anew(self, overwrite: bool) -> bool:
        """Whether `begin` starts with the first image, without parts of an earlier run."""
        stored = read_json(self.folder / RECORD)
        return not stored or (stored != self.record and (overwrite or not self.has_parts))

    @property
    def has_parts(self) -> bool:
        """Whether there is anything to go on with, in whichever form."""
        return any(self.folder.glob("part-*-*-*"))

    def begin(self, overwrite: bool) -> int:
        """The number of images that are done. With `overwrite`, parts of other settings are deleted."""
        check_new("output_file", self.output, overwrite)  # another command may have ended since the start
        stored = read_json(self.folder / RECORD)
        if stored != self.record:
            changed = [name for name in {**stored, **self.record} if stored.get(name) != self.record.get(name)]
            rule = f"go on as it began, but {differences(stored, self.record, changed)}. Start with `--overwrite true`"
            check("output_file", self.output, self.starts_anew(overwrite), rule)
            self.clear()
        for left in leftovers_of(self.output):
            left.unlink()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / RECORD, self.record)
        for file in self.files():
            first, end, bad = bounds(file)
            if first == self.num_done:
                self.num_done, self.num_bad = end, self.num_bad + bad
            else:  # what lies after a gap is done again
                file.unlink()
        return self.num_done

    def add(self, answers: list[Answer]) -> None:
        """Add the answers to the next images; they are written from time to time."""
        self.pending += answers
        self.num_bad += num_bad(answers)
        is_late = time.monotonic() - self.last_part >= SECONDS_BETWEEN_PARTS
        if is_late or len(self.pending) >= self.form.most_answers:
            self.write()

    def write(self) -> None:
        """Write the answers that are in no part."""
        if self.pending:
            end = self.num_done + len(self.pending)
            numbers = f"{self.num_done:012d}-{end:012d}-{num_bad(self.pending)}"
            with atomic_path(self.folder / f"part-{numbers}{self.form.suffix}") as new:
                self.form.write(new, self.pending)
            self.num_done, self.pending = end, []
        self.last_part = time.monotonic()

    def __iter__(self) -> Iterator[Any]:
        """The answers to all images that are done, in order, as their form reads them.

        Raises:
            ValueError: if the parts do not join up, because something else has written into the folder.
        """
        place = 0
        rule = "hold each image once, but something else has written there: delete the folder, and begin anew"
        for file in self.files():
            first, end, _ = bounds(file)
            check("output_file", self.folder, first == place, rule)
            place = end
            yield from self.form.read(file)
        check("output_file", self.folder, place == self.num_done, rule)

    def files(self) -> list[Path]:
        """The parts in order."""
        return sorted(self.folder.glob(f"part-*-*-*{self.form.suffix}"))

    def clear(self) -> None:
        """Delete all files but the lock."""
        for file in list(self.folder.glob("*")):
            if file.name != LOCK:
                file.unlink()

    def remove(self) -> None:
        """Delete the folder; without its record first, what a kill leaves of it is not continued."""
        with suppress(OSError):
            (self.folder / RECORD).unlink()
        shutil.rmtree(self.folder, ignore_errors=True)


def num_bad(answers: list[Answer]) -> int:
    """The number of answers with an error."""
    return sum("error" in answer for answer in answers)


def bounds(file: Path) -> tuple[int, int, int]:
    """The first image of a part, the one after its last, and the number of those with an error."""
    _, first, end, bad = file.stem.split("-")
    return int(first), int(end), int(bad)


def differences(before: dict[str, Any], now: dict[str, Any], names: list[str]) -> str:
    """What changed, as text."""
    return ", ".join(f"`{name}` was {before.get(name)} and is {now.get(name)}" for name in names)
