"""The content of one of COCO's JSON files, checked as a whole; its boxes and masks are checked with their images."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from conversion.files import read_json
from training.data.detection.columns import IMAGE_SIZE
from training.data.folders.rows import normalized
from training.settings.checks import check

PARTS = ("images", "annotations", "categories")


class CocoImage(NamedTuple):
    """A file and its objects, a dict of lists."""

    file_name: str
    objects: dict[str, list[Any]]


class CocoFile(NamedTuple):
    """The images of a JSON file and the names of its classes, in the order of their ids."""

    path: str
    images: list[CocoImage]
    names: list[str]


def read_coco(path: str) -> CocoFile:
    """Read a COCO JSON file.

    Raises:
        ValueError: if it is no such file, names a file or an id twice, or has annotations of unknown images or classes.
    """
    content = read_json(Path(path))
    lacks = [part for part in PARTS if not is_list_of_dicts(content.get(part))]
    require(path, not lacks, f"be COCO's JSON, but it has no list of {' and of '.join(lacks)}")
    content["categories"] = without_unused_twins(content["categories"], content["annotations"])
    images, annotations, categories = (content[part] for part in PARTS)
    for part, keys in (("images", ("id", "file_name")), ("categories", ("id", "name"))):
        for key in keys:
            values = [each.get(key) for each in content[part]]
            require(path, None not in values, f"give each of its {part} a `{key}`")
            wrong = [value for value in values if not is_scalar(value)]
            require(path, not wrong, f"give each of its {part} a number or text as `{key}`, not {listed(wrong)}")
            same = map(file_name_of, content[part]) if key == "file_name" else values
            twice = [value for value, count in Counter(same).items() if count > 1]
            require(path, not twice, f"have one of its {part} with each `{key}`, but has more with {listed(twice)}")
    unnamed = [each["id"] for each in categories if not str(each["name"]).strip()]
    require(
        path, not unnamed, f"name each of its categories; those with these ids have an empty name: {listed(unnamed)}"
    )
    kinds = {isinstance(each["id"], str) for each in categories}
    require(path, len(kinds) < 2, "have numbers or texts as the `id` of its categories, not both")
    classes = {each["id"]: number for number, each in enumerate(sorted(categories, key=lambda each: each["id"]))}
    require(path, bool(images and classes), "hold images and categories")
    refuse_unknown(path, annotations, {each["id"] for each in images}, classes)
    refuse_fractions(path, images, annotations)
    objects: dict[Any, list[dict[str, Any]]] = {each["id"]: [] for each in images}
    for each in annotations:
        objects[each["image_id"]].append(each)
    rows = [CocoImage(file_name_of(each), lists_of(objects[each["id"]], classes, each)) for each in images]
    by_number = sorted(categories, key=lambda each: each["id"])
    return CocoFile(path, rows, [str(each["name"]) for each in by_number])


def without_unused_twins(categories: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The categories without those that no annotation has and whose name another has that annotations do have.

    Roboflow writes each supercategory as a category of its own, with the id 0.
    """
    counts = Counter(str(each.get("category_id")) for each in annotations)
    used = [each.get("name") for each in categories if counts[str(each.get("id"))]]
    return [each for each in categories if counts[str(each.get("id"))] or each.get("name") not in used]


def refuse_unknown(path: str, annotations: list[dict[str, Any]], images: set[Any], classes: dict[Any, int]) -> None:
    """Raise if annotations name an image or a class that the file does not have, or their boxes are no numbers.

    The check of the objects names the image of an annotation without a box, or leaves it out.
    """
    for key, known, where in (("image_id", images, "images"), ("category_id", set(classes), "categories")):
        named = [each.get(key) for each in annotations]
        wrong = [value for value in named if not is_scalar(value) or value not in known]
        rule = f"have annotations whose `{key}` is among its {where}; {len(wrong):,} have another: {listed(wrong)}"
        require(path, not wrong, rule)
    boxes = [(each.get("id"), each.get("bbox")) for each in annotations]
    wrong = [identity for identity, box in boxes if box is not None and not is_numbers(box)]
    rule = f"have annotations with a `bbox` of numbers; those with these ids have another: {listed(wrong)}"
    require(path, not wrong, rule)


def refuse_fractions(path: str, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> None:
    """Raise for numbers with a fraction where a whole one is meant: Arrow would drop the fraction."""
    held = [(key, each.get(key)) for each in images for key in ("height", "width")]
    held += [("iscrowd", each.get("iscrowd")) for each in annotations]
    wrong = [f"{value} as `{key}`" for key, value in held if isinstance(value, float) and not value.is_integer()]
    require(path, not wrong, f"have whole numbers where there are no others, not {listed(wrong)}")


def lists_of(annotations: list[dict[str, Any]], classes: dict[Any, int], image: dict[str, Any]) -> dict[str, list[Any]]:
    """The objects of an image as a dict of lists."""
    segments = [each.get("segmentation") for each in annotations]
    return {
        "bbox": [each.get("bbox") for each in annotations],
        "category": [classes[each["category_id"]] for each in annotations],
        "area": [each.get("area") for each in annotations],
        "iscrowd": [as_number(each.get("iscrowd")) for each in annotations],
        "segmentation": [json.dumps(segment, separators=(",", ":")) if segment else "" for segment in segments],
        IMAGE_SIZE: [image.get("height"), image.get("width")],
    }


def file_name_of(image: dict[str, Any]) -> str:
    """The file name of an image, in one spelling."""
    return normalized(str(image["file_name"]))


def as_number(value: Any) -> Any:
    """0 or 1 for false or true, which some tools write."""
    return int(value) if isinstance(value, bool) else value


def is_list_of_dicts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def is_scalar(value: Any) -> bool:
    return isinstance(value, int | float | str)


def is_numbers(value: Any) -> bool:
    """Whether a value is a list of numbers; true and false are none."""
    return isinstance(value, list) and all(type(number) in (int, float) for number in value)


def listed(values: Iterable[Any]) -> str:
    """The first values, as text."""
    values = list(values)
    return ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")


def require(path: str, holds: bool, rule: str) -> None:
    """Raise a `ValueError` about a JSON file unless it holds."""
    check("annotation_files", path, holds, rule)
