"""A visitor's picture is what training sees of the same file; what is no picture gets one sentence without a path."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from hf_convnextv2 import create_image_processor
from spaces.pictures import BadPictureError, open_picture, remarks, to_pixel_values
from tests.bad_files import UNREADABLE, bad_file
from tests.image_kinds import deep_kinds, encode, keyed_kinds, opaque_kinds, transparent_kinds
from tests.photographs import cut
from tests.small_models import small_config
from training.data.decoding import decode_image
from training.data.transforms import EvaluationTransform

PHOTOGRAPH = cut("coffee", 1, 64)[0]
STRIPS = ("10,000 x 1", "1 x 10,000")
KINDS = {
    name: stored
    for kinds in (opaque_kinds, keyed_kinds, transparent_kinds)
    for name, stored in kinds(PHOTOGRAPH).items()
    if name not in STRIPS
}
DEEP = deep_kinds(PHOTOGRAPH)


def processor_for(num_channels: int, background: str):
    config = small_config(num_channels=num_channels)
    return create_image_processor(config, background=background)


def seen_by_the_page(tmp_path, stored: bytes, num_channels: int, background: str):
    file, processor = tmp_path / "dropped", processor_for(num_channels, background)
    file.write_bytes(stored)
    return to_pixel_values(open_picture(file, processor, num_channels), processor)[0]


def seen_by_training(stored: bytes, num_channels: int, background: str):
    pixels = decode_image({"bytes": stored}, num_channels, "x", background=background).pixels
    return EvaluationTransform(processor_for(num_channels, background))(pixels)


@pytest.mark.parametrize("num_channels", [1, 3, 4])
def test_every_kind_of_file_is_seen_as_in_training(tmp_path, num_channels):
    for name, stored in KINDS.items():
        for background in ("white", "#20c040"):
            expected = seen_by_training(stored, num_channels, background)
            assert_close(seen_by_the_page(tmp_path, stored, num_channels, background), expected, msg=name)


def test_the_background_is_the_one_of_the_model(tmp_path):
    """The control of the test above: with another background, another picture is seen."""
    stored = KINDS["RGBA, PNG"]
    white, green = (seen_by_the_page(tmp_path, stored, 3, background) for background in ("white", "#20c040"))
    assert (white - green).abs().max() > 0.1


@pytest.mark.parametrize("kind", DEEP)
def test_files_of_more_than_8_bits_are_rounded_by_half_a_level(tmp_path, kind):
    (tmp_path / "dropped").write_bytes(DEEP[kind])
    found = np.asarray(open_picture(tmp_path / "dropped", None, 3)).transpose(2, 0, 1)
    expected = decode_image({"bytes": DEEP[kind]}, 3, "x").pixels.numpy() * 255
    assert np.abs(found - expected).max() <= 0.501


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_is_no_picture_gets_a_sentence_that_names_no_path(tmp_path, kind):
    (tmp_path / "dropped").write_bytes(bad_file(kind, PHOTOGRAPH))
    with pytest.raises(BadPictureError) as raised:
        open_picture(tmp_path / "dropped", None, 3)
    said = str(raised.value)
    assert said.startswith("This file cannot be read as an image: ") and said.endswith(".")
    assert str(tmp_path) not in said and "dropped" not in said and "BytesIO" not in said


def test_a_file_that_is_gone_or_was_never_there_is_named(tmp_path):
    with pytest.raises(BadPictureError, match="Choose it again"):
        open_picture(tmp_path / "gone", None, 3)
    with pytest.raises(BadPictureError, match="No picture was given"):
        open_picture(None, None, 3)


def test_a_strip_that_would_fill_the_memory_is_refused(tmp_path):
    """Enlarged to 64 pixels, the shorter side of 10,000 x 1 makes 730,000 pixels of the longer one."""
    for size, fits in (((100, 1), True), ((101, 1), False), ((1, 10_000), False)):
        (tmp_path / "dropped").write_bytes(encode(PHOTOGRAPH.resize(size), "PNG"))
        if fits:
            assert open_picture(tmp_path / "dropped", None, 3).size == size
            continue
        with pytest.raises(BadPictureError, match=f"{size[0]} x {size[1]} pixels"):
            open_picture(tmp_path / "dropped", None, 3)


def test_a_picture_has_a_batch_of_one(tmp_path):
    found = to_pixel_values(Image.new("L", (90, 70), 128), processor_for(1, "white"))
    assert found.shape == (1, 1, 64, 64) and found.dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("animated", "see the first one"),
        ("CMYK", "without a colour profile"),
        ("16 bits", "rounded to 8 bits"),
        ("palette", "transparent pixels"),
        ("huge", ""),
    ],
)
def test_a_visitor_is_told_what_becomes_of_an_unusual_file(tmp_path, kind, said):
    (tmp_path / "dropped").write_bytes(bad_file(kind, PHOTOGRAPH, huge=200))
    found = remarks(tmp_path / "dropped")
    assert len(found) == bool(said) and re.search(said, " ".join(found))
