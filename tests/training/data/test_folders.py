"""A local folder is listed as it is: the same rows as `datasets` gives where those are right, and a word where not."""

import os

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, load_dataset
from PIL import Image as Pictures
from PIL import features as pillow

from tests.photographs import cut, message_of, quick_datasets, write_folder, write_parquet
from training.data.labels import resolve_labels
from training.data.samples import load_images, load_mixture
from training.data.sources import find_source, load_source
from training.settings.scripts import FinetuneSettings, PretrainSettings

__all__ = ["quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets")
CONTENT = {}


def fill(root, *files):
    """Small photographs at these paths."""
    if not CONTENT:
        path = root.parent / "photograph.jpg"
        cut("coffee", 1)[0].save(path)
        CONTENT["jpg"] = path.read_bytes()
        path.unlink()
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(CONTENT["jpg"])
    return root


def settings(root, config_class=PretrainSettings, **fields):
    defaults = {"output_dir": "out", "num_workers": 0, "image_size": 32}
    return config_class(**{**defaults, "dataset_name": str(root), **fields}).data


def rows_of(source, root):
    """Path and class of every row."""
    names = source.features["label"].names if "label" in source.features else None
    root = os.path.join(os.path.realpath(root), "")
    return [(row["image"]["path"].removeprefix(root), names and names[row["label"]]) for row in source]


def listed(root, split="train", **fields):
    return rows_of(load_images(settings(root, **fields), split, None, 3), root)


def classes(folder, *names):
    return [f"{folder}{name}/{number}.jpg" for name in names for number in range(2)]


RIGHT = {
    "flat": ["b.jpg", "a.jpg", "é.JPG", "B.jpeg"],
    "classes": classes("", "b", "a", "a-b", "a b", "A", "é"),
    "splits": classes("train/", "x", "y") + classes("test/", "y", "z"),
    "two levels": classes("animals/", "cat", "dog") + classes("plants/", "rose"),
    "splits further down": classes("data/train/", "x", "y") + classes("data/val/", "x", "y"),
    "longer names": classes("train_01/", "x") + classes("train_02/", "x", "y") + classes("test_01/", "x", "y"),
    "several names": classes("train-1/", "x") + classes("train/", "x", "y") + classes("training/", "y"),
    "hidden": [*classes("", "x", "y"), ".cache/x/3.jpg", "x/._1.jpg", "__MACOSX/x/1.jpg"],
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("layout", RIGHT)
def test_a_folder_gives_the_rows_and_shards_that_datasets_gives(layout, streaming, tmp_path):
    root = fill(tmp_path / "images", *RIGHT[layout])
    for split, expected in load_dataset(str(root), streaming=streaming).items():
        found = load_source(settings(root, streaming=streaming), split, None)
        expected = expected.cast_column("image", Image(decode=False))
        assert rows_of(found, root) == rows_of(expected, root)
        assert found.features == expected.features
        if streaming:
            assert (found.num_shards, found.reshard().num_shards) == (
                expected.num_shards,
                expected.reshard().num_shards,
            )
        else:
            chosen = load_source(settings(root, seed=3), split, 3)
            drawn = expected.shuffle(seed=3).select(range(min(3, len(expected))))
            assert rows_of(chosen, root) == rows_of(drawn, root)
            assert rows_of(chosen, root) != rows_of(expected.select(range(len(chosen))), root) or len(expected) < 4


def test_a_file_named_like_a_split_is_an_image_as_any_other(tmp_path):
    files = [*classes("", "album", "stamp"), "stamp/toy_train.jpg", "album/test.jpg"]
    root = fill(tmp_path / "images", *files)
    assert len(load_dataset(str(root))["train"]) == 1  # what this is about
    assert [path for path, _ in listed(root)] == sorted(files)
    assert dict(listed(root))["stamp/toy_train.jpg"] == "stamp"


def test_a_start_says_images_classes_and_what_is_left_out(tmp_path, capsys):
    root = fill(tmp_path / "images", *classes("train/", "x", "y"), "train/y/3.jpg", *classes("test/", "y", "z"))
    (root / "train/empty").mkdir()
    (root / "README.md").write_text("Images.")
    (root / "train/.DS_Store").write_text("")
    listed(root)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"Split train of {root}: 5 images, 3 classes: x (2), y (3), z (0)"
    assert sorted(line.strip() for line in said[1:]) == [
        "classes in split test alone: z (2)",
        "classes that split test lacks: x",
        "folders without images: train/empty",
        "left out: 1 documents (README.md)",
        "left out: 1 hidden (train/.DS_Store)",
        "left out: 4 images of split test",
    ]
    listed(root, max_train_samples=3)
    load_images(settings(root), "train", 3, 3)
    assert "3 of 5 images" in capsys.readouterr().out


def test_many_classes_are_abbreviated(tmp_path, capsys):
    listed(fill(tmp_path / "images", *classes("", *[f"c{number:03d}" for number in range(40)])))
    assert "80 images, 40 classes: c000 (2)," in (said := capsys.readouterr().out) and "and 28 more" in said


@pytest.mark.parametrize("name", ["line\nbreak", "a[1]", "a*", "what?", "{x}", "#1 %41", "quote'\"", "Ω 日本"])
def test_any_name_of_a_class_or_file_is_read(name, tmp_path, capsys):
    root = fill(tmp_path / "images", *classes("", name, "plain"), f"plain/{name}.jpg")
    rows = listed(root)
    assert len(rows) == 5 and dict(rows)[f"{name}/0.jpg"] == name
    assert (repr(name) if "\n" in name else name) in capsys.readouterr().out
    inside = fill(tmp_path / name / "images", *classes("", "x", "y"))
    assert len(listed(inside)) == 4


def test_images_outside_of_the_folders_of_splits_are_an_error(tmp_path):
    root = fill(tmp_path / "vehicles", *classes("", "bus", "car", "train"))
    message = message_of(lambda: listed(root))
    assert "train (2) are named after splits" in message and "bus (2), car (2)" in message and "Move" in message
    moved = fill(tmp_path / "moved", *classes("train/", "bus", "car", "train"), *classes("test/", "train", "bus"))
    assert [name for _, name in listed(moved)] == ["bus"] * 2 + ["car"] * 2 + ["train"] * 2
    assert [name for _, name in listed(moved, "test")] == ["bus"] * 2 + ["train"] * 2


def test_a_class_with_a_word_of_a_split_in_its_name_is_a_class(tmp_path):
    root = fill(tmp_path / "images", *classes("", "freight train", "test tube", "car"))
    assert [name for _, name in listed(root)] == ["car"] * 2 + ["freight train"] * 2 + ["test tube"] * 2


@pytest.mark.parametrize(("folder", "asked"), [("Train", "train"), ("training", "train"), ("VAL", "validation")])
def test_a_split_is_found_under_its_other_names(folder, asked, tmp_path):
    root = fill(tmp_path / "images", *classes(f"{folder}/", "x", "y"), *classes("Test/", "x", "y"))
    assert [path for path, _ in listed(root, asked)] == classes(f"{folder}/", "x", "y")
    assert [path for path, _ in listed(root, "test")] == classes("Test/", "x", "y")


def test_a_split_that_is_not_there_is_an_error_with_the_nearest_name(tmp_path):
    root = fill(tmp_path / "images", *classes("train/", "x", "y"), *classes("validation/", "x", "y"))
    message = message_of(lambda: listed(root, "validaton"))
    assert "hold a split `validaton`: it has train, validation. Did you mean `validation`?" in message
    alone = fill(tmp_path / "alone", *classes("", "x", "y"))
    assert "no folder in it is named after a split" in message_of(lambda: listed(alone, "test"))


def test_a_split_may_have_any_name_that_the_settings_say(tmp_path):
    root = fill(tmp_path / "images", *classes("train/", "x", "y"), *classes("held_out/", "x", "y"))
    assert "held_out (4)" in message_of(lambda: listed(root))
    fields = {"config_class": FinetuneSettings, "eval_split": "held_out"}
    assert [path for path, _ in listed(root, "held_out", **fields)] == classes("held_out/", "x", "y")
    assert [path for path, _ in listed(root, "train", **fields)] == classes("train/", "x", "y")


def test_splits_by_file_names_are_refused_with_the_remedy(tmp_path):
    root = fill(tmp_path / "images", "train_1.jpg", "train_2.jpg", "test_1.jpg")
    assert "have its splits as folders: its files are named after test, train" in message_of(lambda: listed(root))
    assert len(listed(fill(tmp_path / "one", "train_1.jpg", "train_2.jpg"))) == 2


def test_a_split_without_classes_does_not_take_them_from_another(tmp_path):
    root = fill(tmp_path / "images", *classes("train/", "x", "y"), "test/1.jpg", "test/2.jpg")
    assert [name for _, name in listed(root)] == ["x", "x", "y", "y"]
    assert [name for _, name in listed(root, "test")] == [None, None]


def test_classes_that_folders_do_not_give_are_said(tmp_path, capsys):
    listed(fill(tmp_path / "uneven", "x/1.jpg", "y/old/1.jpg"))
    assert "no classes: images lie at different depths, e.g. x/1.jpg and y/old/1.jpg" in capsys.readouterr().out
    listed(fill(tmp_path / "same", "cats/black/1.jpg", "cats/white/1.jpg", "dogs/black/1.jpg"))
    assert "class black is in 2 folders: cats/black, dogs/black" in capsys.readouterr().out


def test_kinds_of_files_that_do_not_go_together_are_named(tmp_path):
    arrays = fill(tmp_path / "arrays", *classes("", "x", "y"))
    np.save(arrays / "x/stray.npy", np.zeros((4, 4, 3), np.uint8))
    assert "4 images, e.g. x/0.jpg; 1 .npy arrays, e.g. x/stray.npy" in message_of(lambda: listed(arrays))
    tables = fill(tmp_path / "tables", "preview.jpg")
    (tables / "train-00000-of-00001.parquet").write_bytes(b"")
    assert "1 images, e.g. preview.jpg; 1 data files" in message_of(lambda: listed(tables, skip_bad_images=True))


def test_files_that_cannot_be_images_are_named(tmp_path, capsys):
    root = fill(tmp_path / "images", *classes("", "x", "y"))
    (root / "x/link.jpg").symlink_to("nothing.jpg")
    (root / "y/loop").symlink_to(root)
    (root / "more.zip").write_bytes(b"PK")
    os.mkfifo(root / "x/pipe.jpg")
    with open(os.fsencode(root / "y") + b"/\xff.jpg", "wb") as file:
        file.write(CONTENT["jpg"])
    message = message_of(lambda: listed(root))
    for reason in ("link.jpg links to nothing", "loop is a link to a folder above it", "more.zip: an archive"):
        assert reason in message
    assert "pipe.jpg is no regular file" in message and "\\xff.jpg has a name that is not UTF-8" in message
    assert len(listed(root, skip_bad_images=True)) == 4
    assert "Skipping 5 files" in capsys.readouterr().out


def test_links_to_files_and_folders_are_followed(tmp_path):
    elsewhere = fill(tmp_path / "elsewhere", "1.jpg", "2.jpg")
    root = fill(tmp_path / "images", "x/1.jpg")
    (root / "y").symlink_to(elsewhere)
    (root / "x/2.jpg").symlink_to(elsewhere / "2.jpg")
    assert listed(root) == [("x/1.jpg", "x"), ("x/2.jpg", "x"), ("y/1.jpg", "y"), ("y/2.jpg", "y")]


def test_metadata_gives_the_rows_of_its_split(tmp_path, capsys):
    root = fill(tmp_path / "images", *classes("train/", "x"), "test/1.jpg", "train/x/toy_test.jpg")
    for split, file in (("train", "x/1.jpg"), ("test", "1.jpg")):
        (root / split / "metadata.jsonl").write_text(f'{{"file_name": "{file}", "kind": "odd"}}\n')
    config = settings(root, FinetuneSettings, label_column="kind")
    source = load_images(config, "train", None, 3)
    assert [(os.path.basename(row["image"]["path"]), row["kind"]) for row in source] == [("1.jpg", "odd")]
    assert "left out: 2 images that the metadata files do not name" in capsys.readouterr().out
    assert len(load_images(config, "test", None, 3)) == 1
    part = fill(tmp_path / "part", *classes("", "x", "y"))
    (part / "x/metadata.jsonl").write_text('{"file_name": "1.jpg", "kind": "odd"}\n')
    assert "y has none" in message_of(lambda: listed(part))


def test_each_data_file_is_in_a_split(tmp_path):
    root = tmp_path / "files"
    root.mkdir()
    rows = load_dataset(str(fill(tmp_path / "images", *classes("", "x", "y"))), split="train")
    rows.to_parquet(root / "train-00000-of-00001.parquet")
    rows.to_parquet(root / "test-00000-of-00001.parquet")
    assert len(load_source(settings(root), "train", None)) == 4
    rows.to_parquet(root / "extra.parquet")
    assert "extra.parquet is in none: train, test are found" in message_of(lambda: listed(root))


def test_mixed_folders_are_each_checked(tmp_path):
    first, second = (fill(tmp_path / name, *classes("", "x", "y")) for name in ("first", "second"))
    config = settings(first, mixed_dataset_names=[str(second)])
    assert len(load_mixture(config, 3)[0]) == 8
    (second / "x/notes.txt").write_text("notes")
    assert "notes.txt" in message_of(lambda: load_mixture(settings(first, mixed_dataset_names=[str(second)]), 3))


def test_files_that_cannot_be_images_are_told_with_the_split_that_they_lie_in(tmp_path, capsys):
    root = fill(tmp_path / "images", *classes("train/", "x", "y"), *classes("test/", "x", "y"))
    for place in ("train/x/notes", "test/y/remark"):
        (root / f"{place}.txt").write_text("text")
    listed(root, skip_bad_images=True)
    train = capsys.readouterr().out
    listed(root, "test", skip_bad_images=True)
    test = capsys.readouterr().out
    assert "notes.txt: has no extension of an image" in train and "remark.txt" not in train
    assert "remark.txt: has no extension of an image" in test and "notes.txt" not in test
    assert "Skipping 1 file that" in train


def test_why_a_folder_gives_no_classes_is_part_of_the_error(tmp_path):
    uneven = fill(tmp_path / "uneven", *classes("train/", "x", "y"), "train/loose.jpg")
    same = fill(tmp_path / "same", "train/x/2020/1.jpg", "train/y/2020/1.jpg")
    for root, reason in ((uneven, "train/loose.jpg"), (same, "the folders right above the images are all called 2020")):
        found = find_source(settings(root), "train")
        assert reason in message_of(lambda found=found: resolve_labels(found.source, "label", None, found.notes))


@pytest.mark.skipif(not pillow.check("avif"), reason="this Pillow reads no AVIF")
def test_every_kind_of_image_that_pillow_reads_by_its_extension_counts_as_one(tmp_path):
    root = fill(tmp_path / "images", *classes("", "x", "y"))
    Pictures.open(root / "x/0.jpg").save(root / "x/2.avif")
    assert len(listed(root)) == 5


@pytest.mark.parametrize("names", [("1.jpg", "2.jpg"), ("x/1.jpg", "y/deeper/1.jpg"), ("x/1.jpg", "x/2.jpg")])
def test_a_folder_without_classes_says_where_classes_come_from(names, tmp_path):
    source = load_source(settings(fill(tmp_path / "images", *names)), "train", None)
    message = message_of(lambda: resolve_labels(source, "label", None))
    assert "images in a folder get it from the folders they are in, two or more" in message


def test_parquet_files_number_their_classes_alike(tmp_path):
    root = tmp_path / "files"
    root.mkdir()
    for split, names in (("train", ["cat", "dog"]), ("test", ["dog", "fox"])):
        features = Features({"image": Image(), "label": ClassLabel(names=names)})
        rows = Dataset.from_dict({"image": [None, None], "label": [0, 1]}, features=features)
        rows.to_parquet(root / f"{split}-00000-of-00001.parquet")
    message = message_of(lambda: load_source(settings(root), "test", None))
    assert "train-00000-of-00001.parquet" in message and "cat, dog" in message and "dog, fox" in message
    (root / "test-00000-of-00001.parquet").unlink()
    assert len(load_source(settings(root), "train", None)) == 2  # the control


def test_files_are_those_that_a_readme_names_and_the_start_says_so(tmp_path):
    root = write_folder(tmp_path / "images", {"train": 2})
    names = [str(file.relative_to(root)) for file in sorted(root.rglob("*.*"))]
    (root / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {names[1]}\n---\n")
    found = find_source(settings(root), "train")
    assert len(found.source) == 1 < len(names)
    assert found.notes == ["files and splits are those that its README.md names"]


@pytest.mark.parametrize("text", [b"My photos of the caf\xe9", b"---\ntitle: [unclosed\n---\n"])
@pytest.mark.parametrize("kind", ["images", "parquet"])
def test_a_readme_that_datasets_cannot_read_is_named(text, kind, tmp_path):
    root = (write_folder if kind == "images" else write_parquet)(tmp_path / "data", {"train": 2})
    (root / "README.md").write_bytes(text)
    message = message_of(lambda: find_source(settings(root), "train"))
    assert f"`dataset_name` (={root}) must have a README.md in UTF-8, with nothing but YAML between" in message


def test_accents_of_a_mac_are_those_of_other_systems(tmp_path):
    composed, decomposed = "\u00dcn\u00ef", "U\u0308ni\u0308"
    root = fill(tmp_path / "images", f"train/{composed}/1.jpg", "train/cat/1.jpg", f"test/{decomposed}/1.jpg")
    found = find_source(settings(root), "test")
    assert found.source.features["label"].names == sorted(["cat", composed])
    assert found.source["label"] == [found.source.features["label"].names.index(composed)]
    assert os.path.isfile(found.source[0]["image"]["path"])
    assert not any(composed in note for note in found.notes)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("file_name;label\n1.jpg;cat\n".encode("utf-8-sig"), "metadata.csv has semicolons: save it with commas"),
        (b'"file_name";"label"\r\n"1.jpg";"cat"\r\n', "metadata.csv has semicolons: save it with commas"),
        ("file_name,label\n1.jpg,cat\n".encode("utf-16"), "metadata.csv is in another encoding, such as UTF-16"),
    ],
)
def test_a_csv_file_as_a_spreadsheet_may_save_it_is_named(content, rule, tmp_path):
    root = fill(tmp_path / "images", "1.jpg")
    (root / "metadata.csv").write_bytes(content)
    assert rule in message_of(lambda: find_source(settings(root), "train"))
    (root / "metadata.csv").write_bytes(b"file_name,label\r\n1.jpg,cat;dog\r\n")
    assert find_source(settings(root), "train").source["label"] == ["cat;dog"]
