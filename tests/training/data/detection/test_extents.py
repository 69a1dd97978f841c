"""Masks against their boxes: refused where they contradict each other, accepted as far as real data sets differ."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco

from tests.photographs import message_of, quick_datasets, write_objects_folder
from training.data.detection.reader import ObjectReader
from training.data.detection.rows import load_objects
from training.settings.data import DetectDataSettings

__all__ = ["quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets")
SIZE = (96, 96)
WHOLE = [[0, 0, 96, 0, 96, 96, 0, 96]]


def polygon_of(left, top, width, height):
    right, bottom = left + width, top + height
    return [[left, top, right, top, right, bottom, left, bottom]]


def runs_of(left, top, width, height):
    mask = np.zeros(SIZE, np.uint8)
    mask[top : top + height, left : left + width] = 1
    return coco.encode(np.asfortranarray(mask))


def read(boxes, masks, crowds=None, box_format="xywh"):
    value = {"bbox": boxes, "category": [0] * len(boxes), "segmentation": masks}
    value |= {"iscrowd": crowds} if crowds else {}
    return ObjectReader(["thing"], box_format, True)(value, SIZE, "x.jpg")


EXACT = [30, 20, 30, 20]
FITS = {
    "exact": ([EXACT], [polygon_of(*EXACT)], None),
    "run lengths that are a pixel or two larger": ([EXACT], [runs_of(28, 18, 34, 24)], None),
    "a box that is a little larger": ([[28, 18, 36, 25]], [polygon_of(*EXACT)], None),
    "a part of what the box states": ([EXACT], [polygon_of(33, 23, 22, 16)], None),
    "three pixels, and a box of fractions": ([[10.2, 10.4, 3.1, 2.7]], [runs_of(9, 9, 3, 3)], None),
    "a line that is a pixel off": ([[10, 10, 1, 60]], [runs_of(11, 10, 1, 60)], None),
    "a slanted part so thin that it covers few pixels": (
        [[10, 10, 60, 4]],
        [[[10, 10, 70, 10.9, 70, 11.1, 10, 10.2], [10, 12, 14, 12, 14, 14, 10, 14]]],
        None,
    ),
    "a polygon that reaches out by rounding": ([[66, 70, 30, 26]], [polygon_of(66, 70, 31, 26.5)], None),
    "a crowd that fills a corner of its box": ([[5, 5, 80, 80]], [runs_of(5, 5, 9, 9)], [1]),
}


@pytest.mark.parametrize("case", FITS.values(), ids=FITS)
def test_masks_as_far_from_their_boxes_as_in_real_data_are_accepted(case):
    assert read(*case).masks.flatten(1).any(1).all()


CONTRADICTIONS = {
    "another object's": ([EXACT, [60, 60, 10, 30]], [polygon_of(60, 60, 10, 30), polygon_of(*EXACT)], None),
    "the whole image": ([EXACT], [WHOLE], None),
    "a corner of the box": ([[5, 5, 80, 80]], [runs_of(5, 5, 9, 9)], [0]),
    "beside its box": ([EXACT], [runs_of(70, 70, 20, 20)], None),
    "a crowd beside its box": ([EXACT], [runs_of(70, 70, 20, 20)], [1]),
}


@pytest.mark.parametrize("case", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_mask_that_contradicts_its_box_is_refused_by_name(case):
    message = message_of(lambda: read(*case))
    assert "the mask of object 0 of x.jpg must lie where its box is, but it spans " in message
    assert "and its box, read as left, top, width and height, spans " in message and "--box_format" not in message


def test_boxes_in_the_other_format_are_told_the_setting():
    corners = [30, 20, 60, 40]
    assert len(read([corners], [polygon_of(*EXACT)], box_format="xyxy").boxes) == 1
    message = message_of(lambda: read([corners], [polygon_of(*EXACT)]))
    assert "spans 30, 20 to 60, 40, and its box, read as left, top, width and height, spans 30, 20 to 90, 60" in message
    assert "As left, top, right and bottom it would fit: `--box_format xyxy`?" in message
    sides = [10, 12, 40, 30]
    message = message_of(lambda: read([sides], [polygon_of(*sides)], box_format="xyxy"))
    assert "As left, top, width and height it would fit: `--box_format xywh`?" in message


def test_a_polygon_far_outside_the_image_is_refused():
    message = message_of(lambda: read([[66, 70, 30, 26]], [polygon_of(66, 70, 334, 26)]))
    assert "the polygons of object 0 of x.jpg must lie in the image of 96 x 96 pixels" in message
    assert "but span 66, 70 to 400, 96; only 1 pixel or 1 % is clipped" in message


@pytest.mark.parametrize(
    "mask", [[[10, 10, 40, 10, 25, 10]], [[10, 10.2, 40, 10.2, 40, 10.4, 10, 10.4]], [[20, 20, 20, 20, 20, 20]]]
)
def test_polygons_that_cover_no_pixel_are_an_empty_mask(mask):
    assert not coco.decode(coco.frPyObjects(mask, *SIZE)).any()  # so they would be no object of any size
    message = message_of(lambda: read([[10, 10, 30, 1]], [mask]))
    assert "the mask of object 0 of x.jpg is empty: no pixel belongs to it." in message


def test_a_whole_data_set_in_the_other_format_is_refused_before_training(tmp_path):
    folder = write_objects_folder(tmp_path / "data", {"train": 3})
    data = DetectDataSettings(dataset_name=str(folder), num_workers=0)
    file = folder / "train/metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row["objects"]["bbox"] = [[x, y, x + width, y + height] for x, y, width, height in row["objects"]["bbox"]]
    inside = [row for row in rows if all(x + r <= 48 and y + b <= 48 for x, y, r, b in row["objects"]["bbox"])]
    assert inside  # the others are refused as they reach out of the image
    file.write_text("\n".join(map(json.dumps, rows)))
    message = message_of(lambda: load_objects(data, "train", None, 3, ["disc", "rectangle"], True))
    assert f"{inside[0]['file_name']} must lie where its box is" in message and "--box_format xyxy" in message
    assert "reaches" in message
