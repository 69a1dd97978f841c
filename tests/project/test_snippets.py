"""The Python blocks of every page run as they stand, one after the other, and do what the page says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import hf_convnextv2
from hf_convnextv2 import ConvNextV2ForImageClassification, ConvNextV2ForPreTraining, create_image_processor, open_image
from tests.image_kinds import transparent_kinds
from tests.readme import OFFICIAL, PAGES, README, blocks, make_stand_ins
from tests.small_models import assert_close, awake, small_config, small_fcmae_config
from training.prediction.feature_files import FeatureTables, write_parquet

Names = dict[str, Any]


def check_readme(names: Names) -> None:
    assert torch.isfinite(names["outputs"].loss) and names["outputs"].mask.shape == (8, 7 * 7)
    assert all(parameter.grad is not None for parameter in names["model"].parameters())
    assert type(names["classifier"].model).__name__ == "ConvNextV2ForImageClassification"


def check_quickstart(names: Names) -> None:
    assert type(names["pretrained"]) is ConvNextV2ForPreTraining
    assert type(names["classifier"].model).__name__ == "ConvNextV2ForImageClassification"


def check_models(names: Names) -> None:
    x, output = names["pixel_values"], names["output"]
    maps = names["model"].convnextv2(x).last_hidden_state
    assert_close(names["embedding"], maps.mean((2, 3)))
    assert torch.equal(names["again"].logits, output.logits)
    with Image.open("reconstruction.png") as picture:
        assert (picture.size, picture.mode) == ((64, 64), "RGB")
    assert type(names["classifier"].model) is ConvNextV2ForImageClassification
    assert names["convmae_outputs"].mask.shape == (8, 4 * 6) and names["convmae_outputs"].loss.isfinite()
    assert names["config"].cell_size == 16 and names["outputs"].mask.shape == (8, 6 * 8)


def check_images(names: Names) -> None:
    assert names["image"].tobytes() == open_image("drawing.png").tobytes()


def check_card(names: Names) -> None:
    assert type(names["classifier"].model) is ConvNextV2ForImageClassification


def check_segmentation(names: Names) -> None:
    assert type(names["segmenter"].model).__name__ == "Mask2FormerForUniversalSegmentation"  # of the last block
    assert {part["label"] for part in names["parts"]} <= {"sky", "tree", "sea"}


def check_detection(names: Names) -> None:
    assert type(names["model"]).__name__ == "ConvNextV2RCNNForObjectDetection"
    assert names["found"]["masks"].shape[1:] == (names["image"].height, names["image"].width)


def check_embedding(names: Names) -> None:
    vectors = names["vectors"]
    assert vectors.shape == (5, 3) and names["nearest"][0] == 0  # the image itself, then the next one on a half circle
    assert [names["features"][int(row)]["image"] for row in names["nearest"]] == [f"{i}.jpg" for i in (1, 2, 3, 4, 5)]


def check_labels(names: Names) -> None:
    assert len(names["answers"]) == 3 and sum(answer["score"] for answer in names["answers"]) != 1
    assert set(names["tags"]) <= {"astronaut", "chelsea", "coffee"}


CHECKS: dict[str, Callable[[Names], None]] = {
    "README.md": check_readme,
    "MODEL_CARD.md": check_card,
    "images.md": check_images,
    "labels.md": check_labels,
    "models.md": check_models,
    "quickstart.md": check_quickstart,
    "segmentation.md": check_segmentation,
    "detection.md": check_detection,
    "embedding.md": check_embedding,
}


def write_features_of_a_half_circle(file: Path) -> None:
    """A bad image and five, each some degrees from the one before."""
    answers: list[Names] = [{"image": "0.jpg", "error": "cannot be read as an image"}]
    for i in range(5):
        angle = 0.6 * i
        answers.append({"image": f"{i + 1}.jpg", "features": np.float32([np.cos(angle), np.sin(angle), 0])})
    tables = FeatureTables({"features": (3,)}, "float32", {})
    write_parquet(file, [tables.table(answers)], tables.schema)


def python_blocks(page: Any) -> list[str]:
    return [block.text for block in blocks(page) if block.language == "python"]


WITH_PYTHON = [page for page in PAGES if python_blocks(page)]


def test_every_page_with_python_is_checked():
    assert {page.name for page in WITH_PYTHON} == set(CHECKS)


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_the_snippets_of_a_page_run_and_do_what_they_say(page, tmp_path, monkeypatch, photographs):
    """In a folder with small models and pictures where the blocks name some."""
    make_stand_ins(tmp_path)
    for name, model in (
        ("pretrain", awake(ConvNextV2ForPreTraining(small_fcmae_config()))),
        ("classifier", awake(ConvNextV2ForImageClassification(small_config()))),
    ):
        model.save_pretrained(tmp_path / "out" / name)
        create_image_processor(model.config).save_pretrained(tmp_path / "out" / name)
    Image.fromarray(photographs[0]).save(tmp_path / "photo.jpg")
    (tmp_path / "drawing.png").write_bytes(transparent_kinds(Image.fromarray(photographs[0]))["RGBA, PNG"])
    write_features_of_a_half_circle(tmp_path / "out/features.parquet")
    monkeypatch.chdir(tmp_path)
    names: Names = {}
    try:
        for number, text in enumerate(python_blocks(page), 1):
            exec(compile(text, f"{page.name}: block {number}", "exec"), names)
        CHECKS[page.name](names)
    finally:
        hf_convnextv2.unregister()


def test_the_first_python_block_of_the_readme_needs_nothing_but_the_package():
    first = python_blocks(README)[0]
    assert "from_pretrained" not in first and "model=" not in first and not any(name in first for name in OFFICIAL)
