"""Objects of images: read in every form, and refused by name where they are wrong."""

import io
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from tests.photographs import message_of, quick_datasets, write_objects_folder
from training.data.detection.columns import BadObjectsError
from training.data.detection.reader import ObjectReader
from training.data.detection.rows import load_objects
from training.settings.data import DetectDataSettings

__all__ = ["quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets")
NAMES = ["disc", "rectangle"]
SIZE = (30, 50)  # height and width
BOXES = [[4, 5, 20, 10], [30.5, 2, 6, 25.5]]
OBJECTS = {"bbox": BOXES, "category": [1, 0], "area": [150.0, None], "iscrowd": [0, 1]}


def read(value, size=SIZE, **fields):
    return ObjectReader(NAMES, **fields)(value, size, "x.jpg")


def as_dicts(objects):
    return [dict(zip(objects, values, strict=True)) for values in zip(*objects.values(), strict=True)]


def drawn(random, count=2):
    """Masks that fill part of each of `BOXES`."""
    masks = np.zeros((count, *SIZE), np.uint8)
    for mask, (left, top, width, height) in zip(masks, BOXES, strict=True):
        inside = random.random(SIZE) < 0.6
        rows, columns = slice(int(top), int(top + height)), slice(int(left) + 1, int(left + width))
        mask[rows, columns] = inside[rows, columns]
    return masks


@pytest.fixture
def masks():
    return drawn(np.random.default_rng(0))


def runs_of(mask):
    """COCO's run lengths, column after column, from the places where the value changes."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *changes, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


def png_of(mask):
    stream = io.BytesIO()
    Image.fromarray(mask * 255).save(stream, "png")
    return stream.getvalue()


@pytest.mark.parametrize("form", [lambda objects: objects, as_dicts], ids=["lists", "dicts"])
def test_objects_become_corners_classes_areas_and_crowds(form):
    objects = read(form(OBJECTS))
    assert objects.boxes.tolist() == [[4, 5, 24, 15], [30.5, 2, 36.5, 27.5]]
    assert objects.labels.tolist() == [1, 0] and objects.crowds.tolist() == [False, True]
    assert objects.areas.tolist() == [150, 6 * 25.5]  # the second of the box
    assert objects.masks is None
    assert [value.dtype for value in objects[:4]] == [torch.float32, torch.int64, torch.float32, torch.bool]


@pytest.mark.parametrize("keys", [("boxes", "labels"), ("bbox", "category_id"), ("boxes", "class_labels")])
def test_names_of_keys_that_data_sets_use_are_known(keys):
    expected = read({"bbox": BOXES, "category": [1, 0]})
    found = read(dict(zip(keys, (BOXES, ["rectangle", "disc"]), strict=True)))
    assert torch.equal(found.boxes, expected.boxes) and torch.equal(found.labels, expected.labels)


def test_corners_are_read_as_corners():
    corners = [[4, 5, 24, 15], [30.5, 2, 36.5, 27.5]]
    assert read({**OBJECTS, "bbox": corners}, box_format="xyxy").boxes.tolist() == corners


@pytest.mark.parametrize("nothing", [None, {}, [], {"bbox": [], "category": []}, {"bbox": None, "category": None}])
def test_an_image_without_objects_is_allowed(nothing):
    objects = read(nothing, with_masks=True)
    assert objects.boxes.shape == (0, 4) and objects.masks.shape == (0, *SIZE)
    assert [len(value) for value in objects] == [0] * 5


def test_masks_of_every_form_are_those_that_were_drawn(masks):
    compressed = [coco.encode(np.asfortranarray(mask)) for mask in masks]
    text = [{**rle, "counts": rle["counts"].decode()} for rle in compressed]
    forms = {
        "run lengths": [runs_of(mask) for mask in masks],
        "compressed": compressed,
        "compressed text": text,
        "JSON": [json.dumps(rle) for rle in text],
        "arrays": list(masks),
        "lists": [mask.tolist() for mask in masks],
        "bytes": [png_of(mask) for mask in masks],
        "files": [{"path": None, "bytes": png_of(mask)} for mask in masks],
        "pictures": [Image.fromarray(mask) for mask in masks],
    }
    for form, segments in forms.items():
        found = read({"bbox": BOXES, "category": [0, 1], "segmentation": segments}, with_masks=True)
        assert found.masks.dtype == torch.uint8 and np.array_equal(found.masks, masks), form
        assert found.areas.tolist() == masks.sum((1, 2)).tolist(), form


def test_polygons_are_drawn_as_pycocotools_draws_them():
    parts = [[4, 5, 14, 5, 9, 15], [15, 6, 24, 6, 24, 14.5, 15, 14.5]]
    box, other = BOXES
    polygons = [parts, [31, 3, 36, 3, 36, 20]]  # the second is not in a list of its own
    found = read({"bbox": [box, other], "category": [0, 1], "segmentation": polygons}, with_masks=True)
    first, second = (coco.decode(coco.frPyObjects(each, *SIZE)).max(-1) for each in (parts, [polygons[1]]))
    assert np.array_equal(found.masks, [first, second])
    assert first[:, :14].any() and first[:, 15:].any()  # both parts
    as_text = [json.dumps(each) for each in polygons]
    again = read({"bbox": [box, other], "category": [0, 1], "segmentation": as_text}, with_masks=True)
    assert torch.equal(again.masks, found.masks)


def test_boxes_that_reach_out_by_rounding_are_clipped():
    value = {"bbox": [[-1, -0.5, 51.5, 31]], "category": [0]}
    assert read(value).boxes.tolist() == [[0, 0, 50, 30]]
    wide = {"bbox": [[0, 0, 1009, 20]], "category": [0]}  # 1 % of 1000 pixels are 10
    assert read(wide, (30, 1000)).boxes.tolist() == [[0, 0, 1000, 20]]
    for box in ([-1.1, 0, 20, 20], [0, 0, 20, 31.1], [0, 0, 51.2, 20]):
        with pytest.raises(BadObjectsError, match="pixels out of the image, which has 50 x 30 pixels"):
            read({"bbox": [box], "category": [0]})


def test_the_first_pixel_is_a_box_where_another_box_is_in_pixels():
    for box_format in ("xywh", "xyxy"):
        value = {"bbox": [[0, 0, 1, 1], [4, 5, 20, 10]], "category": [0, 0]}
        assert read(value, box_format=box_format).boxes[0].tolist() == [0, 0, 1, 1]
    value = {"bbox": [[1, 1, 1, 1], [4, 5, 20, 10]], "category": [0, 0]}
    assert read(value).boxes[0].tolist() == [1, 1, 2, 2]
    for boxes in ([[0, 0, 1, 1]], [[0, 0, 1, 1], [0, 0.5, 1, 0.5]], [[4, 5, 20, 10], [0, 0, 0.5, 1]]):
        with pytest.raises(BadObjectsError, match="must be in pixels, but its numbers are shares of the image"):
            read({"bbox": boxes, "category": [0] * len(boxes)})


def test_a_reader_reaches_data_loader_workers():
    reader = pickle.loads(pickle.dumps(ObjectReader(NAMES, "xyxy", True)))
    assert reader == ObjectReader(NAMES, "xyxy", True)


WRONG_MASKS = [
    (lambda masks: [masks[0], None], "object 1 of x.jpg has no mask. Every object needs one; without masks train"),
    (lambda masks: [masks[0], masks[1].T], "object 1 of x.jpg has 30 x 50 pixels and its image 50 x 30"),
    (lambda masks: [runs_of(masks[0]), runs_of(masks[1].T)], "object 1 of x.jpg has 30 x 50 pixels and its image"),
    (lambda masks: [masks[0], 0 * masks[1]], "the mask of object 1 of x.jpg is empty"),
    (lambda masks: [masks[0], masks[0]], "object 1 of x.jpg must lie where its box is"),
    (lambda masks: [[[5, 5, 9, 9]], masks[1]], "[5, 5, 9, 9] of object 0 of x.jpg must have 3 points or more"),
    (lambda masks: [[[5, 5, 9, 9, 7, 9, 3]], masks[1]], "two coordinates for each point, but has 7 in all, an odd"),
    (lambda masks: [[[5, 5, 9, 9, 7, "9"]], masks[1]], "must hold finite numbers x1, y1, x2, y2, ... in one list"),
    (lambda masks: [[[5, 5, 9, 9, 7, float("nan")]], masks[1]], "must hold finite numbers x1, y1"),
    (lambda masks: [b"no image", masks[1]], "the mask of object 0 of x.jpg cannot be read as an image"),
    (lambda masks: ["[[5, 5", masks[1]], "of object 0 of x.jpg must be JSON"),
    (lambda masks: [{"size": list(SIZE), "counts": [3, 5]}, masks[1]], "run lengths that add up to 1500 pixels"),
    (lambda masks: [cut_off(masks[0]), masks[1]], "object 0 of x.jpg must have run lengths that add up to 1500"),
    (lambda masks: [{"size": list(SIZE), "counts": 7}, masks[1]], "must have a `size` (height, width) and `counts`"),
    (lambda masks: [{"size": 7, "counts": "abc"}, masks[1]], "must have a `size` (height, width) and `counts`"),
]


def cut_off(mask):
    rle = coco.encode(np.asfortranarray(mask))
    return {**rle, "counts": rle["counts"][:-3]}


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        ([200, 200, 240, 200, 240, 220], "must lie in the image of"),
        ([-9, 5, -2, 5, -2, 9], "must lie in the image of"),
        ([0.1, 0.1, 0.5, 0.1, 0.5, 0.5], "must be in pixels, but its numbers are shares"),
    ],
)
def test_a_polygon_beside_the_image_or_in_shares_of_it_is_refused(polygon, message):
    objects = {"bbox": [[2, 2, 20, 10]], "category": [0], "segmentation": [[polygon]]}
    with pytest.raises(BadObjectsError, match=message):
        read(objects, with_masks=True)


@pytest.mark.parametrize(("change", "message"), WRONG_MASKS, ids=[str(i) for i in range(len(WRONG_MASKS))])
def test_a_wrong_mask_is_named_where_masks_are_read(change, message, masks):
    value = {**OBJECTS, "area": [10, 10], "segmentation": change(masks)}
    assert message in message_of(lambda: read(value, with_masks=True))
    assert read(value).masks is None  # without masks it does not matter


def changed(**values):
    return lambda objects: {**objects, **values}


BOX = [10, 10, 20, 20]
WRONG_OBJECTS = [
    ("xywh", changed(bbox=[[10, 10, 45, 20], BOX]), "reaches 7 pixels out of the image, which has 48 x 48 pixels"),
    ("xywh", changed(bbox=[[20, 20, 30, 40], BOX]), "As corners it would lie inside: `--box_format xyxy`?"),
    ("xywh", changed(bbox=[[60, 10, 5, 5], BOX]), "reaches 17 pixels out of the image"),
    ("xywh", changed(bbox=[BOX, [10, 10, 0, 20]]), "object 1 of {}chelsea0.jpg is empty: its width and height are 0"),
    ("xywh", changed(bbox=[BOX, [10, 10, -5, 20]]), "has a negative width or height. If its numbers are corners, give"),
    ("xyxy", changed(bbox=[[10, 10, 20, 20], [30, 30, 12, 9]]), "has its corners swapped: its right must be more"),
    ("xywh", changed(bbox=[[0.1, 0.2, 0.3, 0.4], BOX]), "must be in pixels, but its numbers are shares of the image"),
    ("xywh", changed(bbox=[[48.5, 10, 0.4, 20], BOX]), "must have an area in the image, which has 48 x 48"),
    ("xywh", changed(bbox=[[30, 10, 1e-7, 20], BOX]), "must have an area in the image, which has 48 x 48 pixels"),
    (
        "xywh",
        changed(bbox=[BOX, [10, 10, 20]]),
        "the box [10, 10, 20] of object 1 of {}chelsea0.jpg must have 4 numbers",
    ),
    ("xywh", changed(bbox=[BOX, [10, 10, float("nan"), 20]]), "of object 1 of {}chelsea0.jpg must hold finite numbers"),
    ("xywh", changed(bbox=[BOX, [10, None, 20, 20]]), "must hold numbers, but holds None"),
    ("xywh", changed(category=["disc", "square"]), "the class 'square' of object 1 of {}chelsea0.jpg is none of disc"),
    ("xywh", changed(category=["disc"]), "{}chelsea0.jpg must have one entry for each object in every list, but has 2"),
    (
        "xywh",
        changed(category=["disc", None]),
        "the class None of object 1 of {}chelsea0.jpg must be a whole number or",
    ),
    ("xywh", changed(iscrowd=[0, 2]), "`iscrowd` of object 1 of {}chelsea0.jpg must be 0 or 1, but is 2"),
    ("xywh", changed(area=[5, -1]), "the area -1 of object 1 of {}chelsea0.jpg must be a number of pixels"),
    ("xywh", changed(bbox=None), "the objects of {}chelsea0.jpg must have boxes by the key `bbox` or `bboxes`"),
    ("xywh", changed(category=None), "the objects of {}chelsea0.jpg must have classes by the key `category`"),
]


def rewrite(folder, change, every=False):
    """Change the objects of the second photograph, or of all of them, in metadata.jsonl."""
    file = folder / "train/metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows if every else rows[1:2]:
        row["objects"] = change(row["objects"])
    file.write_text("\n".join(map(json.dumps, rows)))


def as_corners(objects):
    boxes = [[left, top, left + width, top + height] for left, top, width, height in objects["bbox"]]
    return {**objects, "bbox": boxes}


def load(folder, with_masks=False, **fields):
    data = DetectDataSettings(dataset_name=str(folder), num_workers=0, **fields)
    return load_objects(data, "train", None, 3, NAMES, with_masks)


@pytest.fixture
def folder(tmp_path):
    return write_objects_folder(tmp_path / "folder", {"train": 1})


@pytest.mark.parametrize(
    ("box_format", "change", "message"), WRONG_OBJECTS, ids=[case[2][:40] for case in WRONG_OBJECTS]
)
def test_wrong_objects_are_named_before_training_and_left_out_if_asked_to(box_format, change, message, folder, capsys):
    if box_format == "xyxy":
        rewrite(folder, as_corners, every=True)
    rewrite(folder, change)
    expected = message.format(f"{folder}/train/")
    refusal = message_of(lambda: load(folder, box_format=box_format))
    assert expected in refusal and "chelsea0.jpg" in refusal
    assert refusal.startswith("1 file cannot be used with its objects; `--skip_bad_images` skips such files:")
    rows = load(folder, box_format=box_format, skip_bad_images=True)
    assert len(rows) == 2 and not any("chelsea0" in row["image"]["path"] for row in rows)
    told = capsys.readouterr().out
    assert expected in told and "Skipping 1 file that cannot be used with its objects:" in told


def test_a_class_number_that_no_class_has_is_named(folder):
    numbers = {"disc": 0, "rectangle": 1}
    rewrite(folder, lambda objects: {**objects, "category": [numbers[each] for each in objects["category"]]}, True)
    assert len(load(folder)) == 3
    rewrite(folder, changed(category=[0, 2]))
    message = "the class 2 of object 1 of {}/train/chelsea0.jpg must be in [0, 2), for the classes disc, rectangle."
    assert message.format(folder) in message_of(lambda: load(folder))


def test_text_among_the_numbers_is_refused_before_training(folder):
    rewrite(folder, lambda objects: {**objects, "bbox": [list(map(str, box)) for box in objects["bbox"]]}, every=True)
    assert "must hold numbers, but holds '" in message_of(lambda: load(folder))
    rewrite(folder, changed(bbox=[BOX, BOX]))
    assert "bbox" in message_of(lambda: load(folder)) and "number" in message_of(lambda: load(folder))
    rewrite(folder, lambda objects: "two discs", every=True)
    assert "must be a dict of lists or a list of dicts, but are 'two discs'" in message_of(lambda: load(folder))


def test_objects_without_any_mask_are_told_what_trains_without(folder, capsys):
    assert len(load(folder, with_masks=True)) == 3
    assert "all 6 objects have masks" in capsys.readouterr().out
    rewrite(folder, changed(segmentation=None), every=True)
    message = message_of(lambda: load(folder, with_masks=True))
    assert "hold masks in split `train`: for boxes alone train `--architecture faster_rcnn`" in message
    load(folder)
    assert "the objects have no masks" in capsys.readouterr().out


def test_an_image_without_masks_among_others_is_named(folder):
    rewrite(folder, changed(segmentation=None))
    message = message_of(lambda: load(folder, with_masks=True))
    assert "object 0 of" in message and "chelsea0.jpg has no mask" in message


def test_the_start_counts_objects_images_and_crowds(folder, capsys):
    rewrite(folder, changed(iscrowd=[1, 0]))
    rows = load(folder)
    told = capsys.readouterr().out
    kinds = [row["objects"]["category"] for row in rows]
    counts = [f"{name} {sum(kind.count(name) for kind in kinds)} ({sum(name in k for k in kinds)})" for name in NAMES]
    assert f"6 objects (images) of each class: {', '.join(counts)}" in told
    assert "1 objects are crowds" in told and "have no object" not in told
    rewrite(folder, lambda objects: {key: [] for key in objects})
    load(folder)
    assert "1 images have no object" in capsys.readouterr().out


def test_a_split_of_crowds_alone_has_nothing_to_train_on(folder):
    rewrite(folder, lambda objects: {**objects, "iscrowd": [1] * len(objects["bbox"])}, every=True)
    message = message_of(lambda: load(folder))
    assert "must hold other objects than crowds in split `train`: nothing can be trained or evaluated" in message
    rewrite(folder, lambda objects: {**objects, "iscrowd": [0] * len(objects["bbox"])})
    assert len(load(folder)) == 3


def test_objects_that_stand_twice_and_images_of_more_than_are_evaluated_are_told(folder, capsys):
    rewrite(folder, lambda objects: {key: values * 60 for key, values in objects.items()}, every=True)
    load(folder)
    told = capsys.readouterr().out
    assert "354 objects stand there twice, with the same box and class" in told
    assert "have more than 100 objects: 100 detections of an image at most are found and evaluated" in told


def test_an_image_that_metadata_names_in_two_lines_is_refused(folder):
    """As where each line has one object: each of two samples would take the other's objects for background."""
    file = folder / "train/metadata.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines, lines[0]]))
    message = message_of(lambda: load(folder))
    name = json.loads(lines[0])["file_name"]
    assert (
        f"must name each image in one line of its metadata, with all objects, but names train/{name} again" in message
    )


@pytest.mark.parametrize("spelling", ["./{}", ".//{}", ".\\{}"])
def test_an_image_that_metadata_names_in_two_spellings_is_refused(spelling, folder):
    file = folder / "train/metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    again = {**rows[0], "file_name": spelling.format(rows[0]["file_name"])}
    file.write_text("\n".join(map(json.dumps, [*rows, again])))
    assert f"but names train/{rows[0]['file_name']} again" in message_of(lambda: load(folder))
    file.write_text("\n".join(map(json.dumps, [*rows[1:], again])))
    assert len(load(folder)) == len(rows)


def test_masks_of_several_kinds_in_metadata_are_refused_unless_they_are_text(folder):
    def with_runs(objects):
        left, top, width, height = map(int, objects["bbox"][0])
        mask = np.zeros((48, 48), np.uint8)
        mask[top : top + height, left : left + width] = 1
        return {**objects, "segmentation": [runs_of(mask), *objects["segmentation"][1:]]}

    def as_text(objects):
        return {**objects, "segmentation": [json.dumps(mask) for mask in objects["segmentation"]]}

    rewrite(folder, with_runs)
    names = [json.loads(line)["file_name"] for line in (folder / "train/metadata.jsonl").read_text().splitlines()]
    plain = (folder / "train/metadata.jsonl").read_text()
    (folder / "train/metadata.jsonl").write_text(plain, encoding="utf-8-sig")
    message = message_of(lambda: load(folder, with_masks=True))
    (folder / "train/metadata.jsonl").write_text(plain)
    assert "`objects_column` (=objects) must hold masks of one kind, but " in message
    assert f"train/{names[0]} has polygons and train/{names[1]} has run lengths. Masks of several kinds" in message
    rewrite(folder, as_text, every=True)
    assert len(load(folder, with_masks=True)) == 3


@pytest.mark.parametrize("written", ["jsonl", "csv"])
def test_metadata_may_begin_with_a_byte_order_mark(written, folder):
    file = folder / "train/metadata.jsonl"
    lines = file.read_text().splitlines()
    if written == "jsonl":
        file.write_text("\n".join(lines), encoding="utf-8-sig")
        assert len(load(folder)) == len(lines)
        file.write_text("\n".join([*lines, lines[0]]), encoding="utf-8-sig")
    else:
        file.unlink()
        file = folder / "train/metadata.csv"
        file.write_text("file_name,objects\n" + 2 * f"{json.loads(lines[0])['file_name']},none\n", encoding="utf-8-sig")
    assert file.read_bytes().startswith(b"\xef\xbb\xbf")
    assert f"but names train/{json.loads(lines[0])['file_name']} again" in message_of(lambda: load(folder))


def test_metadata_of_every_kind_is_searched_for_images_that_are_named_twice(folder):
    file = folder / "train/metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.unlink()
    for again in (False, True):
        pq.write_table(pa.Table.from_pylist(rows + rows[:again]), folder / "train/metadata.parquet")
        if again:
            assert f"but names train/{rows[0]['file_name']} again" in message_of(lambda: load(folder))
        else:
            assert len(load(folder)) == len(rows)
