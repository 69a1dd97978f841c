"""nearest.py: the neighbours by cosine similarity, of an image in the file of features or of any other."""

import json
import shutil
import tarfile

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image as Pictures
from safetensors.torch import load_file, save_file

from tests.photographs import apart, cut, message_of, quick_datasets, write_parquet
from tests.training.test_embed import embedded, models, spoilt
from tests.training.test_predict import images
from training import nearest
from training.prediction import neighbors
from training.settings.embedding import NearestSettings

__all__ = ["images", "models", "quick_datasets", "spoilt"]
pytestmark = pytest.mark.usefixtures("quick_datasets")


def found(features, dataset, query, output, **fields):
    where = {"features_file": str(features), "dataset_name": str(dataset), "query": str(query)}
    with apart():
        return nearest.main(NearestSettings(**where, output_file=str(output), **fields))


def by_formula(rows, query, count):
    """Names and cosines of the rows nearest to features, written out."""
    good = [row for row in rows if row["error"] is None]
    cosines = {row["image"]: cosine(row["features"], query) for row in good}
    return sorted(cosines.items(), key=lambda each: -each[1])[:count]


def cosine(a, b):
    return a @ b / np.sqrt((a @ a) * (b @ b))


def assert_neighbors(actual, expected):
    assert [name for name, _ in actual] == [name for name, _ in expected]
    assert [value for _, value in actual] == pytest.approx([value for _, value in expected], abs=1e-5)


@pytest.mark.parametrize("suffix", [".parquet", ".npy"])
@pytest.mark.parametrize("num_rows", [2, 10_000])
def test_the_neighbours_of_an_image_in_the_file_are_those_of_the_formula(
    suffix, num_rows, models, spoilt, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(neighbors, "ROWS", num_rows)
    for twin in spoilt.glob("test-*"):
        twin.unlink()
    rows = embedded(models / "encoder", spoilt, tmp_path / f"features{suffix}")
    query = rows[5]
    actual = found(tmp_path / f"features{suffix}", spoilt, query["image"], tmp_path / "a.png", num_neighbors=6)
    assert_neighbors(actual, by_formula(rows, query["features"], 7)[1:])  # without itself
    assert actual[0][0] in capsys.readouterr().out
    with Pictures.open(tmp_path / "a.png") as picture:
        assert picture.width > picture.height > 100 and len(picture.convert("RGB").getcolors(10**6)) > 1000
    path = spoilt / query["image"]  # the same image by its path
    assert found(tmp_path / f"features{suffix}", spoilt, path, tmp_path / "b.png", num_neighbors=6) == actual


def test_another_image_is_embedded_as_those_in_the_file(models, images, tmp_path):
    fields = {"pooling": ["max", "gem"], "stages": [1, 2], "normalize": True, "dtype": "float16"}
    rows = embedded(models / "backbone", images, tmp_path / "features.parquet", **fields)
    (tmp_path / "other").mkdir()
    picture = cut("coffee", 9)[8]
    picture.save(tmp_path / "other/query.png")
    ((query),) = embedded(models / "backbone", tmp_path / "other", tmp_path / "query.npy", **fields)
    actual = found(tmp_path / "features.parquet", images, tmp_path / "other/query.png", tmp_path / "a.png")
    expected = by_formula([{**row, "features": np.float64(row["features"])} for row in rows], query["features"], 8)
    assert [value for _, value in actual] == pytest.approx([value for _, value in expected], abs=2e-3)
    assert len(actual) == 8


def test_rows_of_tables_are_found_by_their_numbers(models, tmp_path):
    name = write_parquet(tmp_path / "images", {"train": 2}) / "*.parquet"
    rows = embedded(models / "encoder", name, tmp_path / "features.npy")
    actual = found(tmp_path / "features.npy", name, "3", tmp_path / "a.png", num_neighbors=99)
    assert_neighbors(actual, by_formula(rows, rows[3]["features"], 6)[1:])


def test_an_image_file_is_no_row_of_a_table_whose_rows_have_numbers(models, images, tmp_path):
    """Several rows of the table have one path, so that their numbers are their names."""
    picture = sorted(images.rglob("*.jpg"))[0]
    rows = [{"image": {"path": "1.jpg", "bytes": file.read_bytes()}} for file in sorted(images.rglob("*.jpg"))[1:4]]
    Dataset.from_list(rows).to_parquet(tmp_path / "images.parquet")
    rows = embedded(models / "encoder", tmp_path / "images.parquet", tmp_path / "features.parquet")
    assert [row["image"] for row in rows] == ["0", "1", "2"]
    ((query),) = embedded(models / "encoder", picture, tmp_path / "query.npy")
    actual = found(tmp_path / "features.parquet", tmp_path / "images.parquet", picture, tmp_path / "a.png")
    assert_neighbors(actual, by_formula(rows, query["features"], 3))


def test_rows_of_other_tables_are_not_taken_for_those_of_their_numbers(models, tmp_path):
    name = write_parquet(tmp_path / "images", {"train": 2}) / "*.parquet"
    embedded(models / "encoder", name, tmp_path / "features.npy")
    rows = Dataset.from_parquet(str(name))
    rows.select(range(len(rows) - 1, -1, -1)).to_parquet(tmp_path / "other.parquet")
    message = message_of(lambda: found(tmp_path / "features.npy", tmp_path / "other.parquet", "3", tmp_path / "a.png"))
    assert "must hold the images of `features_file`, in the same order, but holds others" in message
    rows.to_parquet(tmp_path / "copy.parquet")
    assert found(tmp_path / "features.npy", tmp_path / "copy.parquet", "3", tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".parquet", ".npy"])
def test_other_images_of_the_same_names_are_not_taken_for_those_of_the_features(suffix, models, images, tmp_path):
    """As `train/1.jpg` and `test/1.jpg` may be called, or a picture that was edited since."""
    folder, features = tmp_path / "folder", tmp_path / f"features{suffix}"
    shutil.copytree(images, folder)
    embedded(models / "encoder", folder, features)
    copy = shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)  # with other times
    assert found(features, copy, "0.png", tmp_path / "a.png")
    edited = sorted(folder.rglob("*.*"))[1]
    shutil.copy(next(file for file in folder.rglob("*.*") if file.stat().st_size != edited.stat().st_size), edited)
    message = message_of(lambda: found(features, folder, "0.png", tmp_path / "b.png"))
    assert "must hold the images of `features_file`, in the same order, but holds others" in message
    for file in copy.rglob("*.*"):  # as many bytes
        file.write_bytes(bytes(file.stat().st_size))
    assert "but holds others" in message_of(lambda: found(features, copy, "0.png", tmp_path / "b.png"))


def test_links_do_not_make_an_image_its_own_neighbour(models, images, tmp_path):
    folder, features = tmp_path / "folder", tmp_path / "features.parquet"
    folder.mkdir()
    for number, file in enumerate(sorted(images.rglob("*.*"))[:5]):
        (folder / f"{number}.png").symlink_to(file)
    (folder / "again.png").symlink_to("0.png")
    (tmp_path / "link").symlink_to(folder)
    for name in (folder, tmp_path / "link", tmp_path / "link/*.png"):
        rows = embedded(models / "encoder", name, features, overwrite=True)
        for query in (folder / "0.png", tmp_path / "link/again.png", "again.png"):
            actual = found(features, name, query, tmp_path / "a.png", num_neighbors=9, overwrite=True)
            own = getattr(query, "name", query)
            assert {name for name, _ in actual} == {row["image"] for row in rows} - {own}


def test_images_of_a_stream_whose_paths_are_not_unique_are_found(models, images, tmp_path):
    for shard, names in enumerate((["0.jpg", "1.jpg"], ["0.jpg", "2.jpg"])):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as file:
            for picture, name in zip(sorted(images.rglob("*.jpg"))[2 * shard :], names, strict=False):
                file.add(picture, name)
    where, features = tmp_path / "*.tar", tmp_path / "features.parquet"
    rows = embedded(models / "encoder", where, features, streaming=True, image_column="jpg")
    assert [row["image"] for row in rows] == ["0.jpg", "1.jpg", "0.jpg", "2.jpg"]
    actual = found(features, where, "1.jpg", tmp_path / "a.png", image_column="jpg")
    cosines = sorted((cosine(row["features"], rows[1]["features"]) for row in (rows[0], *rows[2:])), reverse=True)
    assert [value for _, value in actual] == pytest.approx(cosines, abs=1e-5)
    message = message_of(lambda: found(features, where, "0.jpg", tmp_path / "b.png", image_column="jpg"))
    assert "must be the path of one image, but 2 in `features_file` have it" in message


def test_an_image_that_would_be_prepared_otherwise_is_not_compared(models, images, tmp_path):
    model, query = tmp_path / "model", tmp_path / "query.png"
    shutil.copytree(models / "encoder", model)
    embedded(model, images, tmp_path / "features.parquet")
    next(iter(cut("coffee", 1))).save(query)
    file = model / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "image_mean": [0.1, 0.2, 0.3]}))
    message = message_of(lambda: found(tmp_path / "features.parquet", images, query, tmp_path / "b.png"))
    assert "whose image_mean is another: embed the images anew" in message


def test_what_does_not_fit_is_named(models, images, tmp_path):
    features = tmp_path / "features.parquet"
    embedded(models / "encoder", images, features)
    query, picture = "0.png", tmp_path / "a.png"
    assert "must be an image in `features_file`" in message_of(lambda: found(features, images, "no.png", picture))
    assert "must be a file of embed.py that exists" in message_of(
        lambda: found(tmp_path / "no.npy", images, query, picture)
    )
    message = message_of(lambda: found(features, images / "train", "0.png", picture))
    assert "must hold the images of `features_file`" in message
    assert "`streaming` (=True) must be false" in message_of(
        lambda: found(features, images, query, picture, streaming=True)
    )
    assert "must end in .png, .jpg" in message_of(lambda: found(features, images, query, tmp_path / "a.txt"))
    maps = tmp_path / "maps.npy"
    embedded(models / "encoder", images, maps, pooling=["none"])
    assert "must hold pooled features, not maps" in message_of(lambda: found(maps, images, query, picture))
    picture.write_text("")
    assert "must not exist yet" in message_of(lambda: found(features, images, query, picture))


def test_files_among_the_images_of_a_pattern_that_embed_wrote_are_no_images(models, images, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(images / "test", folder)
    rows = embedded(models / "encoder", folder / "**/*.*", folder / "features.npy")
    again = embedded(models / "encoder", folder / "**/*.*", folder / "features.npy", overwrite=True)
    assert [row["image"] for row in again] == [row["image"] for row in rows] and len(rows) == 3
    actual = found(folder / "features.npy", folder / "**/*.*", rows[0]["image"], folder / "a.png")
    assert_neighbors(actual, by_formula(rows, rows[0]["features"], 3)[1:])


def test_features_of_other_weights_are_not_compared(models, images, tmp_path):
    """As where the model was trained on after its images were embedded."""
    model = tmp_path / "model"
    shutil.copytree(models / "encoder", model)
    embedded(model, images, tmp_path / "features.parquet")
    query = tmp_path / "query.png"
    next(iter(cut("coffee", 1))).save(query)
    assert found(tmp_path / "features.parquet", images, query, tmp_path / "a.png")
    weights = load_file(model / "model.safetensors")
    weights[next(iter(weights))][0] += 1
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    message = message_of(lambda: found(tmp_path / "features.parquet", images, query, tmp_path / "b.png"))
    assert "which are others: embed the images anew" in message
    again = {"model_name_or_path": str(models / "encoder")}
    assert found(tmp_path / "features.parquet", images, query, tmp_path / "b.png", **again)


def test_a_file_that_exists_is_itself_and_not_the_image_of_its_name(models, images, tmp_path, monkeypatch):
    rows = embedded(models / "encoder", images, tmp_path / "features.parquet")
    name = rows[0]["image"]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(images / rows[5]["image"], tmp_path / name)  # another picture, under the working folder
    own = found(tmp_path / "features.parquet", images, name, tmp_path / "a.png", num_neighbors=3)
    assert name not in dict(own)  # the query itself
    monkeypatch.chdir(tmp_path)
    neighbour = found(tmp_path / "features.parquet", images, name, tmp_path / "b.png", num_neighbors=3)[0]
    assert neighbour[0] == rows[5]["image"] and neighbour[1] == pytest.approx(1, abs=1e-4)
