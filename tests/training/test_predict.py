"""predict.py: answers as Transformers' pipelines give them, from every form of images, after stops and bad images."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image as Pictures
from pycocotools.coco import COCO
from torch.nn.functional import interpolate
from transformers import (
    MobileViTConfig,
    MobileViTForSemanticSegmentation,
    MobileViTImageProcessor,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)

from hf_convnextv2 import ConvNextV2Config, ConvNextV2ForImageClassification, create_image_processor
from tests.photographs import (
    CLASSES,
    apart,
    cut,
    fcmae,
    message_of,
    quick_datasets,
    write_folder,
    write_parquet,
)
from training import predict
from training.models.detection import create_detection_processor, create_detector
from training.models.segmentation import create_segmentation_processor, create_segmenter
from training.prediction import answers
from training.settings.model import DetectorSettings, SegmenterSettings
from training.settings.prediction import PredictSettings

__all__ = ["fcmae", "quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets")
LABELS = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Twelve photographs of two sizes, in folders that are named after splits, and one in none."""
    root = write_folder(tmp_path_factory.mktemp("images") / "images", {"train": 2, "test": 1})
    for i, picture in enumerate(cut("rocket", 3, 56)):
        picture.crop((0, 0, 56, 40)).save(root / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    config = ConvNextV2Config(hidden_sizes=[8, 16], depths=[1, 2], image_size=32, **LABELS)
    model = ConvNextV2ForImageClassification(config)
    torch.nn.init.normal_(model.classifier.weight)  # far enough apart for the order of the classes to be sure
    model.save_pretrained(folder)
    create_image_processor(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segmenter")
    torch.manual_seed(0)
    settings = SegmenterSettings(image_size=32, num_stages=3, decoder_hidden_size=16, auxiliary_loss_weight=0)
    model = create_segmenter(settings, ["sky", "tree", "sea"])
    model.save_pretrained(folder)
    create_segmentation_processor(settings, None, model.config.backbone_config, "upernet").save_pretrained(folder)
    return folder


def write_detector(folder, architecture):
    torch.manual_seed(0)
    sizes = {"image_size": 64, "num_stages": 3, "decoder_hidden_size": 32, "anchor_sizes": [8, 16, 32, 64]}
    settings = DetectorSettings(architecture=architecture, box_head_size=16, **sizes)
    model = create_detector(settings, ["disc", "rectangle"])
    model.save_pretrained(folder)
    processor = create_detection_processor(settings, None, model.config.backbone_config, architecture)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mask_rcnn(tmp_path_factory):
    return write_detector(tmp_path_factory.mktemp("mask_rcnn"), "mask_rcnn")


def settings_for(model, dataset, output, **fields):
    few = {"num_workers": 0, "per_device_eval_batch_size": 5}
    where = {"model_name_or_path": str(model), "dataset_name": str(dataset), "output_file": str(output)}
    return PredictSettings(**{**few, **where, **fields})


def predicted(*arguments, **fields):
    with apart():
        return read(predict.main(settings_for(*arguments, **fields)))


def read(file):
    """The rows of a file of answers; empty cells are None."""
    if file.suffix == ".parquet":
        return pq.read_table(file).to_pylist()
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text().splitlines()]
    with file.open(newline="") as lines:
        return [{name: value or None for name, value in row.items()} for row in csv.DictReader(lines)]


def files_of(images):
    return sorted(str(path.relative_to(images)) for path in images.rglob("*.*"))


def pictures_of(images):
    return {name: read_picture(images / name) for name in files_of(images)}


def read_picture(file):
    with Pictures.open(file) as picture:
        return picture.copy()


def assert_classes_are_the_pipelines(model, images, rows):
    classify = pipeline("image-classification", model=str(model))
    assert [row["image"] for row in rows] == files_of(images)
    for row in rows:
        first, second = classify(read_picture(images / row["image"]), top_k=2)
        assert (row["label"], row["label_2"]) == (first["label"], second["label"])
        found = float(row["score"]), float(row["score_2"])
        assert found == pytest.approx((first["score"], second["score"]), abs=1e-5)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_classes_are_those_of_the_pipeline(suffix, classifier, images, tmp_path):
    rows = predicted(classifier, images, tmp_path / f"out/answers{suffix}", top_k=2)
    assert_classes_are_the_pipelines(classifier, images, rows)
    assert len({row["label"] for row in rows}) > 1 and not any(row.get("error") for row in rows)
    assert os.listdir(tmp_path / "out") == [f"answers{suffix}"]


def test_a_classifier_of_another_family_answers_as_its_pipeline(images, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=8, **LABELS))
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    rows = predicted(tmp_path / "vit", images, tmp_path / "answers.csv", top_k=2)
    assert_classes_are_the_pipelines(tmp_path / "vit", images, rows)
    message = message_of(lambda: predicted(tmp_path / "vit", images, tmp_path / "other.csv", image_size=64))
    assert "`image_size` (=64) must not be given for a ViTForImageClassification" in message


def test_a_classifier_of_timm_answers_as_its_pipeline(images, tmp_path):
    """As models named `timm/...` on the Hub: their image processor is in config.json and takes pictures alone."""
    about = {
        "input_size": [3, 64, 64],
        "mean": [0.2] * 3,
        "std": [0.3] * 3,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
    }
    config = TimmWrapperConfig(architecture="convnext_atto", pretrained_cfg=about, **LABELS)
    model = TimmWrapperForImageClassification(config)
    torch.nn.init.normal_(model.timm_model.get_classifier().weight)
    model.save_pretrained(tmp_path / "timm")
    rows = predicted(tmp_path / "timm", images, tmp_path / "answers.csv", top_k=2)
    assert_classes_are_the_pipelines(tmp_path / "timm", images, rows)


def test_masks_are_those_of_the_pipeline(segmenter, images, tmp_path):
    rows = predicted(segmenter, images, tmp_path / "answers.csv")
    segment = pipeline("image-segmentation", model=str(segmenter))
    found = set()
    for row, (name, picture) in zip(rows, pictures_of(images).items(), strict=True):
        mask = np.asarray(read_picture(tmp_path / "answers_masks" / row["mask"]))
        assert mask.shape == picture.size[::-1] and row["image"] == name
        assert row["mask"] == str(Path(name).with_suffix(".png"))
        found |= set(np.unique(mask).tolist())
        for each in segment(picture, subtask="semantic"):
            label = ["sky", "tree", "sea"].index(each["label"])
            assert np.mean((mask == label) != (np.asarray(each["mask"]) > 0)) < 0.01  # ties
        shares = [float(row[f"share_{label}"]) for label in ("sky", "tree", "sea")]
        assert shares == pytest.approx([np.mean(mask == label) for label in range(3)])
    assert len(found) > 1


def test_masks_of_a_model_whose_processor_crops_are_those_of_whole_images(images, tmp_path, capsys):
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 32], "aspp_out_channels": 16}
    model = MobileViTForSemanticSegmentation(MobileViTConfig(**sizes, num_labels=2)).eval()
    processor = MobileViTImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    picture = read_picture(images / "0.png")  # 56 x 40
    inputs = processor([picture, picture.rotate(180)], return_tensors="pt", do_center_crop=False)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():  # normalised features and logits, so that both classes are in the image
        model.train()(**inputs)
        model.segmentation_head.classifier.convolution.bias -= model.eval()(**inputs).logits.mean((0, 2, 3))
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (row, *_) = predicted(tmp_path / "model", images, tmp_path / "answers.csv")
    assert "The center crop of MobileViTImageProcessor is left out" in capsys.readouterr().out
    assert row["image"] == "0.png"
    mask = np.asarray(read_picture(tmp_path / "answers_masks" / row["mask"])) == 1

    def expected(**crop):
        with torch.no_grad():
            logits = model(**processor(picture, return_tensors="pt", **crop)).logits
        return interpolate(logits, picture.size[::-1], mode="bilinear")[0].argmax(0).numpy() == 1

    assert 0.1 < mask.mean() < 0.9
    assert np.mean(mask != expected(do_center_crop=False)) < 0.01  # ties
    assert np.mean(mask != expected(do_center_crop=True)) > 0.05  # the control: stretched


@pytest.mark.parametrize("architecture", ["faster_rcnn", "rt_detr_v2"])
def test_objects_are_those_of_the_pipeline(architecture, images, tmp_path):
    model = write_detector(tmp_path / "model", architecture)
    threshold = 0.2 if architecture == "faster_rcnn" else 0.01
    rows = predicted(model, images, tmp_path / "answers.parquet", threshold=threshold)
    detect, count = pipeline("object-detection", model=str(model)), 0
    for name, picture in pictures_of(images).items():
        own = [row for row in rows if row["image"] == name]
        expected = sorted(detect(picture, threshold=threshold), key=lambda each: -each["score"])
        assert [row["score"] for row in own] == pytest.approx([each["score"] for each in expected], abs=1e-4)
        boxes = {tuple(map(int, (row["left"], row["top"], row["right"], row["bottom"]))) for row in own}
        theirs = {tuple(each["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")) for each in expected}
        assert len(boxes & theirs) >= 0.9 * len(theirs)  # a pipeline rounds down
        count += len(own)
    assert count == len(rows) > 0


def test_scores_below_those_that_an_rcnn_drops_are_refused(mask_rcnn, images, tmp_path):
    message = message_of(lambda: predicted(mask_rcnn, images, tmp_path / "answers.csv", threshold=0.04))
    assert message.startswith("`threshold` (=0.04) must be at least 0.05, below which this detector drops objects")


def test_coco_has_the_objects_and_masks_of_the_table(mask_rcnn, images, tmp_path):
    rows = predicted(mask_rcnn, images, tmp_path / "answers.parquet", threshold=0.2)
    with apart():
        file = predict.main(settings_for(mask_rcnn, images, tmp_path / "answers.json", threshold=0.2))
    coco = COCO(str(file))
    assert [image["file_name"] for image in coco.dataset["images"]] == files_of(images)
    names = {image["id"]: image["file_name"] for image in coco.dataset["images"]}
    assert len(coco.anns) == len(rows) > 0
    num_pixels = 0
    for row, each in zip(rows, coco.anns.values(), strict=True):
        assert names[each["image_id"]] == row["image"] and each["score"] == row["score"]
        assert coco.cats[each["category_id"]]["name"] == row["label"]
        assert each["bbox"] == pytest.approx(
            [row["left"], row["top"], row["right"] - row["left"], row["bottom"] - row["top"]]
        )
        mask = coco.annToMask(each)
        assert mask.shape == read_picture(images / row["image"]).size[::-1]
        below, right = np.nonzero(mask)  # a box of few pixels is enlarged to whole ones
        inside = (right >= row["left"] - 2) & (right <= row["right"] + 2) & (below >= row["top"] - 2)
        assert (inside & (below <= row["bottom"] + 2)).all()
        num_pixels += mask.sum()
    assert num_pixels > 0
    results = coco.loadRes(coco.dataset["annotations"])
    assert len(results.anns) == len(rows)


@pytest.mark.parametrize("form", ["pattern", "split", "parquet", "stream"])
def test_every_form_of_the_images_has_the_same_answers(form, classifier, images, tmp_path):
    fields, name = {}, images / "train" / "*" / "*.jpg"
    if form == "split":
        fields, name = {"split": "train"}, write_folder(tmp_path / "folder", {"train": 2, "test": 1})
    elif form != "pattern":
        fields, name = {"streaming": form == "stream"}, write_parquet(tmp_path / "parquet", {"train": 2}) / "*.parquet"
    rows = predicted(classifier, name, tmp_path / "answers.csv", **fields)
    whole = predicted(classifier, images / "train", tmp_path / "whole.csv")
    expected = {
        row["image"]: (row["label"], pytest.approx(float(row["score"]), abs=0.05)) for row in whole
    }  # JPEG or PNG
    names = [f"{label}/{i}.jpg" for i in range(2) for label in CLASSES] if "a" in form else sorted(expected)
    names = sorted(names) if form == "pattern" else names
    found = [(row["label"], float(row["score"])) for row in rows]
    assert found == [expected[each] for each in names]
    prefix = {"pattern": "", "split": "train/"}.get(form)
    if prefix is not None:
        assert [row["image"] for row in rows] == [prefix + each for each in names]


@pytest.fixture
def spoilt(images, tmp_path):
    """The images with an empty, a damaged and an odd one, and a file that is no image."""
    folder = tmp_path / "spoilt"
    folder.mkdir()
    for name, picture in pictures_of(images).items():
        picture.save(folder / name.replace("/", "-"))
    (folder / "a.jpg").write_bytes(b"")
    (folder / "b.jpg").write_bytes(next(folder.glob("train*")).read_bytes()[:300])
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_bad_image_is_named_and_the_others_have_answers(classifier, spoilt, tmp_path, capsys):
    rows = predicted(classifier, spoilt, tmp_path / "answers.csv")
    errors = {row["image"]: row["error"] for row in rows if row["error"]}
    assert set(errors) == {"a.jpg", "b.jpg"} and all("cannot be read" in error for error in errors.values())
    assert all(bool(row["label"]) != bool(row["error"]) for row in rows) and len(rows) == 14
    printed = capsys.readouterr().out
    assert "Warning: a.jpg: cannot be read as an image" in printed and "notes.txt" in printed
    assert "2 of 14 images have no answer" in printed
    message = message_of(lambda: predicted(classifier, spoilt, tmp_path / "few.csv", max_bad_images=1))
    assert "`max_bad_images` (=1) must be at least the number of bad images" in message


@pytest.mark.parametrize("form", ["folder", "pattern", "bytes", "paths", "named bytes"])
def test_an_error_does_not_repeat_the_name_of_its_image(form, classifier, images, tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    shutil.copyfile(images / "0.png", folder / "a.png")
    (folder / "b.png").write_bytes(b"no image")
    (folder / "c.png").symlink_to("nothing.png")
    files = sorted(folder.iterdir())
    values = {
        "paths": [str(file) for file in files],
        "bytes": [file.read_bytes() for file in files[:2]],
        "named bytes": [{"path": file.name, "bytes": file.read_bytes()} for file in files[:2]],
    }
    name = {"folder": folder, "pattern": folder / "*"}.get(form, tmp_path / "own.parquet")
    if form in values:
        pq.write_table(pa.table({"image": values[form]}), name)
    good, *bad = predicted(classifier, name, tmp_path / "answers.csv")
    assert good["label"] and not good["error"]
    assert all(row["error"].startswith("cannot be read as an image: ") for row in bad)
    names = ["0", "1"] if form == "bytes" else [file.name for file in files]
    found = [row["image"] for row in (good, *bad)]
    assert found == (values["paths"] if form == "paths" else names[:2] if form == "named bytes" else names)


def test_masks_among_the_images_of_a_pattern_are_no_images(segmenter, images, tmp_path):
    shutil.copytree(images / "test", tmp_path / "own")
    pattern, output = tmp_path / "own/**/*.*", tmp_path / "own/answers.csv"
    rows = predicted(segmenter, pattern, output)
    assert len(rows) == len(list((tmp_path / "own/answers_masks").rglob("*.png"))) == 3
    assert predicted(segmenter, pattern, output, overwrite=True) == rows


@pytest.mark.parametrize("kind", ["segmenter", "mask_rcnn"])
def test_a_bad_image_has_a_row_of_every_kind_of_model(kind, spoilt, tmp_path, request):
    rows = predicted(request.getfixturevalue(kind), spoilt, tmp_path / "answers.csv", threshold=0.99)
    assert [row["image"] for row in rows if row["error"]] == ["a.jpg", "b.jpg"]


def test_an_array_of_other_channels_is_a_bad_image(classifier, tmp_path):
    (tmp_path / "arrays").mkdir()
    for channels in (2, 3):
        np.save(tmp_path / f"arrays/{channels}.npy", np.zeros((40, 40, channels), np.uint8))
    wrong, right = predicted(classifier, tmp_path / "arrays", tmp_path / "answers.csv")
    assert "`num_channels` (=3) must be" in wrong["error"] and right["label"] and not right["error"]


@pytest.mark.parametrize(
    ("dtype", "largest", "is_told"), [("float32", 255, True), ("float32", 1, False), ("uint8", 255, False)]
)
def test_values_that_no_photograph_has_are_told(dtype, largest, is_told, classifier, tmp_path, capsys):
    array = np.linspace(0, largest, 40 * 40 * 3).reshape(40, 40, 3).astype(dtype)
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays/1.npy", array)
    predicted(classifier, tmp_path / "arrays", tmp_path / "answers.csv")
    assert ("values from 0 to 255 are used as they are" in capsys.readouterr().out) == is_told


def test_bad_images_that_are_not_skipped_stop_the_run_before_its_first_answer(
    classifier, spoilt, tmp_path, monkeypatch
):
    (spoilt / "notes.txt").unlink()
    monkeypatch.setattr(answers.ClassAnswers, "__call__", lambda *_: pytest.fail("predicts"))
    message = message_of(lambda: predicted(classifier, spoilt, tmp_path / "answers.csv", skip_bad_images=False))
    assert "2 files cannot be read as images" in message and "a.jpg" in message and "b.jpg" in message
    fields = {"skip_bad_images": False, "check_images": False}
    message = message_of(lambda: predicted(classifier, spoilt, tmp_path / "answers.csv", **fields))
    assert "a.jpg cannot be read as an image" in message and "`--skip_bad_images true` goes on" in message


def test_an_output_file_and_masks_are_replaced_only_if_asked(segmenter, images, tmp_path):
    output = tmp_path / "answers.csv"
    rows = predicted(segmenter, images, output)
    assert "must not exist yet" in message_of(lambda: predicted(segmenter, images, output))
    output.unlink()
    message = message_of(lambda: predicted(segmenter, images, output))
    assert "answers_masks) must be empty" in message
    assert predicted(segmenter, images, output, overwrite=True) == rows
    assert predicted(segmenter, images, output, overwrite=True) == rows


def test_masks_of_earlier_images_go_when_they_are_replaced_but_no_other_file(segmenter, images, tmp_path):
    output, masks = tmp_path / "answers.csv", tmp_path / "answers_masks"
    predicted(segmenter, images, output)
    assert len(list(masks.rglob("*.png"))) == 12
    rows = predicted(segmenter, images / "test", output, overwrite=True)
    left = {str(path.relative_to(masks)) for path in masks.rglob("*.png")}
    assert left == {row["mask"] for row in rows} and len(left) == 3
    read_picture(next(masks.rglob("*.png"))).save(masks / "own.png")  # without the text that predict.py writes
    message = message_of(lambda: predicted(segmenter, images, output, overwrite=True))
    assert "must hold nothing but masks of predict.py, but holds" in message and "own.png" in message
    assert len(list(masks.rglob("*.png"))) == 4


def test_masks_of_another_table_are_not_replaced_also_after_a_move(segmenter, images, tmp_path):
    predicted(segmenter, images / "test", tmp_path / "first/answers.csv")
    shutil.move(tmp_path / "first", tmp_path / "moved")
    other = tmp_path / "moved/answers.parquet"  # its default folder of masks is the same
    message = message_of(lambda: predicted(segmenter, images / "test", other, overwrite=True))
    assert "must hold the masks of one output file, but holds" in message and "of ../answers.csv" in message
    assert len(list((tmp_path / "moved/answers_masks").rglob("*.png"))) == 3
    assert len(predicted(segmenter, images / "test", tmp_path / "moved/answers.csv", overwrite=True)) == 3


def test_windows_smaller_than_a_cell_are_refused_before_the_first_image(segmenter, images, tmp_path, monkeypatch):
    monkeypatch.setattr(answers.MaskAnswers, "__call__", lambda *_: pytest.fail("predicts"))
    message = message_of(lambda: predicted(segmenter, images, tmp_path / "a.csv", eval_window=15))
    assert message == "`eval_window` (=15) must be at least 16 pixels, the stride of the encoder."
    message = message_of(lambda: predicted(segmenter, images, tmp_path / "a.csv", eval_scales=[1.0, 0.4]))
    assert "`eval_scales` (=0.4) must leave images of 32 pixels at least 16" in message
    assert not (tmp_path / "a.csv.partial").exists()


def test_a_classifier_without_an_image_processor_needs_an_image_size(classifier, images, tmp_path):
    shutil.copytree(classifier, tmp_path / "bare")
    (tmp_path / "bare/preprocessor_config.json").unlink()
    message = message_of(lambda: predicted(tmp_path / "bare", images, tmp_path / "a.csv"))
    assert "must hold a preprocessor_config.json; without one, give `--image_size`" in message
    assert len(predicted(tmp_path / "bare", images, tmp_path / "a.csv", image_size=32)) == 12


def test_a_pretrained_model_has_no_answers(fcmae, images, tmp_path):
    message = message_of(lambda: predicted(fcmae, images, tmp_path / "answers.csv"))
    assert "holds a ConvNextV2ForPreTraining, which has no answers: train one from it with finetune.py" in message


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"output_file": "answers.txt"}, "`output_file` (=answers.txt) must end in .csv, .parquet, .jsonl, .json"),
        ({"threshold": 1.5}, "`threshold` (=1.5) must be in [0, 1]"),
        ({"top_k": 4}, "`top_k` (=4) must be at most 3, the classes of the model"),
        ({"output_file": "answers.json"}, "must end in .csv, .parquet, .jsonl for a classifier"),
        ({"masks_dir": "masks"}, "`masks_dir` (=masks) must not be given for a classifier"),
        ({"eval_flip": True}, "`eval_flip` (=True) must not be given for a classifier"),
        ({"eval_scales": [1.0, 2.0]}, "`eval_scales` (=[1.0, 2.0]) must not be given for a classifier"),
        ({"dataset_name": "nothing/*.jpg"}, "must match images"),
        ({"dataset_name": "docs"}, "must hold images, such as .jpg or .png"),
        ({"dataset_name": "./no/such/folder"}, "must be a file or folder that exists"),
        ({"model_name_or_path": "./no/model"}, "must be a folder that exists, or a Hub id"),
        ({"model_name_or_path": "training"}, "must be a folder that holds a model"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_is_computed(fields, text, classifier, images, tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    (tmp_path / "training").mkdir()
    monkeypatch.chdir(tmp_path)
    fields = {"model_name_or_path": str(classifier), "dataset_name": str(images), "output_file": "a.csv", **fields}
    with apart():
        assert text in message_of(lambda: predict.main(PredictSettings(**fields)))
    assert sorted(os.listdir(tmp_path)) in (["docs", "training"], ["datasets_cache", "docs", "training"])


def test_classes_that_a_table_could_not_separate_are_refused(classifier, images, tmp_path):
    config = json.loads((classifier / "config.json").read_text())
    model, names = tmp_path / "model", ["cat", "dog|wolf", "c"]
    shutil.copytree(classifier, model)
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    several = {**config, **labels, "problem_type": "multi_label_classification"}
    (model / "config.json").write_text(json.dumps(several))
    for suffix in (".csv", ".parquet"):
        message = message_of(lambda: predicted(model, images, tmp_path / f"a{suffix}"))  # noqa: B023
        assert "must end in .jsonl" in message and "`|`, which the class `dog|wolf` has" in message
    rows = predicted(model, images, tmp_path / "a.jsonl", threshold=0.0)
    assert all(set(row["labels"]) == set(names) for row in rows)
    (model / "config.json").write_text(json.dumps({**config, **labels}))
    assert len(predicted(model, images, tmp_path / "a.csv")) == 12  # one class a row


def test_files_for_answers_do_not_lie_among_the_images(classifier, images):
    message = message_of(lambda: settings_for(classifier, images, images / "answers.csv"))
    assert "must not lie in `dataset_name`" in message
