"""What the caller of a publication decides."""

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Publication:
    """What a card says of the repository that it is for."""

    repo_id: str | None = None  # default: as the run's settings say, else the folder's name
    companion: str | None = None  # the repository of the encoder alone, or of the pre-training model that it is from
    license: str | None = None  # default: as the run's settings say, else inherited
    with_code: bool = False  # the repository also holds the model's code
    onnx: Path | None = None  # the folder of an export, whose files the repository also holds
