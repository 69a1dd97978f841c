"""Lists of classes, columns of 0 and 1 and values: read alike from every form, and checked before training."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from torch.nn.functional import one_hot
from torch.testing import assert_close

from hf_convnextv2 import ConvNextV2Config
from tests.labelled_photographs import VALUES, pictures_with_labels, write_label_folder, write_label_parquet
from tests.photographs import CLASSES, message_of, quick_datasets
from training.data.labels import label_maps
from training.data.problems import check_problem, columns_for, find_problem, label_reader, labelled_samples
from training.data.regression import scale_of
from training.data.samples import MapSamples, StreamSamples, load_images
from training.data.sources import load_source
from training.data.transforms import BatchMixer
from training.models.value_head import note_scale
from training.settings.scripts import FinetuneSettings, ValidateSettings

__all__ = ["quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets")
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
COLUMNS = {"lists": "label", "columns": list(CLASSES), "values": list(VALUES)}


def settings(dataset, **fields):
    return FinetuneSettings(dataset_name=str(dataset), output_dir="out", num_workers=0, **fields).data


def config_for(problem_type, names):
    return ConvNextV2Config(image_size=32, problem_type=problem_type, **label_maps(names))


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """The same 12 pictures in every form."""
    root, splits = tmp_path_factory.mktemp("forms"), {"train": 12}
    return {
        "jsonl": write_label_folder(root / "jsonl", splits, "jsonl"),
        "csv": write_label_folder(root / "csv", splits, "csv"),
        "parquet": write_label_parquet(root / "parquet", splits),
    }


def expected_labels(names):
    return torch.tensor([[labels[name] for name in names] for _, _, labels in pictures_with_labels(12)])


@pytest.mark.parametrize(
    ("form", "labels", "streaming"),
    [
        ("jsonl", "lists", False),
        ("jsonl", "columns", False),
        ("csv", "columns", False),
        ("parquet", "lists", False),
        ("parquet", "columns", False),
        ("parquet", "lists", True),
        ("parquet", "columns", True),
        ("csv", "columns", True),
    ],
)
def test_classes_are_the_same_targets_in_every_form(form, labels, streaming, forms, capsys):
    asked = {"problem_type": MULTI} if streaming else {}
    data = settings(forms[form], label_column=COLUMNS[labels], streaming=streaming, **asked)
    problem = find_problem(data, None)
    assert problem == (MULTI, list(CLASSES))
    assert ("Problem type: multi_label_classification, as `" in capsys.readouterr().out) == (not streaming)
    found = targets_of(data, config_for(MULTI, problem.names))
    assert found.dtype == torch.float32
    assert_close(found, expected_labels(CLASSES).float(), rtol=0, atol=0)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_values_are_the_same_targets_in_every_form(form, streaming, forms):
    asked = {"problem_type": REGRESSION} if streaming else {}
    data = settings(forms[form], label_column=COLUMNS["values"], streaming=streaming, **asked)
    problem = find_problem(data, None)
    assert problem == (REGRESSION, list(VALUES))
    config, values = config_for(REGRESSION, problem.names), expected_labels(VALUES)
    assert_close(targets_of(data, config), values.float(), rtol=1e-6, atol=0)
    scale = scale_of(load_source(data, "train", None), columns_for(data, load_source(data, "train", None), config))
    assert scale.mean == pytest.approx(values.double().mean(dim=0).tolist(), rel=1e-5)
    note_scale(config, scale)
    standardised = targets_of(data, config)
    assert standardised.mean(dim=0).tolist() == pytest.approx([0, 0], abs=1e-4)
    assert standardised.std(dim=0, correction=0).tolist() == pytest.approx([1, 1], abs=1e-4)


def targets_of(data, config):
    source = load_source(data, "train", None)
    samples = labelled_samples(data, source, config, lambda pixels: pixels[:, :32, :32])
    if data.streaming:
        return torch.stack([sample["labels"] for sample in StreamSamples(source, samples, data)])
    dataset = MapSamples([source], samples)
    return torch.stack([dataset[index]["labels"] for index in range(len(dataset))])


def rows(column, values, feature):
    features = Features({"image": Value("string"), column: feature})
    return Dataset.from_dict({"image": [f"{i}.jpg" for i in range(len(values))], column: values}, features=features)


STRINGS, NUMBERS = List(Value("string")), List(Value("int64"))
NAMED = List(ClassLabel(names=["cat", "dog"]))


@pytest.mark.parametrize(
    ("values", "feature", "message"),
    [
        ([["cat"], ["cow"]], STRINGS, "`label` (=['cow']) must be among the names of the model's 2 classes."),
        ([[0], [2]], NUMBERS, "`label` (=[2]) must be in [0, `num_labels` (=2)); -1: missing."),
        (
            [["dog", "cat", "dog"], ["cat"]],
            STRINGS,
            "`label` (=['dog', 'cat', 'dog']) must name each class of an image once; wrong for 1 of 2 images: 0.jpg.",
        ),
        ([[0], [1, 1]], NAMED, "(=[1, 1]) must name each class of an image once; wrong for 1 of 2 images: 1.jpg."),
        ([["cat"], None], STRINGS, "`label` (=missing) must be a list, empty for an image without a class; wrong"),
        (
            [["cat"], ["dog", None]],
            STRINGS,
            "must have a class in each place of its list; wrong for 1 of 2 images",
        ),
    ],
)
def test_a_wrong_list_of_classes_is_named_before_training(values, feature, message):
    data = settings("unused", label_column="label")
    config = config_for(MULTI, ["cat", "dog"])
    assert message in message_of(lambda: check_problem(data, rows("label", values, feature), config, "train"))
    check_problem(data, rows("label", [["cat"], [], ["dog", "cat"]], STRINGS), config, "train")  # the control


@pytest.mark.parametrize(
    ("values", "feature", "count", "held"),
    [
        ([[0, 1], [1, 0], [0, 1]], NUMBERS, 2, "each of its lists holds 2 numbers that are 0 or 1."),
        ([[0, 1, 0], [1, 1, 0], [0, 0, 0]], List(Value("uint8"), length=3), 2, "each of its lists holds 3 numbers"),
        ([[False, True], [True]], List(Value("bool")), 2, "it holds lists of booleans."),
    ],
)
def test_lists_of_0_and_1_for_each_class_are_told_from_lists_of_classes(values, feature, count, held):
    data, config = settings("unused", label_column="label"), config_for(MULTI, [f"LABEL_{i}" for i in range(count)])
    message = message_of(lambda: check_problem(data, rows("label", values, feature), config, "train"))
    rule = "list the classes that an image has, such as [1]; 0 and 1 for each class take a column for each of them"
    assert message.startswith(f"`label_column` (=label) must {rule}; {held}")
    if "booleans" in held:
        stream = rows("label", values, feature).to_iterable_dataset()
        assert message == message_of(lambda: check_problem(data, stream, config, "train"))


@pytest.mark.parametrize(
    ("values", "feature", "count"),
    [
        ([[0], [1], [1]], NUMBERS, 2),
        ([[0, 1], [1], []], NUMBERS, 2),
        ([[0, 1], [1, 0]], NUMBERS, 5),  # images that have both of five classes
        ([[0, 1], [2, 1]], NUMBERS, 3),
        ([[0, 1], [1, 0]], List(ClassLabel(names=["LABEL_0", "LABEL_1"])), 2),
    ],
)
def test_lists_of_the_classes_0_and_1_are_lists_of_classes(values, feature, count):
    data, config = settings("unused", label_column="label"), config_for(MULTI, [f"LABEL_{i}" for i in range(count)])
    check_problem(data, rows("label", values, feature), config, "train")


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (["cat;dog", "cat", "dog", "cat|dog"], "2 of 4 class names in `label` look like several classes: 'cat;dog'."),
        (["[cat,dog]", "[cat]", "[]", "[]"], "3 of 3 class names in `label` look like several classes: '[]'."),
        (["cat,dog", "cat", "dog"], "1 of 3 class names in `label` look like several classes: 'cat,dog'."),
        (["cat dog", "cat", "dog"], "1 of 3 class names in `label` look like several classes: 'cat dog'."),
        (["tench, Tinca tinca", "polar bear", "bear"], None),
        (["cat", "dog", "tabby|cat", "bird", "cow"], None),
        (["cat", "dog", "a [rare] one", "bird"], None),
    ],
)
def test_a_column_of_texts_that_are_several_classes_each_is_told(labels, told, tmp_path, capsys):
    folder = write_label_folder(tmp_path / "images", {"train": len(labels)}, "csv")
    table = "".join(f'{number}.png,"{label}"\n' for number, label in enumerate(labels))
    (folder / "train/metadata.csv").write_text(f"file_name,label\n{table}")
    assert find_problem(settings(folder), None) == ("single_label_classification", sorted(set(labels)))
    form = "--problem_type multi_label_classification takes a column of 0 and 1 for each class, or a column of lists"
    printed = capsys.readouterr().out
    assert (f"{told} If they are, {form}" in printed) == (told is not None)
    assert ("several classes" in printed) == (told is not None)


@pytest.mark.parametrize(
    ("values", "feature", "held"),
    [
        ([0, 2, 1], Value("int64"), "2"),
        ([0, None, 1], Value("int64"), "missing"),
        ([0.0, float("nan"), 1.0], Value("float64"), "nan"),
        ([0.0, 0.5, 1.0], Value("float64"), "0.5"),
        ([0, -1, 1], Value("int64"), "-1"),
    ],
)
def test_a_column_of_bits_that_holds_another_value_is_named(values, feature, held):
    data, config = settings("unused", label_column="dog", problem_type=MULTI), config_for(MULTI, ["dog"])
    message = message_of(lambda: check_problem(data, rows("dog", values, feature), config, "train"))
    assert message == f"`dog` (={held}) must be 0 or 1; wrong for 1 of 3 images: 1.jpg."
    check_problem(data, rows("dog", [0, 1, 1], feature), config, "train")


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_named(bad):
    data, config = settings("unused", label_column="price", problem_type=REGRESSION), config_for(REGRESSION, ["price"])
    source = rows("price", [1.5, bad, 2.5, bad, bad, bad, bad, bad], Value("float64"))
    message = message_of(lambda: check_problem(data, source, config, "train"))
    assert "must be a finite number; wrong for 6 of 8 images: 1.jpg, 3.jpg, 4.jpg, 5.jpg, 6.jpg, ..." in message


def test_values_that_do_not_differ_cannot_be_learnt():
    message = message_of(lambda: scale_of(rows("price", [3.0, 3.0], Value("float64")), ["price"]))
    assert message == "`price` (=3.0) must differ between images to be learnt, but is 3 in all 2 of them."


@pytest.mark.parametrize("streaming", [False, True])
def test_values_that_float32_rounds_to_a_few_cannot_be_learnt(streaming):
    def times(seconds):
        source = rows("time", [1_700_000_000 + seconds * number for number in range(6)], Value("int64"))
        return source.to_iterable_dataset() if streaming else source

    message = message_of(lambda: scale_of(times(1), ["time"]))
    assert message == (
        "`time` (=1700000000.0) must spread more for its size: models answer in float32, in steps of up to 2e+02 here, "
        "and the standard deviation is 1.7. Subtract an offset from the column, such as 1700000002."
    )
    # The control: a day between two images, whose mean is kept to the digits of the deviation, 147,555 s.
    config, data = config_for(REGRESSION, ["time"]), settings("unused", label_column="time", problem_type=REGRESSION)
    scale = scale_of(times(86_400), ["time"])
    assert scale.mean == [1_700_216_000.0] and scale.std == pytest.approx([86_400 * np.std(range(6))], rel=1e-5)
    note_scale(config, scale)
    reader = label_reader(data, times(86_400), config)
    standardised = torch.tensor([float(reader(row)) for row in times(86_400)])
    assert standardised.mean().item() == pytest.approx(0, abs=1e-6)
    assert (standardised.diff() > 0.5).all()


@pytest.mark.parametrize(
    ("problem_type", "column", "values", "message"),
    [
        (MULTI, "label", [[0], [1, 1]], "`label` (=[1, 1]) must name each class once."),
        (MULTI, "label", [[0], [7]], "`label` (=7) must be a class in [0, `num_labels` (=2))."),
        (MULTI, "label", [[0], None], "`label` (=None) must be a list of classes, empty for an image that has none."),
        (MULTI, "cat", [0, 2], "`cat` (=2) must be 0 or 1."),
        (MULTI, "cat", [0, None], "`cat` (=None) must be 0 or 1."),
        (REGRESSION, "price", [0.5, None], "`price` (=None) must be a finite number."),
        (REGRESSION, "price", [0.5, float("nan")], "`price` (=nan) must be a finite number."),
    ],
)
def test_a_wrong_label_of_a_stream_is_refused_as_it_comes(problem_type, column, values, message):
    feature = NUMBERS if column == "label" else Value("int64") if column == "cat" else Value("float64")
    stream = rows(column, values, feature).to_iterable_dataset()
    config = config_for(problem_type, ["cat", "dog"] if column == "label" else [column])
    data = settings("unused", label_column=column, problem_type=problem_type, streaming=True)
    reader = label_reader(data, stream, config)
    first, second = stream
    reader(first)
    assert message_of(lambda: reader(second)) == message
    if problem_type == REGRESSION:  # found where the scale is measured, before the first step
        assert message_of(lambda: scale_of(stream, [column])) == message


def test_classes_are_counted_and_those_that_cannot_be_learnt_are_told(capsys):
    data, config = settings("unused", label_column="label"), config_for(MULTI, ["cat", "dog", "cow"])
    check_problem(data, rows("label", [["cat"], ["cat", "dog"], ["cat"]], STRINGS), config, "train")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "Labels of split train:",
        "  3 classes: cat (3), dog (1), cow (0)",
        "  in no image: cow",
        "  in every image: cat",
    ]
    check_problem(data, rows("label", [["cat"], [], []], STRINGS), config, "test")
    assert "  2 of 3 images have no class" in capsys.readouterr().out
    data = settings("unused", label_column="price", problem_type=REGRESSION)
    check_problem(data, rows("price", [1.0, 2.0, 6.0], Value("float64")), config_for(REGRESSION, ["price"]), "train")
    assert "`price` from 1 to 6, mean 3, standard deviation 2.16025" in capsys.readouterr().out


def test_a_list_of_class_numbers_needs_no_names(tmp_path):
    folder = write_label_folder(tmp_path / "images", {"train": 3}, "jsonl")
    lines = [{"file_name": f"{i}.png", "label": label} for i, label in enumerate([[4], [], [0, 2]])]
    (folder / "train/metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert find_problem(settings(folder), None) == (MULTI, [f"LABEL_{number}" for number in range(5)])
    assert len(find_problem(settings(folder), 9).names) == 9


def test_an_image_that_two_lines_give_a_class_each_is_refused(tmp_path):
    """Some sets have a line for each label: an image would be of one class in training, of another in evaluation."""
    folder = write_label_folder(tmp_path / "images", {"train": 3}, "csv")
    (folder / "train/metadata.csv").write_text("file_name,label\n0.png,cat\n1.png,dog\n2.png,cat\n0.png,dog\n")
    message = message_of(lambda: find_problem(settings(folder), None))
    assert "with all labels, as a list if they are several, but names train/0.png again" in message


def write_labels(folder, labels):
    """A folder whose metadata.csv has these labels."""
    write_label_folder(folder, {"train": len(labels)}, "csv")
    table = "".join(f'{number}.png,"{label}"\n' for number, label in enumerate(labels))
    (folder / "train/metadata.csv").write_text(f"file_name,label\n{table}")
    return folder


def test_values_with_a_decimal_comma_are_told_not_to_be_values(tmp_path, capsys):
    find_problem(settings(write_labels(tmp_path / "values", ["0,5", "1,25", "-2,0"])), None)
    assert "look like values: '-2,0'. Write a point instead of the comma." in capsys.readouterr().out


def test_names_that_differ_in_outer_spaces_alone_are_refused(tmp_path):
    message = message_of(lambda: find_problem(settings(write_labels(tmp_path / "names", ["cat", "dog", "cat "])), None))
    assert "must hold each class in one spelling, but has both 'cat ' and the same without spaces" in message


@pytest.mark.parametrize("blank", ["", "  "])
def test_a_class_without_a_name_is_refused(blank, tmp_path):
    """It is what splitting an empty text of tags leaves."""
    folder = write_label_folder(tmp_path / "images", {"train": 2}, "jsonl")
    lines = [{"file_name": f"{i}.png", "label": label} for i, label in enumerate([[blank], ["cat"]])]
    (folder / "train/metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    message = message_of(lambda: find_problem(settings(folder), None))
    assert "`label_column` (=label) must hold the name of a class in each place of its lists, but has empty" in message


def test_whole_numbers_are_said_to_be_classes(tmp_path, capsys):
    assert find_problem(settings(write_labels(tmp_path / "count", [0, 2, 1])), None).type == SINGLE
    told = (
        f"Problem type: {SINGLE}, as `label` holds integers, 3 classes. If they are values: --problem_type {REGRESSION}"
    )
    assert told in capsys.readouterr().out
    find_problem(settings(write_labels(tmp_path / "names", ["cat", "dog"])), None)
    assert "Problem type" not in capsys.readouterr().out


def test_numbers_that_are_hardly_classes_are_asked_for(tmp_path, capsys):
    folder = write_labels(tmp_path / "ids", [120345, 120346, 120347])
    message = message_of(lambda: find_problem(settings(folder), None))
    assert "`label` holds only 3 different numbers of the 120,348 up to the largest: 120345, 120346, 120347" in message
    assert len(find_problem(settings(folder), 120348).names) == 120348
    capsys.readouterr()
    assert len(find_problem(settings(write_labels(tmp_path / "from_1", [1, 2, 1])), None).names) == 3
    told = (
        "No image has the class 0 in `label`, whose least number is 1: classes count from 0, so the model has 1 without"
    )
    assert told in capsys.readouterr().out
    find_problem(settings(write_labels(tmp_path / "from_0", [0, 2, 1])), None)
    assert "No image" not in capsys.readouterr().out


def test_a_metadata_file_with_an_empty_cell_is_refused(tmp_path):
    folder = write_label_folder(tmp_path / "images", {"train": 4}, "csv")
    file = folder / "train/metadata.csv"
    header, first, *others = file.read_text().splitlines()
    cells = first.split(",")
    place = header.split(",").index("chelsea")
    cells[place] = ""
    file.write_text("\n".join([header, ",".join(cells), *others]) + "\n")
    data = settings(folder, label_column=list(CLASSES))
    problem = find_problem(data, None)
    source = load_images(data, "train", None, 3)
    message = message_of(lambda: check_problem(data, source, config_for(*problem), "train"))
    assert message.startswith("`chelsea` (=") and message.endswith("0.png.")
    assert "must be 0 or 1; wrong for 1 of 4 images" in message


def test_columns_are_matched_with_the_models_classes_by_name(forms, capsys):
    validation = ValidateSettings(dataset_name=str(forms["csv"]), model_name_or_path="a/b", num_workers=0).data
    source = load_source(validation, "train", None)
    config = config_for(MULTI, list(CLASSES))
    assert columns_for(validation, source, config) == list(CLASSES)  # the model's own names
    listed = load_source(replace(validation, dataset_name=str(forms["jsonl"])), "train", None)
    assert columns_for(validation, listed, config) == ["label"]  # of lists
    assert columns_for(validation, listed, config_for(REGRESSION, list(VALUES))) == list(VALUES)
    reordered = settings(forms["csv"], label_column=list(reversed(CLASSES)))
    assert columns_for(reordered, source, config) == list(CLASSES)
    renamed = config_for(MULTI, ["person", "cat", "cup"])
    check_problem(reordered, source, renamed, "train")
    assert "columns by their order: coffee is person, chelsea is cat, astronaut is cup" in capsys.readouterr().out
    mixed = config_for(MULTI, ["coffee", "cat", "cup"])
    message = message_of(lambda: columns_for(reordered, source, mixed))
    assert message.startswith("`label_column` (=['coffee', 'chelsea', 'astronaut']) must be coffee, cat, cup")


def test_a_model_says_what_the_labels_are(forms):
    data = settings(forms["parquet"], problem_type=REGRESSION, label_column=["lightness"])
    source = load_source(data, "train", None)
    message = message_of(lambda: check_problem(data, source, config_for(MULTI, list(CLASSES)), "train"))
    assert message == "`problem_type` (=regression) must be multi_label_classification, as of the model."


def test_label_columns_are_different_ones():
    for columns in (["cat", "cat"], []):
        assert "must name different columns" in message_of(lambda: settings("unused", label_column=columns))  # noqa: B023
    assert settings("unused", label_column=["kind"]).label_column == "kind"
    assert settings("unused").label_columns == ["label"]
    assert "`problem_type` (=multilabel) must be one of" in message_of(
        lambda: settings("unused", problem_type="multilabel")
    )


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_targets_of_several_classes_are_mixed_by_the_share_of_the_images(name):
    pixels = one_hot(torch.arange(4), 4).float()[:, :, None, None].expand(4, 4, 8, 8).clone()  # channel i: image i
    labels = (torch.rand(4, 3) > 0.5).float()
    mixed = BatchMixer(**{"mixup": 0.0, "cutmix": 0.0, name: 1.0}, num_labels=3)(
        {"pixel_values": pixels, "labels": labels}
    )
    shares = mixed["pixel_values"].mean(dim=(2, 3))  # of each image in each mixture
    assert_close(mixed["labels"], shares @ labels)
    assert np.unique(shares.numpy().round(4)).size > 2  # something was mixed


@pytest.mark.parametrize(("values", "names"), [(["cat", "cat"], "cat"), ([0, 0], "LABEL_0")])
def test_a_data_set_of_one_class_is_refused(values, names, tmp_path):
    rows = Dataset.from_dict({"image": ["a", "b"], "label": values})
    rows.to_parquet(str(tmp_path / "train.parquet"))
    message = message_of(lambda: find_problem(settings(tmp_path / "train.parquet"), None))
    assert message == f"`label_column` (=label) must hold two classes or more, but all images are {names}."
