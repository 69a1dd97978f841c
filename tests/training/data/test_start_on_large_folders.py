"""What a start finds out is kept: files are decoded once, folders walked once, by one training process."""

import os
import shutil
import time

import pytest

from tests.photographs import message_of, quick_datasets, write_folder
from training.console.bars import Phase
from training.data import sources
from training.data.checking import columns, images
from training.data.problems import find_problem
from training.data.samples import load_images
from training.settings.scripts import FinetuneSettings, PretrainSettings

__all__ = ["quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets")


@pytest.fixture
def folder(tmp_path):
    """A folder of 9 and 3 images that has not changed for a minute."""
    root = write_folder(tmp_path / "images", {"train": 3, "test": 1})
    for path in [root, *root.rglob("*")]:
        age(path)
    return root


def age(path):
    """Have a file or folder changed a minute ago."""
    before = os.stat(path).st_mtime_ns - 60_000_000_000
    os.utime(path, ns=(before, before))


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that the check decodes."""
    names, decode = [], images.decode_image

    def noted(value, *arguments):
        names.append(os.path.basename(value))
        return decode(value, *arguments)

    monkeypatch.setattr(images, "decode_image", noted)
    return names


def load(root, split="train", most=None, **fields):
    config = PretrainSettings(dataset_name=str(root), output_dir="out", **{"num_workers": 0, **fields}).data
    return load_images(config, split, most, 3)


def test_an_image_is_checked_again_only_when_it_has_changed(folder, decoded):
    load(folder)
    assert len(decoded) == 9
    load(folder)
    assert len(decoded) == 9
    load(folder, "test")
    assert len(decoded) == 12  # those of another split
    changed = folder / "train/coffee/1.jpg"
    changed.write_bytes(changed.read_bytes() + b"more")
    age(folder / "train/coffee/2.jpg")
    load(folder)
    assert sorted(decoded[12:]) == ["1.jpg", "2.jpg"]
    load(folder)
    assert len(decoded) == 14


def test_an_image_that_could_not_be_read_is_tried_again(folder, decoded):
    (folder / "train/coffee/1.jpg").write_bytes(b"no image")
    for _ in range(2):
        assert "coffee/1.jpg cannot be read" in message_of(lambda: load(folder))
    assert len(decoded) == 10
    assert len(load(folder, skip_bad_images=True)) == 8


def test_a_check_that_is_stopped_keeps_what_it_has_done(folder, decoded, monkeypatch):
    monkeypatch.setattr(columns, "CHUNK", 2)
    decode = images.decode_image

    def stop_at_last(value, *arguments):
        if len(decoded) == 7:
            raise KeyboardInterrupt
        return decode(value, *arguments)

    monkeypatch.setattr(images, "decode_image", stop_at_last)
    with pytest.raises(KeyboardInterrupt):
        load(folder)
    monkeypatch.setattr(images, "decode_image", decode)
    load(folder)
    assert len(decoded) == 7 + 3  # of the last six were whole chunks


def test_several_processes_find_what_one_finds(folder, monkeypatch, tmp_path):
    (folder / "train/coffee/1.jpg").write_bytes(b"no image")
    monkeypatch.setattr(columns, "FEW", 3)
    monkeypatch.setattr(columns, "CHUNK", 2)
    monkeypatch.setattr(columns, "BLOCK", 3)
    messages = []
    for workers in (0, 2):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / f"cache_{workers}")
        messages.append(message_of(lambda: load(folder, num_workers=workers)))  # noqa: B023
    assert messages[0] == messages[1] and "1 file cannot be read" in messages[0]


def test_another_training_process_takes_what_the_first_one_found(folder, decoded, monkeypatch):
    expected = [load(folder)[index] for index in range(9)]
    count = len(decoded)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(sources, "list_folder", lambda _: pytest.fail("walks the folder again"))
    monkeypatch.setattr(columns, "stamps_of", lambda _: pytest.fail("looks at the files again"))
    sources._latest.clear()
    assert list(load(folder)) == expected
    assert len(decoded) == count
    monkeypatch.undo()
    monkeypatch.setenv("LOCAL_RANK", "1")
    (folder / "train/coffee/1.jpg").unlink()  # a folder that has changed is walked
    assert (
        len(sources.load_source(PretrainSettings(dataset_name=str(folder), output_dir="out").data, "train", None)) == 8
    )


def test_a_run_walks_a_folder_once_until_it_changes(folder, monkeypatch):
    walked, scan = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: walked.append(path) or scan(path))
    config = FinetuneSettings(dataset_name=str(folder), output_dir="out", num_workers=0, eval_split="test").data
    find_problem(config, None)
    for split in ("train", "test"):
        load_images(config, split, None, 3)
    seen = [os.path.normpath(path) for path in walked if str(path).startswith(str(folder))]
    assert sorted(seen) == sorted(str(path) for path in [folder, *folder.rglob("*")] if path.is_dir())
    (folder / "test/coffee/0.jpg").rename(folder / "test/coffee/1.jpg")
    assert "coffee/1.jpg" in str(load_images(config, "test", None, 3)[2])


def test_an_image_that_is_added_without_a_change_of_the_folders_time_is_found_where_that_time_is_recent(folder):
    """Some file systems store that time in steps of 2 s: two changes within one of them leave it as it is."""
    changed = folder / "train/coffee"
    now = time.time_ns()
    os.utime(changed, ns=(now, now))
    assert len(load(folder)) == 9
    shutil.copy(changed / "0.jpg", changed / "new.jpg")
    os.utime(changed, ns=(now, now))
    assert len(load(folder)) == 10


def test_a_phase_says_how_far_it_is_where_nobody_watches(monkeypatch, capsys):
    monkeypatch.setattr("training.console.bars.SECONDS_BETWEEN_LINES", 0.0)
    with Phase("Checking images", 200, " images") as phase:
        phase.update(50)
    assert capsys.readouterr().out.startswith("Checking images: 50 of 200 (25%) images, ")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with Phase("Checking images", 200) as phase:
        phase.update(50)
    assert capsys.readouterr().out == ""
