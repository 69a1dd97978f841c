"""analyze.py: a folder of pictures and figures of every kind of model, and refusals before any work."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image as Pictures
from sklearn.neighbors import KNeighborsClassifier

from conversion.publishing.publication import Publication
from conversion.publishing.staging import stage
from hf_convnextv2 import (
    ConvMAEConfig,
    ConvMAEForImageClassification,
    ConvMAEForPreTraining,
    ConvNextV2Config,
    ConvNextV2FCMAEConfig,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
    create_image_processor,
)
from tests.photographs import CLASSES, apart, cut, message_of, quick_datasets, write_folder
from tests.small_models import awake
from tests.training.evaluation.test_diversity import written_out
from training import analyze
from training.settings.analysis import AnalyzeSettings

__all__ = ["quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets")
SIZES = {"hidden_sizes": [4, 8], "depths": [1, 2], "image_size": 32}
PRETRAINING = {**SIZES, "decoder_hidden_size": 8}
CONVMAE = {
    "hidden_sizes": [4, 8, 12],
    "depths": [1, 1, 2],
    "patch_sizes": [2, 2, 2],
    "num_attention_heads": 2,
    "decoder_hidden_size": 8,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "image_size": 32,
}
ALL = {"diversity", "activations", "context"}


def save(model, folder):
    awake(model).save_pretrained(folder)
    create_image_processor(model.config).save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of both families: pre-trained and classifiers, and one with the blocks of ConvNeXt V1."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    save(ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig(**PRETRAINING)), root / "fcmae")
    v1 = ConvNextV2FCMAEConfig(**PRETRAINING, use_grn=False, layer_scale_init_value=1e-6)
    save(ConvNextV2ForPreTraining(v1), root / "v1")
    save(ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig(**PRETRAINING, num_visible_sets=4)), root / "views")
    features = {"target_type": "feature", "feature_target_on": "masked"}
    save(ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig(**PRETRAINING, **features)), root / "features")
    save(ConvNextV2ForImageClassification(ConvNextV2Config(**SIZES)), root / "classifier")
    save(ConvMAEForPreTraining(ConvMAEConfig(**CONVMAE)), root / "convmae")
    save(ConvMAEForImageClassification(ConvMAEConfig(**CONVMAE)), root / "convmae_classifier")
    save(ConvNextV2ForImageClassification(ConvNextV2Config(**SIZES, num_channels=1)), root / "grey")
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Twelve photographs to train on and six to test on, of three classes."""
    return write_folder(tmp_path_factory.mktemp("images") / "images", {"train": 4, "test": 2})


def settings_for(model, images, output, **fields):
    few = {"num_workers": 0, "per_device_eval_batch_size": 5}
    where = {"model_name_or_path": str(model), "dataset_name": str(images), "output_dir": str(output)}
    return AnalyzeSettings(**{**few, **where, **fields})


def analyzed(*arguments, **fields):
    with apart():
        return analyze.main(settings_for(*arguments, **fields))


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def assert_drawn(file):
    with Pictures.open(file) as picture:
        colors = picture.convert("RGB").getcolors(10**6)
        assert picture.width > picture.height > 200
    assert colors is not None and len(colors) > 100, "is blank"
    assert max(count for count, _ in colors) < 0.95 * picture.width * picture.height


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("fcmae", ALL),
        ("v1", ALL),
        ("views", ALL),
        ("convmae", ALL),
        ("features", ALL - {"context"}),
        ("classifier", ALL - {"context"}),
        ("convmae_classifier", ALL - {"context"}),
    ],
)
def test_every_kind_of_model_gets_what_makes_sense_for_it(kind, names, models, images, tmp_path, capsys):
    text = analyzed(models / kind, images, tmp_path / "a/b", max_images=7)
    output = tmp_path / "a/b"
    expected = {"README.md", "analysis.json", *(f"{name}.{end}" for name in names for end in ("json", "png"))}
    assert {path.name for path in output.iterdir()} == expected
    assert [path.name for path in output.parent.iterdir()] == ["b"], "nothing unfinished is left"
    for name in names:
        assert_drawn(output / f"{name}.png")
        assert f"({name}.png)" in (output / "README.md").read_text()
    assert text in capsys.readouterr().out and str(models / kind) in text
    (model,) = read(output, "diversity")["models"]
    assert model["images"] == 7
    depths = CONVMAE["depths"] if "convmae" in kind else SIZES["depths"]
    blocks = [f"{stage}.{number}" for stage, depth in enumerate(depths, 1) for number in range(1, depth + 1)]
    assert [block["block"] for block in model["blocks"]] == blocks
    assert all(
        math.isfinite(block[key]) and 0 < block[key] < 1 for block in model["blocks"] for key in ("wide", "output")
    )
    assert read(output, "analysis")["model_name_or_path"] == str(models / kind)


def test_diversity_is_the_formula_on_what_transformers_computes_of_each_image(models, images, tmp_path):
    analyzed(models / "classifier", images, tmp_path / "out", analyses=["diversity"], max_images=99)
    stock = transformers.ConvNextV2ForImageClassification.from_pretrained(models / "classifier").eval()
    processor = transformers.AutoImageProcessor.from_pretrained(models / "classifier")
    layers = [layer for stage in stock.convnextv2.encoder.stages for layer in stage.layers]
    found: list[list[torch.Tensor]] = [[] for _ in layers]
    for layer, seen in zip(layers, found, strict=True):
        layer.grn.register_forward_hook(lambda *hooked, seen=seen: seen.append(hooked[2]))
    for file in sorted(images.rglob("*.jpg")):
        with torch.no_grad():
            stock(**processor(Pictures.open(file), return_tensors="pt"))
    expected = [np.mean([written_out(features).item() for features in seen]) for seen in found]
    (model,) = read(tmp_path / "out", "diversity")["models"]
    assert [block["wide"] for block in model["blocks"]] == pytest.approx(expected, abs=1e-5)
    assert model["images"] == 18


def test_models_and_checkpoints_are_curves_on_the_same_images(models, images, tmp_path):
    run = tmp_path / "run"
    for step, seed in ((2, 1), (10, 2)):
        torch.manual_seed(seed)
        save(ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig(**PRETRAINING)), run / f"checkpoint-{step}")
    fields = {"analyses": ["diversity"], "with_checkpoints": True, "max_images": 6}
    analyzed(run, images, tmp_path / "unfinished", **fields)
    unfinished = read(tmp_path / "unfinished", "diversity")["models"]
    assert [(model["model"], model["step"]) for model in unfinished] == [("step 2", 2), ("step 10", 10)]
    save(ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig(**PRETRAINING)), run)
    analyzed(
        run, images, tmp_path / "all", compared_with=[str(models / "convmae"), str(run / "checkpoint-2")], **fields
    )
    found = read(tmp_path / "all", "diversity")["models"]
    names = ["step 2", "step 10", "final model", str(models / "convmae"), str(run / "checkpoint-2")]
    assert [model["model"] for model in found] == names
    assert found[:2] == unfinished and found[4]["blocks"] == found[0]["blocks"] != found[1]["blocks"]
    assert_drawn(tmp_path / "all/diversity.png")


def test_a_run_without_a_model_yet_stands_for_its_newest_checkpoint(images, tmp_path):
    for step in (9, 10):
        torch.manual_seed(step)
        save(ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig(**PRETRAINING)), tmp_path / f"run/checkpoint-{step}")
    analyzed(tmp_path / "run", images, tmp_path / "a", analyses=["context", "diversity"])
    analyzed(tmp_path / "run/checkpoint-10", images, tmp_path / "b", analyses=["context", "diversity"])
    assert read(tmp_path / "a", "context") == read(tmp_path / "b", "context")


def test_a_photograph_blocks_and_a_cell_of_your_own(models, images, tmp_path):
    cut("rocket", 1, 56)[0].save(tmp_path / "photo.png")
    fields = {"blocks": ["1.1", "2.2"], "max_channels": 9, "hidden_cell": [1, 4]}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        chosen = {"analyses": ["activations", "context"], "photograph": str(tmp_path / "photo.png"), "seed": seed}
        analyzed(models / "fcmae", images, tmp_path / name, **fields, **chosen)
    assert [row["block"] for row in read(tmp_path / "a", "activations")["blocks"]] == ["1.1", "2.2"]
    assert len(read(tmp_path / "a", "activations")["blocks"][1]["channels"]) == 9
    for name in ("activations", "context"):
        assert read(tmp_path / "a", name) == read(tmp_path / "b", name)
    context = read(tmp_path / "a", "context")
    assert context["hidden_cell"] == [1, 4] and context["grid"] == [4, 4] and not context["visible"][0][3]
    shares, visible = np.array(context["photograph"]["shares"]), np.array(context["visible"])
    assert shares.sum() == pytest.approx(1) and (shares[~visible] == 0).all() and visible.sum() == 6
    for each in ("photograph", "images"):
        rows = context[each]["by_distance"]
        assert sum(row["share"] for row in rows) == pytest.approx(1, abs=1e-6)
        assert sum(row["visible_cells"] for row in rows) == 6
    assert context["images"]["number"] == 16
    assert read(tmp_path / "c", "context")["visible"] != context["visible"]
    assert_drawn(tmp_path / "a/activations.png")


@pytest.mark.parametrize("kind", ["fcmae", "convmae"])
def test_layers_are_those_of_scikit_learn_on_the_pooled_maps(kind, models, images, tmp_path):
    fields = {"analyses": ["layers"], "pooling": ["mean", "gem", "max"]}
    text = analyzed(models / kind, images, tmp_path / "out", **fields)
    found = read(tmp_path / "out", "layers")
    assert found["images"]["classes"] == list(CLASSES) and (found["images"]["train"], found["images"]["test"]) == (
        12,
        6,
    )
    last = ["1.1", "2.2"] if kind == "fcmae" else ["1.1", "2.1", "3.2"]
    assert [row["block"] for row in found["layers"]] == [name for name in last for _ in range(3)]
    if kind == "fcmae":
        model = transformers.ConvNextV2Model.from_pretrained(models / kind).eval()
        processor = transformers.AutoImageProcessor.from_pretrained(models / kind)
        features = {}
        for split in ("train", "test"):
            files = sorted((images / split).rglob("*.jpg"))
            with torch.no_grad():
                pixel_values = processor([Pictures.open(file) for file in files], return_tensors="pt").pixel_values
                maps = model(pixel_values, output_hidden_states=True).hidden_states[1]
            features[split] = maps.amax((2, 3)).numpy(), [file.parent.name for file in files]
        neighbours = KNeighborsClassifier(12, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
        expected = neighbours.fit(*features["train"]).score(*features["test"])
        (row,) = [row for row in found["layers"] if (row["block"], row["pooling"]) == ("1.1", "max")]
        assert row["20 nearest neighbours"] == {"accuracy": expected, "balanced_accuracy": pytest.approx(expected)}
        assert row["features"] == 4
    assert "control, a logistic regression on statistics of the pixels" in text
    assert_drawn(tmp_path / "out/layers.png")


def test_an_earlier_analysis_stays_unless_it_is_to_be_replaced(models, images, tmp_path):
    output = tmp_path / "out"
    analyzed(models / "classifier", images, output, analyses=["activations"])
    again = {"analyses": ["diversity"], "max_images": 3}
    assert "must not hold an analysis" in message_of(lambda: settings_for(models / "fcmae", images, output, **again))
    analyzed(models / "classifier", images, output, overwrite=True, **again)
    assert {path.name for path in output.glob("*.png")} == {"diversity.png"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.txt").write_text("mine")
    refused = {"overwrite": True, **again}
    message = message_of(lambda: settings_for(models / "fcmae", images, tmp_path / "other", **refused))
    assert "must be empty or hold an earlier analysis" in message and (tmp_path / "other/mine.txt").is_file()


def test_an_analysis_that_fails_leaves_nothing_and_keeps_what_was_there(models, images, tmp_path, monkeypatch):
    analyzed(models / "classifier", images, tmp_path / "out", analyses=["activations"])
    monkeypatch.setattr(analyze.Activations, "save_picture", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        analyzed(models / "classifier", images, tmp_path / "out", analyses=["activations"], overwrite=True)
    assert (tmp_path / "out/activations.png").is_file() and not list(tmp_path.glob(".*.partial"))


def refused(*arguments, **fields):
    return message_of(lambda: analyzed(*arguments, **fields))


def test_what_does_not_fit_is_refused_before_any_work(models, images, tmp_path, monkeypatch):
    monkeypatch.setattr(analyze.Diversity, "measure", lambda _: pytest.fail("has begun to work"))
    output, fcmae = tmp_path / "out", models / "fcmae"
    (tmp_path / "empty").mkdir()
    for kind, holds in (("classifier", "ConvNextV2ForImageClassification"), ("features", "ConvNextV2ForPreTraining")):
        message = refused(models / kind, images, output, analyses=["diversity", "context"])
        assert "must hold a pre-training model that predicts pixels for context" in message and holds in message
    assert "must be a folder that exists" in refused(tmp_path / "none", images, output)
    assert "must hold a model (config.json), or checkpoints" in refused(tmp_path / "empty", images, output)
    assert "must be a file or folder that exists" in refused(fcmae, tmp_path / "none", output)
    assert "must hold images" in refused(fcmae, tmp_path / "empty", output)
    assert "1.1, 2.1 to 2.2" in refused(fcmae, images, output, blocks=["3.1"])
    assert "must be a cell of the grid of 4 rows and 4 columns" in refused(fcmae, images, output, hidden_cell=[5, 1])
    assert "`image_size` (=(36, 36)) must be a multiple of 8" in refused(fcmae, images, output, image_size=36)
    assert "must be the folder of a run that holds checkpoints" in refused(fcmae, images, output, with_checkpoints=True)
    assert "must take images of 3 channels" in refused(fcmae, images, output, compared_with=[str(models / "grey")])
    assert "must be an image file that exists" in refused(fcmae, images, output, photograph="none.png")
    assert "must be some of diversity, activations" in refused(fcmae, images, output, analyses=["divers"])
    assert "`blocks` (=['1.1']) must come with" in refused(
        fcmae, images, output, analyses=["diversity"], blocks=["1.1"]
    )
    assert "must not lie in `dataset_name`" in refused(fcmae, images, images / "out")
    assert "`streaming` (=True) must be false" in refused(fcmae, images, output, analyses=["layers"], streaming=True)
    assert "label" in refused(fcmae, write_flat(tmp_path / "flat"), output, analyses=["diversity", "layers"])
    (tmp_path / "vit").mkdir()
    transformers.ViTConfig().save_pretrained(tmp_path / "vit")
    assert "must be models with an encoder of this package" in refused(
        fcmae, images, output, compared_with=[str(tmp_path / "vit")]
    )
    assert not output.exists()


def test_an_analysis_beside_the_weights_is_published_with_them(models, images, tmp_path):
    shutil.copytree(models / "fcmae", tmp_path / "run")
    analyzed(tmp_path / "run", images, tmp_path / "run/analysis", max_images=3)
    staged = stage(tmp_path / "run", tmp_path / "staged", Publication("me/name"))
    published = {f"analysis/{name}.png" for name in ALL}
    assert {file.relative_to(staged).as_posix() for file in (staged / "analysis").iterdir()} == published
    assert all(f"]({name})" in (staged / "README.md").read_text() for name in published)


def write_flat(folder):
    folder.mkdir()
    for number, picture in enumerate(cut("coffee", 3)):
        picture.save(folder / f"{number}.png")
    return folder


def test_images_that_cannot_be_read_are_named_and_left_out(models, tmp_path, capsys):
    folder = write_flat(tmp_path / "images")
    (folder / "a_bad_one.png").write_bytes(b"no image")
    analyzed(models / "classifier", folder, tmp_path / "out")
    assert read(tmp_path / "out", "diversity")["models"][0]["images"] == 3
    assert "a_bad_one.png" in capsys.readouterr().out
