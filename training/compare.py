"""Compare what a classifier of your images can start from, with the same labels, steps and seeds for each start.

    python training/compare.py --dataset_name path/to/labelled --output_dir out/compare
    python training/compare.py --dataset_name path/to/labelled --output_dir out/compare \\
        --checkpoint facebook/convnextv2-tiny-1k-224 --label_shares 0.1 1 --seeds 0 1 2 3 4
"""

import sys

from training.console.errors import told_in_a_line
from training.settings.command_line import parse_settings
from training.settings.comparison import CompareSettings

if __name__ == "__main__":  # before the imports below, which take seconds: reports a wrong setting at once
    settings = parse_settings(CompareSettings, sys.argv[1:], __doc__)

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import yaml
from datasets import Dataset

from conversion.files import read_json, write_json
from training.comparison.drawing import check_shares
from training.comparison.images import Labelled, load_labelled, write_images
from training.comparison.plan import planned
from training.comparison.records import Times, differing
from training.comparison.report import write_report
from training.comparison.runs import Comparison
from training.comparison.starts import create_starts, recipe_of
from training.comparison.stopping import stopping_runs
from training.console.bars import keep_bars_to_terminals
from training.data.sources import check_column, file_paths, find_source, values_of
from training.prediction.record import stamps_of_images
from training.run.locks import only_one
from training.settings.checks import check

RECORD = "settings.json"


def main(settings: CompareSettings) -> str:
    """Compare, write table, plot and compare.json, and return the table and the sentence."""
    keep_bars_to_terminals()
    output = Path(settings.run.output_dir)
    check_folder(output)
    starts = create_starts(settings)
    unlabelled = find_unlabelled(settings)
    images = load_labelled(settings.data, settings.starts.num_channels)
    if unlabelled is not None:
        check_held_out(settings, images, unlabelled)
    check_shares(np.array(images.train["label"][:]), images.names, settings.budget.label_shares, settings.budget.seeds)
    record = record_of(settings, images, unlabelled)
    check_same(output, record)
    if settings.run.dry_run:
        with TemporaryDirectory() as folder:
            text = planned(Comparison(settings, images, starts, output, Times(output)), Path(folder))
        print(text, flush=True)
        return text
    with only_one(output) as lock:
        write_json(output / RECORD, record)
        write_images(images, output / "data")
        torch.set_num_threads(max(torch.get_num_threads() // settings.run.jobs, 1))
        comparison = Comparison(settings, images, starts, output, Times(output), lock)
        with stopping_runs(comparison.runner.is_over):
            comparison.run()
        text = write_report(comparison)
    print(f"{text}\n\nMade in {output}: README.md, comparison.png, compare.json", flush=True)
    return text


def check_folder(output: Path) -> None:
    """Raise unless the folder is empty or holds a comparison."""
    held = [path for path in output.iterdir() if not path.name.startswith(".")] if output.is_dir() else []
    rule = "be empty or hold a comparison, but it holds something else"
    check("output_dir", output, not held or (output / RECORD).is_file(), rule)


def find_unlabelled(settings: CompareSettings) -> Dataset | None:
    """Other images to pre-train on, if the settings name some; none of them is read. Raises if they are not there."""
    name = settings.data.unlabelled_dataset_name
    if name is None:
        return None
    try:
        data = settings.replace(dataset_name=name, train_split="train", eval_split=None).data
        found = find_source(data, "train").source
        check_column(found, "image_column", data.image_column)
    except ValueError as error:
        raise ValueError(str(error).replace("`dataset_name`", "`unlabelled_dataset_name`")) from error
    used = any(start not in ("random", "checkpoint") for start in settings.starts.starts or [])
    check("unlabelled_dataset_name", name, used, "come with a start that is pre-trained")
    assert isinstance(found, Dataset)
    return found


def check_held_out(settings: CompareSettings, images: Labelled, unlabelled: Dataset) -> None:
    """Raise if files of held-out images are among those to pre-train on."""
    held_out = {identity(file): file for file in images.files_of(images.test).to_pylist()}
    files = file_paths(values_of(unlabelled, settings.data.image_column)).to_pylist()
    both = sorted(held_out[each] for each in set(map(identity, files)) & held_out.keys())
    rule = f"leave the held-out images out, but holds {len(both):,} of them, such as {(both or [''])[0]}"
    check("unlabelled_dataset_name", settings.data.unlabelled_dataset_name, not both, rule)


def identity(file: str) -> tuple[int, int] | str:
    """What is the same for all paths and links to a file, hard ones too."""
    try:
        status = os.stat(file)
    except OSError:
        return os.path.abspath(file)
    return status.st_dev, status.st_ino


def record_of(settings: CompareSettings, images: Labelled, unlabelled: Dataset | None) -> dict[str, Any]:
    """All that the runs depend on, beside what their folders are named after: start, share of the labels and seed."""
    values = settings.values()
    record = {name: values[name] for name in settings.record().compared}
    for task in ("pretrain", "finetune"):
        recipe = recipe_of(settings, task)
        record[f"{task}_config"] = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    record["images"] = {"train": len(images.train), "test": len(images.test), "fingerprint": images.fingerprint}
    if unlabelled is not None:
        name, column = str(settings.data.unlabelled_dataset_name), settings.data.image_column
        record["unlabelled images"] = stamps_of_images(unlabelled, column, name)
    return json.loads(json.dumps(record))


def check_same(output: Path, record: dict[str, Any]) -> None:
    """Raise if the folder holds a comparison with other settings: its runs would be reused."""
    before = read_json(output / RECORD)
    others = differing(before, record) if before else []
    rule = f"hold a comparison of the same settings, but it differs in {'; '.join(others)}"
    rule += ". Give this one a folder of its own"
    check("output_dir", output, not others, rule)


if __name__ == "__main__":
    with told_in_a_line():
        main(settings)
