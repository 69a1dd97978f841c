"""Images with objects as samples, from every source, and the names of their classes."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pictures

from tests.photographs import (
    OBJECTS,
    message_of,
    pictures_with_objects,
    quick_datasets,
    write_coco_folder,
    write_objects_folder,
    write_objects_parquet,
)
from training.data.detection.classes import check_held_out, class_names_of
from training.data.detection.rows import load_objects, object_reader
from training.data.detection.samples import detection_samples
from training.data.samples import MapSamples, StreamSamples
from training.settings.data import DetectDataSettings

__all__ = ["quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets")
NAMES = ["disc", "rectangle"]
WRITERS = [write_objects_folder, write_objects_parquet, write_coco_folder]


def settings(folder, **fields):
    return DetectDataSettings(dataset_name=str(folder), num_workers=0, **fields)


def samples_of(data, transform, with_masks=True):
    source = load_objects(data, "train", None, 3, NAMES, with_masks)
    reader = object_reader(data, NAMES, with_masks)
    return source, detection_samples(data, source, 3, reader, transform)


def as_they_are(image, objects):
    return {"pixel_values": image, "objects": objects}


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_boxes_and_masks_lie_on_the_objects_in_the_image(write, tmp_path):
    source, samples = samples_of(settings(write(tmp_path / "data", {"train": 2})), as_they_are)
    dataset = MapSamples([source], samples)
    assert len(dataset) == 6
    for index in range(6):
        sample = dataset[index]
        image, objects = sample["pixel_values"].float(), sample["objects"]
        for box, label, mask in zip(objects.boxes.int().tolist(), objects.labels, objects.masks, strict=True):
            left, top, right, bottom = box
            middle = image[:, (top + bottom) // 2, (left + right) // 2]
            colour = torch.tensor(OBJECTS[NAMES[label]])
            assert (middle - colour).abs().max() < 60  # JPEG
            inside = torch.zeros(48, 48)
            inside[top:bottom, left:right] = 1
            assert mask.sum() > 0.7 * inside.sum() and (mask * inside).sum() == mask.sum()


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_a_stream_gives_the_same_samples(write, tmp_path):
    folder = write(tmp_path / "data", {"train": 2})
    source, samples = samples_of(settings(folder), as_they_are)
    data = settings(folder, streaming=True)
    stream, streamed = samples_of(data, as_they_are)
    whole = MapSamples([source], samples)
    for index, sample in enumerate(StreamSamples(stream, streamed, data)):
        expected = whole[index]
        assert torch.equal(sample["pixel_values"], expected["pixel_values"])
        assert all(torch.equal(a, b) for a, b in zip(sample["objects"], expected["objects"], strict=True))
    assert index == 5


def test_a_stream_stops_at_wrong_objects_or_skips_them(tmp_path, capsys):
    folder = write_objects_folder(tmp_path / "data", {"train": 1})
    file = folder / "train/metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[1]["objects"]["bbox"][0] = [40, 40, 20, 20]
    file.write_text("\n".join(map(json.dumps, rows)))
    data = settings(folder, streaming=True)
    stream, samples = samples_of(data, as_they_are)
    message = message_of(lambda: list(StreamSamples(stream, samples, data)))
    assert "chelsea0.jpg reaches 12 pixels out of the image" in message and "--skip_bad_images" in message
    data = settings(folder, streaming=True, skip_bad_images=True)
    assert len(list(StreamSamples(stream, samples, data))) == 2
    assert "chelsea0.jpg reaches 12 pixels" in capsys.readouterr().out


def test_random_transforms_depend_on_the_epoch_and_the_example_alone(tmp_path):
    def noise(image, objects):
        return {"noise": torch.rand(3)}

    source, samples = samples_of(settings(write_objects_folder(tmp_path / "data", {"train": 1})), noise)
    dataset = MapSamples([source], samples)
    drawn = {key: dataset[key]["noise"] for key in ((0, 0), (0, 1), (1, 0))}
    torch.rand(5)
    assert all(torch.equal(dataset[key]["noise"], noise) for key, noise in drawn.items())
    assert len({tuple(noise.tolist()) for noise in drawn.values()}) == 3
    assert set(dataset[0]) == {"seed", "is_transparent", "noise"}


def test_masks_are_decoded_only_where_they_are_asked_for(tmp_path):
    _, samples = samples_of(settings(write_coco_folder(tmp_path / "data", {"train": 1})), as_they_are, False)
    source, _ = samples_of(settings(tmp_path / "data"), as_they_are, False)
    assert MapSamples([source], samples)[0]["objects"].masks is None


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_the_names_of_classes_come_with_the_objects(write, tmp_path):
    folder = write(tmp_path / "data", {"train": 2})
    assert class_names_of(settings(folder), None) == NAMES
    assert class_names_of(settings(folder), 2) == NAMES
    assert class_names_of(settings(folder, max_train_samples=1), None) == NAMES
    assert "`num_labels` (=3) must be 2" in message_of(lambda: class_names_of(settings(folder), 3))


def numbered_folder(root):
    """A folder whose objects have class numbers."""
    write_objects_folder(root, {"train": 2})
    file = root / "train/metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row["objects"]["category"] = [3 * NAMES.index(name) for name in row["objects"]["category"]]
    file.write_text("\n".join(map(json.dumps, rows)))
    return root


def test_class_numbers_are_counted_or_named_in_a_file(tmp_path):
    folder = numbered_folder(tmp_path / "data")
    assert class_names_of(settings(folder), None) == ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"]
    assert len(class_names_of(settings(folder), 6)) == 6
    stream = settings(folder, streaming=True)
    assert class_names_of(stream, 4) == ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"]
    assert "a stream does not say how many classes its numbers mean" in message_of(lambda: class_names_of(stream, None))
    (folder / "id2label.json").write_text(json.dumps(dict(enumerate("abcd"))))
    assert class_names_of(settings(folder), None) == list("abcd") == class_names_of(stream, None)


def test_ids_in_the_place_of_class_numbers_are_refused_and_a_class_0_without_objects_is_told(tmp_path, capsys):
    folder = numbered_folder(tmp_path / "data")
    file = folder / "train/metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    classes = [[number // 3 for number in row["objects"]["category"]] for row in rows]

    def numbered(numbers):
        for row, of_row in zip(rows, classes, strict=True):
            row["objects"]["category"] = [numbers[number] for number in of_row]
        file.write_text("\n".join(map(json.dumps, rows)))

    numbered([7, 100_000])
    message = message_of(lambda: class_names_of(settings(folder), None))
    assert "as `objects` holds only 2 different numbers of the 100,001 up to the largest: 7, 100000" in message
    assert len(class_names_of(settings(folder), 100_001)) == 100_001
    assert "No image has the class 0" not in capsys.readouterr().out
    numbered([1, 2])
    assert len(class_names_of(settings(folder), None)) == 3
    assert "No image has the class 0 in `objects`, whose least number is 1" in capsys.readouterr().out


@pytest.mark.parametrize("place", [slice(0, 1), slice(None)], ids=["an object", "an image"])
@pytest.mark.parametrize("streaming", [False, True])
def test_names_and_numbers_of_classes_in_one_file_are_refused_by_the_images(place, streaming, tmp_path):
    folder = write_objects_folder(tmp_path / "data", {"train": 2})
    file = folder / "train/metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert class_names_of(settings(folder), None) == NAMES
    kinds = rows[1]["objects"]["category"]
    kinds[place] = [7] * len(kinds[place])
    file.write_text("\n".join(map(json.dumps, rows)))
    message = message_of(lambda: class_names_of(settings(folder, streaming=streaming), None))
    assert "`objects_column` (=objects) must hold names of classes or numbers, not both;" in message
    first, other = rows[0]["objects"]["category"][0], rows[1]["file_name"]
    assert f"train/{rows[0]['file_name']} has the name '{first}' and train/{other} has the number 7" in message
    file.write_text("no JSON")
    assert "must hold a split `train`" in message_of(lambda: class_names_of(settings(folder), None))


def test_a_stream_of_names_is_told_to_list_them_in_a_file(tmp_path):
    folder = write_objects_folder(tmp_path / "data", {"train": 1})
    stream = settings(folder, streaming=True)
    for num_labels in (None, 2):
        message = message_of(lambda num_labels=num_labels: class_names_of(stream, num_labels))
        assert "must hold class numbers or `ClassLabel`, as the names that a stream holds are not known" in message
        assert "list them in id2label.json at the top of the folder" in message
    (folder / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES[::-1]))))
    assert class_names_of(stream, None) == NAMES[::-1]
    reader, whole = object_reader(stream, NAMES[::-1], True), object_reader(stream, NAMES, True)
    for row in load_objects(stream, "train", None, 3, NAMES[::-1], True):
        found, expected = (each(row["objects"], (48, 48), "x").labels for each in (reader, whole))
        assert torch.equal(found, 1 - expected)


def test_objects_as_a_list_of_dicts_in_a_file_have_names_too(tmp_path):
    item = {"bbox": List(Value("float64")), "label": Value("string")}
    features = Features({"image": Image(), "things": List(item)})
    rows: dict = {"image": [], "things": []}
    for _, picture, objects in pictures_with_objects(1):
        rows["image"].append(picture)
        boxes, kinds = objects["bbox"], objects["category"]
        rows["things"].append([{"bbox": box, "label": kind} for box, kind in zip(boxes, kinds, strict=True)])
    file = tmp_path / "train.parquet"
    Dataset.from_dict(rows, features=features).to_parquet(file)
    data = settings(file, objects_column="things")
    assert class_names_of(data, None) == NAMES
    assert len(load_objects(data, "train", None, 3, NAMES, False)) == 3
    message = message_of(lambda: class_names_of(settings(file), None))
    assert "`objects_column` (=objects) must be a column of the data set, which has image, things" in message


def test_masks_that_are_images_in_a_data_set_are_read(tmp_path):
    objects = {"bbox": List(List(Value("float64"))), "category": List(Value("int64")), "mask": List(Image())}
    mask = np.zeros((48, 48), np.uint8)
    mask[10:20, 5:25] = 255
    value = {"bbox": [[5, 10, 20, 10]], "category": [0], "mask": [Pictures.fromarray(mask)]}
    rows = {"image": [pictures_with_objects(1)[0][1]], "objects": [value]}
    features = Features({"image": Image(), "objects": objects})
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    source, samples = samples_of(settings(tmp_path / "train.parquet"), as_they_are)
    found = MapSamples([source], samples)[0]["objects"]
    assert np.array_equal(found.masks[0], mask // 255) and found.areas.tolist() == [200]


def test_images_of_which_nothing_would_be_left_are_named_or_skipped_at_the_start(tmp_path):
    folder = write_objects_folder(tmp_path / "data", {"train": 2})
    line = json.loads((folder / "train/metadata.jsonl").read_text().splitlines()[0])
    Pictures.new("RGB", (300, 2)).save(folder / "train/thin.png")
    row = {"file_name": "thin.png", "objects": {"bbox": [[0, 0, 300, 2]], "category": line["objects"]["category"][:1]}}
    with (folder / "train/metadata.jsonl").open("a") as file:
        file.write("\n" + json.dumps(row))
    arguments = ("train", None, 3, NAMES, False)
    num_images = len(load_objects(settings(folder), *arguments))
    assert len(load_objects(settings(folder), *arguments, 150)) == num_images
    message = message_of(lambda: load_objects(settings(folder), *arguments, 149))
    assert "thin.png (300 x 2 pixels) is too long and thin for `image_size` (=149): crop it." in message
    assert len(load_objects(settings(folder, skip_bad_images=True), *arguments, 149)) == num_images - 1


@pytest.mark.parametrize("pattern", ["", "*.parquet", "test-*.parquet"])
def test_files_that_number_the_classes_of_objects_differently_are_refused(pattern, tmp_path):
    """`datasets` would read the second file with the names of the first."""
    folder = write_objects_parquet(tmp_path / "data", {"train": 2, "test": 2}, files=1)
    file = next(folder.glob("test-*.parquet"))
    table = Dataset.from_parquet(str(file))
    features = Features.from_dict(json.loads(json.dumps(table.features.to_dict()).replace(*ORDERS)))
    table.cast(features).to_parquet(file)
    if pattern.startswith("test"):  # the control: one file
        assert class_names_of(settings(folder / pattern), None) == ["rectangle", "disc"]
        return
    message = message_of(lambda: class_names_of(settings(folder / pattern), None))
    assert "must number the classes of `objects.category` alike in all files" in message


ORDERS = (json.dumps(["disc", "rectangle"]), json.dumps(["rectangle", "disc"]))


def test_names_in_one_split_and_numbers_in_the_other_are_refused(tmp_path):
    folder = write_objects_folder(tmp_path / "data", {"train": 2, "test": 2})
    file = folder / "test/metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row["objects"]["category"] = [1 - NAMES.index(name) for name in row["objects"]["category"]]
    file.write_text("\n".join(map(json.dumps, rows)))
    data = settings(folder)
    parts = [load_objects(data, split, None, 3, NAMES, False) for split in ("train", "test")]
    message = message_of(lambda: check_held_out(*parts, data, NAMES))
    assert "must have names or numbers of classes in all splits, but has string and int64" in message
    (folder / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))
    check_held_out(*parts, data, NAMES)


def test_other_names_in_the_held_out_split_are_refused(tmp_path):
    folder = write_objects_parquet(tmp_path / "data", {"train": 2})
    data = settings(folder)
    part = load_objects(data, "train", None, 3, NAMES, False)
    check_held_out(part, part, data, NAMES)
    message = message_of(lambda: check_held_out(part, part, data, NAMES[::-1]))
    assert "must have the 2 classes of the model, in their order: rectangle, disc, but has disc, rectangle" in message


def test_objects_that_are_less_than_a_pixel_once_resized_are_told_and_alone_refused(tmp_path, capsys):
    folder = tmp_path / "data"
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        Pictures.new("RGB", (100, 80)).save(folder / split / "1.png")
    rows = {"train": [[5, 5, 3, 50], [20, 20, 40, 30]], "test": [[5, 5, 3, 50]]}  # left, top, width and height

    def load(split, longest_side):
        for name, boxes in rows.items():
            objects = {"bbox": boxes, "category": [0] * len(boxes)}
            line = json.dumps({"file_name": "1.png", "objects": objects})
            (folder / name / "metadata.jsonl").write_text(line)
        load_objects(settings(folder), split, None, 3, ["cell"], False, longest_side)
        return capsys.readouterr().out

    told = "1 objects are less than a pixel wide or high in images that are resized to"
    assert told not in load("train", 34) and f"{told} 33 pixels" in load("train", 33)
    assert f"{told} 33 pixels" in load("test", 33)
    rows["train"] = rows["test"]
    message = message_of(lambda: load("train", 33))
    assert "must hold objects in split `train` that are a pixel wide and high at `image_size` (=33)" in message
    load("train", None)  # each side of an image is resized by a factor of its own
