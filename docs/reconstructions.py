"""The picture of the README: FCMAE on crops of four public-domain photographs, for a few minutes on two CPU cores.

    python docs/reconstructions.py

The photographs come with scikit-image: astronaut (NASA) and rocket (SpaceX) are in the public domain, chelsea (Stéfan
van der Walt) and coffee (Rachel Michetti) are CC0. The model has seen other crops of them: the picture shows what the
pre-training does, not how well it generalises.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

PHOTOGRAPHS = ("chelsea", "coffee", "rocket", "astronaut")
CROPS, SIDE = 256, 256
GAP = 24  # pixels between the halves of the picture
SETTINGS = {
    "model_size": "atto",
    "num_stages": 3,
    "image_size": 96,
    "per_device_train_batch_size": 32,
    "max_train_steps": 800,
    "warmup_steps": 80,
    "learning_rate": 1.5e-3,
}


def write_crops(folder: Path) -> None:
    """Squares cut out of each photograph; the first of each name come first in the folder and in the picture."""
    (folder / "train").mkdir(parents=True)
    corners = np.random.default_rng(0)
    for index in range(CROPS):
        for order, name in enumerate(PHOTOGRAPHS):
            photograph = getattr(skimage.data, name)()
            y, x = (int(corners.integers(0, side - SIDE + 1)) for side in photograph.shape[:2])
            crop = Image.fromarray(photograph[y : y + SIDE, x : x + SIDE])
            crop.save(folder / f"train/{index:03d}-{order}-{name}.png")


def in_two_halves(picture: Image.Image) -> Image.Image:
    """A tall picture as two columns of its rows side by side, each under the titles, which are its first line."""
    is_white = (np.asarray(picture.convert("L")) == 255).all(axis=1)
    edges = np.flatnonzero(np.diff(is_white)) + 1  # where the titles and each row begin and end
    rows = len(edges) // 2 - 1
    below_titles, middle = (int(edges[end : end + 2].mean()) for end in (1, rows + rows % 2 + 1))
    width, gap = picture.width, GAP
    halves = Image.new("RGB", (2 * width + gap, middle), "white")
    halves.paste(picture.crop((0, 0, width, middle)), (0, 0))
    halves.paste(picture.crop((0, 0, width, below_titles)), (width + gap, 0))
    halves.paste(picture.crop((0, middle, width, picture.height)), (width + gap, below_titles))
    return halves


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        images, output = Path(scratch) / "images", Path(scratch) / "pretrain"
        write_crops(images)
        settings = {"dataset_name": images, "output_dir": output, **SETTINGS}
        command = ["training/pretrain.py", *(f"--{name}={value}" for name, value in settings.items())]
        subprocess.run([sys.executable, *command], check=True)
        with Image.open(output / "reconstructions.png") as picture:
            in_two_halves(picture).save(Path(__file__).with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main()
