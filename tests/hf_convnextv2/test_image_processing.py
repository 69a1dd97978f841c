"""The image processor: ImageNet's statistics, conversion to RGB, crop below 384 pixels and warp from there on."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image

from hf_convnextv2 import ConvNextV2ForImageClassification, create_image_processor, to_image
from tests.conftest import IMAGENET_MEAN, IMAGENET_STD
from tests.small_models import small_config


def process(image, **settings):
    return create_image_processor(small_config(**settings))(image, return_tensors="pt")["pixel_values"]


def denormalised(pixel_values):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return pixel_values * std + mean


def test_statistics_are_imagenets():
    processor = create_image_processor(small_config())
    assert tuple(processor.image_mean) == IMAGENET_MEAN
    assert tuple(processor.image_std) == IMAGENET_STD


def test_values_are_scaled_and_normalised():
    image = Image.new("RGB", (100, 80), (255, 0, 51))
    pixel_values = process(image, image_size=64)
    expected = (torch.tensor([1.0, 0.0, 0.2]) - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(pixel_values, expected.view(1, 3, 1, 1).expand(1, 3, 64, 64))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "LA", "1"])
def test_every_kind_of_image_becomes_rgb(photographs, mode):
    image = Image.fromarray(photographs[0]).convert(mode)
    torch.testing.assert_close(process(image), process(image.convert("RGB")))


def test_small_sizes_resize_the_shortest_edge_and_crop_the_centre(photographs):
    image = Image.fromarray(photographs[1])  # 600 x 400
    resized = image.resize((384, 256), Image.Resampling.BICUBIC).crop((80, 16, 304, 240))
    expected = torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1) / 255
    actual = denormalised(process(image, image_size=224)[0])
    assert actual.shape == (3, 224, 224)
    # torchvision's and Pillow's bicubic filters round differently: a few of 255 levels at edges, none on average.
    assert (actual - expected).abs().max() < 8 / 255
    assert (actual - expected).mean().abs() < 0.1 / 255


def test_large_sizes_warp_the_whole_image(photographs):
    image = Image.fromarray(photographs[1])
    expected = np.asarray(image.resize((384, 384), Image.Resampling.BICUBIC)).copy()
    actual = denormalised(process(image, image_size=384)[0])
    assert actual.shape == (3, 384, 384)
    assert (actual - torch.from_numpy(expected).permute(2, 0, 1) / 255).abs().max() < 8 / 255


@pytest.mark.parametrize("num_channels", [1, 4, 13])
def test_other_channels_share_the_average_statistics(num_channels):
    array = np.random.rand(num_channels, 64, 64).astype(np.float32)
    processor = create_image_processor(small_config(num_channels=num_channels), do_resize=False, do_rescale=False)
    mean, std = sum(IMAGENET_MEAN) / 3, sum(IMAGENET_STD) / 3
    actual = processor(array, return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    torch.testing.assert_close(actual[0], (torch.from_numpy(array) - mean) / std)


def test_other_channels_are_resized_too():
    array = np.random.rand(13, 100, 120).astype(np.float32)
    processor = create_image_processor(small_config(num_channels=13), do_rescale=False)
    pixel_values = processor(array, return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    assert pixel_values.shape == (1, 13, 64, 64)
    assert F.cosine_similarity(pixel_values.mean((2, 3)), torch.zeros(1, 13) + pixel_values.mean()) > 0.9


def test_pictures_arrays_and_tensors_give_the_same(photographs):
    array = photographs[0]
    inputs = [Image.fromarray(array), array, torch.from_numpy(array).permute(2, 0, 1)]
    first, *others = (process(image) for image in inputs)
    for other in others:
        torch.testing.assert_close(other, first)


def test_processor_survives_a_folder_and_stock_reads_it(tmp_path, photographs):
    processor = create_image_processor(small_config(image_size=96))
    processor.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert settings["image_processor_type"] == "ConvNextImageProcessor"
    stored = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    image = Image.fromarray(photographs[0])
    torch.testing.assert_close(
        stored(image, return_tensors="pt")["pixel_values"], processor(image, return_tensors="pt")["pixel_values"]
    )
    assert stored.to_dict() == processor.to_dict()


def test_settings_can_be_overridden():
    processor = create_image_processor(small_config(), image_mean=[0.5] * 3, crop_pct=1.0)
    assert (list(processor.image_mean), processor.crop_pct) == ([0.5] * 3, 1.0)
    image = Image.new("RGB", (80, 80))
    assert processor(image, do_normalize=False, return_tensors="pt")["pixel_values"].max() == 0


def test_a_batch_fits_the_model(photographs):
    config = small_config()
    images = [Image.fromarray(array) for array in photographs]
    pixel_values = create_image_processor(config)(images, return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (len(images), 3, 64, 64)
    assert ConvNextV2ForImageClassification(config)(pixel_values).logits.shape == (len(images), 5)


# --- Other sides than a square's --------------------------------------------------------------------------------------


def test_other_sides_than_a_squares_are_kept(photographs, tmp_path):
    processor = create_image_processor(small_config(image_size=[96, 160]))
    processor.save_pretrained(tmp_path)
    image = Image.fromarray(photographs[1])
    expected = np.asarray(image.resize((160, 96), Image.Resampling.BICUBIC)).copy()
    for one in (processor, transformers.AutoImageProcessor.from_pretrained(tmp_path)):
        pixel_values = one(image, return_tensors="pt")["pixel_values"]
        assert pixel_values.shape == (1, 3, 96, 160)
        difference = denormalised(pixel_values[0]) - torch.from_numpy(expected).permute(2, 0, 1) / 255
        # The two bicubic filters differ by a few of 255 levels at edges.
        assert difference.abs().max() < 8 / 255
    assert create_image_processor(small_config(image_size=[96, 96])).size["shortest_edge"] == 96


def test_other_sides_and_channels_and_a_crop():
    array = np.random.rand(13, 100, 120).astype(np.float32)
    processor = create_image_processor(small_config(num_channels=13, image_size=[64, 96]), do_rescale=False)
    pixel_values = processor(array, return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    assert pixel_values.shape == (1, 13, 64, 96)
    with pytest.raises(ValueError, match=r"`crop_pct` \(=0.9\) must not be given with `image_size` \(=\[64, 96\]\)"):
        create_image_processor(small_config(image_size=[64, 96]), crop_pct=0.9)


# --- Pictures of pixel values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
@pytest.mark.parametrize("image_size", [64, [64, 96]])
def test_a_picture_of_pixel_values_is_the_picture_they_are_from(num_channels, mode, image_size):
    processor = create_image_processor(small_config(num_channels=num_channels, image_size=image_size), do_resize=False)
    array = np.random.randint(0, 256, (2, num_channels, 64, 96), dtype=np.uint8)
    pixel_values = processor(list(array), return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    pictures = to_image(pixel_values, processor)
    assert [picture.mode for picture in pictures] == [mode] * 2
    for picture, expected in zip(pictures, array, strict=True):
        np.testing.assert_array_equal(np.asarray(picture).reshape(64, 96, -1), expected.transpose(1, 2, 0))
    assert to_image(pixel_values[1], processor) == pictures[1:]


def test_values_beyond_black_and_white_are_cut():
    processor = create_image_processor(small_config())
    (picture,) = to_image(torch.tensor([-9.0, 0.0, 9.0]).view(1, 3, 1, 1), processor)
    assert picture.getpixel((0, 0)) == (0, round(IMAGENET_MEAN[1] * 255), 255)


def test_thirteen_channels_are_no_picture():
    with pytest.raises(ValueError, match=r"of shape \(1, 13, 8, 8\)\) must have 1, 3 or 4 channels"):
        to_image(torch.zeros(1, 13, 8, 8), create_image_processor(small_config(num_channels=13)))
