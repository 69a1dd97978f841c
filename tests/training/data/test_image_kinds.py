"""Images of every kind: what training makes of them, beside stock's `pipeline`; the rows of docs/images.md."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from transformers import ViTImageProcessor
from transformers.image_utils import load_image

from hf_convnextv2 import create_image_processor, open_image
from hf_convnextv2.images import background_color
from tests.image_kinds import HIDDEN, deep_kinds, encode, keyed_kinds, opaque_kinds, see_through, transparent_kinds
from tests.photographs import cut
from tests.small_models import small_config
from training.data.decoding import BadImageError, WrongChannelsError, decode_image
from training.data.transforms import EvaluationTransform

PHOTOGRAPH = cut("coffee", 1, 64)[0]
TRANSPARENT, KEYED, OPAQUE, DEEP = (
    kinds(PHOTOGRAPH) for kinds in (transparent_kinds, keyed_kinds, opaque_kinds, deep_kinds)
)
ALL = {**TRANSPARENT, **KEYED, **OPAQUE, **DEEP}
HALF_A_LEVEL = 0.5 / 255 / 0.22  # normalised by the smallest deviation


def trained_on(stored, num_channels=3, background="white"):
    """What training's evaluation hands the model."""
    processor = create_image_processor(small_config(num_channels=num_channels, image_size=64), crop_pct=1.0)
    decoded = decode_image({"bytes": stored}, num_channels, "x", background=background)
    return EvaluationTransform(processor)(decoded.pixels)


def piped(picture):
    """What stock's `pipeline` hands the model: `load_image`, then the saved image processor."""
    return processed(load_image(picture))


def processed(picture):
    """What the saved image processor makes of a picture."""
    processor = create_image_processor(small_config(image_size=64), crop_pct=1.0)
    return processor(picture, return_tensors="pt")["pixel_values"][0]


def opened(stored):
    return Image.open(io.BytesIO(stored))


@pytest.mark.parametrize("kind", OPAQUE)
def test_opaque_images_are_those_of_stocks_pipeline(kind):
    assert_close(trained_on(OPAQUE[kind]), piped(opened(OPAQUE[kind])), rtol=0, atol=1e-5)
    assert not decode_image(OPAQUE[kind], 3, "x").is_transparent


@pytest.mark.parametrize("kind", KEYED)
def test_images_with_a_transparent_colour_are_those_of_stocks_pipeline_on_white_alone(kind):
    stocks = piped(opened(KEYED[kind]))
    assert_close(trained_on(KEYED[kind]), stocks, rtol=0, atol=1e-5)
    assert (trained_on(KEYED[kind], background="#20c040") - stocks).abs().max() > 0.1
    assert_close(piped(open_image(KEYED[kind], background="#20c040")), trained_on(KEYED[kind], 3, "#20c040"))
    assert decode_image(KEYED[kind], 3, "x").is_transparent


@pytest.mark.parametrize("kind", [kind for kind in DEEP if "transparent" not in kind])
def test_images_of_more_than_8_bits_are_as_bright_as_the_photograph(kind):
    expected = np.asarray(PHOTOGRAPH.convert("L"))
    pixels = decode_image(DEEP[kind], 1, "x").pixels
    assert_close(pixels[0], torch.from_numpy(expected / 255).float(), rtol=0, atol=1.01 / 4095)  # cut when stored
    assert np.abs(np.asarray(open_image(DEEP[kind], num_channels=1)) - expected.astype(int)).max() <= 1


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # of stock's
@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparent_images_differ_from_stocks_pipeline_until_they_are_opened_as_in_training(kind):
    expected = trained_on(TRANSPARENT[kind])
    assert (piped(opened(TRANSPARENT[kind])) - expected).abs().max() > 0.1
    assert_close(piped(open_image(TRANSPARENT[kind])), expected, rtol=0, atol=1e-5)
    assert_close(processed(opened(TRANSPARENT[kind])), expected, rtol=0, atol=1e-5)
    assert decode_image(TRANSPARENT[kind], 3, "x").is_transparent


@pytest.mark.parametrize("kind", DEEP)
def test_deep_images_differ_from_stocks_pipeline_until_they_are_opened_as_in_training(kind):
    expected = trained_on(DEEP[kind])
    assert (piped(opened(DEEP[kind])) - expected).abs().max() > 0.1
    assert (piped(open_image(DEEP[kind])) - expected).abs().max() < 1.5 * HALF_A_LEVEL


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
        {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3},
    ],
)
def test_images_of_16_bits_are_as_bright_as_those_of_8_for_every_range_of_values(fields):
    processor = ViTImageProcessor(size={"height": 64, "width": 64}, **fields)
    stored = {"8 bits": encode(PHOTOGRAPH.convert("L"), "PNG"), "16 bits": DEEP["16 bits, PNG"]}
    few, many = (EvaluationTransform(processor)(decode_image(each, 3, "x").pixels) for each in stored.values())
    assert_close(few, processor(PHOTOGRAPH.convert("L").convert("RGB"), return_tensors="pt")["pixel_values"][0])
    assert few.std() > 0.1
    assert_close(many, few, rtol=0, atol=4 / 255)


def test_floats_that_are_scaled_already_stay_for_a_processor_that_does_not_scale():
    image = torch.rand(3, 64, 64)
    processor = ViTImageProcessor(size={"height": 64, "width": 64}, do_rescale=False)
    assert_close(EvaluationTransform(processor)(image), image * 2 - 1)  # mean and deviation of 0.5


@pytest.mark.parametrize("kind", ALL)
def test_every_kind_has_a_row_in_the_documented_table(kind):
    table = Path("docs/images.md").read_text(encoding="utf-8")
    rows = {
        cell.strip() for line in table.splitlines() if line.startswith("|") for cell in line.split("|")[1].split(";")
    }
    assert re.sub(r"(EXIF orientation) \d", r"\1", kind) in rows


@pytest.mark.parametrize("background", ["white", "#20c040", "10,20,30"])
def test_transparent_pixels_lie_on_the_background(background):
    clear = np.asarray(see_through(PHOTOGRAPH)).astype(float)
    opacity = clear[..., 3:] / 255
    expected = clear[..., :3] * opacity + np.array(background_color(background)) * (1 - opacity)
    decoded = decode_image(TRANSPARENT["RGBA, PNG"], 3, "x", background=background).pixels
    assert np.abs(decoded.permute(1, 2, 0).numpy() - expected).max() <= 1
    grey = decode_image(TRANSPARENT["RGBA, PNG"], 1, "x", background=background).pixels[0].numpy()
    assert np.abs(grey - expected @ (0.299, 0.587, 0.114)).max() <= 2


def test_without_a_background_the_hidden_colour_shows_as_in_stocks_pipeline():
    stored = TRANSPARENT["RGBA, PNG"]
    assert tuple(decode_image(stored, 3, "x", background="none").pixels[:, 5, 5]) == HIDDEN
    assert_close(trained_on(stored, background="none"), piped(opened(stored)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [*TRANSPARENT, *KEYED, *DEEP])
def test_a_grey_model_sees_the_grey_of_what_a_model_of_three_channels_sees(kind):
    for background in ("white", "#20c040"):
        grey, color = (decode_image(ALL[kind], channels, "x", background=background).pixels for channels in (1, 3))
        scale = 1 if grey.is_floating_point() else 255
        weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
        assert_close(grey / scale, (color / scale * weights).sum(0, keepdim=True), rtol=0, atol=1 / 255)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("num_channels", [1, 3, 4])
def test_an_opened_image_is_what_training_decodes(kind, num_channels):
    decoded = decode_image(ALL[kind], num_channels, "x", background="#20c040").pixels
    picture = open_image(ALL[kind], background="#20c040", num_channels=num_channels)
    found = torch.from_numpy(np.atleast_3d(np.array(picture))).permute(2, 0, 1).float()
    if decoded.is_floating_point():
        assert (found - 255 * decoded).abs().max() < 0.51
    else:
        assert torch.equal(found, decoded.float())


@pytest.mark.parametrize("kind", ALL)
def test_four_channels_are_red_green_blue_and_opacity_whatever_a_file_holds(kind):
    decoded = decode_image(ALL[kind], 4, "x").pixels.float()
    decoded = decoded * 255 if decoded.max() <= 1 else decoded
    if kind in TRANSPARENT or "transparent" in kind:  # one colour of a palette, or of 16 bits
        assert decoded[3].min() < 255
    else:
        assert decoded[3].eq(255).all()
        color = decode_image(ALL[kind], 3, "x").pixels.float()
        assert_close(decoded[:3], color * 255 if kind in DEEP else color)


def test_a_folder_of_tiff_files_may_hold_four_channels_as_pages():
    pages = [PHOTOGRAPH.rotate(angle).convert("L") for angle in (0, 90, 180, 270)]
    stored = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert torch.equal(decode_image(stored, 4, "x").pixels, torch.from_numpy(np.stack(pages)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_images_are_turned_too(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    stored = encode(Image.fromarray(np.arange(6, dtype=np.uint16).reshape(2, 3)), "TIFF", exif=exif)
    plain = encode(Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3)), "TIFF", exif=exif)
    assert_close(decode_image(stored, 1, "x").pixels * 65535, decode_image(plain, 1, "x").pixels.float())


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "HSV", "RGBX", "I;16B", "RGBA"])
def test_pictures_of_modes_that_no_file_has_are_opened_too(mode):
    clear = see_through(PHOTOGRAPH)
    pixels = np.asarray(PHOTOGRAPH.convert("L")).astype(np.uint16) * 257
    made = {
        "La": lambda: clear.convert("LA").convert("La"),
        "PA": lambda: clear.convert("P").convert("PA"),
        "HSV": lambda: PHOTOGRAPH.convert("HSV"),
        "I;16B": lambda: Image.frombytes("I;16B", PHOTOGRAPH.size, pixels.astype(">u2").tobytes()),
    }
    picture = made.get(mode, lambda: clear.convert("RGB" if mode == "RGBX" else mode).convert(mode))()
    before = picture.tobytes()
    shown = np.asarray(open_image(picture)).astype(float)
    assert picture.tobytes() == before and picture.mode == mode
    grey, expected = shown.mean(axis=(0, 1)), np.asarray(PHOTOGRAPH).astype(float)
    if mode in ("La", "RGBa", "RGBA"):
        assert (shown[:, :10] == 255).all() and np.abs(shown - expected)[:, 32:].mean() < 30
    elif mode == "HSV":
        assert np.abs(shown - expected).mean() < 5
    else:
        assert grey.shape == (3,)


def test_what_cannot_be_read_is_named_with_its_mode():
    integers = encode(Image.fromarray(np.arange(6, dtype=np.int32).reshape(2, 3)), "TIFF")
    with pytest.raises(BadImageError, match=r"x cannot be read as an image: .*\(mode I\) is not known; store 16 bits"):
        decode_image(integers, 3, "x")
    with pytest.raises(ValueError, match=r"\(mode I\)"):
        open_image(integers)
    rule = r"`num_channels` \(=5\) must be .* of x, of shape \(64, 64, 4\) \(a PNG file of mode RGBA\); store .* \.npy"
    with pytest.raises(WrongChannelsError, match=rule):
        decode_image(TRANSPARENT["RGBA, PNG"], 5, "x")


def test_channels_that_pillow_leaves_out_of_a_tiff_file_are_named():
    tifffile = pytest.importorskip("tifffile")
    stored = io.BytesIO()
    tifffile.imwrite(stored, np.zeros((8, 8, 5), np.uint8), photometric="rgb", planarconfig="contig")
    rule = (
        r"of the 5 of x \(a TIFF file of mode RGB\) it reads 3; store .* or as a TIFF file with a page for each channel"
    )
    for num_channels in (4, 5):
        with pytest.raises(WrongChannelsError, match=rule):
            decode_image(stored.getvalue(), num_channels, "x")
    assert decode_image(stored.getvalue(), 3, "x").pixels.shape == (3, 8, 8)


@pytest.mark.parametrize("background", ["whitish", "256,0,0", "1,2", "#ff000080", ""])
def test_a_background_that_is_no_colour_is_refused(background):
    with pytest.raises(ValueError, match=rf"`background` \(={re.escape(background)}\) must be a colour's name"):
        open_image(PHOTOGRAPH, background=background)


def test_a_number_of_channels_that_no_picture_has_is_refused():
    with pytest.raises(ValueError, match=r"`num_channels` \(=2\) must be 1, 3 or 4"):
        open_image(PHOTOGRAPH, num_channels=2)
