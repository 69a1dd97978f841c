"""The demo's images: 2,624 electroluminescence photographs of solar cells, some of them defective.

They come with the package `elpv-dataset` (CC BY-NC-SA 4.0: Deitsch, Buerhop-Lutz et al., "Segmentation of photovoltaic
module cells in uncalibrated electroluminescence images", Machine Vision and Applications 32, 2021), which is
downloaded when the demo is installed. This repository does not contain them.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
import yaml
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from sklearn.model_selection import train_test_split
from transformers import pipeline

RECIPES = Path(__file__).resolve().parents[1] / "training/recipes"
CLASS_NAMES = ("functional", "defective")
DEFECTIVE_FROM = 0.5  # experts gave each cell a defect probability of 0, 1/3, 2/3 or 1
TEST_SHARE = 0.25
STORED_SIZE = 160  # pixels: decoding the original 300 would take longer than training on it


def write_solar_cells(folder: Path, test_share: float = TEST_SHARE) -> dict[str, int]:
    """Write `unlabelled/train.parquet` and `labelled/{train,test}.parquet`; return how many images each part has.

    The split is the same every time and keeps the shares of every defect probability and cell type. Pre-training gets
    the training images only, without the label column. Which cells belong to one solar module is not published, so
    cells of one module may be on both sides of the split: the accuracies may be a little too high, alike for all.
    """
    from elpv_dataset.utils import load_dataset  # pyright: ignore[reportMissingImports]

    pictures, probabilities, types = load_dataset()
    strata = [f"{probability:.2f} {kind}" for probability, kind in zip(probabilities, types, strict=True)]
    train, test = train_test_split(np.arange(len(pictures)), test_size=test_share, random_state=0, stratify=strata)
    encoded = [{"bytes": _as_png(picture), "path": None} for picture in pictures]
    labels = (probabilities >= DEFECTIVE_FROM).astype(int).tolist()
    labelled = Features({"image": Image(), "label": ClassLabel(names=list(CLASS_NAMES))})
    for part, indices in {"train": train, "test": test}.items():
        columns = {"image": [encoded[i] for i in indices], "label": [labels[i] for i in indices]}
        _write(columns, labelled, folder / "labelled" / f"{part}.parquet")
    unlabelled = Features({"image": Image()})
    _write({"image": [encoded[i] for i in train]}, unlabelled, folder / "unlabelled" / "train.parquet")
    counts = {"train": len(train), "test": len(test), "test_defective": sum(labels[i] for i in test)}
    return {**counts, "train_defective": sum(labels[i] for i in train)}


def scratch_flags(pretraining: str = "pretrain_demo") -> list[str]:
    """The extra flags of fine-tuning from random weights: the pre-trained model's shape, one rate for all layers.

    Lower learning rates for lower layers preserve what pre-training taught them; random weights do not need that.
    """
    recipe = yaml.safe_load((RECIPES / f"{pretraining}.yaml").read_text())
    shape = [f"--{key}={recipe[key]}" for key in ("model_size", "patch_size", "num_stages") if key in recipe]
    return [*shape, "--layer_decay=1.0"]


def normalization_flags() -> list[str]:
    """Flags with mean and standard deviation of these photographs, for a recipe made for other images."""
    recipe = yaml.safe_load((RECIPES / "pretrain_demo.yaml").read_text())
    return [part for key in ("image_mean", "image_std") for part in (f"--{key}", *map(str, recipe[key]))]


def defect_scores(folder: Path, photographs: Dataset) -> np.ndarray:
    """The probability (N,) of a defect that `pipeline` predicts with the folder, in stock Transformers."""
    classifier = pipeline("image-classification", model=str(folder), device="cpu")
    answers = classifier(list(photographs["image"]), batch_size=32, top_k=None)
    return np.array([next(row["score"] for row in rows if row["label"] == CLASS_NAMES[1]) for rows in answers])


def _as_png(picture: np.ndarray) -> bytes:
    buffer = BytesIO()
    PILImage.fromarray(picture).resize((STORED_SIZE, STORED_SIZE), PILImage.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def _write(columns: dict[str, list], features: Features, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(columns, features=features).to_parquet(path)
