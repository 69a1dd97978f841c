"""COCO's average precision and the F1 score of a method that is no model of ours, named as in `all_results.json`."""

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

COCO_FILE, ROWS_FILE = "_annotations.coco.json", "metadata.jsonl"
Kind = Literal["bbox", "segm"]


def read_truth(folder: Path) -> dict[str, Any]:
    """The objects of a split, as in COCO's annotation file, from that or from `metadata.jsonl`."""
    if (folder / COCO_FILE).is_file():
        return json.loads((folder / COCO_FILE).read_text(encoding="utf-8"))
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "object"}]}
    for number, line in enumerate((folder / ROWS_FILE).read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(line)
        with Image.open(folder / row["file_name"]) as image:
            width, height = image.size
        truth["images"].append({"id": number, "file_name": row["file_name"], "height": height, "width": width})
        for box in row["objects"]["bbox"]:
            own = {"id": len(truth["annotations"]) + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
            truth["annotations"].append({**own, "bbox": box, "area": box[2] * box[3]})
    return truth


def average_precision(
    truth: dict[str, Any], predictions: list[dict[str, Any]], kind: Kind = "bbox"
) -> dict[str, float]:
    """Average precision over IoU .5 to .95 and at .5, and F1 of all predictions at IoU .5, of boxes or masks.

    `truth` is the content of COCO's annotation file with one class; `predictions` are as in COCO's results file.
    """
    suffix = "_mask" if kind == "segm" else ""
    names = [f"eval_map{suffix}", f"eval_map{suffix}_50", f"f1_50{suffix}"]
    if not predictions:
        return dict.fromkeys(names, 0.0)
    with redirect_stdout(StringIO()):
        known: Any = COCO()
        known.dataset = truth
        known.createIndex()
        evaluation = COCOeval(known, known.loadRes([dict(found) for found in predictions]), kind)
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., -1]  # by IoU, recall, class, area, for 100 predictions an image
    matched = sum(int(np.count_nonzero(image["dtMatches"][0])) for image in evaluation.evalImgs if image)
    f1 = 2 * matched / (len(predictions) + len(truth["annotations"]))
    return dict(zip(names, (float(precision.mean()), float(precision[0].mean()), f1), strict=True))
