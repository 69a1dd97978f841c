"""The names of the classes of objects."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute creates its functions at import, where pyright does not see them)
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, LargeList, List

from training.data.detection.columns import KEYS
from training.data.detection.mask_files import flat
from training.data.folders.masks import names_in
from training.data.labels import check_counted, unnamed_classes
from training.data.sources import Source, features_of, find_source, values_of
from training.settings.checks import check
from training.settings.data import DetectDataSettings, ObjectsDataSettings


def class_names_of(data: DetectDataSettings, num_labels: int | None) -> list[str]:
    """The names of the classes to train, by the objects of the training split. Images are not read.

    They are those that the data set states (COCO's categories, `ClassLabel`), else those of id2label.json in a local
    folder, else the names that stand in the objects, sorted. Of classes without names there are `num_labels`, by
    default as many as the objects have, and they are called `LABEL_0` and so on.

    Raises:
        ValueError: if the objects have few of the numbers up to the largest, which are hardly numbers of classes.
    """
    source = find_source(data, data.train_split).source  # all of it: a part may lack classes of the held-out images
    names = stated_names(source, data)
    if names is not None:
        check("num_labels", num_labels, num_labels in (None, len(names)), f"be {len(names)}, the classes of the data")
        return names
    if not isinstance(source, Dataset):
        refuse_unknown_classes(source, data, num_labels)
        return unnamed_classes(num_labels or 0)
    found = classes_in(source, data.objects_column)
    has_classes = any(each is not None for each in found)
    check("objects_column", data.objects_column, has_classes, f"hold classes in split `{data.train_split}`")
    if all(isinstance(each, str) for each in found if each is not None):
        names = sorted(each for each in found if each is not None)
        check("objects_column", data.objects_column, all(map(str.strip, names)), "have no class without a name")
        check("num_labels", num_labels, num_labels in (None, len(names)), f"be {len(names)}, the classes of the data")
        return names
    numbers = sorted({int(each) for each in found if isinstance(each, int | float) and each == each and each >= 0})
    if num_labels is None and numbers:
        check_counted(data.objects_column, np.array(numbers), numbers[-1] + 1)
    return unnamed_classes(num_labels or max(numbers, default=0) + 1)


def refuse_unknown_classes(source: Source, data: DetectDataSettings, num_labels: int | None) -> None:
    """Raise if nothing says which classes a stream has before it is read."""
    kind = getattr(category_feature(source, data.objects_column), "dtype", None)
    rule = (
        "hold class numbers or `ClassLabel`, as the names that a stream holds are not known at its start: list them in "
        'id2label.json at the top of the folder, {"0": "cat", "1": "dog"}, or leave `--streaming` out'
    )
    check("objects_column", data.objects_column, kind not in ("string", "large_string"), rule)
    rule = (
        "be given: a stream does not say how many classes its numbers mean, unless their type is `ClassLabel` or "
        "id2label.json in the folder names them"
    )
    check("num_labels", num_labels, num_labels is not None, rule)


def stated_names(source: Source, data: ObjectsDataSettings) -> list[str] | None:
    """The names of the classes in the order that the data set states; None if it states none."""
    feature = category_feature(source, data.objects_column)
    return list(feature.names) if isinstance(feature, ClassLabel) else names_in(data.dataset_name)


def check_classes(source: Source, data: ObjectsDataSettings, names: list[str]) -> None:
    """Raise if the data set states other classes than the model's, unless those have no names of their own."""
    stated = stated_names(source, data)
    rule = f"have the {len(names)} classes of the model, in their order: {', '.join(names[:8])}"
    fits = stated in (None, names) or (names == unnamed_classes(len(names)) and len(stated or []) == len(names))
    more = ", ..." if len(names) > 8 else ""
    check("dataset_name", data.dataset_name, fits, f"{rule}{more}, but has {', '.join((stated or [])[:8])}")


def check_held_out(source: Source, eval_source: Source | None, data: ObjectsDataSettings, names: list[str]) -> None:
    """Raise unless the images to evaluate on have the classes of those to train on, stated in the same way."""
    if eval_source is None:
        return
    check_classes(eval_source, data, names)
    kinds = [getattr(category_feature(part, data.objects_column), "dtype", "") for part in (source, eval_source)]
    are_texts = [kind in ("string", "large_string") for kind in kinds]
    mixed = are_texts[0] != are_texts[1] and stated_names(source, data) is None
    rule = (
        f"have names or numbers of classes in all splits, but has {' and '.join(kinds)}; id2label.json tells both apart"
    )
    check("objects_column", data.objects_column, not mixed, rule)


def category_feature(source: Source, column: str) -> Any:
    """The type of the classes in the objects column; None if it is not known."""
    feature = item_type(features_of(source)[column])
    key = next((key for key in KEYS["category"] if isinstance(feature, dict) and key in feature), None)
    return None if key is None else item_type(feature[key])


def item_type(feature: Any) -> Any:
    """The type of the items of a list; any other type as it is."""
    return feature.feature if isinstance(feature, List | LargeList) else feature


def classes_in(source: Dataset, column: str) -> list[Any]:
    """The different classes of the objects as they are stored, names or numbers; none if the column has no classes."""
    values = flat(values_of(source, column))
    fields = values.type.names if pa.types.is_struct(values.type) else []
    key = next((key for key in KEYS["category"] if key in fields), None)
    return [] if key is None else pc.unique(flat(pc.struct_field(values, key))).to_pylist()
