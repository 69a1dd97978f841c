"""Natural photographs for studies of pre-training: crops of 43 photographs. A crop's label is its photograph.

The photographs are part of Debian packages, which are downloaded when a study runs (lomiri: CC-BY-4.0, CC-BY-SA and
CC0; plasma: LGPL-3 and CC-BY-SA-4.0; mate: GPL-2+ and CC-BY-SA-4.0; palapeli: several free licences). This repository
does not contain them.
"""

import subprocess
from itertools import product
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from sklearn.model_selection import train_test_split

# Package, pattern of its pictures, and the pictures to leave out because they are drawn or painted.
PACKAGES = {
    "lomiri-wallpapers-16.04": ("usr/share/backgrounds/*.*", ("analogpattern", "umang")),
    "lomiri-wallpapers-20.04": ("usr/share/backgrounds/Kleiber*", ()),
    "mate-backgrounds": ("usr/share/backgrounds/mate/nature/*", ()),
    "palapeli-data": ("usr/share/palapeli/collection/*.*", ()),
    "plasma-workspace-wallpapers": ("usr/share/wallpapers/*/contents/images/*.*", ()),
}
PLASMA_PHOTOGRAPHS = (
    *("BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow", "FallenLeaf", "Grey", "Kite"),
    *("OneStandsOut", "Path", "Volna", "summer_1am"),
)
LONG_SIDE = 1280  # pixels of a photograph's longer side, at most, before it is cut into crops
CROP = 96
CROPS_EACH, TEST_SHARE = 64, 0.25


def write_natural_photographs(folder: Path) -> None:
    """Write `unlabelled/train.parquet` and `labelled/{train,test}.parquet`: 64 crops of each photograph, 16 to test.

    The crops are 96 pixels wide and do not overlap. Their choice and the split are the same every time.
    """
    photographs = find_photographs(fetch(folder / "packages"))
    rows: dict[str, list[tuple[PILImage.Image, int]]] = {"train": [], "test": []}
    for label, file in enumerate(photographs.values()):
        crops = cut(file)
        chosen = np.random.default_rng(label).permutation(len(crops))[:CROPS_EACH]
        train, test = train_test_split(chosen, test_size=TEST_SHARE, random_state=0)
        for part, indices in {"train": train, "test": test}.items():
            rows[part] += [(crops[i], label) for i in indices]
    features = Features({"image": Image(), "label": ClassLabel(names=list(photographs))})
    for part, found in rows.items():
        (folder / "labelled").mkdir(parents=True, exist_ok=True)
        columns = {"image": [crop for crop, _ in found], "label": [n for _, n in found]}
        labelled = Dataset.from_dict(columns, features=features)
        labelled.to_parquet(folder / "labelled" / f"{part}.parquet")
        if part == "train":
            (folder / "unlabelled").mkdir(parents=True, exist_ok=True)
            labelled.remove_columns("label").to_parquet(folder / "unlabelled" / "train.parquet")


def fetch(folder: Path) -> Path:
    """Download and unpack the Debian packages without installing them. Needs `apt-get` and `dpkg-deb`."""
    for name in PACKAGES:
        if (folder / name).is_dir():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["apt-get", "download", name], cwd=folder, check=True)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            raise SystemExit(
                f"The Debian package {name} cannot be fetched: {error}. Run `apt-get update` on Debian or Ubuntu, or "
                f"unpack it to {folder / name} yourself (`dpkg-deb -x`)."
            ) from error
        (package,) = folder.glob(f"{name}_*.deb")
        partial = folder / f"{name}.partial"
        subprocess.run(["dpkg-deb", "-x", package, partial], check=True)
        partial.rename(folder / name)
        package.unlink()
    return folder


def find_photographs(folder: Path) -> dict[str, Path]:
    """The name and file of each photograph. If there are several sizes of one, take the largest file."""
    found: dict[str, Path] = {}
    for package, (pattern, left_out) in PACKAGES.items():
        for file in sorted((folder / package).glob(pattern), key=lambda file: file.stat().st_size):
            name = file.parts[-4] if package.startswith("plasma") else file.stem
            wanted = name in PLASMA_PHOTOGRAPHS if package.startswith("plasma") else not name.startswith(left_out)
            if wanted and file.suffix in (".jpg", ".jpeg", ".png"):
                found[name] = file
    return dict(sorted(found.items()))


def cut(file: Path) -> list[PILImage.Image]:
    """Cut the shrunk photograph into crops of `CROP` pixels without overlap."""
    small = shrunk(file)
    corners = product(range(0, small.height - CROP + 1, CROP), range(0, small.width - CROP + 1, CROP))
    return [small.crop((left, top, left + CROP, top + CROP)) for top, left in corners]


def shrunk(file: Path) -> PILImage.Image:
    """The photograph in RGB, with at most `LONG_SIDE` pixels on its longer side."""
    with PILImage.open(file) as picture:
        small = picture.convert("RGB")
    small.thumbnail((LONG_SIDE, LONG_SIDE), PILImage.Resampling.BICUBIC)
    return small
