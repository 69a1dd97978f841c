"""Tiles with boxes of tree crowns, and the detector without a network."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from experiments import crown_peaks, tree_crowns
from experiments.detection_scores import ROWS_FILE, average_precision, read_truth
from experiments.tree_crowns import TILE, boxes_inside, read_boxes, tiles, write_tree_crowns


def write_voc(file, boxes):
    """An annotation file of Pascal VOC."""
    root = ElementTree.Element("annotation")
    for box in boxes:
        sides = ElementTree.SubElement(ElementTree.SubElement(root, "object"), "bndbox")
        for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            ElementTree.SubElement(sides, side).text = str(value)
    ElementTree.ElementTree(root).write(file)


def test_boxes_are_moved_to_the_tile_and_clipped():
    boxes = np.array([[210, 420, 230, 450], [190, 400, 240, 420], [390, 500, 410, 520]])
    expected = [[10, 20, 30, 50], [0, 0, 40, 20], [190, 100, 200, 120]]
    assert boxes_inside(boxes, 200, 400).tolist() == expected


def test_crown_with_little_of_its_area_in_a_tile_has_no_box_there():
    boxes = np.array([[TILE - 30, 10, TILE + 70, 20], [TILE - 29, 10, TILE + 71, 20], [-50, -50, -10, -10]])
    assert boxes_inside(boxes, 0, 0).tolist() == [[TILE - 30, 10, TILE, 20]]
    assert boxes_inside(boxes, TILE, 0).tolist() == [[0, 10, 70, 20], [0, 10, 71, 20]]


def test_tiles_show_the_part_of_the_picture_that_their_boxes_are_in():
    pixels = np.zeros((2 * TILE + 50, 3 * TILE + 10, 3), np.uint8)
    pixels[230:260, 450:490] = 255
    found = list(tiles("wood", Image.fromarray(pixels), np.array([[450, 230, 490, 260]])))
    assert [tile.name for tile in found] == [f"wood-{row:02d}-{column:02d}" for row in (0, 1) for column in (0, 1, 2)]
    (tile,) = [tile for tile in found if len(tile.boxes)]
    assert tile.name == "wood-01-02"
    rows, columns = np.asarray(tile.image)[..., 0].nonzero()
    assert tile.boxes.tolist() == [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The written folder, of pictures of bright squares on blue ground."""
    boxes = np.array([[x, y, x + 40, y + 40] for x in (20, 110, 250, 340) for y in (30, 130, 230, 330)])
    for name, (file, _) in tree_crowns.PICTURES.items():
        pixels = np.full((2 * TILE, 2 * TILE, 3), (20, 30, 90), np.uint8)
        for left, top, right, bottom in boxes:
            pixels[top:bottom, left:right] = (180, 170, 60)
        Image.fromarray(pixels).save(tmp_path / f"{file}.png")
        write_voc(tmp_path / f"{file}.xml", boxes if name != "florida" else boxes[:0])
    monkeypatch.setattr(tree_crowns, "packaged", lambda _, name: tmp_path / name)
    assert read_boxes(tmp_path / f"{tree_crowns.PICTURES['yellowstone_west'][0]}.xml").tolist() == boxes.tolist()
    write_tree_crowns(tmp_path / "data")
    return tmp_path / "data"


def test_pictures_are_in_one_split_and_each_tile_has_a_row(written):
    rows = {
        split: [json.loads(line) for line in (written / "labelled" / split / ROWS_FILE).read_text().splitlines()]
        for split in ("train", "test")
    }
    assert [row["file_name"][:-10] for row in rows["train"]] == ["yellowstone_west"] * 4
    assert [row["file_name"][:-10] for row in rows["test"]] == ["yellowstone_east"] * 4 + ["florida"] * 4
    for split, of_split in rows.items():
        files = {file.name for file in (written / "labelled" / split).glob("*.png")}
        assert files == {row["file_name"] for row in of_split}
    assert {file.name for file in (written / "unlabelled/train").iterdir()} == {
        row["file_name"] for row in rows["train"]
    }
    assert rows["train"][0]["objects"] == {
        "bbox": [[20, 30, 40, 40], [20, 130, 40, 40], [110, 30, 40, 40], [110, 130, 40, 40]],
        "category": [0] * 4,
    }
    assert rows["test"][-1]["objects"] == {"bbox": [], "category": []}


def test_peaks_of_bright_squares_are_found_and_count_as_wrong_where_nobody_marked_them(written):
    truth = read_truth(written / "labelled/train")
    found = list(crown_peaks.detect(written / "labelled/train", truth, crown_peaks.tuned(written / "labelled/train")))
    assert average_precision(truth, found)["eval_map_50"] == pytest.approx(1)
    figures = crown_peaks.crown_peaks(written / "labelled")
    assert figures["f1_50"] == pytest.approx(2 * 16 / (16 + 32))  # the tiles of Florida have squares without boxes
