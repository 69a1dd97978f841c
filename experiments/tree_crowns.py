"""Images for object detection: forests from the air, with a box around each crown of a tree.

The pictures are of the National Ecological Observatory Network and come with their boxes in the package `deepforest`
(MIT: Weinstein et al., "DeepForest: A Python package for RGB deep learning tree crown delineation", Methods in Ecology
and Evolution 11, 2020). It is downloaded when the demo is installed; this repository does not contain them.

Two pictures are of Yellowstone, 13 km apart: one to train on and one held out. The third, which is held out too, is of
a forest in Florida. Tiles without boxes are meadow; a few trees have no box.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from experiments.detection_scores import ROWS_FILE
from experiments.packages import packaged

PICTURES = {
    "yellowstone_west": ("2019_YELL_2_528000_4978000_image_crop2", "train"),
    "yellowstone_east": ("2019_YELL_2_541000_4977000_image_crop", "test"),
    "florida": ("OSBS_029", "test"),
}
TILE = 200  # pixels: 20 m; the picture of Florida is two by two tiles
LEAST_INSIDE = 0.3  # share of a crown's box; less of a crown at the border of a tile is nothing to recognise


class Tile(NamedTuple):
    """A square of a picture and the boxes `(N, 4)` in it: left, top, right, bottom."""

    name: str
    image: Image.Image
    boxes: np.ndarray


def write_tree_crowns(folder: Path) -> None:
    """Write `labelled/{train,test}/*.png`, each split with its `metadata.jsonl`, and `unlabelled/train/*.png`."""
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for name, (file, split) in PICTURES.items():
        picture = Image.open(packaged("deepforest", f"{file}.png")).convert("RGB")
        for tile in tiles(name, picture, read_boxes(packaged("deepforest", f"{file}.xml"))):
            for part in ("labelled/train", "unlabelled/train") if split == "train" else ("labelled/test",):
                (folder / part).mkdir(parents=True, exist_ok=True)
                tile.image.save(folder / part / f"{tile.name}.png")
            rows[split].append(metadata_row(tile))
    for split, of_split in rows.items():
        lines = "".join(f"{json.dumps(row)}\n" for row in of_split)
        (folder / "labelled" / split / ROWS_FILE).write_text(lines, encoding="utf-8")
    (folder / "labelled/id2label.json").write_text(json.dumps({0: "tree"}), encoding="utf-8")


def read_boxes(file: Path) -> np.ndarray:
    """The boxes `(N, 4)` in an annotation file of Pascal VOC: left, top, right, bottom."""
    boxes = [found.find("bndbox") for found in ElementTree.parse(file).iter("object")]
    sides = ("xmin", "ymin", "xmax", "ymax")
    numbers = [[float(box.findtext(side, "")) for side in sides] for box in boxes if box is not None]
    return np.array(numbers).reshape(-1, 4)


def tiles(name: str, picture: Image.Image, boxes: np.ndarray) -> Iterator[Tile]:
    """The whole tiles of a picture, from the top left."""
    for row in range(picture.height // TILE):
        for column in range(picture.width // TILE):
            left, top = column * TILE, row * TILE
            image = picture.crop((left, top, left + TILE, top + TILE))
            yield Tile(f"{name}-{row:02d}-{column:02d}", image, boxes_inside(boxes, left, top))


def boxes_inside(boxes: np.ndarray, left: int, top: int) -> np.ndarray:
    """The boxes in the tile at a corner, in the tile's pixels and clipped to it."""
    moved = boxes - [left, top, left, top]
    clipped = moved.clip(0, TILE)
    return clipped[areas(clipped) >= LEAST_INSIDE * areas(moved)]


def areas(boxes: np.ndarray) -> np.ndarray:
    """The areas `(N,)` of boxes `(N, 4)`."""
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def metadata_row(tile: Tile) -> dict[str, Any]:
    """The tile's line of `metadata.jsonl`, with boxes as left, top, width and height."""
    sizes = tile.boxes[:, 2:] - tile.boxes[:, :2]
    boxes = np.concatenate([tile.boxes[:, :2], sizes], axis=1).tolist()
    return {"file_name": f"{tile.name}.png", "objects": {"bbox": boxes, "category": [0] * len(boxes)}}
