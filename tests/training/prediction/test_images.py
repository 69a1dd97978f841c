"""Which images a folder or a pattern stands for, their order, their names, and those of their masks."""

import os
import shutil

import pytest
from accelerate import Accelerator
from datasets import Dataset, Features
from datasets import Image as ImageFeature

from tests.bad_files import encode
from tests.photographs import cut, message_of, quick_datasets, write_parquet
from training.prediction.images import check_same_images, find_images
from training.prediction.masks import MaskNames
from training.settings.prediction import PredictDataSettings

__all__ = ["quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets")
FILES = ("1.jpg", "1.png", "cats/2.JPG", "test/3.jpg", "train/deep/4.jpg", "validation.jpg")


@pytest.fixture
def folder(tmp_path):
    for name, picture in zip(FILES, cut("coffee", len(FILES)), strict=True):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "photos" / name)
    (tmp_path / "photos/notes.txt").write_text("no image")
    return tmp_path / "photos"


def found(name, **fields):
    return find_images(PredictDataSettings(dataset_name=str(name), **fields), 3)


def names_of(images):
    assert isinstance(images.source, Dataset)
    return [images.name(row["image"], index) for index, row in enumerate(images.source)]


def test_a_folder_is_all_of_its_images_whatever_its_folders_are_called(folder, capsys):
    images = found(folder)
    assert names_of(images) == sorted(FILES) and images.total == len(FILES)
    assert "photos: 6 images" in (printed := capsys.readouterr().out) and "notes.txt" in printed


def test_a_pattern_is_the_images_that_it_matches(folder, monkeypatch):
    assert names_of(found(folder / "**/*.jpg")) == [name for name in sorted(FILES) if name.endswith(".jpg")]
    assert names_of(found(folder / "t*/**")) == ["test/3.jpg", "train/deep/4.jpg"]
    assert names_of(found(folder / "cats/2.JPG")) == ["2.JPG"]
    monkeypatch.chdir(folder)
    assert names_of(found("cats/*")) == ["2.JPG"]
    assert "must match images" in message_of(lambda: found("*.gif"))
    assert "must not be given with image files" in message_of(lambda: found("*.jpg", split="train"))


def test_a_pattern_does_not_go_round_in_a_link_to_a_folder_above(folder, capsys):
    expected = names_of(found(folder / "**/*"))
    (folder / "cats/up").symlink_to(folder)
    (folder / "cats/beside").symlink_to(folder / "test")
    capsys.readouterr()
    assert names_of(found(folder / "**/*")) == sorted([*expected, "cats/beside/3.jpg"])
    assert "files behind links to a folder above these" in capsys.readouterr().out


def test_a_pattern_names_files_whose_names_are_no_text(folder, capsys):
    with open(os.fsencode(folder) + b"/caf\xe9.jpg", "wb") as file:
        file.write((folder / "1.jpg").read_bytes())
    assert names_of(found(folder / "*.jpg")) == ["1.jpg", "validation.jpg"]
    assert "caf\\xe9.jpg' has a name that is not UTF-8: rename it" in capsys.readouterr().out


def test_rows_with_the_same_path_are_named_by_their_numbers(tmp_path, capsys):
    stored = [encode(picture, "PNG") for picture in cut("coffee", 3)]
    for name, paths in (("same", ["image.jpg"] * 3), ("own", ["b.jpg", "a.jpg", None])):
        images = [{"bytes": content, "path": path} for content, path in zip(stored, paths, strict=True)]
        rows = Dataset.from_dict({"image": images}, features=Features({"image": ImageFeature()}))
        rows.to_parquet(tmp_path / f"{name}.parquet")
    assert names_of(undecoded(found(tmp_path / "same.parquet"))) == ["0", "1", "2"]
    assert "several images have the same path: images are named by their numbers" in capsys.readouterr().out
    assert names_of(undecoded(found(tmp_path / "own.parquet"))) == ["b.jpg", "a.jpg", "2"]
    assert "several images" not in capsys.readouterr().out


def undecoded(images):
    return images._replace(source=images.source.cast_column("image", ImageFeature(decode=False)))


def test_a_link_to_nothing_is_an_image_in_its_place(folder, tmp_path, capsys):
    (folder / "cats/1.jpg").symlink_to(tmp_path / "nothing.jpg")
    (folder / "data").symlink_to(tmp_path / "nothing")
    with_link = sorted([*FILES, "cats/1.jpg"])
    assert names_of(found(folder)) == with_link
    printed = capsys.readouterr().out
    assert "7 images" in printed and "data links to nothing" in printed and "1.jpg links" not in printed
    assert names_of(found(folder / "**/*.*")) == with_link
    assert names_of(found(folder / "cats/*")) == ["1.jpg", "2.JPG"]
    message = message_of(lambda: found(folder / "cats", skip_bad_images=False))
    assert "1 file" in message and "cats/1.jpg cannot be read" in message


def test_a_pattern_leaves_out_what_the_command_has_written(folder, tmp_path, capsys):
    output = folder / "a.png", folder / "masks"
    for file in ("a.png", "masks/1.png", "masks/cats/2.png", "masks.png"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "1.png", folder / file)
    (tmp_path / "link").symlink_to(folder)
    for name in (folder, tmp_path / "link"):
        images = find_images(PredictDataSettings(dataset_name=str(name / "**/*.*")), 3, output)
        assert names_of(images) == sorted([*FILES, "masks.png"])
        assert "left out: 3 files that an earlier run has written" in capsys.readouterr().out
    data = PredictDataSettings(dataset_name=str(folder / "masks/*"))
    message = message_of(lambda: find_images(data, 3, output))
    assert f"must match images, such as 'photos/**/*.jpg', outside of {output[0]}, {output[1]}" in message


def test_other_images_have_another_fingerprint(folder):
    first = found(folder).fingerprint
    assert found(folder).fingerprint == first
    (folder / "1.png").rename(folder / "5.png")
    assert found(folder).fingerprint != first


def test_a_file_whose_name_has_a_bracket_is_that_file(folder):
    (folder / "1.png").rename(folder / "IMG[1].png")
    (folder / "1.jpg").rename(folder / "IMG1.png")
    assert names_of(found(folder / "IMG[1].png")) == ["IMG[1].png"]
    assert names_of(found(folder / "IMG[12].png")) == ["IMG1.png"]  # the control: a pattern


def test_processes_that_have_found_different_images_stop(folder, monkeypatch):
    data = PredictDataSettings(dataset_name=str(folder))
    images = found(folder)
    accelerator = Accelerator(cpu=True)
    check_same_images(accelerator, data, images)
    monkeypatch.setattr("training.prediction.images.gather_object", lambda own: [*own, "of another listing"])
    message = message_of(lambda: check_same_images(accelerator, data, images))
    assert "must stay as it is at the start, but the processes found different images in it" in message


def test_a_mask_is_called_like_its_image_unless_two_would_be_called_alike(folder):
    images = found(folder)
    names = MaskNames(images, "image")
    masks = [names(name, index) for index, name in enumerate(names_of(images))]
    assert masks[:3] == ["1.jpg.png", "1.png.png", "cats/2.png"] and len(set(masks)) == len(FILES)


@pytest.mark.parametrize(
    "files",
    [("1.jpg", "1.png", "1.jpg.png"), ("1.jpg", "1.png", "1.jpg.png", "1.jpg.png.jpg", "1.jpg.png.png", "1.png.png")],
)
def test_no_two_images_have_one_mask_file(files, tmp_path):
    for name, picture in zip(files, cut("coffee", len(files)), strict=True):
        picture.save(tmp_path / name)
    images = found(tmp_path)
    names = MaskNames(images, "image")
    masks = {name: names(name, index) for index, name in enumerate(names_of(images))}
    assert len(set(masks.values())) == len(files) and masks["1.jpg"] == "1.jpg.png"


def test_rows_of_tables_have_numbers_and_their_splits_are_asked_for(tmp_path):
    root = write_parquet(tmp_path / "parquet", {"train": 1, "test": 2})
    message = message_of(lambda: found(root))
    assert "`split` (=None) must be one of the splits of" in message and "train, test" in message
    images = found(root, split="test")
    assert names_of(images) == [str(index) for index in range(6)]
    assert MaskNames(images, "image")("3", 3) == "00000003.png"
    assert found(root / "test*.parquet", streaming=True).total is None
    assert "must be one of the splits" in message_of(lambda: found(root, split="tset"))
