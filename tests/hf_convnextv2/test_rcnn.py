"""Mask R-CNN and Faster R-CNN on our backbone: the boxes, scores, masks and losses of torchvision's own classes."""

import copy
from collections import OrderedDict

import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import paste_masks_in_image
from transformers import AutoModelForObjectDetection, DetrImageProcessor, pipeline

from conversion.layouts import LAYOUTS
from conversion.model_weights import from_state_dict, to_state_dict
from hf_convnextv2.configuration_rcnn import ConvNextV2RCNNConfig
from hf_convnextv2.modeling_rcnn import ConvNextV2RCNNForObjectDetection
from hf_convnextv2.region_sampling import RegionSampler
from tests.small_models import awake, small_config

STAGES = ["stage1", "stage2", "stage3", "stage4"]
ALL = 10**6  # more regions than there are: nothing is drawn by chance
SETTINGS = {
    "fpn_hidden_size": 16,
    "box_head_size": 24,
    "anchor_sizes": [8, 16, 32, 64, 128],
    "num_labels": 3,
    "max_detections": 25,
}


def detector(backbone=None, **changes):
    config = {"out_features": STAGES, **(backbone or {})}
    settings = {**SETTINGS, "use_masks": True, **changes}
    return ConvNextV2RCNNForObjectDetection(ConvNextV2RCNNConfig(backbone_config=small_config(**config), **settings))


def labels_for(height, width, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = 0.3 + 0.4 * torch.rand(count, 2, generator=generator)
    sides = 0.15 + 0.2 * torch.rand(count, 2, generator=generator)
    masks = torch.zeros(count, height, width, dtype=torch.uint8)
    for mask, (x, y), (w, h) in zip(masks, centres.tolist(), sides.tolist(), strict=True):
        mask[int((y - h / 2) * height) : int((y + h / 2) * height), int((x - w / 2) * width) : int(x * width)] = 1
    classes = torch.arange(count) % 3
    return {"class_labels": classes, "boxes": torch.cat([centres, sides], 1), "masks": masks, "seed": torch.tensor(7)}


class TimmFeatures(nn.Module):
    """timm's model with the weights of our backbone, the norms of the maps and torchvision's own pyramid."""

    def __init__(self, ours):
        super().__init__()
        config, weights = ours.backbone.config, ours.backbone.state_dict()
        theirs = timm.create_model(
            "convnextv2_tiny", num_classes=0, depths=config.depths, dims=config.hidden_sizes, in_chans=3
        )
        encoder = {name: value for name, value in weights.items() if not name.startswith("hidden_states_norms.")}
        converted, _ = to_state_dict(from_state_dict(encoder, config.to_dict()), LAYOUTS["timm"])
        missing, unexpected = theirs.load_state_dict(converted, strict=False)
        assert not unexpected and all(name.startswith("head.") for name in missing)
        self.model, self.norms, self.neck = theirs, ours.backbone.hidden_states_norms, ours.neck
        self.out_channels = ours.config.fpn_hidden_size

    def forward(self, x):
        maps = self.model.forward_intermediates(x, intermediates_only=True)
        return self.neck(OrderedDict((str(i), self.norms[STAGES[i]](map_)) for i, map_ in enumerate(maps)))


def torchvisions(ours, size):
    """torchvision's class with the same weights, on timm's features, for images of a size."""
    config = ours.config
    sizes, ratios = tuple((size,) for size in config.anchor_sizes), ((0.5, 1.0, 2.0),) * 5
    settings = {"rpn_anchor_generator": AnchorGenerator(sizes, ratios), "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    settings |= {
        "box_head": TwoMLPHead(config.fpn_hidden_size * 49, config.box_head_size),
        "min_size": min(size),
        "max_size": max(size),
    }
    settings |= {"box_predictor": FastRCNNPredictor(config.box_head_size, config.num_labels + 1)}
    settings |= {"box_score_thresh": config.box_score_threshold, "rpn_batch_size_per_image": config.rpn_batch_size}
    settings |= {"box_batch_size_per_image": config.box_batch_size, "box_detections_per_img": config.max_detections}
    features, mask_head = TimmFeatures(ours), copy.deepcopy(ours.roi_heads.mask_head)
    if config.use_masks:
        model = MaskRCNN(
            features, **settings, mask_head=mask_head, mask_predictor=copy.deepcopy(ours.roi_heads.mask_predictor)
        )
    else:
        model = FasterRCNN(features, **settings)
    weights = {name: value for name, value in ours.state_dict().items() if name.startswith(("rpn.", "roi_heads."))}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.startswith("backbone.") for name in missing)
    return model.train(ours.training)


@pytest.mark.parametrize("use_masks", [True, False])
@pytest.mark.parametrize("size", [(96, 160), (90, 131)])
def test_boxes_scores_and_masks_are_those_of_torchvisions_class_on_timms_features(use_masks, size):
    # In float64: in float32, a difference of 1e-7 in the features may reorder regions of nearly equal scores.
    ours = awake(detector(use_masks=use_masks)).double()
    theirs = torchvisions(ours, size).double()
    image = torch.randn(3, *size, dtype=torch.float64)
    with torch.no_grad():
        outputs, (expected,) = ours(image[None]), theirs([image])
    (found,) = ours.post_process_instance_segmentation(outputs, [size], threshold=0.0)
    assert len(expected["scores"]) == 25  # else nothing is compared
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=0, atol=1e-6)
    torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=0, atol=1e-4)  # in pixels
    assert torch.equal(found["labels"], expected["labels"] - 1)
    if use_masks:
        pasted = paste_masks_in_image(outputs.pred_masks[0][:25, None], found["boxes"], size)
        torch.testing.assert_close(pasted, expected["masks"], rtol=0, atol=1e-4)  # probabilities
        assert pasted.std() > 0.01
        differs = (found["masks"] != (expected["masks"][:, 0] >= 0.5)).float().mean()
        assert differs < 1e-5 and 0.001 < found["masks"].float().mean() < 0.99


@pytest.mark.parametrize("use_masks", [True, False])
def test_losses_and_gradients_are_those_of_torchvisions_class(use_masks):
    ours = awake(detector(use_masks=use_masks, rpn_batch_size=ALL, box_batch_size=ALL)).double().train()
    theirs = torchvisions(ours, (96, 128)).double()
    image, label = torch.randn(3, 96, 128, dtype=torch.float64), labels_for(96, 128, 3)
    centre, side = label["boxes"][:, :2], label["boxes"][:, 2:]
    boxes = torch.cat([centre - side / 2, centre + side / 2], 1) * torch.tensor([128, 96, 128, 96])
    boxes = boxes.double()
    target = {"boxes": boxes, "labels": label["class_labels"] + 1, "masks": label["masks"]}
    expected = theirs([image], [target])
    outputs = ours(image[None], labels=[{**label, "boxes": label["boxes"].double()}])
    assert outputs.loss_dict.keys() == expected.keys()
    for name, loss in expected.items():
        torch.testing.assert_close(outputs.loss_dict[name], loss, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(outputs.loss, sum(outputs.loss_dict.values()))
    outputs.loss.backward()
    sum(expected.values()).backward()
    for name, weight in theirs.named_parameters():
        if name.startswith(("rpn.", "roi_heads.")):
            gradient = ours.get_parameter(name).grad
            torch.testing.assert_close(gradient, weight.grad, rtol=1e-3, atol=1e-3 * weight.grad.abs().max().item())


def padded_batch(images):
    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    batch, mask = torch.zeros(len(images), 3, height, width), torch.zeros(len(images), height, width, dtype=torch.long)
    for index, image in enumerate(images):
        batch[index, :, : image.shape[1], : image.shape[2]] = image
        mask[index, : image.shape[1], : image.shape[2]] = 1
    return batch, mask


def test_padding_changes_no_detection():
    ours = awake(detector())
    images = [torch.randn(3, *size) for size in ((64, 32), (40, 60), (32, 64), (40, 60))]
    batch, mask = padded_batch(images)
    with torch.no_grad():
        together = ours(batch, mask)
        without_mask = ours(batch)
        for index, image in enumerate(images):
            alone = ours(image[None])
            count = alone.logits.shape[1]
            assert count > 10
            scores = together.logits[index].softmax(-1)
            torch.testing.assert_close(scores[:count], alone.logits[0].softmax(-1), rtol=0, atol=1e-5)
            assert (scores[count:, :-1] == 0).all()
            torch.testing.assert_close(together.pred_boxes[index, :count], alone.pred_boxes[0], rtol=0, atol=1e-4)
            torch.testing.assert_close(together.pred_masks[index, :count], alone.pred_masks[0], rtol=0, atol=1e-4)
    # The control: where padding counts as image, GRN sees it, and the maps of the image change.
    sizes = [(64, 64)] * 4, [(image.shape[1], image.shape[2]) for image in images]
    mixed, own = (ours.pyramids(batch, each)[0]["0"] for each in sizes)
    part = mixed[..., :8]
    assert (part - own).abs().max() > 0.05 * own.abs().max()
    assert without_mask.logits.shape[0] == 4


def test_a_loss_is_the_mean_over_images_whatever_the_batch():
    ours = awake(detector(rpn_batch_size=32, box_batch_size=64)).train()
    images = [torch.randn(3, *size) for size in ((96, 96), (64, 96), (96, 64))]
    batch, mask = padded_batch(images)
    labels = []
    for index, image in enumerate(images):
        label = labels_for(*image.shape[1:], 1 + index, seed=index)
        scale = torch.tensor([image.shape[2] / 96, image.shape[1] / 96] * 2)
        whole = torch.zeros(len(label["masks"]), 96, 96, dtype=torch.uint8)
        whole[:, : image.shape[1], : image.shape[2]] = label["masks"]
        labels.append((label, {**label, "boxes": label["boxes"] * scale, "masks": whole}))
    together = ours(batch, mask, [padded for _, padded in labels]).loss
    alone = [ours(image[None], labels=[own]).loss for image, (own, _) in zip(images, labels, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone).mean(), rtol=1e-5, atol=0)
    other = {**labels[0][0], "seed": torch.tensor(8)}
    assert ours(images[0][None], labels=[other]).loss != alone[0]


def test_an_image_without_objects_has_a_loss_and_gradients_everywhere():
    ours = detector().train()
    none = {
        "class_labels": torch.zeros(0, dtype=torch.long),
        "boxes": torch.zeros(0, 4),
        "masks": torch.zeros(0, 64, 64),
    }
    outputs = ours(torch.randn(1, 3, 64, 64), labels=[none])
    outputs.loss.backward()
    assert outputs.loss.isfinite() and outputs.loss_dict["loss_mask"] == 0
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in ours.parameters())


@pytest.mark.parametrize(
    "backbone",
    [
        {"use_grn": False},
        {"num_channels": 1},
        {"num_channels": 5, "patch_size": 2},
        {"hidden_sizes": [8, 16], "depths": [1, 1], "out_features": ["stage1", "stage2"]},
        {"out_features": ["stage2", "stage4"]},
    ],
)
def test_every_backbone_takes_a_step_and_detects(backbone):
    levels = len(backbone.get("out_features", STAGES)) + 1
    ours = detector(backbone, anchor_sizes=SETTINGS["anchor_sizes"][:levels], box_score_threshold=0.0).train()
    image = torch.randn(1, backbone.get("num_channels", 3), 64, 96)
    ours(image, labels=[labels_for(64, 96, 2)]).loss.backward()
    with torch.no_grad():
        outputs = ours.eval()(image)
    assert outputs.pred_boxes.shape[:2] == outputs.logits.shape[:2] and outputs.logits.shape[2] == 4


def test_evaluation_with_labels_has_loss_and_detections():
    ours = awake(detector())
    image, label = torch.randn(1, 3, 64, 96), labels_for(64, 96, 2)
    with torch.no_grad():
        outputs, alone = ours(image, labels=[label]), ours(image)
    assert torch.equal(outputs.pred_boxes, alone.pred_boxes) and alone.loss is None
    torch.testing.assert_close(outputs.loss, ours.train()(image, labels=[label]).loss)
    with pytest.raises(ValueError, match="`labels`"):
        ours(image)


def test_a_saved_detector_loads_by_its_auto_class_and_answers_a_pipeline(photographs, tmp_path):
    ours = awake(detector(num_labels=2, id2label={0: "cat", 1: "cup"}))
    ours.save_pretrained(tmp_path)
    processor = DetrImageProcessor(size={"max_height": 96, "max_width": 128})
    processor.save_pretrained(tmp_path)
    loaded = AutoModelForObjectDetection.from_pretrained(tmp_path)
    assert type(loaded) is ConvNextV2RCNNForObjectDetection
    picture = Image.fromarray(photographs[1])
    found = pipeline("object-detection", model=loaded, image_processor=processor)(picture, threshold=0.3)
    inputs = processor(images=[picture], return_tensors="pt")
    with torch.no_grad():
        outputs = ours(**inputs)
    size = (picture.height, picture.width)
    (expected,) = ours.post_process_instance_segmentation(outputs, [size], threshold=0.3)
    assert len(found) == len(expected["scores"]) > 3
    assert [answer["score"] for answer in found] == pytest.approx(expected["scores"].tolist(), abs=1e-6)
    assert {answer["label"] for answer in found} <= {"cat", "cup"}
    corners = [[answer["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")] for answer in found]
    torch.testing.assert_close(torch.tensor(corners), expected["boxes"].long(), rtol=0, atol=1)


def test_half_precision_rounds_features_and_no_coordinate():
    """Boxes of up to 320 pixels: those that bfloat16 could hold would be multiples of 2 beyond 256."""
    ours = awake(detector()).train()
    image, label = torch.randn(1, 3, 64, 320), labels_for(64, 320, 2)
    whole = ours(image, labels=[label]).loss
    with torch.autocast("cpu", torch.bfloat16):
        half = ours(image, labels=[label]).loss
    half.backward()
    torch.testing.assert_close(half, whole, rtol=0.05, atol=0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = ours.eval()(image)
    with torch.no_grad():
        stored = ours.to(torch.bfloat16)(image)
    for found in (outputs, stored):
        assert {found.logits.dtype, found.pred_boxes.dtype, found.pred_masks.dtype} == {torch.float32}
        (detected,) = ours.post_process_instance_segmentation(found, [(64, 320)], threshold=0.0)
        right = detected["boxes"][:, 2]
        inside = right[(right > 256) & (right < 319)]
        assert len(inside) and (inside % 2 > 0.01).any()


def test_what_stands_in_the_padding_has_no_effect():
    ours = awake(detector())
    batch, mask = padded_batch([torch.randn(3, 50, 40), torch.randn(3, 64, 64)])
    other = torch.where(mask[:, None].bool(), batch, torch.tensor(7.0))
    with torch.no_grad():
        expected, found = ours(batch, mask), ours(other, mask)
    assert torch.equal(expected.pred_boxes, found.pred_boxes) and torch.equal(expected.logits, found.logits)
    assert not torch.equal(expected.pred_boxes, ours(other).pred_boxes)  # the control: without the mask


def test_regions_are_drawn_by_the_seed_and_by_the_rule_of_torchvision():
    labels = torch.tensor([1.0] * 5 + [0.0] * 50 + [-1.0] * 9)
    sampler = RegionSampler(20, 0.5)
    sampler.seed = 3
    (positive,), (negative,) = sampler([labels])
    assert positive.sum() == 5 and negative.sum() == 15 and not (positive & negative).any()
    assert not positive[5:].any() and not negative[:5].any() and not negative[55:].any()
    again = sampler([labels, labels])
    assert torch.equal(again[1][0], negative) and torch.equal(again[1][1], negative)
    sampler.seed = 4
    assert not torch.equal(sampler([labels])[1][0], negative)
    many = RegionSampler(20, 0.25)([torch.tensor([1.0] * 50 + [0.0] * 50)])
    assert many[0][0].sum() == 5 and many[1][0].sum() == 15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anchor_sizes": [8, 16]}, r"`anchor_sizes` \(=\[8, 16\]\) must be 5 numbers"),
        ({"anchor_sizes": [8, 16, 0, 4, 4]}, "must be positive"),
        ({"fpn_hidden_size": 0}, r"`fpn_hidden_size` \(=0\) must be at least 1"),
        ({"anchor_ratios": []}, "`anchor_ratios`"),
        ({"patch_size": (4, 8)}, "must be square for an R-CNN"),
    ],
)
def test_a_wrong_setting_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        patch_size = changes.pop("patch_size", 4)
        backbone = small_config(out_features=STAGES, patch_size=patch_size)
        ConvNextV2RCNNConfig(backbone_config=backbone, **{**SETTINGS, **changes})
