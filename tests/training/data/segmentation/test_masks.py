"""Masks: read, paired with their images, and refused by name where they do not fit."""

import io
import json
import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from hf_convnextv2 import ConvNextV2Config
from tests.photographs import (
    message_of,
    quick_datasets,
    with_float_values,
    write_masked_folder,
    write_masked_parquet,
)
from training.data.held_out import load_train_and_eval
from training.data.segmentation.classes import class_names_of
from training.data.segmentation.masks import MaskReader, class_numbers, decode_mask
from training.data.segmentation.pairs import load_pairs, segmentation_samples
from training.data.segmentation.records import check_mask
from training.data.transforms import SegmentationTransform
from training.models.segmentation import create_segmentation_processor, create_segmenter
from training.settings.augmentation import ColorChange, SegmentAugmentationSettings
from training.settings.data import SegmentDataSettings
from training.settings.model import SegmenterSettings

__all__ = ["quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets")
NAMES = ["dark", "middle", "bright"]


@pytest.fixture
def folder(tmp_path):
    return write_masked_folder(tmp_path / "folder", {"train": 2, "test": 1})


def settings(folder, **fields):
    return SegmentDataSettings(dataset_name=str(folder), num_workers=0, **fields)


def load(folder, names=NAMES, **fields):
    data = settings(folder, **fields)
    return load_pairs(data, data.train_split, data.max_train_samples, 3, names)


def mask_of(folder, name="coffee1"):
    return folder / "train/masks" / f"{name}.png"


def changed(file, change):
    Image.fromarray(change(np.array(Image.open(file)))).save(file)


def test_images_are_paired_with_the_masks_of_their_names(folder):
    rows = load(folder)
    pairs = [(row["image"]["path"], row["annotation"]["path"]) for row in rows]
    assert len(pairs) == 6
    for image, mask in pairs:
        assert image.replace("/images/", "/masks/").replace(".jpg", ".png") == mask


def test_folders_below_images_and_masks_and_splits_below_them_are_paired(folder, tmp_path):
    other = tmp_path / "other"
    for part, name in (("images", "images"), ("masks", "annotations")):
        for split in ("train", "test"):
            shutil.copytree(folder / split / part, other / name / split / "deep")
    assert len(load(other)) == 6


def test_ade20k_is_read_as_it_is_unpacked(folder, tmp_path, capsys):
    root = tmp_path / "ADEChallengeData2016"
    for part, name in (("images", "images"), ("masks", "annotations")):
        for split, its in (("train", "training"), ("test", "validation")):
            shutil.copytree(folder / split / part, root / name / its)
    for name in ("objectInfo150.txt", "sceneCategories.txt"):
        (root / name).write_text("1 0.1576 11664 1172 wall\n")
    options = {"eval_split": "validation", "reduce_labels": True}
    assert len(load(root, NAMES[1:], **options)) == 6
    assert "left out: 2 documents (objectInfo150.txt, sceneCategories.txt)" in capsys.readouterr().out
    (root / "images/training/notes.txt").write_text("in a folder of images it may be a lost one")
    message = message_of(lambda: load(root, NAMES[1:], **options))
    assert "images/training/notes.txt: has no extension of an image" in message and "sceneCategories" not in message
    (root / "images/training/notes.txt").rename(root / "more.zip")
    assert "more.zip: an archive, unpack it" in message_of(lambda: load(root, NAMES[1:], **options))


def test_the_file_that_names_the_classes_is_not_said_to_be_left_out(folder, capsys):
    (folder / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))
    (folder / "objectInfo.txt").write_text("other")
    load(folder)
    printed = capsys.readouterr().out
    assert "objectInfo.txt" in printed and "id2label.json" not in printed


def test_the_start_counts_the_pixels_of_each_class(folder, capsys):
    changed(mask_of(folder), lambda mask: np.full_like(mask, 255))
    rows = load(folder)
    pixels = np.concatenate([np.array(Image.open(row["annotation"]["path"])).ravel() for row in rows])
    told = capsys.readouterr().out
    for number, name in enumerate(NAMES):
        assert f"{name} {100 * (pixels == number).mean():.1f} % (" in told
    assert f"ignored: {100 * (pixels == 255).mean():.1f} % of the pixels" in told


def test_a_class_without_a_pixel_is_named(folder, capsys):
    load(folder, [*NAMES, "purple"])
    assert "classes without a pixel: purple" in capsys.readouterr().out


def damage_size(folder):
    Image.open(mask_of(folder)).resize((20, 30), Image.Resampling.NEAREST).save(mask_of(folder))


def damage_mode(folder):
    Image.open(mask_of(folder)).convert("RGB").save(mask_of(folder))


def damage_class(folder):
    changed(
        mask_of(folder), lambda mask: np.where(np.arange(mask.size).reshape(mask.shape) == 5, 7, mask).astype("uint8")
    )


def damage_file(folder):
    mask_of(folder).write_bytes(mask_of(folder).read_bytes()[:60])


def damage_text(folder):
    mask_of(folder).write_text("not an image")


def damage_lossy(folder):
    Image.open(mask_of(folder)).save(mask_of(folder).with_suffix(".jpg"))
    mask_of(folder).unlink()


def damage_lonely_image(folder):
    mask_of(folder).unlink()


def damage_lonely_mask(folder):
    (folder / "train/images/coffee1.jpg").unlink()


def damage_two_images(folder):
    Image.open(folder / "train/images/coffee1.jpg").save(folder / "train/images/coffee1.png")


def damage_elsewhere(folder):
    shutil.move(folder / "train/images/coffee1.jpg", folder / "train/coffee1.jpg")


def damage_float(folder):
    Image.fromarray(np.zeros((48, 48), np.float32)).save(mask_of(folder).with_suffix(".tif"))
    mask_of(folder).unlink()


def damage_empty(folder):
    mask_of(folder).write_bytes(b"")


def damage_negative(folder):
    stored = np.asarray(Image.open(mask_of(folder))).astype(np.int32)
    stored[:10] = -1
    Image.fromarray(stored).save(mask_of(folder).with_suffix(".tif"))
    mask_of(folder).unlink()


def damage_lossy_tiff(folder):
    Image.open(mask_of(folder)).save(mask_of(folder).with_suffix(".tif"), compression="jpeg")
    mask_of(folder).unlink()


def damage_pages(folder):
    picture = Image.open(mask_of(folder)).convert("L")
    picture.save(mask_of(folder).with_suffix(".tif"), save_all=True, append_images=[picture.copy()])
    mask_of(folder).unlink()


DAMAGES = [
    (damage_negative, "coffee1.jpg holds -1, which is none of `num_labels` (=3) classes."),
    (damage_pages, "coffee1.tif must be one picture, but has 2 pages."),
    (damage_size, "coffee1.jpg has 48 x 48 pixels and its mask 20 x 30: both must have one size"),
    (damage_mode, "coffee1.png must hold one class number for each pixel (mode L, P or I), but its mode is RGB."),
    (damage_class, "coffee1.jpg holds 7, which is none of `num_labels` (=3) classes."),
    (damage_file, "coffee1.png cannot be read as an image: "),
    (damage_text, "coffee1.png cannot be read as an image: its format is not known."),
    (damage_lossy, "coffee1.jpg is a JPEG file, whose compression changes class numbers: use PNG."),
    (damage_lossy_tiff, "coffee1.tif is a TIFF file with JPEG compression, which changes class numbers: use PNG."),
    (damage_lonely_image, "must have a mask for each of its images, as in train/images/1.jpg with train/masks/1.png"),
    (damage_lonely_mask, "must have an image for each of its masks"),
    (damage_two_images, "must have one file for each name, but has both"),
    (damage_elsewhere, "but train is neither `images` nor `masks`"),
    (damage_float, "coffee1.tif must hold one class number for each pixel (mode L, P or I), but its mode is F."),
    (damage_empty, "coffee1.png cannot be read as an image: "),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_damaged_annotation_is_named_before_training(damage, message, folder):
    load(folder)  # as it was, it is accepted
    damage(folder)
    assert message in message_of(lambda: load(folder))


def test_a_mask_is_turned_as_its_exif_data_say(tmp_path):
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(decode_mask(str(tmp_path / "turned.png"), "image"), np.rot90(stored, -1))


@pytest.mark.parametrize(("orientation", "expected"), [(1, False), (3, True)])
def test_an_overview_counts_the_images_that_exif_data_turn(orientation, expected, folder, capsys):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = folder / "train/images/coffee1.jpg"
    Image.open(file).save(file, exif=exif)
    load(folder)
    told = "1 of 6 images are turned by their EXIF data: the masks must fit the turned images"
    assert (told in capsys.readouterr().out) == expected


@pytest.mark.parametrize("reduce_labels", [False, True])
def test_negative_numbers_are_no_classes_unless_they_are_ignored(reduce_labels):
    stored = np.array([-3, -1, 0, 1])
    expected = [-2, -2, -1, 0] if reduce_labels else [-2, -2, 0, 1]
    assert class_numbers(stored, 255, reduce_labels).tolist() == expected
    assert class_numbers(stored, -1, reduce_labels).tolist() == [expected[0], -1, *expected[2:]]


def test_bad_masks_are_left_out_if_asked_to_and_named(folder, capsys):
    damage_size(folder)
    refusal = message_of(lambda: load(folder))
    assert refusal.startswith("1 file cannot be used with its mask; `--skip_bad_images` skips such files:")
    rows = load(folder, skip_bad_images=True)
    assert len(rows) == 5 and not any("coffee1" in row["image"]["path"] for row in rows)
    assert "coffee1.jpg has 48 x 48 pixels and its mask 20 x 30" in capsys.readouterr().out


def test_the_classes_are_counted_in_the_masks_or_named_in_a_file(folder):
    assert class_names_of(settings(folder), None, 3) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert len(class_names_of(settings(folder), 7, 3)) == 7
    (folder / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))
    assert class_names_of(settings(folder), None, 3) == NAMES
    assert "`num_labels` (=2) must be 3" in message_of(lambda: class_names_of(settings(folder), 2, 3))
    (folder / "id2label.json").write_text('{"1": "sky"}')
    assert "name the classes by their numbers" in message_of(lambda: class_names_of(settings(folder), None, 3))


@pytest.mark.parametrize("damage", ["size", "image"])
def test_the_classes_of_masks_that_are_skipped_do_not_count(damage, folder):
    changed(mask_of(folder), lambda mask: np.full_like(mask, 9))
    assert len(class_names_of(settings(folder, skip_bad_images=True), None, 3)) == 10  # the control
    if damage == "size":
        damage_size(folder)
    else:
        (folder / "train/images/coffee1.jpg").write_text("not an image")
    names = class_names_of(settings(folder, skip_bad_images=True), None, 3)
    assert names == ["LABEL_0", "LABEL_1", "LABEL_2"] and len(load(folder, names, skip_bad_images=True)) == 5


@pytest.mark.parametrize("mode", ["RGB", "LA"])
def test_masks_of_which_none_can_be_used_are_named(mode, folder):
    for file in folder.glob("train/masks/*.png"):
        Image.open(file).convert(mode).save(file)
    message = message_of(lambda: class_names_of(settings(folder), None, 3))
    assert "6 files cannot be used" in message and "coffee1.png must hold one class number for each pixel" in message
    message = message_of(lambda: class_names_of(settings(folder, skip_bad_images=True), None, 3))
    assert "must hold masks that can be used, but the mask" in message and f"its mode is {mode}" in message


def test_black_and_white_masks_are_told_how_to_be_read(folder):
    for file in folder.glob("*/masks/*.png"):
        changed(file, lambda mask: (255 * (mask > 0)).astype("uint8"))
    assert "`--mask_values 0 255`" in message_of(lambda: class_names_of(settings(folder), None, 3))
    data = settings(folder, mask_values=[0, 255])
    assert class_names_of(data, None, 3) == ["LABEL_0", "LABEL_1"]
    rows = load(folder, ["no", "yes"], mask_values=[0, 255])
    reader = MaskReader(2, 255, data.ignore_index, values=[0, 255])
    labels = np.stack([reader(row["annotation"], (48, 48), "x") for row in rows])
    stored = np.stack([np.array(Image.open(row["annotation"]["path"])) for row in rows])
    assert np.array_equal(labels, stored // 255) and set(np.unique(labels)) == {0, 1}


def test_masks_that_lack_most_numbers_do_not_say_how_many_classes_there_are(folder):
    for largest in (29, 30, 200):  # 3 of 30, 31 and 201 numbers
        for file in folder.glob("train/masks/*.png"):
            changed(file, lambda mask, largest=largest: np.where(mask >= 2, largest, mask))
        if largest == 29:
            assert len(class_names_of(settings(folder), None, 3)) == 30
            continue
        message = message_of(lambda: class_names_of(settings(folder), None, 3))
        assert f"hold only 3 different numbers of the {largest + 1} up to the largest: 0, 1, {largest}. If" in message
        assert message.endswith("give their number with `--num_labels`.")
        assert len(class_names_of(settings(folder), largest + 1, 3)) == largest + 1
        assert len(class_names_of(settings(folder, mask_values=[0, 1, largest]), None, 3)) == 3


def test_reduced_labels_ignore_class_0_and_count_from_the_next(tmp_path):
    stored = np.array([[0, 1, 2], [3, 255, 1]], np.uint8)
    reader = MaskReader(3, 255, 255, reduce_labels=True)
    assert reader(stored, (2, 3), "x").tolist() == [[255, 0, 1], [2, 255, 0]]


@pytest.mark.parametrize("mode", ["L", "P", "1", "I", "I;16"])
def test_masks_of_every_mode_hold_the_numbers_that_were_stored(mode, tmp_path):
    numbers = np.array([[0, 1, 1], [1, 0, 1]])
    dtype = {"L": np.uint8, "P": np.uint8, "1": bool, "I": np.int32, "I;16": np.uint16}[mode]
    picture = Image.fromarray(numbers.astype(dtype))
    if mode == "P":
        picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.save(tmp_path / "mask.tif")
    assert np.array_equal(decode_mask(str(tmp_path / "mask.tif"), "x").astype(int), numbers)
    assert np.array_equal(decode_mask((tmp_path / "mask.tif").read_bytes(), "x").astype(int), numbers)


def packed_rows(numbers, bits):
    """The bytes of each row, whose numbers have so many bits each."""
    return [
        int("".join(f"{number:0{bits}b}" for number in row), 2).to_bytes(len(row) * bits // 8, "big") for row in numbers
    ]


def packed_png(numbers, bits):
    """A grey PNG with so many bits a pixel, which Pillow can read and not write."""

    def part(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    height, width = numbers.shape
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in packed_rows(numbers, bits)))
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", pixels) + part(b"IEND", b"")


@pytest.mark.parametrize("bits", [2, 4])
def test_masks_of_few_bits_hold_the_numbers_that_were_stored(bits):
    numbers = np.random.default_rng(0).integers(0, 2**bits, (8, 8)).astype(np.uint8)
    content = packed_png(numbers, bits)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), numbers * {2: 85, 4: 17}[bits])  # the control
    assert np.array_equal(decode_mask(content, "x"), numbers)


def pgm(numbers, largest, is_plain=False):
    """A PGM file that states the largest number."""
    header = f"P{2 if is_plain else 5} {numbers.shape[1]} {numbers.shape[0]} {largest}\n".encode()
    body = numbers.astype(np.uint8 if largest < 256 else ">u2").tobytes()
    return header + (" ".join(map(str, numbers.ravel())).encode() if is_plain else body)


@pytest.mark.parametrize("is_plain", [False, True])
@pytest.mark.parametrize("largest", [1, 3, 100, 254, 255, 1000, 65535])
def test_masks_of_a_pgm_file_hold_the_numbers_that_were_stored(largest, is_plain):
    numbers = np.random.default_rng(0).integers(0, largest + 1, (8, 8))
    content = pgm(numbers, largest, is_plain)
    assert np.array_equal(decode_mask(content, "x"), numbers)
    is_stretched = not np.array_equal(np.asarray(Image.open(io.BytesIO(content))), numbers)
    assert is_stretched == (largest not in (255, 65535))  # the control


def tiff(numbers, bits, photometric):
    """An uncompressed grey TIFF file; `photometric` is 1 where 0 is black, and 0 where it is white."""
    height, width = numbers.shape
    pixels = b"".join(packed_rows(numbers, bits))
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height}
    entries[279] = len(pixels)
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    start = struct.pack("<I", 8 + len(pixels))
    return b"II*\0" + start + pixels + struct.pack("<H", len(entries)) + directory + b"\0" * 4


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_masks_of_a_tiff_file_hold_the_numbers_that_were_stored_unless_0_is_white(bits):
    numbers = np.random.default_rng(0).integers(0, 2**bits, (8, 8))
    assert np.array_equal(decode_mask(tiff(numbers, bits, 1), "x").astype(int), numbers)
    message = message_of(lambda: decode_mask(tiff(numbers, bits, 0), "x"))
    assert message == "the mask of x is a TIFF file in which 0 is white. Programs disagree on its numbers: use PNG."


@pytest.mark.parametrize("ragged", [[[1, 2], [1]], [[[1], [2]], [[1], 2]]])
def test_nested_lists_of_different_lengths_are_named(ragged):
    message = message_of(lambda: decode_mask(ragged, "x"))
    assert message == "the mask of x must have rows of one length, but has lists of different lengths."
    assert check_mask(ragged, 3)["problem"].startswith("the mask of example 3 must have rows of one length")


def test_a_palette_mask_of_a_hub_data_set_and_a_stream_are_read_alike(tmp_path):
    parquet = write_masked_parquet(tmp_path / "parquet", {"train": 2})
    whole, stream = load(parquet), load(parquet, streaming=True)
    reader = MaskReader(3, 255, 255)
    samples = [reader(row["annotation"], (48, 48), "x") for row in whole]
    streamed = [reader(row["annotation"], (48, 48), "x") for row in stream]
    assert len(samples) == 6 and all(torch.equal(a, b) for a, b in zip(samples, streamed, strict=True))


def transformed(folder, **changes):
    """Training samples of a folder at 32 pixels, and the number of the images."""
    model = create_segmenter(SegmenterSettings(image_size=32, num_stages=3, decoder_hidden_size=8), NAMES)
    config = model.config.backbone_config
    processor = create_segmentation_processor(SegmenterSettings(image_size=32), None, config, "upernet")
    augmentation = SegmentAugmentationSettings(**{"photometric_distortion": 0.0, **changes})
    data, rows = settings(folder), load(folder)
    transform = SegmentationTransform(augmentation, 32, processor)
    return segmentation_samples(data, rows, 3, MaskReader(3, 255, 255), transform), rows, processor


def test_image_and_mask_are_cropped_and_flipped_alike(folder):
    samples, rows, processor = transformed(folder)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    crops, mirrored = set(), []
    for epoch in range(8):
        sample = samples(rows[epoch % len(rows)], "x", epoch, 0)
        grey = (sample["pixel_values"] * std + mean).permute(1, 2, 0).numpy() * 255
        brightness = np.asarray(Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)).convert("L"))
        expected = np.digitize(brightness, [80, 150])
        agreement = (expected == sample["labels"].numpy()).mean()
        mirrored.append((expected[:, ::-1] == sample["labels"].numpy()).mean())
        assert agreement > 0.8  # edges differ by the interpolation
        crops.add(sample["labels"].numpy().tobytes())
    assert len(crops) > 5 and min(mirrored) < 0.7  # the control


def test_crops_hold_no_padding_even_of_small_and_long_images(tmp_path):
    for part, mode in (("images", "RGB"), ("masks", "L")):
        (tmp_path / "train" / part).mkdir(parents=True)
        for name, size in (("tiny", (5, 7)), ("long", (200, 6))):
            noise = np.random.default_rng(0).integers(0, 3, (*size[::-1], 3 if mode == "RGB" else 1))
            Image.fromarray(noise.astype(np.uint8).squeeze()).save(tmp_path / "train" / part / f"{name}.png")
    samples, rows, _ = transformed(tmp_path, scale_range=[1.0, 1.5])
    for row in rows:
        labels = samples(row, "x", 0, 0)["labels"]
        assert labels.shape == (32, 32) and labels.max() < 3


def test_a_single_class_is_refused_because_every_prediction_is_right(folder):
    for mask in folder.rglob("masks/*.png"):
        changed(mask, lambda numbers: numbers * 0)
    (folder / "id2label.json").write_text('{"0": "sky"}')
    message = message_of(lambda: class_names_of(settings(folder), None, 3))
    assert message.startswith(f"`id2label.json` (={folder / 'id2label.json'}) must name two classes or more")
    assert "background" in message and "every prediction is right" in message
    (folder / "id2label.json").unlink()
    assert "must hold two classes or more" in message_of(lambda: class_names_of(settings(folder), None, 3))
    (folder / "id2label.json").write_text('{"0": "ground", "1": "sky"}')  # the control
    assert class_names_of(settings(folder), None, 3) == ["ground", "sky"]


def test_images_of_any_size_leave_room_for_the_crop_at_a_scale_of_one():
    model = SegmenterSettings(image_size=32)
    processor = create_segmentation_processor(model, None, ConvNextV2Config(image_size=32), "upernet")
    transform = SegmentationTransform(SegmentAugmentationSettings(scale_range=[1.0, 1.0]), 32, processor)
    rounded_down = []
    for short in range(1, 130):
        for height, width in ((short, short), (short, 2 * short + 1), (2 * short + 1, short)):
            image, labels = transform(torch.zeros((3, height, width)), torch.ones((height, width), dtype=torch.int64))
            assert image.shape == (3, 32, 32) and labels.shape == (32, 32) and labels.all()
        if int(short * (32 / short)) < 32:
            rounded_down.append(short)
    assert rounded_down[:2] == [49, 98]  # the control: sides that a factor rounded down leaves too small


def test_colours_change_without_the_labels(folder):
    plain, rows, _ = transformed(folder)
    changed_colours, _, _ = transformed(folder, photometric_distortion=1.0)
    before, after = plain(rows[0], "x", 0, 0), changed_colours(rows[0], "x", 0, 0)
    assert torch.equal(before["labels"], after["labels"])
    assert not torch.allclose(before["pixel_values"], after["pixel_values"], atol=0.05)


def write_numbers(folder, of_black, of_white, split="*"):
    """Masks of two numbers, by the brightness of their images."""
    for file in folder.glob(f"{split}/masks/*.png"):
        changed(file, lambda mask: np.where(mask > 0, of_white, of_black).astype(np.uint8))


@pytest.mark.parametrize(("black", "white"), [(0, 255), (255, 0), (1, 1), (0, 0)])
def test_masks_to_train_on_that_show_a_single_class_of_several_are_refused(black, white, folder):
    """Black and white masks, of which 255 is ignored, would be learned without a loss."""
    names = ["background", "object"]
    write_numbers(folder, black, white)
    for fields in ({}, {"train_val_split": 0.5}):
        message = message_of(lambda fields=fields: load(folder, names, **fields))
        assert "must hold two classes or more in split `train`, but the masks hold" in message
        assert message.endswith("For black and white masks give `--mask_values 0 255`.")
    if {black, white} == {0, 255}:
        assert len(load(folder, names, mask_values=[0, 255])) == 6


def test_masks_whose_given_values_show_a_single_class_are_refused_without_the_hint(folder):
    write_numbers(folder, 255, 255)
    message = message_of(lambda: load(folder, ["no", "yes"], mask_values=[0, 255]))
    assert "must hold two classes or more in split `train`, but the masks hold 255" in message
    assert "--mask_values" not in message


def test_a_held_out_split_may_show_a_single_class(folder):
    write_numbers(folder, 0, 0, "test")
    data = settings(folder, eval_split="test")
    train, held_out = load_train_and_eval(data, load_pairs, 3, NAMES)
    assert (len(train), len(held_out)) == (6, 3)
    write_numbers(folder, 0, 0, "train")
    assert "in split `train`" in message_of(lambda: load_train_and_eval(data, load_pairs, 3, NAMES))


def test_a_stream_may_begin_with_a_single_class(folder):
    write_numbers(folder, 0, 0)
    assert len(list(load(folder, streaming=True))) == 6


@pytest.mark.parametrize("fields", [{"streaming": True}, {"check_images": False}], ids=str)
def test_the_first_masks_of_a_split_that_is_not_checked_are_no_black_and_white_ones(fields, folder):
    """Of which 255 is ignored, so that a run would learn to say one class, and its mean IoU would be 100 %."""
    write_numbers(folder, 0, 255)
    message = message_of(lambda: load(folder, ["no", "yes"], **fields))
    assert "in split `train`, but its first 64 masks hold 0, 255, of which `ignore_index` (=255) is no class" in message
    assert "For black and white masks give `--mask_values 0 255`; if other classes come later" in message
    assert len(list(load(folder, ["no", "yes"], mask_values=[0, 255], **fields))) == 6
    mask_of(folder).write_text("damaged")  # named when it is read
    assert "must hold two classes or more" in message_of(lambda: load(folder, ["no", "yes"], **fields))


def test_the_first_masks_of_a_stream_are_not_of_one_class_beside_the_one_that_is_reduced(folder):
    write_numbers(folder, 0, 1)
    message = message_of(lambda: load(folder, ["no", "yes"], streaming=True, reduce_labels=True))
    assert "hold 0, 1, of which `ignore_index` (=255) is no class, nor 0 with `reduce_labels`" in message
    assert message.endswith("e.g. `--mask_values 1 2 3 --ignore_index 0` without `--reduce_labels`.")
    assert len(list(load(folder, ["no", "yes"], streaming=True))) == 6


def test_a_value_of_a_class_is_not_ignored_too(folder):
    message = message_of(lambda: settings(folder, mask_values=[0, 10, 20], ignore_index=0))
    assert message == "`ignore_index` (=0) must not be one of `mask_values` (=[0, 10, 20]), which are classes."
    assert settings(folder, mask_values=[0, 255]).ignore_index == -1  # by default, 255 is no class


def test_names_numbers_and_values_of_the_classes_must_be_as_many(folder):
    message = message_of(lambda: class_names_of(settings(folder, mask_values=[0, 255]), 5, 3))
    assert message.startswith("`num_labels` (=5) must be 2, the number of `mask_values`")
    (folder / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))
    message = message_of(lambda: class_names_of(settings(folder, mask_values=[0, 255]), None, 3))
    assert message.startswith("`mask_values` (=[0, 255]) must be 3 numbers, one for each class in id2label.json")
    assert class_names_of(settings(folder, mask_values=[0, 1, 9]), 3, 3) == NAMES


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"reduce_labels": True}, "in the masks: 1 is dark, 2 is middle, 3 is bright"),
        ({"mask_values": [2, 1, 0]}, "in the masks: 2 is dark, 1 is middle, 0 is bright"),
    ],
)
def test_the_start_says_which_number_is_which_class_where_it_is_another(fields, expected, folder, capsys):
    load(folder, **fields)
    printed = capsys.readouterr().out
    assert ("in the masks:" in printed) == (expected is not None) and (expected or "") in printed


@pytest.mark.parametrize(
    ("radius", "share", "bright", "third"),
    [(1, 0.99, 255, None), (3, 0.95, 255, None), (30, 0.7, 255, None), (0, 0.98, 200, 255), (0, 0.98, 200, 250)],
)
def test_smoothed_edges_of_masks_of_two_numbers_are_no_classes(radius, share, bright, third, folder):
    for file in folder.glob("train/masks/*.png"):
        square = Image.new("L", (48, 48))
        square.paste(bright, (16, 16, 32, 32))
        smoothed = square.resize((480, 480), Image.Resampling.BICUBIC if radius else Image.Resampling.BILINEAR)
        smoothed = smoothed.filter(ImageFilter.GaussianBlur(radius))
        if third:
            smoothed.paste(third, (0, 0, 480, 5))  # beside the two, in one pixel of a hundred
        smoothed.save(file)
        pixels = np.asarray(Image.open(file))
        assert np.isin(pixels, (0, bright)).mean() <= share and len(np.unique(pixels)) > 16
        image = next(folder.glob(f"train/images/{file.stem}.*"))
        Image.open(image).resize((480, 480)).save(image)
    message = message_of(lambda: class_names_of(settings(folder), None, 3))
    assert f"of the pixels of the masks in split `train` are 0 or {bright}" in message
    assert f"give `--mask_values 0 {bright}`" in message
    assert len(class_names_of(settings(folder), 255, 3)) == 255


@pytest.mark.parametrize("fields", [{"ignore_index": 255}, {"ignore_index": 0}, {"reduce_labels": True}])
def test_few_labels_among_pixels_without_a_class_are_classes(fields, folder):
    unlabelled = fields.get("ignore_index", 0)
    for file in folder.glob("train/masks/*.png"):
        numbers = np.full((48, 48), unlabelled, np.uint8)
        numbers[0, :20] = np.arange(20) + (unlabelled == 0)
        Image.fromarray(numbers).save(file)
    count = 21 if fields.get("ignore_index") == 0 else 20
    assert len(class_names_of(settings(folder, **fields), None, 3)) == count


def with_palette(file, colors):
    """Write the numbers of a mask with a palette."""
    mask = Image.open(file)
    mask.putpalette([part for color in colors for part in color])
    mask.save(file)


def test_a_color_that_is_another_number_in_another_mask_is_refused(folder):
    red, green, blue = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    for file in folder.glob("train/masks/*.png"):
        with_palette(file, [red, green, blue])
    load(folder)
    with_palette(mask_of(folder), [red, green, (9, 9, 9)])
    load(folder)  # the control: a colour of one mask alone
    with_palette(mask_of(folder), [green, green, blue])
    load(folder)  # another: a colour that does not tell numbers apart
    with_palette(mask_of(folder), [red, blue, green])
    message = message_of(lambda: load(folder))
    assert "must hold masks in which a colour is one number throughout, but (0, " in message
    assert "coffee1" in message and "their palettes differ" in message
    load(folder, mask_values=[0, 1, 2])  # the user has said what the numbers are


@pytest.mark.parametrize("are_ids", [True, False])
def test_numbers_that_count_the_objects_of_each_image_are_no_classes(are_ids, folder):
    for place, file in enumerate(sorted(folder.glob("train/masks/*.png"))):
        count = 12 + 2 * place  # objects, in rows of the image
        numbers = np.zeros((48, 48), np.uint8)
        numbers[:count] = np.arange(1, count + 1)[:, None]
        if not are_ids:
            numbers[numbers == 3 + place] = 0  # a class that this image does not show
        Image.fromarray(numbers).save(file)
    if are_ids:
        message = message_of(lambda: class_names_of(settings(folder), None, 3))
        assert "6 of the 6 masks with several numbers in split `train` hold all from 1 to their largest" in message
        assert "up to 22, as ids of objects do" in message and message.endswith("give `--num_labels 23`.")
    assert len(class_names_of(settings(folder), None if not are_ids else 23, 3)) == 23


def test_images_of_five_channels_are_tiff_files_with_a_page_for_each_beside_png_masks(folder):
    values = np.random.default_rng(0).integers(0, 256, (5, 48, 48)).astype(np.uint8)
    for file in folder.glob("*/images/*.jpg"):
        pages = [Image.fromarray(page) for page in values]
        pages[0].save(file.with_suffix(".tif"), save_all=True, append_images=pages[1:])
        file.unlink()
    data = settings(folder)
    rows = load_pairs(data, "train", None, 5, NAMES)
    samples = segmentation_samples(data, rows, 5, MaskReader(3, 255, 255), lambda image, labels: (image, labels))
    assert np.array_equal(samples(rows[0], "x", 0, 0)["pixel_values"], values)


def test_images_of_other_channels_are_told_a_form_that_is_paired_with_png_masks(folder):
    message = message_of(lambda: load_pairs(settings(folder), "train", None, 5, NAMES))
    assert message.endswith("store the channels as .npy arrays, or as a TIFF file with a page for each channel.")


def test_floats_outside_0_to_1_are_refused_where_colours_are_changed(folder):
    with_float_values(folder / "test", -2, 5)
    with_float_values(folder / "train")
    data, change = settings(folder, eval_split="test"), ColorChange("photometric_distortion", 0.5)
    train, held_out = load_train_and_eval(data, load_pairs, 3, NAMES, change)
    assert (len(train), len(held_out)) == (6, 3)  # the control: values in [0, 1], and any that are held out
    shutil.copy(next((folder / "test/images").glob("*.tif")), folder / "train/images/coffee1.tif")
    message = message_of(lambda: load_train_and_eval(data, load_pairs, 3, NAMES, change))
    assert message.startswith("`photometric_distortion` (=0.5) must be 0 for images with values outside [0, 1],")
    assert f"{folder}/train/images/coffee1.tif holds -2 to 3. " in message
    assert message.endswith("Give `--photometric_distortion 0`, or scale the images to [0, 1].")
    assert len(load_train_and_eval(data, load_pairs, 3, NAMES)[0]) == 6
