"""Tiles with masks of nuclei, and the watershed without a network."""

import json

import numpy as np
import pytest
import tifffile
from PIL import Image
from pycocotools import mask as rle
from skimage.draw import disk

from experiments import cells
from experiments.cells import TILE, coco_annotations, masks_inside, square, tile_corners, write_cells
from experiments.detection_scores import COCO_FILE, average_precision, read_truth
from experiments.watershed import separate, watershed_nuclei

FRAME = 700, 1100


def covered(corners):
    """The number of tiles at each pixel of a frame."""
    count = np.zeros(FRAME, int)
    for corner in corners:
        part = square(count, corner)
        assert part.shape == (TILE, TILE)
        part += 1
    return count


def test_splits_are_apart_and_tiles_do_not_overlap():
    train, test = (covered(tile_corners(*FRAME)[split]) for split in ("train", "test"))
    assert train.max() == test.max() == 1
    assert (train.sum(), test.sum()) == (9 * TILE**2, 6 * TILE**2)
    assert train.any(axis=0).nonzero()[0].max() + 40 < test.any(axis=0).nonzero()[0].min()
    border = np.ones(FRAME, bool)
    border[30:-30, 30:-30] = False
    assert not (train + test)[border].any()


def test_masks_are_those_of_the_nuclei_that_lie_in_the_tile():
    labels = np.zeros(FRAME, np.uint16)
    labels[60:70, 40:60] = 7
    labels[100:110, 223:233] = 3  # seven columns of ten in the first tile, three in the second
    labels[120:130, 222:232] = 5  # eight and two
    first, second = masks_inside(labels, (50, 30)), masks_inside(labels, (50, 230))
    assert [mask.sum() for mask in first] == [70, 80, 200] and [mask.sum() for mask in second] == [30]
    assert first.shape == (3, TILE, TILE) and second[0, 50:60, :3].all()
    assert len(masks_inside(labels, (450, 430))) == 0


def nuclei_labels(frames):
    """Numbers of round nuclei in a film, in places that differ between the frames; two of them touch."""
    labels = np.zeros((frames, *FRAME), np.uint16)
    for frame in range(frames):
        number = 0
        for row in range(60 + frame, 660, 60):
            for column in range(50, 1050, 70):
                number += 1
                labels[frame][disk((row, column), 14)] = number
        labels[frame][disk((100, 100), 14)], labels[frame][disk((100, 124), 14)] = number + 1, number + 2
    return labels


@pytest.fixture(scope="module")
def labels():
    return nuclei_labels(6)


@pytest.fixture(scope="module")
def written(tmp_path_factory, labels):
    """The written folder, of a film of bright nuclei on a dark ground."""
    folder = tmp_path_factory.mktemp("film")
    noise = np.random.default_rng(0).integers(0, 40, labels.shape)
    tifffile.imwrite(folder / "Fluo_Hela_02_img.tif", (33000 + 900 * (labels > 0) + noise).astype(np.uint16))
    tifffile.imwrite(folder / "Fluo_Hela_02_ERR_SEG.tif", labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "packaged", lambda _, name: folder / name)
        write_cells(folder / "data")
    return folder / "data"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools' decode
def test_decoded_masks_are_the_label_image(written, labels):
    for split, count in (("train", 18), ("test", 12)):
        truth = json.loads((written / "labelled" / split / COCO_FILE).read_text())
        assert len(truth["images"]) == count
        for image in truth["images"]:
            frame, top, left = (int(part) for part in image["file_name"][:-4].split("-"))
            tile = square(labels[frame], (top, left))
            own = [found for found in truth["annotations"] if found["image_id"] == image["id"]]
            for found in own:
                mask = rle.decode(found["segmentation"]).astype(bool)
                (number,) = np.unique(tile[mask])
                assert (mask == (tile == number)).all() and mask.sum() == found["area"]
                rows, columns = mask.nonzero()
                left, top, width, height = found["bbox"]
                assert (columns.min(), rows.min()) == (left, top)
                assert (columns.max() + 1, rows.max() + 1) == (left + width, top + height)


def test_images_are_grey_and_unlabelled_ones_are_of_every_frame(written):
    names = sorted(file.name for file in (written / "unlabelled/train").iterdir())
    assert len(names) == 6 * 9 and {name[:2] for name in names} == {f"{frame:02d}" for frame in range(6)}
    assert {file.name for file in (written / "labelled/train").glob("*.png")} <= set(names)
    image = Image.open(written / "labelled/train" / names[0])
    assert image.mode == "L" and image.size == (TILE, TILE)
    assert np.asarray(image).min() == 0 and np.asarray(image).max() == 255


def test_watershed_separates_two_round_nuclei_that_touch():
    foreground = np.zeros((80, 80), bool)
    for column in (28, 50):
        foreground[disk((40, column), 14)] = True
    nuclei = separate(foreground, 8)
    assert set(np.unique(nuclei)) == {0, 1, 2} and ((nuclei > 0) == foreground).all()
    assert nuclei[40, 28] != nuclei[40, 50]


def test_watershed_finds_bright_nuclei(written):
    figures = watershed_nuclei(written / "labelled")
    assert figures["f1_50_mask"] > 0.95 and figures["foreground_iou"] > 0.8


def test_average_precision_and_f1_of_three_predictions_by_hand():
    masks = np.zeros((2, 20, 20), bool)
    masks[0, :10, :10] = masks[1, 10:, 10:] = True
    truth = coco_annotations({"a.png": masks, "b.png": masks[:0]})
    whole = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10], "score": 0.9}
    wrong = {"image_id": 2, "category_id": 1, "bbox": [0, 0, 10, 10], "score": 0.8}
    small = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 10, 6.2], "score": 0.7}  # an IoU of .62
    figures = average_precision(truth, [whole, wrong, small])
    # Precision is 1 up to a recall of .5 (51 of 101 points) and 2/3 after that, while the IoU asked for is below .62.
    low, high = (51 + 50 * 2 / 3) / 101, 51 / 101
    assert figures["eval_map_50"] == pytest.approx(low)
    assert figures["eval_map"] == pytest.approx((3 * low + 7 * high) / 10)
    assert figures["f1_50"] == pytest.approx(4 / 5)
    assert set(average_precision(truth, []).values()) == {0.0}


def test_masks_of_the_truth_reach_an_average_precision_of_one(written):
    truth = read_truth(written / "labelled/test")
    found = [{**one, "score": 1.0} for one in truth["annotations"]]
    assert average_precision(truth, found, "segm")["eval_map_mask"] == pytest.approx(1)
