"""AP of boxes and masks: as pycocotools gives it from COCO's files, and as its definition written out gives it."""

import csv
import io
import json
from contextlib import redirect_stdout
from types import SimpleNamespace

import numpy as np
import pycocotools.mask
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from tests.photographs import fresh_accelerate
from training.data.detection.objects import Objects
from training.evaluation import detection_figures
from training.evaluation.detection import DetectionEvaluator, Detections, collate_objects
from training.evaluation.detection_figures import save_figures, table_in_words
from training.settings.evaluation import DetectEvaluationSettings

__all__ = ["fresh_accelerate"]
pytestmark = pytest.mark.usefixtures("fresh_accelerate")
NAMES = ["cell", "nucleus", "debris"]
SIZES = ("small", "medium", "large")
BOX, FAR = [10.0, 10.0, 50.0, 40.0], [60.0, 60.0, 90.0, 90.0]


def objects_of(boxes, labels=None, crowds=None, masks=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) if masks is None else masks.flatten(1).sum(1).float()
    labels = torch.zeros(len(boxes), dtype=torch.int64) if labels is None else torch.tensor(labels)
    return Objects(boxes, labels, areas, torch.tensor(crowds or [False] * len(boxes), dtype=torch.bool), masks)


def found(boxes, scores, labels=None, masks=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.zeros(len(boxes), dtype=torch.int64) if labels is None else torch.tensor(labels)
    return Detections(boxes, torch.tensor(scores, dtype=torch.float32), labels, masks)


def evaluate(pairs, names=NAMES, with_masks=False, size=(100, 120), channels=3):
    """Results and evaluator of these objects and detections of images, three in a batch."""
    images = [torch.full((channels, 50, 60), float(number)) for number in range(len(pairs))]
    samples = [
        {"seed": number, "pixel_values": images[number], "size": size, "objects": truth}
        for number, (truth, _) in enumerate(pairs)
    ]

    def detect(model, pixel_values, size):
        return pairs[int(pixel_values[0, 0, 0])][1]

    evaluator = DetectionEvaluator(names, detect, with_masks, DetectEvaluationSettings())
    loader = torch.utils.data.DataLoader(samples, 3, collate_fn=collate_objects)
    accelerator = Accelerator(cpu=True)
    return evaluator(accelerator, nn.Identity(), accelerator.prepare(loader)), evaluator


def ellipses(boxes, size):
    """Masks of the ellipses in boxes."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    masks = [
        ((x - (x0 + x1) / 2) / max(x1 - x0, 1)) ** 2 + ((y - (y0 + y1) / 2) / max(y1 - y0, 1)) ** 2 <= 0.25
        for x0, y0, x1, y1 in boxes
    ]
    return torch.from_numpy(np.array(masks, dtype=np.uint8).reshape(-1, *size))


def random_pairs(seed, size=(240, 300), count=7):
    """Objects of every size, with a tenth of crowds, and detections near most of them, with some equal scores."""
    random = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        number = int(random.integers(0, 9))
        corners = random.uniform(0, 150, (number, 2))
        boxes = np.concatenate([corners, corners + random.choice([12, 50, 130], (number, 1))], 1)
        labels = random.integers(0, 3, number)
        kept = random.random(number) < 0.8
        noisy = boxes[kept] + random.uniform(-5, 5, (kept.sum(), 4))
        guessed = np.where(random.random(kept.sum()) < 0.8, labels[kept], random.integers(0, 3, kept.sum()))
        scores = random.integers(0, 10, len(noisy)) / 10
        truth = objects_of(boxes, labels.tolist(), (random.random(number) < 0.1).tolist(), ellipses(boxes, size))
        pairs.append((truth, found(noisy, scores, guessed.tolist(), ellipses(noisy, size))))
    return pairs


def by_files(pairs, kind, folder, size):
    """COCO's 12 figures and its arrays, from its two files."""
    truth, guesses = [], []
    for number, (objects, detections) in enumerate(pairs, 1):
        for i, (x0, y0, x1, y1) in enumerate(objects.boxes.tolist()):
            row = {"image_id": number, "category_id": objects.labels[i].item() + 1, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            row |= {"id": len(truth) + 1, "area": objects.areas[i].item(), "iscrowd": int(objects.crowds[i])}
            truth.append({**row, "segmentation": run_lengths(objects.masks[i])})
        for i, (x0, y0, x1, y1) in enumerate(detections.boxes.tolist()):
            place = {"bbox": [x0, y0, x1 - x0, y1 - y0]}
            place = place if kind == "bbox" else {"segmentation": run_lengths(detections.masks[i])}
            row = {"image_id": number, "category_id": detections.labels[i].item() + 1, **place}
            guesses.append({**row, "score": detections.scores[i].item()})
    images = [{"id": number, "height": size[0], "width": size[1]} for number in range(1, len(pairs) + 1)]
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES, 1)]
    (folder / "truth.json").write_text(json.dumps({"images": images, "annotations": truth, "categories": categories}))
    (folder / "found.json").write_text(json.dumps(guesses))
    with redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "truth.json"))
        evaluation = COCOeval(coco, coco.loadRes(str(folder / "found.json")), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def run_lengths(mask):
    encoded = pycocotools.mask.encode(np.asfortranarray(mask.numpy()))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def by_definition(pairs, label, threshold):
    """AP of a class of boxes without crowds: greedy matching by score, then precision at 101 points of recall."""
    hits, scores, total = [], [], 0
    for objects, detections in pairs:
        boxes = objects.boxes[objects.labels == label].tolist()
        total += len(boxes)
        mine = detections.labels == label
        ranked = sorted(
            zip(detections.scores[mine].tolist(), detections.boxes[mine].tolist(), strict=True), reverse=True
        )
        free = set(range(len(boxes)))
        for score, box in ranked:
            best = max(free, key=lambda i: iou(boxes[i], box), default=None)
            is_hit = best is not None and iou(boxes[best], box) >= threshold
            free -= {best} if is_hit else set()
            hits.append(is_hit)
            scores.append(score)
    ordered = np.array(hits, float)[np.argsort(-np.array(scores), kind="stable")]
    true = np.cumsum(ordered)
    precision, recall = true / np.arange(1, len(true) + 1), true / total
    # As in COCO, the points are rounded: a recall of 0.6 does not reach the point 0.6000000000000001.
    return np.mean([max(precision[recall >= point], default=0) for point in np.linspace(0, 1, 101)])


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_pycocotools_from_files(seed, tmp_path):
    size = (240, 300)
    pairs = random_pairs(seed, size)
    results, evaluator = evaluate(pairs, with_masks=True, size=size)
    for kind, infix, column in (("bbox", "", "ap"), ("segm", "_mask", "mask_ap")):
        expected = by_files(pairs, kind, tmp_path, size)
        names = [f"eval_map{infix}{end}" for end in ("", "_50", "_75", *(f"_{size}" for size in SIZES))]
        assert {name: results[name] for name in names} == dict(zip(names, expected.stats[:6], strict=True))
        assert results[f"eval_mar{infix}_100"] == expected.stats[8]
        precision = expected.eval["precision"][:, :, :, 0, 2]
        for row in evaluator.per_class:
            assert row[column] == pytest.approx(precision[:, :, row["label"]].mean())
            if kind == "bbox":
                assert row["ap50"] == pytest.approx(precision[0, :, row["label"]].mean())
    counted = sum((~objects.crowds).sum().item() for objects, _ in pairs)
    assert results["eval_objects"] == counted == sum(row["objects"] for row in evaluator.per_class)
    assert results["eval_samples"] == len(pairs)


@pytest.mark.parametrize("seed", range(4))
def test_ap_of_each_class_is_that_of_its_definition(seed):
    pairs = [(truth._replace(crowds=torch.zeros_like(truth.crowds)), guess) for truth, guess in random_pairs(seed)]
    random = torch.Generator().manual_seed(seed)
    pairs = [(truth, g._replace(scores=torch.rand(len(g.scores), generator=random))) for truth, g in pairs]
    _, evaluator = evaluate(pairs)
    for row in evaluator.per_class:
        assert row["ap50"] == pytest.approx(by_definition(pairs, row["label"], 0.5))
        thresholds = np.linspace(0.5, 0.95, 10)
        assert row["ap"] == pytest.approx(np.mean([by_definition(pairs, row["label"], t) for t in thresholds]))


def test_ap_worked_by_hand():
    # The better of two detections is wrong: precision is 1/2 at every recall. One of two objects is found: 51 of 101.
    wrong_first = (objects_of([BOX]), found([FAR, BOX], [0.9, 0.8]))
    assert evaluate([wrong_first])[0]["eval_map"] == pytest.approx(0.5)
    one_of_two = (objects_of([BOX, FAR]), found([BOX], [0.9]))
    assert evaluate([one_of_two])[0]["eval_map"] == pytest.approx(51 / 101)
    twice = (objects_of([BOX]), found([BOX, BOX], [0.9, 0.8]))  # the second is wrong, but comes after full recall
    assert evaluate([twice])[0]["eval_map"] == pytest.approx(1)


def test_a_shifted_prediction_lowers_ap():
    boxes = np.array([BOX, FAR])
    means = [evaluate([(objects_of(boxes), found(boxes + shift, [0.9, 0.8]))])[0]["eval_map"] for shift in (0, 3, 30)]
    assert means[0] == pytest.approx(1) and means[0] > means[1] > means[2] == 0


def test_without_an_object_there_is_no_ap():
    for guess in (found([], []), found([BOX], [0.9])):
        results, evaluator = evaluate([(objects_of([]), guess)] * 2)
        assert results == {"eval_objects": 0, "eval_samples": 2}
        assert evaluator.in_words(results) == "no AP, 0 objects, 2 images"
        assert all(row["ap"] is None and row["ap50"] is None for row in evaluator.per_class)


def test_without_a_detection_ap_is_zero():
    results, evaluator = evaluate([(objects_of([BOX]), found([], []))])
    assert (results["eval_map"], results["eval_map_50"], results["eval_mar_100"]) == (0, 0, 0)
    assert evaluator.in_words(results) == "box AP 0.0 % (AP50 0.0 %), 1 objects, 1 images"


def test_no_figure_is_negative_and_those_of_sizes_that_do_not_occur_are_left_out():
    results, _ = evaluate([(objects_of([BOX]), found([BOX], [0.9]))])  # 40 x 30 pixels: medium
    assert results["eval_map_medium"] == pytest.approx(1)
    assert "eval_map_small" not in results and "eval_map_large" not in results
    assert all(value >= 0 for value in results.values())


def test_an_image_without_objects_counts_what_is_detected_in_it():
    good, empty = (objects_of([BOX]), found([BOX], [0.8])), (objects_of([]), found([FAR], [0.9]))
    assert evaluate([good])[0]["eval_map"] == pytest.approx(1)
    results, _ = evaluate([good, empty])
    assert results["eval_map"] == pytest.approx(0.5) and results["eval_samples"] == 2


def test_a_class_without_an_object_is_left_out_of_the_mean():
    pair = (objects_of([BOX], [1]), found([BOX, FAR], [0.9, 0.8], [1, 2]))
    results, evaluator = evaluate([pair])
    assert results["eval_map"] == pytest.approx(1)
    assert [row["ap"] for row in evaluator.per_class] == [None, pytest.approx(1), None]
    assert [row["objects"] for row in evaluator.per_class] == [0, 1, 0]


def test_crowds_are_neither_missed_nor_do_detections_in_them_count():
    crowd = objects_of([BOX, [60, 0, 120, 100]], crowds=[False, True])
    inside = found([[65, 10, 80, 30], [90, 50, 100, 70], BOX], [0.9, 0.8, 0.7])
    results, _ = evaluate([(crowd, inside)])
    assert results["eval_map"] == pytest.approx(1) and results["eval_objects"] == 1
    without = crowd._replace(crowds=torch.zeros(2, dtype=torch.bool))
    assert evaluate([(without, inside)])[0]["eval_map"] < 0.5


def test_of_an_image_and_class_the_hundred_best_detections_count():
    wrong = [[float(60 + i % 20), 60.0, float(90 + i % 20), 90.0] for i in range(100)]
    scores = [0.9] * 100
    assert evaluate([(objects_of([BOX]), found([*wrong, BOX], [*scores, 0.1]))])[0]["eval_map"] == 0
    first = evaluate([(objects_of([BOX]), found([*wrong, BOX], [*scores, 0.95]))])[0]
    assert first["eval_map"] == pytest.approx(1)


def test_of_equal_scores_the_first_detection_comes_first():
    # With both orders a stable sort: wrong before right gives a precision of 1/2, right before wrong gives 1.
    assert evaluate([(objects_of([BOX]), found([FAR, BOX], [0.5, 0.5]))])[0]["eval_map"] == pytest.approx(0.5)
    assert evaluate([(objects_of([BOX]), found([BOX, FAR], [0.5, 0.5]))])[0]["eval_map"] == pytest.approx(1)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "box",
    [[20.0, 20, 20, 20], [50.0, 40, 10, 10], [50.0, 10, 10, 40], [NAN] * 4, [NAN, 10, 50, 40], [-INF, -INF, INF, INF]],
)
def test_a_degenerate_detection_is_a_wrong_one(box):
    results, _ = evaluate([(objects_of([BOX]), found([box, BOX], [0.5, 0.4]))])
    before = 0 if torch.tensor(box).isfinite().all() else 1  # what is not finite comes last
    assert results["eval_map"] == pytest.approx(1 if before else 0.5)
    assert evaluate([(objects_of([BOX]), found([box], [0.5]))])[0]["eval_map"] == 0
    assert evaluate([(objects_of([BOX]), found([BOX], [NAN]))])[0]["eval_map"] == 0


def test_empty_masks_match_nothing():
    size, boxes = (100, 120), [BOX, FAR]
    truth = objects_of(boxes, masks=ellipses(boxes, size))
    empty = found(boxes, [0.9, 0.8], masks=torch.zeros(2, *size, dtype=torch.uint8))
    results, evaluator = evaluate([(truth, empty)], with_masks=True)
    assert results["eval_map"] == pytest.approx(1) and results["eval_map_mask"] == 0
    assert "mask AP 0.0 % (AP50 0.0 %), 2 objects, 1 images" in evaluator.in_words(results)


def test_an_evaluation_in_words_is_one_line():
    results = {"eval_map": 0.312, "eval_map_50": 0.55, "eval_map_mask": 0.287, "eval_map_mask_50": 0.521}
    text = DetectionEvaluator.in_words({**results, "eval_objects": 1204, "eval_samples": 120})
    assert text == "box AP 31.2 % (AP50 55.0 %), mask AP 28.7 % (AP50 52.1 %), 1,204 objects, 120 images"


def test_a_stop_cancels_the_evaluation():
    evaluator = DetectionEvaluator(NAMES, lambda *_: found([BOX], [0.9]), False, DetectEvaluationSettings())
    sample = {"seed": 0, "pixel_values": torch.zeros(3, 5, 6), "size": (100, 120), "objects": objects_of([BOX])}
    batch = collate_objects([sample])
    assert evaluator(Accelerator(cpu=True), nn.Identity(), [batch], lambda: True) == {}
    assert evaluator.per_class == [] and evaluator.shown == []


# --- The table and the picture ----------------------------------------------------------------------------------------


def processor_of(channels):
    return SimpleNamespace(image_mean=[0.5] * channels, image_std=[0.2] * channels)


@pytest.fixture
def drawn(monkeypatch):
    figures, save = [], detection_figures.save_figure
    monkeypatch.setattr(
        detection_figures, "save_figure", lambda figure, output: (figures.append(figure), save(figure, output))
    )
    return figures


def test_the_table_holds_the_figures_of_every_class(tmp_path):
    pair = (objects_of([BOX], [1]), found([BOX], [0.9], [1]))
    _, evaluator = evaluate([pair])
    save_figures(tmp_path, evaluator, NAMES, processor_of(3))
    with (tmp_path / "eval_per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["label", "class", "objects", "ap", "ap50"]
    assert rows[0]["ap"] == "" and float(rows[1]["ap"]) == pytest.approx(1)
    lines = table_in_words(evaluator.per_class).splitlines()
    assert lines[0].split() == ["class", "objects", "AP", "AP50"]
    assert lines[1].split() == ["cell", "0", "-", "-"] and lines[2].split()[1:4] == ["1", "100.0", "%"]


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("names", [["cell"], NAMES])
def test_objects_are_drawn_beside_the_detections_with_a_high_score(channels, names, tmp_path, drawn):
    size, boxes = (100, 120), [BOX, FAR]
    masks = ellipses(boxes, size)
    both = (objects_of(boxes, masks=masks), found(boxes, [0.9, 0.4], masks=masks))
    none = (objects_of([], masks=masks[:0]), found([], [], masks=masks[:0]))
    _, evaluator = evaluate([both, none], names, with_masks=True, channels=channels)
    save_figures(tmp_path, evaluator, names, processor_of(channels))
    objects, detections = drawn[0].axes
    assert len(objects.patches) == 2 and [text.get_text() for text in objects.texts] == ["cell", "cell"]
    assert len(detections.patches) == 1 and [text.get_text() for text in detections.texts] == ["cell 0.90"]
    scale = detection_figures.SIDE / size[1]
    assert objects.patches[0].get_bbox().extents == pytest.approx([scale * number for number in BOX])
    with Image.open(tmp_path / "predictions.png") as picture:
        assert picture.width > 600


def test_of_many_objects_only_the_boxes_are_drawn(tmp_path, drawn):
    boxes = [[float(i), 0.0, i + 20.0, 30.0] for i in range(30)]
    _, evaluator = evaluate([(objects_of(boxes), found([*boxes, BOX], [0.9] * 31))])
    save_figures(tmp_path, evaluator, NAMES, processor_of(3))
    assert len(drawn[0].axes[1].patches) == 31 and not drawn[0].axes[1].texts


def test_figures_of_an_earlier_run_are_not_left_beside_a_new_one(tmp_path):
    _, evaluator = evaluate([(objects_of([BOX]), found([BOX], [0.9]))])
    save_figures(tmp_path, evaluator, NAMES, processor_of(3))
    assert {file.name for file in tmp_path.iterdir()} == {"eval_per_class.csv", "predictions.png"}
    save_figures(tmp_path, DetectionEvaluator(NAMES, print, False, DetectEvaluationSettings()), NAMES, processor_of(3))
    assert not list(tmp_path.iterdir())
