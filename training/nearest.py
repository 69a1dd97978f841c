"""Show the images that are most alike to an image, by the features that embed.py has written, as a picture.

    python training/nearest.py --features_file out/features.parquet --dataset_name path/to/images \\
        --query photo.jpg --output_file out/nearest.png
"""

import sys

from training.console.errors import told_in_a_line
from training.settings.command_line import parse_settings
from training.settings.embedding import NearestSettings

if __name__ == "__main__":  # before the imports below, which take seconds: reports a wrong setting at once
    settings = parse_settings(NearestSettings, sys.argv[1:], __doc__)

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from conversion.model_folder import weight_digests
from training.console.bars import keep_bars_to_terminals
from training.data.samples import Samples, make_samples, name_of
from training.evaluation.pictures import drawable, save_labelled_pictures
from training.prediction.encoders import load_encoder, values_of
from training.prediction.features import POOLED, FeatureAnswers
from training.prediction.images import Images, find_images
from training.prediction.neighbors import StoredFeatures, nearest
from training.settings.checks import check
from training.settings.data import DataSettings
from training.settings.embedding import FeatureSettings
from training.settings.model import ModelSettings

LONGEST_NAME = 22  # characters that fit over a picture, beside the similarity


def main(settings: NearestSettings) -> list[tuple[str, float]]:
    """Draw and print the neighbours; returns their names and cosine similarities."""
    keep_bars_to_terminals()
    search = settings.search
    stored = StoredFeatures(Path(search.features_file))
    data = replace(settings.data, background=settings.data.background or stored.about["background"])
    images = find_images(data, stored.about["num_channels"], [stored.file, Path(search.output_file)])
    noted, rule = stored.about.get("images"), "hold the images of `features_file`, in the same order, but holds others"
    check("dataset_name", data.dataset_name, noted in (None, images.sample()), rule)
    samples = make_samples(data, images.source, stored.about["num_channels"], lambda image: image)
    row = row_of(search.query, stored, images)
    if row is None:
        pixels = samples.decode({data.image_column: {"path": search.query, "bytes": None}}, search.query).pixels
        features = embed(pixels, stored.about, search.model_name_or_path)
    else:
        pixels, features = pixels_of(row, stored, images, samples, data), stored.row(row)
    found = nearest(stored, features, search.num_neighbors, row)
    pictures = [pixels, *(pixels_of(number, stored, images, samples, data) for number, _ in found)]
    names = [(stored.names[number], similarity) for number, similarity in found]
    labels = [f"{similarity:.3f} {label(name, place)}" for place, (name, similarity) in enumerate(names, start=1)]
    save_labelled_pictures(pictures, [label(search.query, 0), *labels], Path(search.output_file))
    print("\n".join(f"{similarity:.4f}  {name}" for name, similarity in names))
    print(f"Wrote {search.output_file}.", flush=True)
    return names


def label(name: str, place: int) -> str:
    """The name of an image in the picture: its end, where the path is long."""
    end = name if len(name) <= LONGEST_NAME else f"\N{HORIZONTAL ELLIPSIS}{name[-LONGEST_NAME:]}"
    return drawable(end, place, "image")


def row_of(query: str, stored: StoredFeatures, images: Images) -> int | None:
    """The row of an image that has features; None of an image file that has none.

    A file that exists is itself, whatever image of the features has the name of its path.
    """
    is_file = Path(query).is_file()
    names = names_of(query, images.root) if is_file else [query]
    known = next((name for name in names if name in stored.names), None)
    check("query", query, is_file or known is not None, "be an image in `features_file`, or an image file that exists")
    if known is None:
        return None
    count = stored.names.count(known)
    rule = f"be the path of one image, but {count:,} in `features_file` have it: give the image as a file"
    check("query", query, count == 1, rule)
    return stored.names.index(known)


def names_of(file: str, root: str | None) -> list[str]:
    """What a file may be called among the images of the folder `root`, or without one: with and without its links."""
    folder, name = os.path.split(os.path.abspath(file))
    paths = [os.path.join(folder, name), os.path.join(os.path.realpath(folder), name), os.path.realpath(file)]
    if root is None:
        return paths
    return [os.path.relpath(path, start) for path in paths for start in (root, os.path.realpath(root))]


def pixels_of(row: int, stored: StoredFeatures, images: Images, samples: Samples, data: DataSettings) -> Tensor:
    """The image `(C, H, W)` of a row of the features."""
    assert isinstance(images.source, Dataset)
    index, name = stored.indices[row], stored.names[row]
    found = images.source[index] if index < len(images.source) else None
    value = None if found is None else found[samples.image_column]
    # A stream's images keep paths that several have; where all rows are known, such have numbers.
    is_same = found is not None and name in (images.name(value, index), name_of(value, str(index)))
    rule = f"hold the images of `features_file` (={stored.file}), but image {index} is not {name}"
    check("dataset_name", data.dataset_name, is_same, rule)
    return samples.decode(found, name).pixels  # type: ignore[arg-type]


def check_same_weights(name: str, noted: dict[str, str] | None) -> None:
    """Raise if a folder holds other weights than those of the features; `noted`: their digests, if they are known."""
    now = weight_digests(Path(name))
    rule = "hold the weights that `features_file` was computed with, which are others: embed the images anew"
    check("model_name_or_path", name, not noted or not now or noted == now, rule)


def check_same_processor(name: str, now: dict[str, Any], noted: dict[str, Any] | None) -> None:
    """Raise if images are prepared otherwise than those of the features; `noted`: how, if it is known."""
    changed = [key for key in {**(noted or {}), **now} if noted and noted.get(key) != now.get(key)]
    rule = f"have the image processor that `features_file` was computed with, whose {', '.join(changed)} is another: "
    check("model_name_or_path", name, not changed, f"{rule}embed the images anew")


@torch.no_grad()
def embed(pixels: Tensor, about: dict[str, Any], model: str | None) -> Tensor:
    """The features `(D,)` of an image `(C, H, W)`, computed as those in the file."""
    settings = ModelSettings(**about["model"])
    settings = replace(settings, model_name_or_path=model or settings.model_name_or_path)
    check_same_weights(settings.model_name_or_path or "", about.get("weights"))
    encoder = load_encoder(settings, about["background"])
    check_same_processor(settings.model_name_or_path or "", values_of(encoder.processor), about.get("image_processor"))
    answers = FeatureAnswers(encoder, FeatureSettings(**about["features"]))
    return answers.embed(encoder.model.eval(), answers.transform(pixels)[None])[POOLED][0].float()


if __name__ == "__main__":
    with told_in_a_line():
        main(settings)
