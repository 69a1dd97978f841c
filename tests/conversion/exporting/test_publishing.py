"""A published classifier carries its ONNX files where transformers.js looks for them, and its card runs them."""

import dataclasses
import json
import shutil
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import metadata_load
from PIL import Image
from transformers import AutoImageProcessor

from conversion.export import export
from conversion.exporting.folder import check_output
from conversion.exporting.readme import pipeline_of
from conversion.exporting.record import Record
from conversion.publish import publish
from conversion.publishing.onnx_files import differing, settings_of_transformers_js
from conversion.publishing.publication import Publication
from conversion.publishing.staging import is_ours, stage
from hf_convnextv2 import ConvNextV2ForImageClassification
from hf_convnextv2.upernet import UperNetForSemanticSegmentation
from tests.photographs import message_of, save_turned
from tests.readme import blocks
from tests.small_models import assert_close


def test_the_files_lie_where_transformers_js_looks(tmp_path, exported):
    staged = stage(exported.model, tmp_path / "name", Publication("me/name", onnx=exported.folder))
    names = [f"onnx/{name}.onnx" for name in ("model", "model_fp16", "model_quantized")]
    for name in names:
        assert (staged / name).read_bytes() == (exported.folder / name).read_bytes()
    assert all(map(is_ours, [*names, "export.json", "onnx/model.onnx_data"])), "else a new version would leave old ones"
    assert not is_ours("onnx/model_q4.onnx"), "which somebody else has added"
    metadata = metadata_load(staged / "README.md") or {}
    assert {"onnx", "transformers.js"} <= set(metadata["tags"])
    assert settings_of_transformers_js(exported.folder) == {}


def test_a_published_model_is_no_export_to_be_replaced(tmp_path, exported):
    """Though it holds the files and the record of one, and a copy that somebody has downloaded notes of theirs."""
    staged = stage(exported.model, tmp_path / "staged", Publication("me/name", onnx=exported.folder))
    copy = shutil.copytree(staged, tmp_path / "copy")
    before = {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}
    said = message_of(lambda: export(str(exported.model), copy, overwrite=True))
    assert "must hold nothing but an earlier export" in said and "holds model.safetensors. Move it" in said
    assert before == {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}


@pytest.mark.parametrize("name", ["NOTES.md", ".DS_Store", "onnx/model_q4.onnx", "deep/link"])
def test_a_file_that_no_export_writes_is_not_deleted_with_an_earlier_one(name, tmp_path, exported):
    folder = shutil.copytree(exported.folder, tmp_path / "onnx")
    check_output(folder, overwrite=True, inputs={})  # the control
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(exported.model) if name == "deep/link" else (folder / name).write_text("mine")
    said = message_of(lambda: check_output(folder, overwrite=True, inputs={}))
    assert f"but it holds {name}. Move it, or choose another folder." in said


@torch.no_grad()
def test_the_card_runs_the_file_in_onnx_runtime(tmp_path, exported, monkeypatch):
    (tmp_path / "me").mkdir()
    staged = stage(exported.model, tmp_path / "me/name", Publication("me/name", onnx=exported.folder))
    picture = save_turned(Image.open(exported.images[0]), tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo_id, name: str(staged / name))
    found = {block.language: block.text for block in blocks(staged / "README.md") if block.heading == "ONNX"}
    names: dict = {}
    exec(found["python"], names)
    model = transformers.ConvNextV2ForImageClassification.from_pretrained(exported.model)
    pixel_values = AutoImageProcessor.from_pretrained(exported.model)(picture, return_tensors="pt").pixel_values
    assert_close(torch.from_numpy(names["outputs"][0]), model(pixel_values).logits)
    assert 'pipeline("image-classification", "me/name", { dtype: "fp32" })' in found["js"]
    assert "`q8` for int8" in (staged / "README.md").read_text()


def test_the_command_lists_the_files(exported, capsys, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(exported.model, folder)
    publish(folder, "me/name", with_onnx=exported.folder, dry_run=True)
    printed = capsys.readouterr().out
    assert "onnx/model_quantized.onnx" in printed and "export.json" in printed
    assert "## ONNX" in (folder / "README.md").read_text()
    publish(folder, "me/name", dry_run=True)
    assert "## ONNX" not in (folder / "README.md").read_text()


def test_files_of_other_weights_tasks_and_formats_are_refused(tmp_path, exported, labelled):
    other = tmp_path / "other"
    shutil.copytree(exported.model, other)
    ConvNextV2ForImageClassification.from_pretrained(exported.model).half().save_pretrained(other)
    said = message_of(lambda: publish(other, "me/name", with_onnx=exported.folder, dry_run=True))
    assert "must be exported from the weights in" in said
    said = message_of(lambda: publish(exported.model, "me/name", with_onnx=labelled, dry_run=True))
    assert "must be a folder that `conversion.export` has written" in said
    for change, expected in (
        ({"format": "torch"}, "must hold ONNX files, but holds those of torch"),
        ({"task": "features"}, "must be exported for classification to lie beside a classifier, but is for features"),
    ):
        noted = {**json.loads((exported.folder / "export.json").read_text()), **change}
        (tmp_path / "export.json").write_text(json.dumps(noted))
        said = message_of(lambda: publish(exported.model, "me/name", with_onnx=tmp_path, dry_run=True))
        assert expected in said


@pytest.mark.parametrize("change", ["missing", "changed"])
def test_files_that_are_not_as_they_were_exported_are_refused(change, tmp_path, exported):
    folder = shutil.copytree(exported.folder, tmp_path / "onnx")
    file = folder / "onnx/model_fp16.onnx"
    file.unlink() if change == "missing" else file.write_bytes(b"junk")
    said = message_of(lambda: publish(exported.model, "me/name", with_onnx=folder, dry_run=True))
    assert "must hold onnx/model_fp16.onnx as it was exported" in said


def test_files_of_another_configuration_are_refused(tmp_path, exported):
    folder = shutil.copytree(exported.model, tmp_path / "model")
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stored, "layer_norm_eps": 0.5}))
    said = message_of(lambda: publish(folder, "me/name", with_onnx=exported.folder, dry_run=True))
    assert "which has another `layer_norm_eps`" in said


def test_a_configuration_within_another_is_compared_as_the_other_is(tmp_path):
    """Transformers' class leaves out what only ours has, and notes data types."""
    backbone = transformers.ConvNextV2Config(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    settings: dict[str, Any] = {"hidden_size": 16, "auxiliary_in_channels": 24, "num_labels": 4}
    config = transformers.UperNetConfig(backbone_config=backbone, **settings)
    transformers.UperNetForSemanticSegmentation(config).save_pretrained(tmp_path / "stock")
    UperNetForSemanticSegmentation.from_pretrained(tmp_path / "stock").config.save_pretrained(tmp_path / "ours")
    exported, own = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "stock"))
    assert exported["backbone_config"] != own["backbone_config"]
    assert differing(exported, own) == []
    own["backbone_config"]["layer_norm_eps"] = 0.5
    assert differing(exported, own) == ["backbone_config.layer_norm_eps"]
    own["id2label"].popitem()  # a table: what it lacks is no default
    assert "id2label" in differing(exported, own)


def test_the_card_says_that_the_accuracy_is_that_of_the_onnx_files(tmp_path, exported):
    measured, nothing = "is that of the ONNX files on 36 labelled images", "of this model has not been measured"
    for onnx, said, unsaid in ((exported.folder, measured, nothing), (None, nothing, measured)):
        staged = stage(exported.model, tmp_path / said.split()[-1], Publication("me/name", onnx=onnx))
        text = (staged / "README.md").read_text()
        assert f"The accuracy {said}" in text and unsaid not in text


def test_a_card_of_ones_own_is_said_to_get_no_section(tmp_path, exported, capsys):
    folder = shutil.copytree(exported.model, tmp_path / "model")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    publish(folder, "me/name", with_onnx=exported.folder, dry_run=True)
    assert "is a card of your own: how to run the ONNX files is in" in capsys.readouterr().out


def test_the_card_has_no_pipeline_of_javascript_where_scores_are_no_probabilities(exported):
    """The pipeline takes their softmax: not so for several classes of an image, or numbers."""
    record = Record.read(exported.folder)
    assert pipeline_of(record) == "image-classification"
    assert pipeline_of(dataclasses.replace(record, num_channels=1)) is None, "it opens pictures with three"
    for dtype, found in record.files.items():
        record.files[dtype] = found._replace(parity=[each._replace(agreement=None) for each in found.parity])
    assert pipeline_of(record) is None
