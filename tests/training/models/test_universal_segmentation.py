"""Mask2Former and MaskFormer on this package's backbone: trained, evaluated as Transformers does, and published."""

import logging

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import Mask2FormerForUniversalSegmentation, MaskFormerForInstanceSegmentation, SegformerImageProcessor

from conversion.publish import publish
from conversion.segmenters import convnextv2_supported
from hf_convnextv2 import ConvNextV2Backbone
from tests.photographs import fcmae, fresh_accelerate, message_of, quick_datasets, write_masked_folder
from training import segment
from training.evaluation.segmentation import SegmentationEvaluator
from training.models.layer_decay import last_layer_id, layer_id
from training.models.optimizer import decayed_parameters
from training.models.segmentation import backbone_of, create_segmentation_processor, create_segmenter
from training.models.universal_segmentation import masks_of
from training.settings.evaluation import SegmentEvaluationSettings
from training.settings.model import SegmenterSettings
from training.settings.scripts import SegmentSettings

__all__ = ["fcmae", "fresh_accelerate", "quick_datasets"]
NAMES = ["dark", "middle", "bright"]
both = pytest.mark.parametrize("architecture", ["mask2former", "maskformer"])


def settings(architecture, **fields):
    small = {"image_size": 64, "num_stages": 3, "decoder_hidden_size": 32, "num_queries": 7}
    return SegmenterSettings(architecture=architecture, **{**small, **fields})


def create(architecture, **fields):
    torch.manual_seed(0)
    return create_segmenter(settings(architecture, **fields), NAMES)


def batch(size=64):
    """Two noisy images whose halves differ in brightness, and one part of the first without a class."""
    labels = torch.zeros(2, size, size, dtype=torch.long)
    labels[:, size // 2 :], labels[0, :, : size // 4] = 2, 255
    noise = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    return {"pixel_values": 0.1 * noise + (labels == 2)[:, None] - 0.5, "labels": labels}


def train(model, steps):
    """The losses of training steps on the images of `batch`."""
    optimizer = torch.optim.AdamW(model.train().parameters(), 3e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**batch()).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@both
def test_training_lowers_the_loss_and_reaches_every_weight(architecture):
    model = create(architecture)
    losses = train(model, 4)
    assert losses[-1] < 0.95 * losses[0]
    assert all(parameter.grad is not None for parameter in model.parameters())  # else several processes would wait
    assert all(parameter.grad.any() for parameter in backbone_of(model).parameters())


@both
def test_images_without_a_class_are_trained_on(architecture):
    model, images = create(architecture).train(), batch()
    for labels in (torch.full_like(images["labels"], 255), torch.full_like(images["labels"], -100)):
        loss = model(images["pixel_values"], labels=labels).loss
        loss.backward()
        assert loss.isfinite()


def test_a_class_is_one_mask_and_pixels_without_a_class_are_in_none():
    labels = torch.tensor([[[0, 0, 2], [255, 2, 2]], [[255, 255, 255], [-100, 1, 255]]])
    masks, classes = masks_of(labels, 3)
    assert [found.tolist() for found in classes] == [[0, 2], [1]]
    assert masks[0].tolist() == [[[1, 1, 0], [0, 0, 0]], [[0, 0, 1], [0, 1, 1]]]
    assert masks[1].tolist() == [[[0, 0, 0], [0, 1, 0]]]


@both
def test_the_loss_is_that_of_transformers(architecture):
    stock = {"mask2former": Mask2FormerForUniversalSegmentation, "maskformer": MaskFormerForInstanceSegmentation}
    model, images = create(architecture).eval(), batch()
    masks, classes = masks_of(images["labels"], 3)
    torch.manual_seed(1)  # of the points that Mask2Former draws
    expected = stock[architecture].forward(model, images["pixel_values"], mask_labels=masks, class_labels=classes)
    torch.manual_seed(1)
    assert_close(model(**images).loss, expected.loss)


@both
def test_mask_losses_are_divided_by_the_mean_number_of_masks_of_the_processes(architecture, monkeypatch):
    """The other process has 6 masks beside the 4 of `batch`."""
    model, images = create(architecture).eval(), batch()

    def mask_losses():
        torch.manual_seed(1)  # of the points that Mask2Former draws
        masks, classes = masks_of(images["labels"], 3)
        outputs = type(model).__mro__[2].forward(model, images["pixel_values"])
        found = model.criterion(outputs.masks_queries_logits, outputs.class_queries_logits, masks, classes)
        return torch.stack([found["loss_mask"], found["loss_dice"]])

    alone = mask_losses()
    assert sum(map(len, masks_of(images["labels"], 3)[1])) == 4
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count: count.add_(6))
    assert_close(mask_losses(), alone * 4 / ((4 + 6) / 2))


@both
def test_the_backbone_is_ours_with_the_weights_to_start_from(architecture, fcmae):
    fields = {"model_name_or_path": fcmae, "num_stages": None, "image_size": 32}
    if architecture == "mask2former":  # reads three maps; this encoder has two
        assert "`num_stages` (=2) must be at least 3" in message_of(lambda: create(architecture, **fields))
        return
    model = create(architecture, **fields, activation_checkpointing=True)
    expected = ConvNextV2Backbone.from_pretrained(fcmae, out_features=["stage1", "stage2"]).state_dict()
    found = {name: value for name, value in backbone_of(model).state_dict().items() if "norms" not in name}
    assert_close(found, {name: expected[name] for name in found}, rtol=0, atol=0)
    assert backbone_of(model).is_gradient_checkpointing


@both
@pytest.mark.parametrize("decay_type", ["single", "group", "stage"])
def test_decoders_learn_at_the_heads_rate_and_the_backbone_at_its_own(architecture, decay_type):
    model, depths = create(architecture), [2, 2, 6]
    names = {id(parameter): name for name, parameter in backbone_of(model).named_parameters()}
    assert list(backbone_of(model).config.depths) == depths
    for name, parameter in model.named_parameters():
        found = layer_id(name, depths, decay_type)
        if id(parameter) in names and "norms" not in name:
            assert found == layer_id(names[id(parameter)], depths, decay_type) < last_layer_id(depths, decay_type)
        else:
            assert found == last_layer_id(depths, decay_type)


@both
def test_linear_layers_and_convolutions_are_decayed_and_nothing_else(architecture):
    model = create(architecture)
    decayed = decayed_parameters(model)
    for name, parameter in model.named_parameters():
        undecayed = ("norm", "bias", "grn", "embedder.weight", "queries_features", "level_embed")
        is_matrix = parameter.ndim in (2, 4) and not any(part in name for part in undecayed)
        assert (name in decayed) == is_matrix, name
    assert decayed <= {name for name, _ in model.named_parameters()}


def test_predictions_are_those_of_the_image_processor_at_its_size():
    """Mask2Former's processor enlarges all masks to 384 x 384."""
    model = create("mask2former")
    train(model, 12)
    config = backbone_of(model.eval()).config
    processor = create_segmentation_processor(settings("mask2former"), None, config, "mask2former")
    pixel_values = F.interpolate(batch()["pixel_values"][:1], size=(384, 384))
    with torch.no_grad():
        outputs = Mask2FormerForUniversalSegmentation.forward(model, pixel_values)
        evaluator = SegmentationEvaluator(3, 255, SegmentEvaluationSettings())
        scores = evaluator.predict(model, pixel_values[0], (384, 384))
    (expected,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(384, 384)])
    assert torch.equal(scores.argmax(0), expected) and len(expected.unique()) > 1
    assert_close(scores.exp().sum(0), torch.ones(384, 384))  # probabilities, for the loss and the averages


@both
def test_an_image_is_resized_as_for_upernet(architecture):
    config = backbone_of(create(architecture)).config
    processor = create_segmentation_processor(settings(architecture), None, config, architecture)
    other = create_segmentation_processor(settings("upernet"), None, config, "upernet")
    assert isinstance(other, SegformerImageProcessor)
    image = np.random.default_rng(0).integers(0, 256, (50, 83, 3), dtype=np.uint8)
    found, expected = (each(image, return_tensors="pt")["pixel_values"] for each in (processor, other))
    assert found.shape == (1, 3, 64, 106)
    assert_close(found, expected)


@pytest.fixture(params=["mask2former", "maskformer"])
def folder(request, tmp_path):
    model = create(request.param).eval()
    config = backbone_of(model).config
    model.save_pretrained(tmp_path / "model")
    create_segmentation_processor(settings(request.param), None, config, request.param).save_pretrained(
        tmp_path / "model"
    )
    return tmp_path / "model", model


def test_the_card_says_which_model_it_is_and_counts_the_backbone(folder):
    path, model = folder
    publish(path, "me/zones", dry_run=True)
    card = (path / "README.md").read_text()
    name = "[Mask2Former](https://arxiv.org/abs/2112.01527)" if "Mask2" in type(model).__name__ else "[MaskFormer]("
    backbone = sum(parameter.numel() for parameter in backbone_of(model).parameters())
    assert f"{name}" in card and "UPerNet" not in card
    assert f"{backbone:,} of them in the backbone; 3 classes" in card
    assert 'segmenter("photo.jpg", subtask="semantic")' in card


@both
def test_transformers_warning_of_the_backbone_is_left_out_and_no_other(architecture, caplog):
    logger = logging.getLogger(f"transformers.models.{architecture}.configuration_{architecture}")
    logger.warning_once.__func__.cache_clear()
    model = create(architecture)
    with convnextv2_supported():
        logger.warning("another")
    assert set(caplog.messages) == {"another"}
    logger.warning_once.__func__.cache_clear()
    type(model.config)(backbone_config=backbone_of(model).config)
    assert caplog.messages[-1].startswith("Backbone convnextv2 is not a supported model")


def run(output, dataset, **fields):
    small = {"image_size": 32, "num_stages": 3, "decoder_hidden_size": 32, "num_labels": 3, "num_queries": 5}
    small |= {"architecture": "maskformer", "per_device_train_batch_size": 1, "num_workers": 0, "warmup_steps": 0}
    small |= {"max_train_steps": 2, "learning_rate": 1e-3, "with_tracking": False, "eval_split": "test"}
    where = {"dataset_name": str(dataset), "output_dir": str(output)}
    segment.main(SegmentSettings(**{**small, **where, **fields}))


@pytest.mark.usefixtures("fresh_accelerate", "quick_datasets")
def test_a_run_is_not_resumed_with_another_architecture(tmp_path):
    data = write_masked_folder(tmp_path / "data", {"train": 2, "test": 1})
    run(tmp_path / "out", data, checkpointing_steps=1)
    resume = {"resume_from_checkpoint": str(tmp_path / "out/checkpoint-1")}
    for fields, message in (
        ({"architecture": "mask2former"}, "its `model_type` is maskformer, not mask2former"),
        ({"num_queries": 6}, "its `num_queries` is 5, not 6"),
        ({"decoder_hidden_size": 64}, "its `decoder_hidden_size` is 32, not 64"),
    ):
        assert message in message_of(lambda fields=fields: run(tmp_path / "out", data, **resume, **fields))


def test_settings_that_do_not_fit_the_architecture_are_refused():
    fields = {"dataset_name": "x", "output_dir": "out", "per_device_train_batch_size": 1}
    assert "UPerNet's batch normalisation" in message_of(lambda: SegmentSettings(**fields))
    SegmentSettings(**fields, architecture="mask2former")
    assert "be a multiple of 32" in message_of(lambda: settings("maskformer", decoder_hidden_size=40))
    assert "be one of upernet, mask2former, maskformer" in message_of(lambda: settings("segformer"))
    record = SegmentSettings(**fields, architecture="mask2former").record()
    assert "num_queries" in record.recipe and "auxiliary_loss_weight" not in record.recipe
