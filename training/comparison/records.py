"""What a folder of a comparison or study remembers: its settings, the answers of each case, and times."""

from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from conversion.files import read_json, write_json

TIMES = "times.json"


def keep_apart(output: Path, settings: dict[str, Any], file: str = "study.json") -> None:
    """Raise if the folder holds a study with other settings of pre-training: its models would be reused."""
    started = read_json(output / file)
    if started and started != settings:
        raise SystemExit(f"`output_dir` (={output}) holds a study of {started}. Give this one a folder of its own.")
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / file, settings)


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that differ, each as `name: before, now`."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [f"{name}: {before.get(name)}, now {now.get(name)}" for name in names]


class Times:
    """The seconds that runs took, by name; a run that was stopped adds to its time when it goes on."""

    def __init__(self, output: Path) -> None:
        self.file, self.lock = output / TIMES, Lock()
        self.seconds: dict[str, float] = read_json(self.file)

    def add(self, name: str, seconds: float) -> None:
        """Add to the time of a run."""
        with self.lock:
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
            write_json(self.file, self.seconds)


def store_answers(file: Path, answers: Mapping[str, np.ndarray]) -> None:
    """Write predicted classes `(N,)` by method."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {method: classes.tolist() for method, classes in answers.items()})


def stored_answers(file: Path) -> dict[str, np.ndarray]:
    """The predicted classes `(N,)` by method; none where there is no such file."""
    return {method: np.array(classes) for method, classes in read_json(file).items()}
