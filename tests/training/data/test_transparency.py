"""Transparent images from the first setting to the card: one background in every source, script and folder."""

import io
import json
import re
import tarfile

import numpy as np
import pytest
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pictures
from torch.testing import assert_close

from hf_convnextv2 import open_image
from tests.image_kinds import encode, see_through
from tests.photographs import cut, forget_accelerate, message_of, quick_datasets, write_tiny_fcmae
from training import finetune, pretrain, validate
from training.data.decoding import decode_image
from training.data.label_readers import ClassReader
from training.data.samples import eval_loader, first_samples, load_images, make_samples
from training.data.transforms import EvaluationTransform
from training.evaluation.pictures import read_metrics
from training.models.creation import create_processor, with_background
from training.run import checkpoints
from training.settings.scripts import FinetuneSettings, PretrainSettings, ValidateSettings

__all__ = ["quick_datasets"]
GREEN = "#20c040"


@pytest.fixture(autouse=True)
def fresh_accelerate(quick_datasets):
    forget_accelerate()
    yield
    forget_accelerate()


@pytest.fixture(scope="module")
def files():
    """Three transparent PNG files and one opaque one of each class, by path."""
    named = {}
    for name in ("coffee", "astronaut"):
        pictures = cut(name, 4)
        named |= {
            f"train/{name}/{i}.png": encode(see_through(picture), "PNG") for i, picture in enumerate(pictures[:3])
        }
        named[f"train/{name}/3.png"] = encode(pictures[3], "PNG")
    return named


@pytest.fixture(scope="module")
def folder(files, tmp_path_factory):
    root = tmp_path_factory.mktemp("drawings")
    for name, content in files.items():
        for path in (root / name, root / name.replace("train", "test")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return root


@pytest.fixture(scope="module")
def fcmae(tmp_path_factory):
    return write_tiny_fcmae(tmp_path_factory.mktemp("weights") / "fcmae")


def settings(dataset, config_class=PretrainSettings, **fields):
    given = {"dataset_name": str(dataset), "image_size": 32, "num_workers": 0, "with_tracking": False}
    given |= {"per_device_train_batch_size": 4, "max_train_steps": 2, "logging_steps": 1, "output_dir": "unused"}
    return config_class(**{**given, **fields})


def write(form, files, root):
    """The files as `form`; the settings that read them."""
    if form == "webdataset":
        with tarfile.open(root / "train.tar", "w") as archive:
            for number, content in enumerate(files.values()):
                member = tarfile.TarInfo(f"{number:03d}.png")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return {"dataset_name": str(root / "train.tar"), "image_column": "png"}
    labels = [int("astronaut" in name) for name in files]
    rows = {"image": [{"bytes": content, "path": name} for name, content in files.items()], "label": labels}
    features = Features({"image": Image(), "label": ClassLabel(names=["coffee", "astronaut"])})
    Dataset.from_dict(rows, features=features).to_parquet(root / "train.parquet")
    return {"dataset_name": str(root / "train.parquet")}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["folder", "parquet", "webdataset"])
def test_every_source_composites_on_the_same_background_and_says_so(form, streaming, files, folder, tmp_path, capsys):
    where = {"dataset_name": str(folder)} if form == "folder" else write(form, files, tmp_path)
    config = settings(**{"dataset": "", **where}, streaming=streaming, background=GREEN).data
    source = load_images(config, "train", None, 3)
    samples = make_samples(config, source, 3, lambda pixels: pixels)
    found = [tuple(pixels[:, 5, 5].tolist()) for pixels in first_samples(source, samples, config, 8)["pixel_values"]]
    assert found.count((0x20, 0xC0, 0x40)) == 6
    said = capsys.readouterr().out
    if streaming:
        assert said.count(f"The stream holds transparent images: composited on {GREEN} (`--background`).") == 1
    else:
        assert said.count(f"6 of 8 images are transparent: composited on {GREEN} (`--background`).") == 1


def test_arrays_are_taken_as_they_are(tmp_path):
    pixels = np.array(see_through(cut("coffee", 1)[0]))
    stored = io.BytesIO()
    np.save(stored, pixels)
    for value in (stored.getvalue(), pixels):
        decoded = decode_image(value, 4, "x")
        assert torch.equal(decoded.pixels, torch.from_numpy(pixels).permute(2, 0, 1)) and not decoded.is_transparent


def test_opaque_images_are_not_mentioned(tmp_path, capsys):
    (tmp_path / "train").mkdir()
    for number, picture in enumerate(cut("coffee", 2)):
        picture.convert("RGBA").save(tmp_path / f"train/{number}.png")
    load_images(settings(tmp_path).data, "train", None, 3)
    assert "transparent" not in capsys.readouterr().out


def test_without_a_check_it_is_said_what_would_become_of_transparent_images(folder, capsys):
    load_images(settings(folder, check_images=False).data, "train", None, 3)
    assert "images are not checked: transparent ones are composited on white" in capsys.readouterr().out
    load_images(settings(folder, check_images=False, num_channels=4).data, "train", None, 4)
    assert "transparent" not in capsys.readouterr().out


def test_two_workers_of_an_evaluation_say_once_that_a_stream_is_transparent(folder, capfd):
    config = settings(folder, FinetuneSettings, streaming=True, num_workers=2).data
    source = load_images(config, "test", None, 3)
    samples = make_samples(config, source, 3, lambda pixels: pixels, label_reader=ClassReader("label", 2))
    loader = eval_loader(source, samples, config)
    assert sum(len(batch["labels"]) for _ in range(2) for batch in loader) == 16
    assert capfd.readouterr().out.count("The stream holds transparent images") == 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_streamed_run_counts_transparent_images_and_says_so_once(num_workers, folder, fcmae, tmp_path, capfd):
    config = settings(folder, streaming=True, num_workers=num_workers, model_name_or_path=str(fcmae), max_train_steps=4)
    config.run.output_dir = str(tmp_path / "out")
    pretrain.main(config)
    counts = [line["transparent_images"] for line in read_metrics(tmp_path / "out/metrics.jsonl") if "loss" in line]
    assert counts[-1] == 12 and counts == sorted(counts)  # two epochs of six
    said = capfd.readouterr()
    told = re.findall(r"\d+ of the first \d+ images are transparent: composited on white", said.out + said.err)
    assert len(told) == 1


def test_the_count_of_transparent_images_goes_on_where_a_streamed_run_is_resumed(folder, fcmae, tmp_path):
    fields = {"streaming": True, "model_name_or_path": str(fcmae), "max_train_steps": 4, "checkpointing_steps": 2}
    fields["output_dir"] = str(tmp_path)
    counts = []
    for start in (None, str(tmp_path / "checkpoint-2")):
        forget_accelerate()
        pretrain.main(settings(folder, **fields, resume_from_checkpoint=start))
        lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "loss" in line]
        counts.append([(line["step"], line["transparent_images"]) for line in lines])
    assert counts[0] == counts[1] and counts[0][1] == (2, 6) and counts[0][-1] == (4, 12)


def test_the_background_goes_from_pretraining_to_the_classifier_its_evaluation_and_its_card(
    folder, fcmae, tmp_path, capsys
):
    pretrained, classifier = tmp_path / "pretrained", tmp_path / "classifier"
    pretrain.main(settings(folder, model_name_or_path=str(fcmae), background=GREEN, output_dir=str(pretrained)))
    forget_accelerate()
    tuned = {"model_name_or_path": str(pretrained), "eval_split": "test", "output_dir": str(classifier)}
    finetune.main(settings(folder, FinetuneSettings, **tuned))
    said = capsys.readouterr().out
    assert said.count(f"6 of 8 images are transparent: composited on {GREEN}") == 3  # of both trainings and the test
    assert "was trained with" not in said
    for made in (pretrained, classifier):
        assert json.loads((made / "preprocessor_config.json").read_text())["background"] == GREEN
        assert json.loads((made / "training_config.json").read_text())["background"] == GREEN
    forget_accelerate()
    judged = {
        "model_name_or_path": str(classifier),
        "eval_split": "test",
        "dataset_name": str(folder),
        "num_workers": 0,
    }
    as_trained = validate.main(ValidateSettings(**judged))
    assert as_trained["eval_loss"] == pytest.approx(read_metrics(classifier / "metrics.jsonl")[-1]["eval_loss"])
    assert f"composited on {GREEN}" in capsys.readouterr().out
    forget_accelerate()
    on_white = validate.main(ValidateSettings(**judged, background="white"))
    assert on_white["eval_loss"] != as_trained["eval_loss"]
    assert f"`background` is white; {classifier} was trained with {GREEN}." in capsys.readouterr().out
    check_card(classifier, encode(see_through(cut("coffee", 1)[0]), "PNG"), tmp_path)


def check_card(classifier, stored, where):
    """The card's two snippets give what the evaluation sees; the stock image processor is still one."""
    processor = transformers.AutoImageProcessor.from_pretrained(classifier)
    assert type(processor) is transformers.ConvNextImageProcessor
    expected = EvaluationTransform(processor)(decode_image(stored, 3, "x", background=GREEN).pixels)
    section = (classifier / "README.md").read_text().split("## Transparent images")[1].split("\n## ")[0]
    snippets = re.findall(r"```python\n(.*?)```", section, flags=re.S)
    assert len(snippets) == 2
    (where / "drawing.png").write_bytes(stored)
    for snippet in snippets:
        names = {}
        exec(snippet.replace("drawing.png", str(where / "drawing.png")), names)
        picture = names["image"]
        loaded = transformers.image_utils.load_image(picture)  # as `pipeline` does it
        assert_close(processor(loaded, return_tensors="pt")["pixel_values"][0], expected, rtol=0, atol=1e-5)
    model = transformers.AutoModelForImageClassification.from_pretrained(classifier)
    piped = transformers.pipeline("image-classification", model=model, image_processor=processor)
    probability = model(expected[None]).logits.softmax(dim=-1).max().item()
    assert piped(open_image(stored, background=GREEN))[0]["score"] == pytest.approx(probability, abs=1e-6)
    assert piped(Pictures.open(io.BytesIO(stored)))[0]["score"] != pytest.approx(probability, abs=1e-6)


@pytest.mark.parametrize(("num_channels", "found"), [(1, "num_channels=1"), (4, "num_channels=4")])
def test_the_card_of_other_channels_opens_images_as_in_training(num_channels, found, folder, fcmae, tmp_path):
    fields = {"num_channels": num_channels, "model_name_or_path": str(fcmae), "output_dir": str(tmp_path / "out")}
    pretrain.main(settings(folder, **fields))
    assert found in (tmp_path / "out/README.md").read_text().split("## Transparent images")[1]


def test_without_a_setting_the_background_is_that_of_the_weights_else_white(folder, fcmae, tmp_path):
    given = settings(folder, model_name_or_path=str(fcmae))
    data = with_background(given.data, given.model)
    assert data.background == "white"
    model_config = transformers.AutoConfig.from_pretrained(fcmae)
    create_processor(settings(folder).model, "none", model_config).save_pretrained(tmp_path)
    for fields, expected in (({}, "none"), ({"background": GREEN}, GREEN)):
        given = settings(folder, model_name_or_path=str(tmp_path), **fields)
        assert with_background(given.data, given.model).background == expected


def test_a_checkpoint_older_than_the_setting_is_said_to_have_had_no_background(
    folder, fcmae, tmp_path, capsys, monkeypatch
):
    fields = {"model_name_or_path": str(fcmae), "output_dir": str(tmp_path / "out"), "checkpointing_steps": 1}
    known = checkpoints.compared_settings
    with monkeypatch.context() as older:
        without = lambda *a: {k: v for k, v in known(*a).items() if k != "background"}  # noqa: E731
        older.setattr(checkpoints, "compared_settings", without)
        pretrain.main(settings(folder, **fields))
    forget_accelerate()
    pretrain.main(settings(folder, **fields, resume_from_checkpoint=str(tmp_path / "out/checkpoint-1")))
    assert "checkpoint-1 was written with `background` none; it is white now." in capsys.readouterr().out


def test_a_background_that_is_no_colour_is_refused_before_anything_is_loaded(folder):
    assert message_of(lambda: settings(folder, background="whitish")).startswith("`background` (=whitish) must be")
