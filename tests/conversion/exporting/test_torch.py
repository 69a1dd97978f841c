"""torch.export's file of a classifier, and the parts of an export that need no runtime."""

import subprocess
import sys

import pytest
import torch
import transformers
from PIL import Image
from torch import nn
from transformers.exporters import ExportedModel

from conversion.export import export
from conversion.exporting.checks import cases
from conversion.exporting.images import calibration_files, load_processor, prepare
from conversion.exporting.models import load_subject
from conversion.exporting.rewriting import argsort_by_comparison, pool_by_products
from hf_convnextv2 import ConvNextV2Backbone, ConvNextV2ForPreTraining, create_image_processor
from tests.conversion.exporting.conftest import photographed
from tests.small_models import assert_close, awake, difference, small_config, small_fcmae_config

# Runs the program in the working directory, with what PyTorch alone imports.
WITH_TORCH_ALONE = """
import sys
import torch
outputs = torch.export.load("model.pt2").module()(**torch.load("inputs.pt"))
assert not {"transformers", "hf_convnextv2"} & set(sys.modules)
torch.save(outputs, "outputs.pt")
"""


# Transformers' own runner, with torch 2.14.
@pytest.mark.filterwarnings("ignore:`treespec.children_specs` is deprecated:FutureWarning")
@torch.no_grad()
def test_a_program_of_torch_export_gives_the_logits_of_stock_transformers(tmp_path, classifier, photographs):
    export(str(classifier), tmp_path / "out", format="torch", dtype=["float32", "bfloat16"])
    stock = transformers.ConvNextV2ForImageClassification.from_pretrained(classifier)
    program = torch.export.load(tmp_path / "out/model.pt2").module()
    rounded = torch.export.load(tmp_path / "out/model_bf16.pt2").module()
    for batch in ((1, 64, 64), (3, 96, 160)):
        images = photographed(photographs, *batch)
        assert_close(program(pixel_values=images)["logits"], stock(images).logits)
        assert 1e-4 < difference(rounded(pixel_values=images)["logits"], stock(images).logits) < 0.1
    loaded = ExportedModel.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert_close(loaded(pixel_values=images)["logits"], stock(images).logits)
    # Written again over the old one, which stays if the new one cannot be made.
    with pytest.raises(ValueError, match="must be an image that can be read"):
        export(str(classifier), tmp_path / "out", format="torch", image=tmp_path / "no.jpg", overwrite=True)
    assert (tmp_path / "out/model_bf16.pt2").is_file()
    export(str(classifier), tmp_path / "out", format="torch", overwrite=True)
    assert not (tmp_path / "out/model_bf16.pt2").exists() and (tmp_path / "out/model.pt2").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@torch.no_grad()
@pytest.mark.parametrize("task", ["reconstruction", "backbone"])
def test_a_program_runs_where_torch_alone_is_imported(tmp_path, photographs, task):
    settings = {"hidden_sizes": [8, 16], "depths": [1, 1], "image_size": 64, "out_features": ["stage1", "stage2"]}
    model = awake(ConvNextV2ForPreTraining(small_fcmae_config(**settings)))
    model.save_pretrained(tmp_path / "model")
    create_image_processor(model.config).save_pretrained(tmp_path / "model")
    export(str(tmp_path / "model"), tmp_path / "out", format="torch", task=task)
    inputs = {"pixel_values": photographed(photographs, 3, 64, 64)}
    if task == "reconstruction":
        inputs["noise"] = torch.rand(3, 64)
    torch.save(inputs, tmp_path / "out/inputs.pt")
    subprocess.run([sys.executable, "-c", WITH_TORCH_ALONE], cwd=tmp_path / "out", check=True)
    found = torch.load(tmp_path / "out/outputs.pt")
    if task == "reconstruction":
        expected = model(**inputs)
        assert torch.equal(found["mask"], expected.mask)
        assert_close(found["logits"], expected.logits)
    else:
        expected = ConvNextV2Backbone.from_pretrained(tmp_path / "model")(**inputs).feature_maps
        for map_, each in zip(found["feature_maps"], expected, strict=True):
            assert_close(map_, each)


def test_the_readme_says_which_images_are_too_small_for_a_program(tmp_path, classifier):
    export(str(classifier), tmp_path / "out", format="torch")
    program = torch.export.load(tmp_path / "out/model.pt2").module()
    with torch.no_grad():
        assert program(pixel_values=torch.zeros(1, 3, 64, 64))["logits"].shape == (1, 3)
        with pytest.raises(AssertionError, match="Guard failed"):
            program(pixel_values=torch.zeros(1, 3, 63, 64))
    assert "so is the size of the images, from 64 x 64 pixels on." in (tmp_path / "out/README.md").read_text()


def test_files_are_compared_on_images_of_one_cell_where_they_take_them(classifier):
    subject = load_subject(str(classifier), None)
    sizes = {format: [size for _, size in cases(subject, format)] for format in ("onnx", "openvino", "torch")}
    assert sizes["onnx"] == sizes["openvino"] == [*sizes["torch"], (32, 32)]
    assert min(map(min, sizes["torch"])) == 64


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_pooling_by_products_is_pytorchs_adaptive_average(bins):
    for height, width in ((6, 6), (7, 7), (1, 5), (4, 13), (2, 3)):
        x = torch.randn(2, 3, height, width)
        assert_close(pool_by_products(x, bins), nn.AdaptiveAvgPool2d(bins)(x))


def test_sorting_by_comparison_is_pytorchs_stable_one():
    numbers = torch.rand(3, 17)
    assert torch.equal(argsort_by_comparison(numbers, dim=1), numbers.argsort(dim=1))
    ties = (numbers > 0.4).to(torch.uint8)
    assert torch.equal(argsort_by_comparison(ties, dim=1), ties.argsort(dim=1, stable=True))


def test_calibration_images_are_spread_over_all_that_there_are(tmp_path):
    for number in range(40):
        (tmp_path / f"{number:02d}.png").touch()
    (tmp_path / "notes.txt").touch()
    assert [file.name for file in calibration_files(tmp_path, 4)] == ["00.png", "13.png", "26.png", "39.png"]
    assert len(calibration_files(tmp_path, 100)) == 40


def test_transparent_images_lie_on_the_background_of_training(tmp_path):
    """What calibrates and measures is prepared as training prepared it. Without a background, that is white."""
    Image.new("RGBA", (64, 64), (9, 9, 9, 0)).save(tmp_path / "0.png")
    for background, expected in (("black", (0, 0, 0)), ("0,255,0", (0, 1, 0)), (None, (1, 1, 1))):
        own = {} if background is None else {"background": background}
        processor = create_image_processor(small_config(), image_mean=[0] * 3, image_std=[1] * 3, **own)
        processor.save_pretrained(tmp_path)
        (picture,) = prepare(tmp_path / "0.png", load_processor(str(tmp_path), None), 3, "--calibration_images")
        assert picture.mean(dim=(1, 2)).tolist() == picture.amax(dim=(1, 2)).tolist() == pytest.approx(expected)
