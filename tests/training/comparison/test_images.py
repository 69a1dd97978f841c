"""Reading the labelled images of a comparison: classes, held-out part, and what is refused by name."""

import io

import numpy as np
import pytest
from datasets import Array3D, ClassLabel, Dataset, Features, Image, List, Value, load_dataset
from PIL import Image as PIL

from tests.photographs import CLASSES, cut, message_of, quick_datasets, write_folder, write_parquet
from training.comparison.images import load_labelled, write_images
from training.comparison.subsets import write_subset
from training.settings.comparison import CompareDataSettings

__all__ = ["quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets")


def load(folder, **fields):
    return load_labelled(CompareDataSettings(dataset_name=str(folder), num_workers=0, **fields), 3)


def write_rows(folder, columns, features, name="train"):
    folder.mkdir(exist_ok=True)
    Dataset.from_dict(columns, features=Features(features)).to_parquet(folder / f"{name}.parquet")
    return folder


@pytest.mark.parametrize("write", [write_folder, write_parquet])
def test_the_split_that_is_held_out_by_its_name_is_compared_on(write, tmp_path):
    found = load(write(tmp_path / "images", {"train": 6, "test": 4}))
    assert (len(found.train), len(found.test), found.names) == (18, 12, list(CLASSES))
    assert found.held_out == "12 images of split `test`"
    assert np.bincount(found.train["label"][:]).tolist() == [6, 6, 6]


def test_without_such_a_split_a_share_of_each_class_is_held_out(tmp_path):
    folder = write_folder(tmp_path / "images", {"train": 8})
    found, again, other = load(folder), load(folder), load(folder, seed=1)
    assert np.bincount(found.train["label"][:]).tolist() == [6, 6, 6] and found.held_out.startswith("6 images, 25%")
    paths = [set(row["path"] for row in undecoded(part)) for part in (found.train, found.test)]
    assert len(paths[0] | paths[1]) == 24 and not paths[0] & paths[1]
    assert found.fingerprint == again.fingerprint != other.fingerprint


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_that_have_changed_in_their_files_are_other_images(split, tmp_path):
    folder = write_folder(tmp_path / "images", {"train": 2, "test": 2})
    before, again = load(folder).fingerprint, load(folder).fingerprint
    file = next(folder.glob(f"{split}/*/*"))
    file.write_bytes(file.read_bytes())  # its time is another one
    assert before == again != load(folder).fingerprint


@pytest.mark.parametrize("kind", ["bytes", "arrays"])
def test_images_of_the_same_size_in_tables_are_other_images(kind, tmp_path):
    feature = Image() if kind == "bytes" else Array3D((8, 8, 3), "uint8")

    def fingerprint_of(seed):
        pixels = np.random.default_rng(seed).integers(0, 256, (4, 8, 8, 3), np.uint8)
        rows = [PIL.fromarray(each) for each in pixels] if kind == "bytes" else pixels.tolist()
        stored = [{"bytes": bmp(each)} for each in rows] if kind == "bytes" else rows
        folder = tmp_path / f"rows-{kind}-{seed}"
        features = {"image": feature, "label": Value("string")}
        for split in ("train", "test"):
            write_rows(folder, {"image": stored, "label": list("abab")}, features, split)
        return load(folder).fingerprint

    assert fingerprint_of(0) == fingerprint_of(0) != fingerprint_of(1)


def bmp(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "BMP")  # of the same length for every picture
    return buffer.getvalue()


def undecoded(part):
    return part.cast_column("image", Image(decode=False))["image"]


def test_labels_of_both_parts_are_matched_by_name(tmp_path):
    images = cut("coffee", 4)
    folder = tmp_path / "rows"
    write_rows(folder, {"image": images, "label": list("abba")}, {"image": Image(), "label": Value("string")})
    write_rows(folder, {"image": images, "label": list("bbab")}, {"image": Image(), "label": Value("string")}, "test")
    found = load(folder)
    assert (
        found.names == ["a", "b"] and found.train["label"][:] == [0, 1, 1, 0] and found.test["label"][:] == [1, 1, 0, 1]
    )


def test_classes_without_an_image_are_left_out_and_named(tmp_path, capsys):
    features = {"image": Image(), "label": ClassLabel(names=["x", "cat", "y", "dog"])}
    folder = write_rows(tmp_path / "rows", {"image": cut("coffee", 16), "label": [1, 3] * 8}, features)
    found = load(folder)
    assert found.names == ["cat", "dog"] and set(found.train["label"]) == {0, 1}
    assert "Left out: 2 classes without an image." in capsys.readouterr().out


def test_what_cannot_be_compared_is_named(tmp_path):
    images, image = cut("coffee", 8), {"image": Image()}
    plain = write_rows(tmp_path / "plain", {"image": images}, image)
    assert "`label_column` (=label) must be a column" in message_of(lambda: load(plain))
    features = {**image, "label": ClassLabel(names=["cat", "dog"])}
    one = write_rows(tmp_path / "one", {"image": images, "label": [1] * 8}, features)
    assert "two classes or more, but all images are dog" in message_of(lambda: load(one))
    missing = write_rows(tmp_path / "missing", {"image": images, "label": [None, 1] * 4}, features)
    assert "-1: missing" in message_of(lambda: load(missing))
    alone = write_rows(tmp_path / "alone", {"image": images, "label": [0] + [1] * 7}, features)
    assert "but cat has one image alone" in message_of(lambda: load(alone))
    listed = {**image, "label": List(Value("int64"))}
    several = write_rows(tmp_path / "several", {"image": images, "label": [[0, 1], [1]] * 4}, listed)
    assert "one class for each image" in message_of(lambda: load(several))
    new = write_rows(tmp_path / "new", {"image": images, "label": list("ab") * 4}, image | {"label": Value("string")})
    write_rows(new, {"image": images, "label": list("ac") * 4}, image | {"label": Value("string")}, "test")
    assert "(=['c'])" in message_of(lambda: load(new))


def test_a_stream_is_refused():
    message = message_of(lambda: CompareDataSettings(dataset_name="x", streaming=True))
    assert "`streaming` (=True) must be false" in message


def test_subsets_of_files_hold_paths_not_copies(tmp_path):
    """A hundred draws of a folder of photographs take no room; the same rows with bytes keep them."""
    found = load(write_folder(tmp_path / "images", {"train": 6, "test": 4}))
    write_images(found, tmp_path / "out/data")
    subset = write_subset(tmp_path / "out", found.train, np.array([0, 7, 12]), "0.2-0")
    rows = load_dataset("parquet", data_dir=str(subset))
    stored = undecoded(rows["train"])
    assert [row["bytes"] for row in stored] == [None] * 3 and len(rows["test"]) == 12
    assert [row["path"] for row in stored] == [undecoded(found.train)[index]["path"] for index in (0, 7, 12)]
    assert rows["train"]["label"][:] == [0, 1, 2] and rows["train"][0]["image"].size == (40, 40)
    names = (tmp_path / "out/data").rglob("*.parquet")
    assert sorted(file.relative_to(tmp_path / "out/data").as_posix() for file in names) == [
        "labelled/test.parquet",
        "labelled/train.parquet",
        "unlabelled/train.parquet",
    ]
