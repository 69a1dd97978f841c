"""Masks of objects that metadata files name by their paths."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.photographs import message_of, quick_datasets
from training.data.detection import masks
from training.data.detection.rows import load_objects, object_reader
from training.data.detection.samples import detection_samples
from training.data.samples import StreamSamples
from training.data.segmentation.masks import BadMaskError
from training.settings.data import DetectDataSettings

__all__ = ["quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets")
BOX = [5, 10, 20, 10]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """`train/1.jpg` with two objects whose masks are images in `masks`, and the same name in the working directory."""
    for root in (tmp_path / "data/train", tmp_path / "elsewhere"):
        (root / "parts").mkdir(parents=True)
        for name in ("1", "2"):
            mask = np.zeros((48, 48), np.uint8)
            mask[10:20, 5:25] = 255 if root.name == "train" else 0  # an empty mask is refused
            Image.fromarray(mask).save(root / f"parts/{name}.gif")
    Image.fromarray(np.full((48, 48, 3), 128, np.uint8)).save(tmp_path / "data/train/1.jpg")
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "data"


def write(folder, objects, name="1.jpg"):
    folder.mkdir(exist_ok=True)
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": name, "objects": objects}))


def masks_in(folder, split="train", **fields):
    data = DetectDataSettings(dataset_name=str(folder), num_workers=0, **fields)
    (row,) = load_objects(data, split, None, 3, ["cell"], True)
    found = object_reader(data, ["cell"], True)(row["objects"], (48, 48), "x").masks
    assert found is not None
    return found


def of_lists(*paths):
    return {"bbox": [BOX, BOX], "category": [0, 0], "mask": list(paths)}


def of_dicts(*paths):
    return [{"bbox": BOX, "label": 0, "segmentation": path} for path in paths]


@pytest.mark.parametrize("written", [of_lists, of_dicts])
@pytest.mark.parametrize("streaming", [False, True])
def test_paths_begin_in_the_folder_of_the_metadata_file(written, streaming, folder):
    write(folder / "train", written("parts/1.gif", str(folder / "train/parts/2.gif")))
    found = masks_in(folder, streaming=streaming)
    assert found.shape == (2, 48, 48) and found.sum(dim=(1, 2)).tolist() == [200, 200]


def test_a_path_whose_folder_is_not_known_is_refused(folder):
    write(folder / "train", of_lists("parts/1.gif", "parts/2.gif"))
    write(folder / "train/deeper", of_lists("parts/1.gif", "parts/2.gif"), name="2.jpg")
    Image.fromarray(np.full((48, 48, 3), 128, np.uint8)).save(folder / "train/deeper/2.jpg")
    message = message_of(lambda: masks_in(folder))
    assert "the mask 'parts/1.gif' of object 0 of " in message and "must be a whole path" in message


@pytest.mark.parametrize("streaming", [False, True])
def test_an_empty_text_is_no_mask_whether_masks_are_read_or_not(streaming, folder):
    write(folder / "train", of_lists("parts/1.gif", ""))
    data = DetectDataSettings(dataset_name=str(folder), num_workers=0, streaming=streaming)
    (row,) = load_objects(data, "train", None, 3, ["cell"], False)
    assert object_reader(data, ["cell"], False).read(row["objects"], (48, 48), "x").num_masks == 1
    message = message_of(lambda: object_reader(data, ["cell"], True)(row["objects"], (48, 48), "x"))
    assert message.startswith("object 1 of x has no mask.")


def write_lines(folder, *names):
    lines = [json.dumps({"file_name": name, "objects": of_lists("parts/1.gif", "parts/2.gif")}) for name in names]
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def test_lines_without_a_file_name_are_named_or_skipped(folder):
    write_lines(folder / "train", None, "1.jpg", None)
    message = message_of(lambda: masks_in(folder))
    assert message.startswith("2 files cannot be used with their objects; `--skip_bad_images` skips such files:")
    assert "example 0 cannot be read as an image: it is empty." in message and "example 2 cannot" in message
    assert masks_in(folder, skip_bad_images=True).sum(dim=(1, 2)).tolist() == [200, 200]


def test_a_stream_names_or_skips_lines_without_a_file_name(folder, capsys):
    write_lines(folder / "train", None, "1.jpg")

    def samples(**fields):
        data = DetectDataSettings(dataset_name=str(folder), num_workers=0, streaming=True, **fields)
        source = load_objects(data, "train", None, 3, ["cell"], True)
        reader = object_reader(data, ["cell"], True)
        rows = detection_samples(data, source, 3, reader, lambda image, objects: {"masks": objects.masks})
        return list(StreamSamples(source, rows, data))

    message = message_of(samples)
    assert "cannot be read as an image: it is empty. `--skip_bad_images` skips such images." in message
    (sample,) = samples(skip_bad_images=True)
    assert sample["masks"].sum(dim=(1, 2)).tolist() == [200, 200]


@pytest.mark.parametrize("streaming", [False, True])
def test_paths_begin_in_that_folder_also_where_a_readme_names_the_splits(streaming, folder):
    places = {"train": "train", "test": "held"}
    shutil.copytree(folder / "train", folder / "held")
    for place in places.values():
        write(folder / place, of_lists("parts/1.gif", "parts/2.gif"))
    named = "".join(f"  - split: {split}\n    path: {place}/**\n" for split, place in places.items())
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{named}---\n")
    for split in places:
        assert masks_in(folder, split, streaming=streaming).sum(dim=(1, 2)).tolist() == [200, 200]


def told_by(folder, capsys):
    """What the start says of the images, or why it refuses them."""
    capsys.readouterr()
    data = DetectDataSettings(dataset_name=str(folder), num_workers=0)
    try:
        load_objects(data, "train", None, 3, ["cell"], True)
    except ValueError as error:
        return str(error)
    return capsys.readouterr().out


@pytest.mark.parametrize("written", [of_lists, of_dicts])
def test_a_mask_that_changes_after_a_check_is_checked_again(written, folder, capsys):
    write(folder / "train", written("parts/1.gif", "parts/2.gif"))
    good = told_by(folder, capsys)
    assert "all 2 objects have masks" in good
    file = folder / "train/parts/2.gif"
    kept = file.read_bytes()
    Image.fromarray(np.zeros((48, 48), np.uint8)).save(file)
    assert "the mask of object 1 of " in (empty := told_by(folder, capsys)) and "is empty" in empty
    file.write_bytes(kept)
    assert told_by(folder, capsys) == good
    file.unlink()
    assert "parts/2.gif cannot be read as an image" in told_by(folder, capsys)


def test_masks_that_appear_after_a_check_are_used(folder, capsys):
    write(folder / "train", of_lists("late/1.gif", "late/2.gif"))
    for _ in range(2):
        assert "late/1.gif cannot be read as an image" in told_by(folder, capsys)
    shutil.copytree(folder / "train/parts", folder / "train/late")
    assert "2 objects (images) of each class: cell 2 (1)" in told_by(folder, capsys)


def test_a_problem_that_ends_without_a_change_of_the_file_is_forgotten(folder, capsys, monkeypatch):
    """As a permission that is missing once: size and time of the file stay as they are."""
    write(folder / "train", of_lists("parts/1.gif", "parts/2.gif"))
    with monkeypatch.context() as patched:
        patched.setattr(masks, "decode_mask", refuse)
        assert "the mask is not readable" in told_by(folder, capsys)
    assert "2 objects (images) of each class: cell 2 (1)" in told_by(folder, capsys)


def refuse(value, name):
    raise BadMaskError("the mask is not readable")


def test_masks_that_have_not_changed_are_not_read_again(folder, capsys, monkeypatch):
    write(folder / "train", of_lists("parts/1.gif", "parts/2.gif"))
    good = told_by(folder, capsys)
    monkeypatch.setattr(masks, "decode_mask", refuse)
    assert told_by(folder, capsys) == good
