"""The folder of an export: what it replaces, what killed exports have left beside it, and what it does not tell."""

import json

import pytest
import torch
from PIL import Image

from conversion.export import export
from conversion.exporting.folder import new_folder
from conversion.exporting.images import load_processor
from hf_convnextv2 import ConvNextV2Model, create_image_processor
from tests.photographs import message_of
from tests.small_models import small_config

CONFIG = {"hidden_sizes": [8, 16], "depths": [1, 1], "image_size": 32}


def test_a_link_stays_and_the_folder_that_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/old").touch()
    (tmp_path / "link").symlink_to("real")
    with new_folder(tmp_path / "link") as folder:
        (folder / "new").touch()
    assert (tmp_path / "link").readlink().name == "real"
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_an_export_tells_no_path_and_names_what_a_killed_one_has_left(tmp_path, capsys):
    """Of a model with weights in pytorch_model.bin, and without an image processor."""
    model = ConvNextV2Model(small_config(**CONFIG))
    model.config.save_pretrained(tmp_path / "model")
    torch.save(model.state_dict(), tmp_path / "model/pytorch_model.bin")
    Image.new("RGB", (64, 64)).save(tmp_path / "5.png")
    (tmp_path / ".out.12-3a.partial").mkdir()
    (tmp_path / ".other.12-3a.partial").mkdir()
    export(str(tmp_path / "model"), tmp_path / "out", format="torch", image=tmp_path / "5.png")
    texts = {file.name: file.read_text() for file in (tmp_path / "out").iterdir() if file.suffix in (".json", ".md")}
    assert set(texts) == {"export.json", "config.json", "preprocessor_config.json", "README.md"}
    assert not any(str(tmp_path) in text for text in texts.values())
    noted = json.loads(texts["export.json"])
    assert (noted["model"], noted["picture"]) == ("model", "5.png")
    printed = capsys.readouterr().out
    assert f"{tmp_path / '.out.12-3a.partial'} may be left of an export that was killed: delete it if" in printed
    assert ".other" not in printed and (tmp_path / ".out.12-3a.partial").is_dir()
    assert f"{tmp_path / 'model'} has no preprocessor_config.json: a ConvNextImageProcessor with ImageNet's" in printed


@pytest.mark.parametrize("cached", ["the file", "that there is none", "nothing"])
def test_without_the_hub_the_image_processor_of_a_model_is_as_cached(cached, tmp_path, monkeypatch, capsys):
    """Where it is not known whether the repository has one, ImageNet's statistics may be the wrong ones."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model, repository = ConvNextV2Model(small_config(**CONFIG)), tmp_path / "models--me--name"
    snapshot, missing = (repository / name / ("0" * 40) for name in ("snapshots", ".no_exist"))
    for folder in (repository / "refs", snapshot, missing):
        folder.mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    model.config.save_pretrained(snapshot)
    if cached == "nothing":
        said = message_of(lambda: load_processor("me/name", model))
        assert said.startswith("`model` (=me/name) must have its preprocessor_config.json, if it has one, in the cache")
        return
    mean = [0.1, 0.2, 0.3]
    if cached == "the file":
        create_image_processor(model.config, image_mean=mean).save_pretrained(snapshot)
    else:
        (missing / "preprocessor_config.json").touch()
    expected = mean if cached == "the file" else [0.485, 0.456, 0.406]
    assert list(load_processor("me/name", model).image_mean) == expected
    assert ("me/name has no preprocessor_config.json" in capsys.readouterr().out) == (cached != "the file")
