"""Masks are resized to where their images are."""

import pytest
import torch
from torchvision.transforms import InterpolationMode, v2
from torchvision.tv_tensors import BoundingBoxes, Image, Mask

from training.data.transforms import ResizeTogether

SIDES = [(512, 640), (500, 512), (2048, 512), (300, 64), (64, 300)]


def offset(resize, side, size):
    """How many pixels of the result a mask's edge lies beside that of its image, on average over places of the edge."""
    found = []
    for edge in range(side // 4, 3 * side // 4, 1 if side < 500 else 7):
        image, mask = torch.zeros(1, 4, side), torch.zeros(4, side, dtype=torch.int64)
        image[..., edge:], mask[:, edge:] = 1, 1
        image, mask = resize((4, size))(Image(image), Mask(mask))
        assert image.shape == (1, 4, size) and mask.shape == (4, size) and mask.dtype == torch.int64
        found.append(image[0].sum(1).mean().item() - mask.float().sum(1).mean().item())
    return sum(found) / len(found)


def by_torchvision(size):
    return v2.Resize(size, InterpolationMode.BILINEAR, antialias=True)


@pytest.mark.parametrize(("side", "size"), SIDES)
def test_the_edge_of_a_mask_lies_where_that_of_its_image_does(side, size):
    assert abs(offset(ResizeTogether, side, size)) < 0.15  # an even ratio has a middle between two pixels
    assert abs(offset(by_torchvision, side, size)) > 0.3  # the control


@pytest.mark.parametrize("count", [0, 1, 3])
def test_masks_of_objects_are_resized_with_their_boxes(count):
    masks, boxes = torch.zeros(count, 40, 60, dtype=torch.uint8), torch.tensor([[10.0, 20, 40, 30]]).expand(count, 4)
    masks[:, 20:30, 10:40] = 1
    boxes = BoundingBoxes(boxes, format="XYXY", canvas_size=(40, 60))
    _, masks, boxes = ResizeTogether((80, 60))(Image(torch.zeros(3, 40, 60)), Mask(masks), boxes)
    assert masks.shape == (count, 80, 60) and masks.dtype == torch.uint8 and type(masks) is Mask
    expected = torch.zeros(count, 80, 60, dtype=torch.uint8)
    expected[:, 40:60, 10:40] = 1
    assert torch.equal(masks, Mask(expected)) and boxes.tolist() == [[10, 40, 40, 60]] * count


def test_numbers_of_two_bytes_stay_as_they_are():
    mask = torch.tensor([[0, 300], [65535, 255]])
    assert ResizeTogether((4, 4))(Mask(mask)).unique().tolist() == [0, 255, 300, 65535]
