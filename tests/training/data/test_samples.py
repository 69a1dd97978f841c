"""From any source to the same samples, whatever the processes and workers; what is wrong with it is said at once."""

import io
import shutil
from itertools import islice, takewhile

import numpy as np
import pandas
import pytest
import skimage.data
import torch
from datasets import Array3D, ClassLabel, Dataset, Features, List, Value
from PIL import ExifTags, Image
from scipy.stats import beta
from torch.testing import assert_close
from torchvision.transforms import v2
from transformers.image_utils import load_image

from hf_convnextv2 import ConvNextV2Config, create_image_processor
from tests.photographs import CLASSES, cut, message_of, quick_datasets, write_folder, write_parquet
from training.data.batches import TrainBatches
from training.data.decoding import Enough, decode_image
from training.data.held_out import load_train_and_eval
from training.data.label_readers import ClassReader
from training.data.labels import check_labels, label_mapping, resolve_labels
from training.data.multi_label import class_numbers
from training.data.samples import Collator, CropsCollator, eval_loader, first_samples, load_images, make_samples
from training.data.sampling import seeded
from training.data.sources import load_source
from training.data.transforms import (
    BatchMixer,
    EvaluationTransform,
    crop_and_flip,
    enough_for_crops,
    finetuning_transform,
    pretraining_transform,
)
from training.settings.augmentation import ColorChange
from training.settings.scripts import FinetuneSettings, PretrainSettings

__all__ = ["quick_datasets"]
pytestmark = pytest.mark.usefixtures("quick_datasets")


def settings(config_class=PretrainSettings, **fields):
    defaults = {"output_dir": "out", "num_workers": 0, "per_device_train_batch_size": 4, "image_size": 32}
    return config_class(**{**defaults, **fields})


def data_settings(config_class=PretrainSettings, **fields):
    return settings(config_class, **fields).data


def processor(num_channels=3):
    return create_image_processor(ConvNextV2Config(image_size=32, num_channels=num_channels))


def pretraining_batches(config, rank=0, world=1, states=()):
    source, num_crops = load_images(config.data, "train", None, 3), config.augmentation.num_crops
    transform = pretraining_transform(config.augmentation, 32, processor())
    samples = make_samples(config.data, source, 3, transform, num_cells=16, num_crops=num_crops)
    collate = Collator() if num_crops == 1 else CropsCollator()
    return TrainBatches([source], samples, config.data, collate, rank, world, states)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_folder(tmp_path_factory.mktemp("images") / "folder", {"train": 5, "test": 2}))


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    return str(write_parquet(tmp_path_factory.mktemp("images") / "parquet", {"train": 5, "test": 2}))


def test_seeding_a_sample_leaves_the_outer_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    first = torch.rand(1)
    with seeded(5):
        inner = torch.rand(3)
    assert_close(torch.cat([first, torch.rand(1)]), expected)
    assert_close(inner, torch.rand(3, generator=torch.Generator().manual_seed(5)))


# Sources


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_a_batch_holds_normalised_crops_and_noise(kind, streaming, folder, parquet):
    config = settings(dataset_name={"folder": folder, "parquet": parquet}[kind], streaming=streaming)
    batch = next(pretraining_batches(config))
    assert batch["pixel_values"].shape == (4, 3, 32, 32) and batch["noise"].shape == (4, 16)
    assert batch["noise"].min() > 0 and batch["noise"].max() < 1
    assert -2.2 < batch["pixel_values"].min() < 0 < batch["pixel_values"].max() < 2.7


def test_parquet_is_read_by_glob_file_and_folder(parquet):
    names = [parquet, f"{parquet}/train-*.parquet"]
    assert [len(load_source(data_settings(dataset_name=name), "train", None)) for name in names] == [15, 15]
    assert len(load_source(data_settings(dataset_name=f"{parquet}/train-00000-of-00002.parquet"), "train", None)) == 8


@pytest.mark.parametrize("pattern", ["", "/train-*.parquet", "/train-00001-of-00002.parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_damaged_parquet_file_is_named(streaming, pattern, parquet, tmp_path):
    shutil.copytree(parquet, tmp_path / "data")
    file = tmp_path / "data/train-00001-of-00002.parquet"
    file.write_bytes(file.read_bytes()[:500])
    name = f"{tmp_path}/data{pattern}"
    message = message_of(lambda: load_source(data_settings(dataset_name=name, streaming=streaming), "train", None))
    assert message.startswith(f"`dataset_name` (={name}) must hold parquet files that can be read, but ")
    assert "train-00001-of-00002.parquet cannot be: Parquet magic bytes not found" in message


def test_max_samples_are_drawn_from_all_classes(folder):
    config = settings(dataset_name=folder)
    assert set(load_source(config.data, "train", None)["label"][:5]) == {0}  # as the folder is listed
    assert len(set(load_source(config.data, "train", 5)["label"])) > 1


def test_workers_do_not_change_the_samples(folder):
    batches = [next(pretraining_batches(settings(dataset_name=folder, num_workers=n))) for n in (0, 2)]
    assert_close(batches[0], batches[1], rtol=0, atol=0)


def test_the_same_image_is_cropped_anew_in_each_epoch(parquet):
    batches = pretraining_batches(settings(dataset_name=parquet, per_device_train_batch_size=15))
    first, second = next(batches), next(batches)
    assert not set(first["noise"][:, 0].tolist()) & set(second["noise"][:, 0].tolist())


@pytest.mark.parametrize("streaming", [False, True])
def test_crops_of_a_batch_come_crop_after_crop_and_the_first_ones_are_those_of_a_batch_of_one(streaming, parquet):
    of_one, of_three = (
        next(pretraining_batches(settings(dataset_name=parquet, streaming=streaming, num_crops=n))) for n in (1, 3)
    )
    assert of_three["pixel_values"].shape == (12, 3, 32, 32) and of_three["noise"].shape == (12, 16)
    for name in ("pixel_values", "noise"):
        assert_close(of_three[name][:4], of_one[name], rtol=0, atol=0)
        crops = of_three[name].unflatten(0, (3, 4))
        assert not any(torch.equal(crops[i], crops[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    # The control: crops of the whole image without a flip are the same three times, and have their own masks.
    whole = settings(dataset_name=parquet, streaming=streaming, num_crops=3, crop_scale=[1.0, 1.0], horizontal_flip=0)
    batch = next(pretraining_batches(whole))
    crops, noise = (batch[name].unflatten(0, (3, 4)) for name in ("pixel_values", "noise"))
    assert torch.equal(crops[0], crops[1]) and not torch.equal(noise[0], noise[1])


def test_pictures_show_one_crop_of_an_image(folder):
    config = settings(dataset_name=folder, num_crops=2)
    source = load_images(config.data, "train", None, 3)
    transform = pretraining_transform(config.augmentation, 32, processor())
    samples = make_samples(config.data, source, 3, transform, num_cells=16, num_crops=2)
    assert first_samples(source, samples, config.data, 5)["pixel_values"].shape == (5, 3, 32, 32)


# Images


def test_pictures_of_any_mode_come_as_the_channels_asked_for():
    picture = cut("coffee", 1)[0]
    for mode in ("L", "RGBA", "P", "CMYK", "1"):
        stored = io.BytesIO()
        picture.convert(mode).save(stored, "TIFF")
        assert decode_image({"bytes": stored.getvalue()}, 3, "x").pixels.shape == (3, 40, 40)
        assert decode_image({"bytes": stored.getvalue()}, 1, "x").pixels.shape == (1, 40, 40)


def test_a_photograph_is_turned_as_its_camera_says(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    cut("coffee", 1)[0].crop((0, 0, 30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    decoded = decode_image(str(tmp_path / "turned.jpg"), 3, "x").pixels
    assert decoded.shape == (3, 30, 20)
    expected = np.array(load_image(str(tmp_path / "turned.jpg")))  # as pipelines load it
    assert torch.equal(decoded, torch.from_numpy(expected).permute(2, 0, 1))


def as_jpeg(size):
    """A photograph of `size` (width, height)."""
    stored = io.BytesIO()
    Image.fromarray(skimage.data.coffee()).resize(size).save(stored, "JPEG", quality=95)
    return stored.getvalue()


def test_a_large_photograph_may_be_decoded_at_a_fraction_of_its_size():
    stored, enough = as_jpeg((1000, 600)), Enough(side=100, area=100 * 100 / 0.15)
    reduced = decode_image(stored, 3, "x", enough=enough).pixels
    assert reduced.shape == (3, 300, 500)
    whole = v2.functional.resize(decode_image(stored, 3, "x").pixels, [300, 500], antialias=True)
    assert (reduced.float() - whole.float()).abs().mean() < 2  # of 255
    assert (reduced.float() - whole.roll(1, dims=2).float()).abs().mean() > 3
    assert decode_image(stored, 1, "x", enough=enough).pixels.shape == (1, 300, 500)


def test_photographs_near_the_size_that_suffices_and_other_formats_are_decoded_whole():
    png = io.BytesIO()
    Image.open(io.BytesIO(as_jpeg((1000, 600)))).save(png, "PNG")
    cases = {
        as_jpeg((1000, 600)): Enough(side=301, area=1),
        as_jpeg((1000, 601)): Enough(side=1, area=1000 * 601 / 3.99),
        png.getvalue(): Enough(side=1, area=1),
    }
    for stored, enough in cases.items():
        assert decode_image(stored, 3, "x", enough=enough).pixels.shape == decode_image(stored, 3, "x").pixels.shape


@pytest.mark.parametrize("size", [(500, 375), (640, 480), (1000, 600), (2000, 1500), (3000, 400), (300, 2000)])
@pytest.mark.parametrize("crop_scale", [[0.08, 1.0], [0.2, 1.0], [1.0, 1.0]])
def test_crops_of_a_reduced_photograph_are_enlarged_no_more_than_of_the_whole(size, crop_scale):
    config = settings(dataset_name="x", crop_scale=crop_scale, image_size=64)
    enough = enough_for_crops(config.augmentation, 64)
    stored = as_jpeg(size)
    crop = crop_and_flip(config.augmentation, 64)[1]
    reduced, whole = decode_image(stored, 3, "x", enough=enough).pixels, decode_image(stored, 3, "x").pixels
    for seed in range(30):
        sides = []
        for image in (reduced, whole):
            torch.manual_seed(seed)
            parameters = crop.make_params([image])
            sides.append(min(parameters["height"], parameters["width"]))
        assert sides[0] >= min(64, sides[1])


def test_reduced_decoding_can_be_switched_off():
    assert enough_for_crops(settings(dataset_name="x", reduced_decoding=False).augmentation, 64) is None
    assert enough_for_crops(settings(dataset_name="x").augmentation, 64) is not None


def test_sixteen_bits_are_not_clipped(tmp_path):
    pixels = np.array([[0, 1000, 65535]], dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / "deep.png")
    decoded = decode_image(str(tmp_path / "deep.png"), 1, "x").pixels
    assert_close(decoded, torch.tensor([[[0, 1000 / 65535, 1]]]))


@pytest.mark.parametrize("shape", [(6, 9, 8), (9, 8, 6)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_arrays_may_have_their_channels_first_or_last(shape, dtype):
    array = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    first = array if shape[0] == 6 else np.moveaxis(array, -1, 0)
    scale = 65535 if dtype == "uint16" else 1
    assert_close(decode_image(array.tolist(), 6, "x", dtype).pixels.float(), torch.tensor(first / scale).float())
    stored = io.BytesIO()
    np.save(stored, array)
    assert_close(decode_image(stored.getvalue(), 6, "x").pixels.float(), torch.tensor(first / scale).float())


def test_another_number_of_channels_is_named():
    message = message_of(lambda: decode_image(np.zeros((8, 9, 4), np.uint8), 5, "example 7"))
    assert message == "`num_channels` (=5) must be the first or last side of example 7, of shape (8, 9, 4)."


def test_columns_of_arrays_train_with_any_number_of_channels(tmp_path):
    rng = np.random.default_rng(0)
    features = Features({"bands": Array3D(shape=(5, 12, 12), dtype="uint8"), "label": Value("int64")})
    bands = [rng.integers(0, 255, (5, 12, 12), dtype=np.uint8) for _ in range(4)]
    Dataset.from_dict({"bands": bands, "label": [0, 1, 0, 1]}, features=features).to_parquet(tmp_path / "a.parquet")
    config = settings(dataset_name=str(tmp_path / "a.parquet"), image_column="bands", num_channels=5)
    source = load_images(config.data, "train", None, 5)
    training = make_samples(
        config.data, source, 5, pretraining_transform(config.augmentation, 32, processor(5)), num_cells=16
    )
    assert next(TrainBatches([source], training, config.data, Collator(), 0, 1))["pixel_values"].shape == (4, 5, 32, 32)
    evaluation = make_samples(config.data, source, 5, EvaluationTransform(processor(5)))
    assert first_samples(source, evaluation, config.data, 3)["pixel_values"].shape == (3, 5, 32, 32)


def test_a_folder_of_arrays_has_classes_after_its_folders(tmp_path):
    for name in ("dry", "wet"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "0.npy", np.full((4, 10, 10), len(name) + (name == "wet"), np.uint8))
    source = load_images(data_settings(dataset_name=str(tmp_path)), "train", None, 4)
    assert resolve_labels(source, "label", None) == ["dry", "wet"]
    assert [decode_image(row["image"], 4, "x").pixels.max().item() for row in source] == [3, 4]


def test_the_evaluation_transform_is_the_saved_image_processor():
    picture = Image.fromarray(np.asarray(cut("chelsea", 1, 90)[0])[:70])
    expected = processor()(picture, return_tensors="pt")["pixel_values"][0]
    decoded = decode_image({"bytes": as_png(picture)}, 3, "x").pixels
    assert_close(EvaluationTransform(processor())(decoded), expected, rtol=0, atol=0)


def as_png(picture):
    stored = io.BytesIO()
    picture.save(stored, "PNG")
    return stored.getvalue()


@pytest.mark.parametrize("num_channels", [1, 3])
def test_randaugment_and_erasing_keep_shape_and_range(num_channels):
    config = settings(FinetuneSettings, dataset_name="x", randaugment_num_ops=2, random_erasing=1.0)
    transform = finetuning_transform(config.augmentation, 32, processor(num_channels))
    decoded = decode_image({"bytes": as_png(cut("coffee", 1)[0])}, num_channels, "x").pixels
    for seed in range(30):
        with seeded(seed):
            augmented = transform(decoded)
        assert type(augmented) is torch.Tensor and augmented.shape == (num_channels, 32, 32)
        assert augmented.isfinite().all()


def test_randaugment_has_the_number_of_operations_and_the_strength_asked_for():
    config = settings(FinetuneSettings, dataset_name="x", randaugment_num_ops=3, randaugment_magnitude=17)
    steps = finetuning_transform(config.augmentation, 32, processor()).transforms
    (randaugment,) = [step for step in steps if isinstance(step, v2.RandAugment)]
    assert (randaugment.num_ops, randaugment.magnitude) == (3, 17)


def test_randaugment_is_given_the_same_bytes_of_floats_as_of_bytes():
    """Bicubic crops of sharp edges overshoot [0, 1], and values outside wrap around where floats are made bytes."""
    config = FinetuneSettings(dataset_name="x", output_dir="out", randaugment_num_ops=1)
    steps = finetuning_transform(config.augmentation, 32, processor(1)).transforms
    before = v2.Compose(list(takewhile(lambda step: not isinstance(step, v2.RandAugment), steps)))
    stripes = torch.rand(1, 1, 24, generator=torch.Generator().manual_seed(0)) > 0.5
    edges = stripes.expand(1, 24, 24).to(torch.uint8) * 255
    crops = []
    for pixels in (edges, edges / 255):
        with seeded(0):
            crops.append(before(pixels))
    assert crops[0].dtype == crops[1].dtype == torch.uint8
    assert_close(crops[0].int(), crops[1].int(), rtol=0, atol=1)


def test_values_outside_0_to_1_are_refused_for_randaugment_in_the_split_to_train_on(tmp_path):
    root = tmp_path / "data"

    def write(split, name, lowest, highest):
        (root / split / "wet").mkdir(parents=True, exist_ok=True)
        array = np.linspace(lowest, highest, 3 * 8 * 8, dtype=np.float32).reshape(8, 8, 3)
        np.save(root / split / "wet" / name, array)

    write("train", "0.npy", 0, 1)
    write("test", "0.npy", -2, 3)
    data = FinetuneSettings(dataset_name=str(root), output_dir="out", num_workers=0, eval_split="test").data
    change = ColorChange("randaugment_num_ops", 2)
    train, held_out = load_train_and_eval(data, load_images, 3, change)
    assert held_out is not None
    assert (len(train), len(held_out)) == (1, 1), "values in [0, 1], and any that are held out"
    write("train", "1.npy", 0, 1.5)
    message = message_of(lambda: load_train_and_eval(data, load_images, 3, change))
    assert message.startswith("`randaugment_num_ops` (=2) must be 0 for images with values outside [0, 1],")
    assert f"{root}/train/wet/1.npy holds 0 to 1.5. " in message
    assert message.endswith("Give `--randaugment_num_ops 0`, or scale the images to [0, 1].")
    assert len(load_train_and_eval(data, load_images, 3)[0]) == 2


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.01, 0.0), (0.0, 0.01), (0.01, 8.0), (8.0, 0.01), (8.0, 8.0)])
def test_mixup_and_cutmix_each_have_their_own_alpha(mixup, cutmix):
    """A share drawn from Beta(0.01, 0.01) leaves about half of the batches as they are, from Beta(8, 8) none."""
    mixer = BatchMixer(mixup, cutmix, 4)
    batch = {"pixel_values": torch.rand(4, 3, 64, 64), "labels": torch.arange(4)}
    unmixed = [mixer(batch)["labels"][0, 0].item() > 0.99 for _ in range(400)]
    expected = np.mean([beta.sf(0.99, alpha, alpha) for alpha in (mixup, cutmix) if alpha])
    assert np.mean(unmixed) == pytest.approx(expected, abs=5 * 0.5 / 400**0.5)


def test_mixing_gives_class_probabilities_and_the_same_for_the_same_samples():
    samples = [{"seed": i, "pixel_values": torch.full((3, 8, 8), float(i)), "labels": i} for i in range(4)]
    collate = Collator(BatchMixer(0.8, 1.0, 4))
    batch, again = collate(samples), collate(samples)
    assert_close(batch, again, rtol=0, atol=0)
    assert_close(batch["labels"].sum(dim=1), torch.ones(4))
    # Image i is filled with i: the mean of an image is the mean class under its label.
    assert_close(batch["pixel_values"].mean(dim=(1, 2, 3)), batch["labels"] @ torch.arange(4.0))
    assert not torch.equal(collate([{**sample, "seed": 9} for sample in samples])["labels"], batch["labels"])
    assert_close(Collator(BatchMixer(0, 0, 4))(samples)["labels"], torch.arange(4))


# Bad input


def test_a_missing_column_is_an_error_that_lists_the_columns(folder):
    message = message_of(lambda: load_source(data_settings(dataset_name=folder, image_column="photo"), "train", None))
    assert message == "`image_column` (=photo) must be a column of the data set, which has image, label."
    source = load_source(data_settings(dataset_name=folder), "train", None)
    assert "`label_column` (=kind) must be a column" in message_of(lambda: resolve_labels(source, "kind", None))


@pytest.fixture
def spoilt(tmp_path):
    """A folder with a truncated photograph, a text named like a photograph, and a text."""
    root = write_folder(tmp_path / "spoilt", {"train": 4}, CLASSES[:1])
    whole = (root / "train/astronaut/0.jpg").read_bytes()
    (root / "train/astronaut/half.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "train/astronaut/text.png").write_text("no image")
    return root


@pytest.mark.parametrize("streaming", [False, True])
def test_an_unreadable_image_is_an_error_that_names_its_file(spoilt, streaming):
    config = settings(dataset_name=str(spoilt), streaming=streaming)
    message = message_of(lambda: list(islice(pretraining_batches(config), 3)))
    assert "half.jpg cannot be read as an image" in message or "text.png cannot be read as an image" in message
    assert "--skip_bad_images" in message


@pytest.mark.parametrize("streaming", [False, True])
def test_unreadable_images_are_skipped_and_counted_on_request(spoilt, streaming, capsys):
    config = settings(dataset_name=str(spoilt), streaming=streaming, skip_bad_images=True)
    batches = pretraining_batches(config)
    assert len(torch.cat([batch["noise"] for batch in islice(batches, 2)])) == 8
    named = " ".join(text for _, text in batches.problems) if streaming else capsys.readouterr().out
    assert "half.jpg" in named and "text.png" in named and ("Skipping 2 files" in named or streaming)
    config.data.max_bad_images = 1
    assert "`max_bad_images` (=1)" in message_of(lambda: list(islice(pretraining_batches(config), 3)))


def test_a_file_that_is_no_image_by_its_name_is_named(folder, spoilt, capsys):
    (spoilt / "train/astronaut/notes.txt").write_text("notes")
    (spoilt / ".DS_Store").write_text("hidden files are nobody's images")
    assert "notes.txt" in message_of(lambda: load_images(data_settings(dataset_name=str(spoilt)), "train", None, 3))
    three = data_settings(dataset_name=str(spoilt), skip_bad_images=True, max_bad_images=3)
    load_images(three, "train", None, 3)
    printed = capsys.readouterr().out
    assert "Skipping 3 files" in printed and "notes.txt" in printed and "half.jpg" in printed
    two = data_settings(dataset_name=str(spoilt), skip_bad_images=True, max_bad_images=2)  # in all, of either kind
    assert "`max_bad_images` (=2) must be at least 3" in message_of(lambda: load_images(two, "train", None, 3))
    load_images(data_settings(dataset_name=folder), "train", None, 3)
    assert "Skipping" not in capsys.readouterr().out


@pytest.mark.parametrize("streaming", [False, True])
def test_images_that_are_all_bad_are_an_error(streaming, tmp_path):
    root = write_folder(tmp_path / "bad", {"train": 2}, CLASSES[:1])
    for file in root.rglob("*.jpg"):
        file.write_bytes(b"no image")
    config = settings(dataset_name=str(root), streaming=streaming, skip_bad_images=True)

    def look():
        source = load_images(config.data, "train", None, 3)
        first_samples(source, make_samples(config.data, source, 3, EvaluationTransform(processor())), config.data, 8)

    message = message_of(look)
    assert "must hold images that can be read" in message


def labelled(labels, feature=None):
    features = Features({"label": feature or Value("int64")})
    return Dataset.from_dict({"label": labels}, features=features)


@pytest.mark.parametrize("bad", [3, -1, None])
def test_a_label_outside_the_classes_is_named(bad):
    message = message_of(lambda: check_labels(labelled([0, 1, bad]), "label", ["a", "b", "c"]))
    assert message == f"`label` (=[{-1 if bad is None else bad}]) must be in [0, `num_labels` (=3)); -1: missing."
    check_labels(labelled([0, 1, 2]), "label", ["a", "b", "c"])


@pytest.mark.parametrize("kind", ["float32", "list"])
def test_labels_that_are_no_classes_are_refused(kind):
    rows = labelled([[0.0], [1.0]], List(Value("float32"))) if kind == "list" else labelled([0.0, 1.7], Value(kind))
    for call in (lambda: resolve_labels(rows, "label", None), lambda: check_labels(rows, "label", ["a", "b"])):
        assert "`label_column` (=label) must hold integers or class names, but holds" in message_of(call)


def test_labels_from_pandas_are_class_names(tmp_path):
    pandas.DataFrame({"label": ["dog", "cat"]}).to_parquet(tmp_path / "train.parquet")
    rows = Dataset.from_parquet(str(tmp_path / "train.parquet"))
    assert resolve_labels(rows, "label", None) == ["cat", "dog"]
    assert label_mapping(rows, "label", ["cat", "dog"]) == {"cat": 0, "dog": 1}


def test_boolean_labels_are_two_classes():
    rows = labelled([True, False], Value("bool"))
    assert resolve_labels(rows, "label", None) == ["LABEL_0", "LABEL_1"]
    check_labels(rows, "label", ["a", "b"])
    assert type(ClassReader("label", 2)({"label": True})) is int


def test_a_stream_of_names_needs_the_classes_of_a_model():
    stream = labelled(["dog", "cat"], Value("string")).to_iterable_dataset()
    assert "hold integers or a ClassLabel" in message_of(lambda: resolve_labels(stream, "label", 2))
    assert label_mapping(stream, "label", ["cat", "dog"]) == {"cat": 0, "dog": 1}


def test_a_label_of_a_stream_is_checked_as_it_comes(parquet):
    config = settings(FinetuneSettings, dataset_name=parquet, streaming=True)
    source = load_source(config.data, "train", None)
    fields = {"label_reader": ClassReader("label", 2)}
    samples = make_samples(config.data, source, 3, finetuning_transform(config.augmentation, 32, processor()), **fields)
    message = message_of(lambda: list(islice(TrainBatches([source], samples, config.data, Collator(), 0, 1), 4)))
    assert message == "`label` (=2) must be a class in [0, `num_labels` (=2))."


def test_classes_are_matched_by_name():
    classes = ["cat", "dog", "owl"]
    source = labelled([0, 1], ClassLabel(names=["dog", "cat"]))
    check_labels(source, "label", classes)
    assert label_mapping(source, "label", classes) == {0: 1, 1: 0}
    assert label_mapping(labelled(["owl", "cat"], Value("string")), "label", classes) == {"cat": 0, "owl": 2}
    strange = labelled([0], ClassLabel(names=["cow"]))
    assert "`label` (=['cow']) must be among the names" in message_of(lambda: check_labels(strange, "label", classes))


SORTED = ["0", "1", "10", "11", "2"]


@pytest.mark.parametrize("dtype", ["int64", "int8", "uint16"])
def test_numbers_are_matched_with_classes_that_are_named_so(dtype, capsys):
    rows = labelled([10, 2, 1], Value(dtype))
    check_labels(rows, "label", SORTED)
    mapping = label_mapping(rows, "label", SORTED)
    assert [SORTED[mapping[number]] for number in (10, 2, 1)] == ["10", "2", "1"]
    assert label_mapping(rows.to_iterable_dataset(), "label", SORTED) == mapping
    lists = labelled([[10, 2], [1], []], List(Value(dtype)))
    assert class_numbers(lists, "label", SORTED).tolist() == [2, 4, 1]
    assert capsys.readouterr().out == ""


def test_numbers_of_a_split_that_lacks_the_class_with_a_word_are_matched_by_name():
    rows = labelled([1, 2])
    assert label_mapping(rows, "label", ["1", "2", "3", "unknown"]) == {1: 0, 2: 1, 3: 2}
    message = message_of(lambda: check_labels(labelled([1, 2, 5]), "label", ["1", "2", "3", "unknown"]))
    assert "`label` (=[5]) must be among the names of the model's 4 classes" in message
    for classes in (["1", "2", "3"], ["7", "007", "a"]):  # 7 is two of them
        message = message_of(lambda classes=classes: check_labels(labelled([0, 7]), "label", classes))
        assert "`label` (=[0, 7]) must be among the names" in message
    assert "(=[None])" in message_of(lambda: check_labels(labelled([1, None, -1]), "label", ["-1", "1"]))


def test_booleans_are_matched_with_the_texts_true_and_false():
    rows = labelled([True, False], Value("bool"))
    assert label_mapping(rows, "label", ["True", "False"]) == {1: 0, 0: 1}
    assert label_mapping(rows, "label", ["true", "false"]) == {1: 0, 0: 1}


@pytest.mark.parametrize("streams", [False, True])
def test_numbers_that_are_matched_with_named_classes_by_number_are_told(streams, capsys):
    def check(rows, classes):
        check_labels(rows.to_iterable_dataset() if streams else rows, "label", classes)
        return capsys.readouterr().out

    assert "by number, False is defect, True is ok." in check(
        labelled([True, False], Value("bool")), ["defect", "ok"]
    ).replace("0 is", "False is").replace("1 is", "True is")
    names = ["a", "b", "c", "d", "e", "911"]
    told = "Classes of `label` have no names: matched with the model's by number, 0 is a, 1 is b, 2 is c, 3 is d, 4 is"
    if not streams:  # a stream's numbers are not known before they come
        assert told in check(labelled(range(6)), names)
    assert check(labelled([0, 1]), ["LABEL_0", "LABEL_1"]) == ""


def test_the_classes_to_train_follow_from_the_column():
    assert resolve_labels(labelled([0, 3]), "label", None) == ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"]
    assert resolve_labels(labelled(["b", "a"], Value("string")), "label", None) == ["a", "b"]
    named = labelled([0], ClassLabel(names=["x", "y"]))
    assert resolve_labels(named, "label", 3) == ["x", "y", "LABEL_2"]
    assert "`num_labels` (=1) must be at least 2" in message_of(lambda: resolve_labels(named, "label", 1))


def test_evaluation_reads_every_example_once(parquet):
    for streaming in (False, True):
        config = settings(FinetuneSettings, dataset_name=parquet, streaming=streaming, per_device_eval_batch_size=4)
        source = load_images(config.data, "test", None, 3)
        fields = {"label_reader": ClassReader("label", 3)}
        samples = make_samples(config.data, source, 3, EvaluationTransform(processor()), **fields)
        labels = torch.cat([batch["labels"] for batch in eval_loader(source, samples, config.data)])
        assert labels.bincount().tolist() == [2, 2, 2]


def test_classes_are_matched_by_number_only_where_no_name_would_change_its_class(capsys):
    rows = labelled([0, 1, 2], ClassLabel(names=["cat", "dog", "fox"]))
    check_labels(rows, "label", ["cat", "hound", "fox"])  # names of another language, say
    assert "matched by number" in capsys.readouterr().out
    for classes in (["bird", "cat", "dog"], ["dog", "cat", "bird"]):
        assert "`label` (=['" in message_of(lambda classes=classes: check_labels(rows, "label", classes))
