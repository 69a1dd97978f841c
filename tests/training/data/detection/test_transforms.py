"""Random transforms of images with objects: boxes and masks stay on their objects, whatever the image's shape."""

import pytest
import torch
from transformers import DetrImageProcessor

from hf_convnextv2.modeling_rcnn import torchvision_target
from training.data.decoding import BadImageError
from training.data.detection.batches import DetectionCollator
from training.data.detection.objects import Objects
from training.data.detection.transforms import DetectionEvaluationTransform, DetectionTransform
from training.settings.augmentation import DetectAugmentationSettings

SIZE = 64
PROCESSOR = DetrImageProcessor(size={"max_height": SIZE, "max_width": SIZE}, image_mean=[0.0] * 3, image_std=[1.0] * 3)


def white_rectangle(height, width, left, top, right, bottom):
    """A black image with a white rectangle, and it as an object with a mask."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, top:bottom, left:right] = 255
    box = torch.tensor([[left, top, right, bottom]], dtype=torch.float32)
    area, none = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]), torch.zeros(1, dtype=torch.bool)
    return image, Objects(box, torch.zeros(1, dtype=torch.int64), area, none, (image[:1] > 0).to(torch.uint8))


@pytest.mark.parametrize("is_square", [False, True])
@pytest.mark.parametrize("scale_range", [[0.3, 2.0], [1.0, 1.0]])
def test_boxes_and_masks_stay_on_the_object(is_square, scale_range):
    transform = DetectionTransform(DetectAugmentationSettings(scale_range=scale_range), SIZE, PROCESSOR, is_square)
    image, objects = white_rectangle(90, 120, 30, 20, 75, 60)
    seen = 0
    for seed in range(40):
        torch.manual_seed(seed)
        sample = transform(image, objects)
        white = sample["pixel_values"].mean(0) > 0.5
        if not len(sample["boxes"]):
            continue
        seen += 1
        rows, columns = torch.where(white.any(1))[0], torch.where(white.any(0))[0]
        expected = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        assert (sample["boxes"][0] - expected).abs().max() <= 1.5, seed
        outline = 2 * (expected[2:] - expected[:2]).sum()  # pixels that resizing may round the other way
        assert (sample["masks"][0].bool() != white).sum() <= outline, seed
    assert seen > 20


@pytest.mark.parametrize("size", [(10, 400), (8, 900), (1, 300), (3, 3), (300, 2)])
@pytest.mark.parametrize("is_square", [False, True])
def test_long_and_thin_images_are_trained_on(size, is_square):
    transform = DetectionTransform(DetectAugmentationSettings(), SIZE, PROCESSOR, is_square)
    image, objects = white_rectangle(*size, 0, 0, size[1], size[0])
    for seed in range(30):
        torch.manual_seed(seed)
        assert min(transform(image, objects)["pixel_values"].shape) >= 1


def test_an_image_of_which_evaluation_would_leave_nothing_is_refused():
    transform = DetectionEvaluationTransform(PROCESSOR)
    assert transform(*white_rectangle(300, 5, 0, 0, 5, 300))["pixel_values"].shape == (3, 64, 1)
    with pytest.raises(BadImageError, match="an image of 2 x 300 pixels is too long and thin"):
        transform(*white_rectangle(300, 2, 0, 0, 2, 300))


def test_crowds_and_what_the_crop_leaves_out_are_not_trained_on():
    image, objects = white_rectangle(64, 64, 0, 0, 64, 64)
    crowd = objects._replace(crowds=torch.ones(1, dtype=torch.bool))
    settings = DetectAugmentationSettings(scale_range=[1.0, 1.0], horizontal_flip=0)
    transform = DetectionTransform(settings, SIZE, PROCESSOR, False)
    assert len(transform(image, objects)["boxes"]) == 1 and len(transform(image, crowd)["boxes"]) == 0
    enlarged = DetectionTransform(DetectAugmentationSettings(scale_range=[4.0, 4.0]), SIZE, PROCESSOR, False)
    image, corner = white_rectangle(64, 64, 0, 0, 4, 4)
    counts = set()
    for seed in range(30):
        torch.manual_seed(seed)
        sample = enlarged(image, corner)
        counts.add(len(sample["boxes"]))
        assert len(sample["boxes"]) == len(sample["masks"]) == len(sample["class_labels"])
        assert bool(len(sample["boxes"])) == bool((sample["pixel_values"] > 0.5).any())
    assert counts == {0, 1}


def test_a_batch_has_boxes_relative_to_its_padded_size():
    samples = []
    for height, width in ((40, 64), (64, 32)):
        image, objects = white_rectangle(height, width, 8, 10, 24, 30)
        settings = DetectAugmentationSettings(scale_range=[1.0, 1.0], horizontal_flip=0)
        samples.append(DetectionTransform(settings, SIZE, PROCESSOR, False)(image, objects))
    batch = DetectionCollator(with_regions=True).stack(samples)
    assert batch["pixel_values"].shape == (2, 3, 64, 64) and batch["pixel_mask"].sum((1, 2)).tolist() == [2560, 2048]
    for label in batch["labels"]:
        expected = torch.tensor([[16 / 64, 20 / 64, 16 / 64, 20 / 64]])
        torch.testing.assert_close(label["boxes"], expected)
        assert label["masks"].shape == (1, 64, 64) and label["masks"].sum() == 16 * 20
    assert batch["labels"][0]["seed"] == samples[0]["region_seed"]


def test_the_objects_of_an_image_are_the_same_to_the_bit_beside_a_larger_image():
    """Anchors that fit an object equally well are told apart by the last digit."""
    corners = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([40.0, 30.0])
    boxes = torch.cat([corners, 2 * corners], 1)
    objects = {"boxes": boxes, "class_labels": torch.zeros(50, dtype=torch.int64), "region_seed": torch.tensor(0)}
    small, large = ({**objects, "pixel_values": torch.zeros(3, *size)} for size in ((60, 80), (91, 111)))
    collate = DetectionCollator(with_regions=True).stack
    alone, beside = collate([small])["labels"][0], collate([small, large])["labels"][0]
    targets = [torchvision_target(alone, 60, 80, (60, 80)), torchvision_target(beside, 91, 111, (60, 80))]
    assert all(torch.equal(target["boxes"], boxes) for target in targets)
    del alone["pixel_boxes"], beside["pixel_boxes"]
    first, second = torchvision_target(alone, 60, 80, (60, 80)), torchvision_target(beside, 91, 111, (60, 80))
    torch.testing.assert_close(first["boxes"], second["boxes"])
    assert not torch.equal(first["boxes"], second["boxes"])  # the control: relative boxes are rounded by the batch
