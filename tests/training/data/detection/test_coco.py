"""COCO's JSON files: found in every usual layout, read like the other forms, and refused where they are wrong."""

import json
import os
import shutil

import pytest
import torch
from pycocotools.coco import COCO

from tests.photographs import message_of, quick_datasets, write_coco_folder, write_objects_folder
from training.data.detection import coco
from training.data.detection.classes import class_names_of
from training.data.detection.coco_json import read_coco
from training.data.detection.rows import load_objects, object_reader
from training.data.sources import find_source, local_splits
from training.data.splits import check_split
from training.settings.data import DetectDataSettings

__all__ = ["quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets")
NAMES = ["disc", "rectangle"]
JSON = "annotations/instances_train2017.json"


@pytest.fixture
def folder(tmp_path):
    return write_coco_folder(tmp_path / "coco", {"train": 1, "val": 1})


def settings(folder, **fields):
    return DetectDataSettings(dataset_name=str(folder), num_workers=0, **{"eval_split": "val", **fields})


def load(folder, split="train", with_masks=False, **fields):
    return load_objects(settings(folder, **fields), split, None, 3, NAMES, with_masks)


def objects_of(rows, name="objects"):
    """The objects of each image with masks, by the name of the file."""
    reader = object_reader(settings("."), NAMES, True)
    return {os.path.basename(row["image"]["path"]): reader(row[name], (48, 48), "x") for row in rows}


def edit(folder, change, file=JSON):
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))


def test_objects_are_those_that_pycocotools_reads(folder, capsys):
    found = objects_of(load(folder, with_masks=True))
    known = COCO(str(folder / JSON))
    numbers = {category["id"]: NAMES.index(category["name"]) for category in known.dataset["categories"]}
    assert len(found) == len(known.imgs) == 3
    for image in known.imgs.values():
        annotations = known.imgToAnns[image["id"]]
        objects = found[image["file_name"]]
        corners = [[left, top, left + wide, top + high] for left, top, wide, high in (a["bbox"] for a in annotations)]
        assert objects.boxes.tolist() == corners
        assert objects.labels.tolist() == [numbers[a["category_id"]] for a in annotations]
        assert objects.areas.tolist() == pytest.approx([a["area"] for a in annotations])
        for mask, annotation in zip(objects.masks, annotations, strict=True):
            assert torch.equal(mask, torch.from_numpy(known.annToMask(annotation)))


def test_the_same_objects_from_metadata_files_are_equal(folder, tmp_path):
    other = write_objects_folder(tmp_path / "metadata", {"train": 1})
    first, second = objects_of(load(folder)), objects_of(load(other, eval_split=None))
    for name, objects in first.items():
        assert all(torch.equal(objects[i], second[name][i]) for i in (0, 1, 3, 4))


def coco_layout(folder, root):
    shutil.copytree(folder, root)


def roboflow(folder, root):
    for split, name in (("train", "train"), ("val", "valid")):
        shutil.copytree(folder / f"{split}2017", root / name)
        shutil.copy(folder / f"annotations/instances_{split}2017.json", root / name / "_annotations.coco.json")
    (root / "README.roboflow.txt").write_text("exported")


def short_names(folder, root):
    for split in ("train", "val"):
        shutil.copytree(folder / f"{split}2017", root / "images" / split)
        (root / "annotations").mkdir(exist_ok=True)
        shutil.copy(folder / f"annotations/instances_{split}2017.json", root / "annotations" / f"{split}.json")


def one_folder_of_images(folder, root):
    """One folder holds the images of both splits, which have other names."""

    def rename(content):
        for image in images(content):
            file = folder / "val2017" / image["file_name"]
            image["file_name"] = f"held_out_{file.name}"
            file.rename(file.with_name(image["file_name"]))

    edit(folder, rename, "annotations/instances_val2017.json")
    for split in ("train", "val"):
        shutil.copytree(folder / f"{split}2017", root / "images", dirs_exist_ok=True)
        shutil.copy(folder / f"annotations/instances_{split}2017.json", root / f"{split}.json")


def beside(folder, root):
    for split in ("train", "val"):
        shutil.copytree(folder / f"{split}2017", root / split / "images")
        shutil.copy(folder / f"annotations/instances_{split}2017.json", root / split / "annotations.json")


def paths_in_the_names(folder, root):
    shutil.copytree(folder, root)
    for split in ("train", "val"):
        prefix = f"{split}2017\\" if split == "train" else f"{split}2017/"
        file = f"annotations/instances_{split}2017.json"
        edit(
            root,
            lambda content, prefix=prefix: [i.update(file_name=prefix + i["file_name"]) for i in images(content)],
            file,
        )


def images(content):
    return content["images"]


LAYOUTS = [coco_layout, roboflow, short_names, one_folder_of_images, beside, paths_in_the_names]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("eval_split", ["val", "validation"])
def test_usual_layouts_are_found_by_split(layout, eval_split, folder, tmp_path, capsys):
    root = tmp_path / "layout"
    layout(folder, root)
    data = settings(root, eval_split=eval_split)
    check_split(data, "eval_split", eval_split)
    assert sorted(local_splits(data)) == ["train", "validation"]
    assert class_names_of(data, None) == NAMES
    for split, name in (("train", "train"), (eval_split, "val")):
        rows = load(root, split, eval_split=eval_split)
        named = json.loads((folder / f"annotations/instances_{name}2017.json").read_text())["images"]
        assert [os.path.basename(row["image"]["path"]) for row in rows] == [image["file_name"] for image in named]
        assert all(os.path.exists(row["image"]["path"]) for row in rows)


def names_that_repeat(folder, root, places):
    """Images that have the same names, 1.jpg to 3.jpg, in each split but other pixels, in a folder for each split."""
    (root / "annotations").mkdir(parents=True)
    for split, place in places.items():
        (root / place).mkdir(parents=True, exist_ok=True)
        content = json.loads((folder / f"annotations/instances_{split}2017.json").read_text())
        for number, image in enumerate(images(content), 1):
            shutil.copy(folder / f"{split}2017" / image["file_name"], root / place / f"{number}.jpg")
            image["file_name"] = f"{number}.jpg"
        (root / f"annotations/{split}.json").write_text(json.dumps(content))


PLACES = [
    ("images", "images_val"),
    ("images", "val_images"),
    ("images_train", "images_val"),
    ("images/train", "images/val"),
    ("", "val_01/images"),
    ("train", "images"),
]


@pytest.mark.parametrize("places", PLACES)
def test_images_of_the_same_names_are_those_of_their_split(places, folder, tmp_path):
    root = tmp_path / "data"
    places = dict(zip(("train", "val"), places, strict=True))
    names_that_repeat(folder, root, places)
    for split, place in places.items():
        rows = load(root, split)
        assert [row["image"]["path"] for row in rows] == [str(root / place / f"{n}.jpg") for n in (1, 2, 3)]


def test_masks_that_have_the_names_of_their_images_are_not_taken_for_them(folder, tmp_path):
    for number, (place, masks) in enumerate([("images/train", "masks/train"), ("images", "train_masks")]):
        root = tmp_path / str(number)
        names_that_repeat(folder, root, {"train": place})
        shutil.copytree(root / place, root / masks)
        assert {os.path.dirname(row["image"]["path"]) for row in load(root, eval_split=None)} == {str(root / place)}


def test_an_image_of_both_splits_is_refused(folder, tmp_path):
    """Also where a file is missing, so that more of the images are found among those to train on."""
    names_that_repeat(folder, tmp_path / "a", {"train": "images", "val": "images_val"})
    (tmp_path / "a/images_val/3.jpg").unlink()
    one_folder_of_images(folder, tmp_path / "b")
    assert len(load(tmp_path / "b")) == 3
    shared = images(json.loads((tmp_path / "b/train.json").read_text()))[1]["file_name"]
    edit(tmp_path / "b", lambda content: images(content)[0].update(file_name=shared), "val.json")
    for root, expected in (("a", "3: images/1.jpg, images/2.jpg, images/3.jpg"), ("b", f"1: images/{shared}")):
        message = message_of(lambda root=root: load(tmp_path / root))
        assert "must have other images in each split, but train and validation share " + expected in message
        assert "folders called train and validation" in message
        assert len(load(tmp_path / root, eval_split=None)) == 3


def test_given_files_belong_to_the_split_to_train_on_and_to_the_other(folder, tmp_path):
    files = []
    for split in ("train", "val"):
        files.append(str(tmp_path / f"of_{split}.json"))
        shutil.move(folder / f"annotations/instances_{split}2017.json", files[-1])
    shutil.rmtree(folder / "annotations")
    shutil.move(folder / "val2017", folder / "test")
    data = settings(folder, annotation_files=files, eval_split="test")  # "test" sorts before "train"
    for split, place in (("train", "train2017"), ("test", "test")):
        rows = find_source(data, split).source
        assert {os.path.dirname(row["image"]["path"]) for row in rows} == {str(folder / place)}
    message = message_of(lambda: settings(folder, annotation_files=files[:1], eval_split="test"))
    assert "name one file for each of the splits train, test" in message
    gone = settings(folder, annotation_files=[files[0], "gone.json"], eval_split="test")
    assert "gone.json) must be files that exist" in message_of(lambda: find_source(gone, "train"))


def test_a_stream_gives_the_same_rows(folder):
    whole, stream = load(folder), load(folder, streaming=True)
    assert list(whole) == list(stream) and stream.info.splits["train"].num_examples == 3


def test_the_json_file_is_read_once_until_it_or_the_folder_changes(folder, monkeypatch):
    read = []
    monkeypatch.setattr(coco, "read_coco", lambda path: (read.append(os.path.basename(path)), read_coco(path))[1])
    first = list(load(folder))
    assert sorted(read) == ["instances_train2017.json", "instances_val2017.json"]
    assert list(load(folder)) == first and len(read) == 2
    edit(folder, lambda content: content["annotations"].pop())
    assert sum(len(row["objects"]["bbox"]) for row in load(folder)) == 5 and len(read) == 3
    monkeypatch.setattr(coco, "READING", coco.READING + 1)
    assert len(load(folder)) == 3 and len(read) == 5
    (folder / "train2017" / "chelsea0.jpg").unlink()
    assert "chelsea0.jpg: is not there" in message_of(lambda: load(folder))


def test_images_that_are_missing_or_not_named_are_told(folder, capsys):
    shutil.copy(folder / "train2017/coffee0.jpg", folder / "train2017/unnamed.jpg")
    load(folder)
    told = "left out: 1 images that annotations/instances_train2017.json does not name (train2017/unnamed.jpg)"
    assert told in capsys.readouterr().out
    (folder / "train2017/coffee0.jpg").unlink()
    missing = f"{folder}/train2017/coffee0.jpg: is not there, but {JSON} names it"
    assert missing in message_of(lambda: load(folder))
    assert len(load(folder, skip_bad_images=True)) == 2
    assert missing in capsys.readouterr().out
    shutil.rmtree(folder / "train2017")
    assert "astronaut0.jpg, chelsea0.jpg, coffee0.jpg), but none is in" in message_of(lambda: load(folder))


def test_a_metadata_file_beside_it_is_told_to_be_left_out(folder, capsys):
    (folder / "train2017/metadata.jsonl").write_text('{"file_name": "coffee0.jpg"}')
    load(folder)
    assert "left out: train2017/metadata.jsonl, for COCO's JSON has the objects" in capsys.readouterr().out


def test_images_of_another_size_than_stated_are_named(folder):
    edit(folder, lambda content: images(content)[1].update(width=96, height=64))
    expected = "chelsea0.jpg are stated for an image of 96 x 64 pixels, but it has 48 x 48 after the rotation"
    assert expected in message_of(lambda: load(folder))


def test_images_without_annotations_and_crowds_are_kept(folder, capsys):
    def change(content):
        first = images(content)[0]["id"]
        content["annotations"] = [each for each in content["annotations"] if each["image_id"] != first]
        runs = {"size": [48, 48], "counts": [48 * 10, 48 * 10, 48 * 28]}
        content["annotations"][0].update(iscrowd=1, segmentation=runs, bbox=[10, 0, 10, 48], area=480)

    edit(folder, change)
    found = objects_of(load(folder, with_masks=True))
    told = capsys.readouterr().out
    assert "1 images have no object" in told and "1 objects are crowds" in told
    assert len(found["astronaut0.jpg"].boxes) == 0
    crowd = found["chelsea0.jpg"]
    assert crowd.crowds.tolist() == [True, False]
    assert crowd.masks[0, :, 10:20].all() and crowd.masks[0].sum() == 480


def test_files_of_windows_and_true_for_1_are_read(folder):
    expected = objects_of(load(folder, with_masks=True))
    edit(folder, lambda content: [each.update(iscrowd=False) for each in content["annotations"]])
    file = folder / JSON
    file.write_text(file.read_text(), encoding="utf-8-sig")
    found = objects_of(load(folder, with_masks=True))
    assert file.read_bytes().startswith(b"\xef\xbb\xbf") and found.keys() == expected.keys()
    assert all((found[name].boxes == expected[name].boxes).all() for name in found)
    assert not any(each.crowds.any() for each in found.values())


def drop(key):
    return lambda content: content.pop(key)


def of_annotation(**values):
    return lambda content: content["annotations"][0].update(values)


WRONG = [
    (drop("categories"), "must be COCO's JSON, but it has no list of categories"),
    (lambda content: images(content)[1].update(file_name="astronaut0.jpg"), "but has more with astronaut0.jpg"),
    (lambda content: images(content)[1].update(file_name="./astronaut0.jpg"), "but has more with astronaut0.jpg"),
    (lambda content: images(content)[1].update(file_name="a\\..//astronaut0.jpg"), "has more with astronaut0.jpg"),
    (lambda content: images(content)[1].update(id=100), "have one of its images with each `id`, but has more with 100"),
    (lambda content: images(content)[1].pop("file_name"), "must give each of its images a `file_name`"),
    (lambda content: content["categories"][1].update(name="disc"), "categories with each `name`, but has more with"),
    (of_annotation(image_id=7), "whose `image_id` is among its images; 1 have another: 7"),
    (of_annotation(category_id=2), "whose `category_id` is among its categories; 1 have another: 2"),
    (of_annotation(category_id=[1]), "whose `category_id` is among its categories; 1 have another: [1]"),
    (lambda content: images(content)[1].update(id=[1]), "give each of its images a number or text as `id`, not [1]"),
    (lambda content: images(content)[1].update(file_name=["a.png"]), "a number or text as `file_name`, not ['a.png']"),
    (lambda content: content["categories"][1].update(id="2"), "the `id` of its categories, not both"),
    (of_annotation(bbox=None), "the box None of object 0 of {}/train2017/astronaut0.jpg must have 4 numbers"),
    (of_annotation(bbox=["1", 2, 3, 4]), "with a `bbox` of numbers; those with these ids have another: 1"),
    (of_annotation(bbox=[True, 2, 3, 4]), "with a `bbox` of numbers; those with these ids have another: 1"),
    (of_annotation(area="large"), "must hold numbers as `area`, `iscrowd`, `height` and `width`"),
    (of_annotation(iscrowd=10**30), "must hold numbers as `area`, `iscrowd`, `height` and `width`"),
    (of_annotation(iscrowd=0.5), "have whole numbers where there are no others, not 0.5 as `iscrowd`"),
    (lambda content: images(content)[1].update(height=47.5), "not 47.5 as `height`"),
    (lambda content: content["categories"][1].update(name=" "), "name each of its categories; those with these ids"),
    (of_annotation(bbox=[10, 10, 45, 20]), "astronaut0.jpg reaches 7 pixels out of the image"),
    (of_annotation(bbox=[10, 10, 20]), "astronaut0.jpg must have 4 numbers, but has 3"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[case[1][:40] for case in WRONG])
def test_a_wrong_file_is_refused_before_training(change, message, folder):
    edit(folder, change)
    assert message.replace("{}", str(folder)) in message_of(lambda: load(folder))


def test_an_image_with_an_annotation_without_a_box_is_left_out_if_asked_to(folder, capsys):
    edit(folder, lambda content: content["annotations"][0].pop("bbox"))
    left = [os.path.basename(row["image"]["path"]) for row in load(folder, skip_bad_images=True)]
    assert left == ["chelsea0.jpg", "coffee0.jpg"]
    told = capsys.readouterr().out
    assert "Skipping 1 file that cannot be used with its objects:" in told and "the box None of object 0" in told


def test_a_category_without_annotations_whose_name_another_has_is_left_out(folder):
    """Roboflow writes the supercategory as a category with the id 0, often by the name of the only class."""
    expected = objects_of(load(folder, with_masks=True))
    twin = {"id": 0, "name": "rectangle", "supercategory": "none"}
    for split in ("train", "val"):
        edit(folder, lambda content: content["categories"].insert(0, twin), f"annotations/instances_{split}2017.json")
    assert class_names_of(settings(folder), None) == NAMES
    found = objects_of(load(folder, with_masks=True))
    assert all((found[name].labels == expected[name].labels).all() for name in found)
    edit(folder, lambda content: content["annotations"][0].update(category_id=0))
    assert "categories with each `name`, but has more with rectangle" in message_of(lambda: load(folder))
    edit(folder, lambda content: content["annotations"][0].update(category_id=1))
    edit(folder, lambda content: content["categories"][0].update(name="shape"))
    assert read_coco(str(folder / JSON)).names == ["shape", *NAMES]


def test_other_classes_in_another_split_are_refused(folder):
    edit(folder, lambda content: content["categories"].pop(), "annotations/instances_val2017.json")
    edit(folder, lambda content: content["annotations"].clear(), "annotations/instances_val2017.json")
    message = message_of(lambda: load(folder))
    assert "must have the same classes in all splits, but train has disc, rectangle and validation has disc" in message


def test_a_split_without_a_file_or_with_two_is_refused(folder):
    message = message_of(lambda: load(folder, "test", eval_split=None))
    assert "must hold a COCO JSON file of split `test`: it has train (instances_train2017.json)" in message
    shutil.copy(folder / JSON, folder / "annotations/instances_train2014.json")
    message = message_of(lambda: load(folder))
    assert "must have one COCO JSON file for each split" in message and "`--annotation_files`" in message


def test_a_folder_of_images_without_objects_is_told_the_layouts(folder):
    shutil.rmtree(folder / "annotations")
    message = message_of(lambda: load(folder))
    assert "must hold the objects of its images: train/metadata.jsonl" in message
    assert "annotations/instances_train2017.json" in message and "_annotations.coco.json" in message


def test_text_that_is_no_json_is_refused(folder):
    (folder / JSON).write_text('{"images": [')
    assert "instances_train2017.json must be JSON" in message_of(lambda: load(folder))
