"""What cannot be exported is one line with the name, the value and the rule, before work starts; nothing is left."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import SwinConfig, UperNetConfig

from conversion import export
from conversion.exporting import checks, images, precision
from conversion.exporting.images import photograph
from conversion.exporting.models import load_subject
from hf_convnextv2 import (
    ConvMAEForImageClassification,
    ConvMAEForPreTraining,
    ConvNextV2ForImageClassification,
    ConvNextV2Model,
    create_image_processor,
)
from tests.small_models import small_config, small_convmae_config, small_fcmae_config
from training.models.detection import create_detector
from training.settings.model import DetectorSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An encoder, a detector, and folders of pictures."""
    root = tmp_path_factory.mktemp("folder")
    config = small_config(hidden_sizes=[8, 16], depths=[1, 1])
    ConvNextV2Model(config).save_pretrained(root / "encoder")
    create_image_processor(config).save_pretrained(root / "encoder")
    detection = DetectorSettings(image_size=64, num_stages=2, decoder_hidden_size=8, anchor_sizes=[8, 16, 32])
    create_detector(detection, ["disc", "rectangle"]).save_pretrained(root / "detector")
    small = small_config(hidden_sizes=[8, 16], depths=[1, 1], image_size=8)
    ConvNextV2Model(small).save_pretrained(root / "one cell")
    create_image_processor(small).save_pretrained(root / "one cell")
    several = small_config(hidden_sizes=[8, 16], depths=[1, 1], problem_type="multi_label_classification")
    ConvNextV2ForImageClassification(several).save_pretrained(root / "several")
    values = small_config(hidden_sizes=[8, 16], depths=[1, 1], problem_type="regression")
    ConvNextV2ForImageClassification(values).save_pretrained(root / "values")
    values.label_mean, values.label_std = [5.0, 6.0], [2.0, 3.0]
    ConvNextV2ForImageClassification(values).save_pretrained(root / "unfinished")
    five = small_config(hidden_sizes=[8, 16], depths=[1, 1], num_channels=5)
    ConvNextV2ForImageClassification(five).save_pretrained(root / "five channels")
    lines = {"id2label": {0: "two\nlines", 1: "one"}, "label2id": {"two\nlines": 0, "one": 1}}
    two = small_config(hidden_sizes=[8, 16], depths=[1, 1], num_labels=2, **lines)
    ConvNextV2ForImageClassification(two).save_pretrained(root / "two lines")
    UperNetConfig(backbone_config=SwinConfig()).save_pretrained(root / "swin")
    for name, content in (("cut off", '{"image_mean": [0.1,'), ("a list", "[1]"), ("of no type", '{"size": 64}')):
        shutil.copytree(root / "encoder", root / name)
        (root / name / "preprocessor_config.json").write_text(content)
    pretrained = small_fcmae_config(hidden_sizes=[8, 16], depths=[1, 1])
    (root / "of no type/config.json").write_text(pretrained.to_json_string())
    for name, count in (("one", 1), ("many", 8)):
        (root / name).mkdir()
        for number in range(count):
            Image.new("RGB", (64, 64)).save(root / name / f"{number}.png")
    shutil.copytree(root / "encoder", root / "outer/encoder")
    (root / "outer/images").mkdir()
    (root / "outer/export.json").write_text("{}")
    (root / "written").mkdir()
    (root / "written/notes.txt").write_text("mine")
    (root / "no.jpg").write_text("no picture")
    (root / "labelled/elephant").mkdir(parents=True)
    (root / "dangling").symlink_to(root / "missing")
    return root


def message_of(capsys, *arguments: object) -> str:
    """What the command prints before it ends with code 2."""
    with pytest.raises(SystemExit) as stop:
        export.main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("python -m conversion.export: error: ")


CALIBRATED = ("--dtype", "int8", "--calibration_images")
REFUSED = {
    "no such model": (("nothing", "out"), "`model` (=nothing) must be a folder that holds a model, or a model on"),
    "a detector": (("detector", "out"), "to be exported, but is a convnextv2_rcnn."),
    "a task without a head": (
        ("encoder", "out", "--task", "classification"),
        "`--task` (=classification) must be features or backbone for",
    ),
    "bfloat16 in ONNX Runtime": (
        ("encoder", "out", "--dtype", "bfloat16"),
        "`--dtype` (=bfloat16) must be float32, float16, int8 for onnx: ONNX Runtime has no convolutions in bfloat16",
    ),
    "int8 in ExecuTorch": (
        ("encoder", "out", "--format", "executorch", "--dtype", "int8"),
        "`--dtype` (=int8) must be float32 for executorch: it is made for ONNX Runtime and OpenVINO only.",
    ),
    "int8 of torch.export": (
        ("encoder", "out", "--format", "torch", "--dtype", "int8"),
        "`--dtype` (=int8) must be float32, float16, bfloat16 for torch: it is made for",
    ),
    "images of one cell in torch.export": (
        ("one cell", "out", "--format", "torch"),
        "`--format` (=torch) must be onnx or openvino for images of 8 x 8 pixels: a program of torch.export takes 16 x",
    ),
    "int8 without images": (
        ("encoder", "out", "--dtype", "int8"),
        "`--calibration_images` must be given with `--dtype int8`",
    ),
    "one image": (
        ("encoder", "out", *CALIBRATED, "one"),
        "must hold at least 8 images like those that the model will see, better 100 or more, but holds 1",
    ),
    "images without int8": (
        ("encoder", "out", "--calibration_images", "many"),
        "`--calibration_images` must be left out without `--dtype int8`.",
    ),
    "layers without int8": (
        ("encoder", "out", "--float_layers", "stem"),
        "`--float_layers` must be left out without `--dtype int8`.",
    ),
    "one image to take": (
        ("encoder", "out", *CALIBRATED, "many", "--num_calibration_images", "1"),
        "`--num_calibration_images` (=1) must be at least 8: one image does not show the ranges of others.",
    ),
    "no such folder of images": (("encoder", "out", *CALIBRATED, "nowhere"), "must be a folder of images."),
    "a measurement of float32": (
        ("encoder", "out", "--validation_dataset", "many"),
        "`--validation_dataset` must come with another `--dtype` than float32",
    ),
    "a measurement of features": (
        ("encoder", "out", "--dtype", "float16", "--validation_dataset", "many"),
        "must be left out for features",
    ),
    "a measurement of several classes": (
        ("several", "out", "--dtype", "float16", "--validation_dataset", "many"),
        "must be left out for classification with several: only classifiers that give an image one class",
    ),
    "values of an unfinished run": (
        ("unfinished", "out"),
        "`model` (=unfinished) must be of a finished run: its config.json has `label_mean` and `label_std`",
    ),
    "values in bfloat16": (
        ("values", "out", "--format", "torch", "--dtype", "float32", "bfloat16"),
        "`--dtype` (=bfloat16) must be float32 or float16 for regression: bfloat16 and int8 round the values",
    ),
    "values in int8": (
        ("values", "out", *CALIBRATED, "many"),
        "`--dtype` (=int8) must be float32 or float16 for regression",
    ),
    "a number of no images": (
        ("encoder", "out", "--max_validation_images", "5"),
        "`--max_validation_images` (=5) must be at least 1, with `--validation_dataset`.",
    ),
    "int8 of five channels, without images": (
        ("five channels", "out", "--dtype", "int8"),
        "`--dtype` (=int8) must be left out for a model of 5 channels: it needs pictures, which have 1, 3 or 4.",
    ),
    "int8 of five channels, with too few images": (
        ("five channels", "out", *CALIBRATED, "one"),
        "`--dtype` (=int8) must be left out for a model of 5 channels: it needs pictures, which have 1, 3 or 4.",
    ),
    "a measurement of five channels": (
        ("five channels", "out", "--dtype", "float16", "--validation_dataset", "many"),
        "`--validation_dataset` (=many) must be left out for a model of 5 channels: it needs pictures",
    ),
    "a class whose name has two lines": (
        ("two lines", "out", "--dtype", "float16", "--validation_dataset", "labelled"),
        "must have folders named as classes (two lines, one, ...), but has `elephant`.",
    ),
    "a backbone of another family": (
        ("swin", "out"),
        "`model` (=swin) must have a backbone of the type convnextv2 or convnext or convmae to be exported, but it has",
    ),
    "an image processor that is no JSON": (
        ("cut off", "out"),
        "must have a preprocessor_config.json that can be loaded, or none: It looks like the config file at 'cut off/",
    ),
    "an image processor that is a list": (
        ("a list", "out"),
        "`model` (=a list) must have a preprocessor_config.json that can be loaded, or none: 'list' object has no",
    ),
    "an image processor of no type": (
        ("of no type", "out", "--task", "features"),
        "`model` (=of no type) must have a preprocessor_config.json that can be loaded, or none: Unrecognized image",
    ),
    "a link to nothing": (
        ("encoder", "dangling"),
        "`output_dir` (=dangling) must be no link to a folder that is missing. Delete the link.",
    ),
    "no picture": (("encoder", "out", "--image", "no.jpg"), "no.jpg) must be an image that can be read"),
    "a folder that exists": (("encoder", "written"), "must not exist yet, or give `--overwrite`."),
    "a folder of something else": (
        ("encoder", "written", "--overwrite"),
        "must be a folder that an export has written for `--overwrite`, with an export.json.",
    ),
    "the model's own folder": (
        ("encoder", "encoder", "--overwrite"),
        "`output_dir` (=encoder) must be a folder that does not hold the model (=encoder).",
    ),
    "a folder that holds the model": (
        ("outer/encoder", "outer", "--overwrite"),
        "`output_dir` (=outer) must be a folder that does not hold the model (=outer/encoder).",
    ),
    "a folder that holds the images": (
        ("encoder", "outer", "--overwrite", *CALIBRATED, "outer/images"),
        "`output_dir` (=outer) must be a folder that does not hold `--calibration_images` (=outer/images).",
    ),
    "int8 with every layer in float32": (
        ("encoder", "out", *CALIBRATED, "many", "--float_layers", "stem", "depthwise", "downsampling", "up", "down"),
        "must leave a layer in int8: all of them in float32 are the file of `--dtype float32`.",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_bad_input_is_one_line_and_nothing_is_written(folder, capsys, monkeypatch, kind):
    monkeypatch.chdir(folder)
    arguments, expected = REFUSED[kind]
    assert expected in message_of(capsys, *arguments)
    assert not (folder / "out").exists() and (folder / "written/notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("format", "more", "requirement"),
    [
        ("onnx", (), "'onnx>=1.23' 'onnxscript>=0.7' 'onnxruntime>=1.32'"),
        ("openvino", (), "'openvino>=2026.4'"),
        ("openvino", (*CALIBRATED, "many"), "'openvino>=2026.4' 'nncf>=3.4'"),
        ("executorch", (), "'executorch>=1.5'"),
    ],
)
def test_a_package_that_is_missing_is_named_with_how_to_install_it(
    folder, capsys, monkeypatch, format, more, requirement
):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("conversion.exporting.formats.find_spec", lambda name: None)
    message = message_of(capsys, "encoder", "out", "--format", format, *more)
    assert message.endswith(f"pip install {requirement}") and f"`--format` (={format})" in message


def test_bfloat16_is_refused_where_the_processor_has_none(capsys, monkeypatch, folder):
    core = SimpleNamespace(get_property=lambda device, name: ["FP32", "INT8", "BIN"])
    monkeypatch.setattr(precision, "import_module", lambda name: SimpleNamespace(Core=lambda: core))
    monkeypatch.setattr("conversion.exporting.formats.find_spec", lambda name: object())
    message = message_of(capsys, folder / "encoder", folder / "out", "--format", "openvino", "--dtype", "bfloat16")
    assert "`--dtype` (=bfloat16) must be float32, float16 or int8 here" in message and "FP32, INT8, BIN" in message


def test_int8_of_convmae_is_refused_where_it_fails():
    precision.check_model("onnx", ["int8"], "convmae", "features")
    precision.check_model("openvino", ["float16"], "convmae", "features")
    with pytest.raises(ValueError, match="for a ConvMAE in OpenVINO"):
        precision.check_model("openvino", ["float32", "int8"], "convmae", "features")


def test_what_executorch_does_not_run_is_refused():
    precision.check_model("executorch", ["float32"], "convnextv2", "classification")
    precision.check_model("executorch", ["float32"], "convmae", "reconstruction")
    with pytest.raises(ValueError, match="for classification by a ConvMAE, for which ExecuTorch"):
        precision.check_model("executorch", ["float32"], "convmae", "classification")
    with pytest.raises(ValueError, match="for reconstruction by ConvNeXt V2, which ExecuTorch"):
        precision.check_model("executorch", ["float32"], "convnextv2_fcmae", "reconstruction")


def test_values_keep_their_digits_and_features_have_none_to_lose(folder):
    """The controls: what is refused for the values of a model may be exported without its head."""
    precision.check_model("onnx", ["float32", "float16"], "convnextv2", "classification", gives_values=True)
    for name, task, gives_values in (
        ("values", None, True),
        ("unfinished", "features", False),
        ("several", None, False),
    ):
        assert load_subject(str(folder / name), task).gives_values == gives_values


def test_classes_that_the_model_does_not_know_are_named(folder):
    with pytest.raises(ValueError, match=r"folders named as classes \(cat, dog, ...\), but has `elephant`"):
        images.labelled_images(folder / "labelled", {0: "cat", 1: "dog"}, None)


def test_two_classes_of_one_name_have_no_accuracy(folder):
    with pytest.raises(ValueError, match="must be left out for a model with two classes of one name"):
        images.labelled_images(folder / "labelled", {0: "elephant", 1: "elephant"}, None)


def test_images_in_linked_folders_count_and_hidden_files_and_documents_do_not(tmp_path):
    for name in ("images/1.png", "images/._1.png", "images/deep/.hidden.jpg", "elsewhere/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "images/page.pdf").touch()
    (tmp_path / "images/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images/deep/up").symlink_to(tmp_path / "images")
    found = images.image_files(tmp_path / "images", "--calibration_images")
    assert [file.relative_to(tmp_path / "images").as_posix() for file in found] == ["1.png", "linked/2.png"]


def test_a_file_that_gives_something_else_is_not_kept(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(checks.TOLERANCES, "float32", 0.0)
    message = message_of(capsys, folder / "encoder", tmp_path / "deep/out")
    assert "model.onnx does not give what the model gives: batch 1, 64 x 64: differs by" in message
    assert not (tmp_path / "deep").exists()


def test_a_number_that_is_none_is_found_in_any_output():
    subject = SimpleNamespace(gives_one_class=False)
    outputs = {name: torch.ones(1, 2) for name in ("first", "second")}
    for name in outputs:
        wrong = {**outputs, name: torch.tensor([[1.0, float("nan")]])}
        comparison = checks.compare_outputs(subject, wrong, outputs, 1, (64, 64))
        with pytest.raises(ValueError, match="differs by nan"):
            checks.check_comparisons([comparison], "int8", Path("model.onnx"))
    with pytest.raises(ValueError, match="The file returns"):
        checks.compare_outputs(subject, {"first": torch.ones(1, 3)}, {"first": torch.ones(1, 2)}, 1, (64, 64))


def test_without_scikit_learn_a_picture_is_drawn_and_said_to_be(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    picture, name = photograph(None)
    assert picture.size == (640, 427) and "drawn here" in name
    assert len(picture.resize((64, 64)).getcolors(4096) or []) > 1000, "a flat picture would hide differences"


def test_images_are_multiples_of_the_stride_and_in_pre_training_of_what_is_hidden_together(tmp_path):
    config = small_convmae_config(image_size=80, cell_size=32)
    for model_class in (ConvMAEForImageClassification, ConvMAEForPreTraining):
        model_class(config).save_pretrained(tmp_path / model_class.__name__)
    subject = load_subject(str(tmp_path / "ConvMAEForImageClassification"), None)
    assert (subject.cell, subject.image_size) == ((16, 16), (80, 80))
    subject = load_subject(str(tmp_path / "ConvMAEForPreTraining"), None)
    assert (subject.cell, subject.image_size) == ((32, 32), (64, 64))
    subject = load_subject(str(tmp_path / "ConvMAEForPreTraining"), "features")
    assert (subject.cell, subject.image_size) == ((16, 16), (80, 80))


def test_a_model_that_lacks_the_weights_of_its_head_is_refused(folder, tmp_path, capsys):
    """Its file would answer by random weights."""
    shutil.copytree(folder / "several", tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith("classifier.")}
    save_file(kept, tmp_path / "model/model.safetensors", {"format": "pt"})
    message = message_of(capsys, tmp_path / "model", tmp_path / "out")
    assert "must hold all weights of a ConvNextV2ForImageClassification, but lacks 2, e.g. `classifier.bias`" in message
    assert not (tmp_path / "out").exists()
