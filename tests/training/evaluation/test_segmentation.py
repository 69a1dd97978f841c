"""Mean IoU and accuracies of segmentation, against their definitions written out."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from transformers import SegformerImageProcessor
from transformers.modeling_outputs import SemanticSegmenterOutput

from hf_convnextv2 import ConvMAEConfig, ConvNextV2Config
from tests.photographs import fresh_accelerate, message_of
from training.evaluation.segmentation import SegmentationEvaluator, collate_pairs, mean_figures, spans
from training.evaluation.segmentation_figures import class_colors, class_table, table_in_words
from training.evaluation.segmentation_protocol import check_prediction
from training.settings.evaluation import SegmentEvaluationSettings, SegmentPredictionSettings

__all__ = ["fresh_accelerate"]
pytestmark = pytest.mark.usefixtures("fresh_accelerate")


class FirstChannels(nn.Module):
    """The first channels of an image as its logits, at half the size."""

    def __init__(self, num_labels):
        super().__init__()
        self.num_labels, self.sizes = num_labels, []

    def forward(self, pixel_values):
        self.sizes.append(tuple(pixel_values.shape[-2:]))
        return SemanticSegmenterOutput(logits=pixel_values[:, : self.num_labels])


def evaluate(samples, num_labels, **settings):
    evaluator = SegmentationEvaluator(num_labels, 255, SegmentEvaluationSettings(**settings))
    samples = [{"seed": index, **sample} for index, sample in enumerate(samples)]
    loader = torch.utils.data.DataLoader(samples, 2, collate_fn=collate_pairs)
    model = FirstChannels(num_labels)
    return evaluator(Accelerator(cpu=True), model, loader), evaluator, model


def by_definition(predictions, references, num_labels):
    """IoU and accuracies by sets of pixels, class by class."""
    p, r = (np.concatenate([x.ravel() for x in xs]) for xs in (predictions, references))
    known = r != 255
    p, r = p[known], r[known]
    ious, accuracies = [], []
    for c in range(num_labels):
        union = ((p == c) | (r == c)).sum()
        if union:
            ious.append(((p == c) & (r == c)).sum() / union)
        if (r == c).any():
            accuracies.append((p[r == c] == c).mean())
    return {"mean_iou": np.mean(ious), "mean_accuracy": np.mean(accuracies), "overall_accuracy": (p == r).mean()}


def random_samples(seed, num_labels=4, absent=(), count=5):
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for index in range(count):
        size = (6 + index, 9 - index)
        labels = torch.randint(num_labels, size, generator=generator)
        for missing in absent:
            labels[labels == missing] = 0
        labels[0, :2] = 255
        logits = torch.randn(num_labels, *size, generator=generator)
        for missing in absent:
            logits[missing] = -100
        samples.append({"pixel_values": logits, "labels": labels})
    return samples


@pytest.mark.parametrize("absent", [(), (2,), (1, 3)])
def test_figures_are_those_of_the_definition(absent):
    samples = random_samples(3, absent=absent)
    results, _, _ = evaluate(samples, 4)
    predictions = [sample["pixel_values"].argmax(0).numpy() for sample in samples]
    expected = by_definition(predictions, [sample["labels"].numpy() for sample in samples], 4)
    for name, value in expected.items():
        assert results[f"eval_{name}"] == pytest.approx(value)
    pixels = (
        torch.cat([s["pixel_values"].flatten(1).T for s in samples]),
        torch.cat([s["labels"].flatten() for s in samples]),
    )
    assert results["eval_loss"] == pytest.approx(F.cross_entropy(*pixels, ignore_index=255).item(), rel=1e-5)
    assert results["eval_samples"] == 5


def test_a_class_that_is_predicted_but_never_true_counts_in_the_mean_iou_alone():
    labels = torch.zeros(4, 4, dtype=torch.long)
    logits = torch.zeros(3, 4, 4)
    logits[2, :2] = 1  # half of the image
    logits[0, 2:] = 1
    results, _, _ = evaluate([{"pixel_values": logits, "labels": labels}], 3)
    assert results["eval_mean_iou"] == pytest.approx((0.5 + 0) / 2)
    assert results["eval_mean_accuracy"] == pytest.approx(0.5)


def test_images_without_a_known_pixel_have_no_figure():
    labels = torch.full((4, 4), 255)
    results, evaluator, _ = evaluate([{"pixel_values": torch.zeros(3, 4, 4), "labels": labels}], 3)
    assert results == {"eval_samples": 1} and evaluator.confusion is None
    assert evaluator.in_words(results) == "no pixel has a class, 1 images"
    assert all(row["iou"] is None for row in class_table(np.zeros((3, 3), int), ["a", "b", "c"]))


def test_figures_are_taken_at_the_size_of_the_labels():
    logits = torch.randn(3, 4, 6)
    labels = F.interpolate(logits[None], size=(12, 18), mode="bilinear")[0].argmax(0)
    results, _, _ = evaluate([{"pixel_values": logits, "labels": labels}], 3)
    assert results["eval_overall_accuracy"] == 1


def test_windows_cover_every_pixel_with_overlaps_of_a_third():
    for length in range(1, 60):
        for window in range(1, 20):
            found = list(spans(length, window))
            assert {end - begin for begin, end in found} == {min(window, length)}
            assert sorted({i for begin, end in found for i in range(begin, end)}) == list(range(length))
    assert list(spans(24, 12)) == [(0, 12), (8, 20), (12, 24)]


def test_windows_are_what_the_model_sees_and_their_mean_is_the_prediction():
    samples = random_samples(1, count=1)  # pointwise logits: windows change nothing
    whole, _, _ = evaluate(samples, 4)
    windows, _, model = evaluate(samples, 4, eval_window=4)
    assert windows == pytest.approx(whole) and set(model.sizes) == {(4, 4)} and len(model.sizes) > 4


def test_mirror_images_and_scales_are_averaged():
    samples = random_samples(2, count=1)
    results, _, model = evaluate(samples, 4, eval_flip=True, eval_scales=[1.0, 2.0])
    assert model.sizes == [(6, 9), (6, 9), (12, 18), (12, 18)]
    one, _, _ = evaluate(samples, 4, eval_flip=True)
    plain, _, _ = evaluate(samples, 4)
    assert one == pytest.approx(plain)  # the mean of twice the same probabilities
    assert results["eval_loss"] != pytest.approx(plain["eval_loss"])


def test_the_table_names_each_class_with_its_shares():
    confusion = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    rows = class_table(confusion, ["sky", "tree", "sea"])
    assert rows[0]["iou"] == pytest.approx(6 / 9) and rows[0]["precision"] == pytest.approx(6 / 7)
    assert rows[1]["recall"] == pytest.approx(3 / 4) and rows[2]["iou"] is None
    assert "sky" in table_in_words(confusion, ["sky", "tree", "sea"]).splitlines()[1]
    assert mean_figures(confusion)["majority_accuracy"] == pytest.approx(8 / 12)


def test_a_mean_iou_of_one_class_alone_is_told_to_say_little():
    """As of black and white masks whose 255 is ignored."""
    told = table_in_words(np.array([[6, 0], [0, 0]]), ["sky", "tree"])
    assert "Warning: all pixels that have a class are of sky" in told and "`--mask_values`" in told
    assert "Warning" not in table_in_words(np.array([[6, 0], [1, 0]]), ["sky", "tree"])


@pytest.mark.parametrize("count", [2, 20, 150])
def test_classes_have_colours_of_their_own(count):
    colors = class_colors(count)
    assert len(np.unique(colors, axis=0)) == count + 1


@pytest.mark.parametrize(
    ("encoder", "stride"),
    [(ConvMAEConfig(cell_size=32), 16), (ConvMAEConfig(patch_sizes=[2, 2, 2]), 8), (ConvNextV2Config(), 32)],
)
def test_windows_and_scales_may_be_as_small_as_the_stride_of_the_encoder(encoder, stride):
    """A ConvMAE's pre-training may hide cells of several tokens, which says nothing about its maps."""
    processor = SegformerImageProcessor(size={"shortest_edge": 2 * stride})

    def checked(**fields):
        check_prediction(SegmentPredictionSettings(**fields), encoder, processor)

    checked(eval_window=stride, eval_scales=[0.5, 1.0])
    message = message_of(lambda: checked(eval_window=stride - 1))
    assert message == f"`eval_window` (={stride - 1}) must be at least {stride} pixels, the stride of the encoder."
    message = message_of(lambda: checked(eval_scales=[0.4]))
    assert message == f"`eval_scales` (=0.4) must leave images of {2 * stride} pixels at least {stride}."
