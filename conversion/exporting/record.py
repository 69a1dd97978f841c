"""export.json: what was exported, how, and what was measured; its first keys are those that Transformers reads.

`transformers.exporters.ExportedModel.from_pretrained` loads the first file of a folder by them.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple, Self

from conversion.files import read_json

RECORD = "export.json"
SCHEMA_VERSION = 1  # of Transformers
FORMATS_OF_TRANSFORMERS = {"torch": "dynamo"}  # where its name of a format is another


class Comparison(NamedTuple):
    """One batch, in the file and in eager mode.

    difference: the largest one of all outputs, as a share of the largest value of its output.
    agreement: the share of images, or pixels, that have the same class; None of a model without classes.
    """

    batch: int
    height: int
    width: int
    difference: float
    agreement: float | None

    def __str__(self) -> str:
        same = "" if self.agreement is None else f", {self.agreement:.1%} of the classes the same"
        return (
            f"batch {self.batch}, {self.height} x {self.width}: differs by {self.difference:.1e} of the largest{same}"
        )


class Measured(NamedTuple):
    """A file on labelled images. seconds: of one image, the median over the batches."""

    accuracy: float
    agreement: float  # share of the images to which it gives the class that the float32 file gives
    seconds: float


class FileRecord(NamedTuple):
    """A file of one data type.

    size: in bytes, with what the format keeps beside it.
    sha256: of the file and of what lies beside it, by name.
    calibration: of int8, the number of images and the layers that were left in float32.
    measured: accuracy and speed on labelled images.
    smallest_images: height and width of those that it takes, if they have more than one cell a side.
    """

    file: str
    size: int
    sha256: dict[str, str]
    seconds_to_export: float
    parity: list[Comparison]
    calibration: dict[str, Any] | None
    measured: dict[str, Any] | None
    smallest_images: tuple[int, int] | None = None

    @property
    def largest_difference(self) -> float:
        """Of all batches."""
        return max(comparison.difference for comparison in self.parity)


@dataclasses.dataclass
class Record:
    """What is noted of an export; `files` by data type."""

    model: str
    architecture: str
    model_type: str
    task: str
    format: str
    weights: dict[str, str]  # SHA-256 of the files of the model's weights
    picture: str
    versions: dict[str, str]
    takes_any_size: bool
    image_size: tuple[int, int]
    num_channels: int
    largest_images: tuple[int, int, int] | None  # batch, height and width; None if there is no such limit
    outputs: list[str]  # their names
    files: dict[str, FileRecord] = dataclasses.field(default_factory=dict)
    components: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def gives_one_class(self) -> bool:
        """Whether the answer is the class with the largest score: only then are classes compared."""
        return any(each.agreement is not None for found in self.files.values() for each in found.parity)

    @property
    def num_cells(self) -> int:
        """How many numbers of noise a reconstruction takes for an image: they decide which cells are hidden."""
        return self.components["model"]["metadata"]["kwargs"]["noise"]["shape"][1]

    @property
    def num_measured_images(self) -> int:
        """On how many labelled images the accuracy of the files was measured; 0 if it was not."""
        return max((found.measured["images"] for found in self.files.values() if found.measured), default=0)

    def add(self, dtype: str, found: FileRecord, metadata: dict[str, Any]) -> None:
        """Note a file; Transformers loads the first one, with what its exporter noted."""
        self.files[dtype] = found
        if not self.components:
            self.components["model"] = {"file": found.file, "metadata": metadata}

    def note_measured(self, measured: dict[str, Measured], count: int) -> None:
        """Note accuracy and speed of the files."""
        for dtype in self.files:
            figures = {"images": count, **measured[dtype]._asdict()}
            figures |= {"times_as_fast_as_float32": measured["float32"].seconds / measured[dtype].seconds}
            figures |= {"accuracy_of_float32": measured["float32"].accuracy}
            self.files[dtype] = self.files[dtype]._replace(measured=figures)

    def as_dict(self) -> dict[str, Any]:
        """For export.json."""
        name = FORMATS_OF_TRANSFORMERS.get(self.format, self.format)
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        files = {
            dtype: {**found._asdict(), "parity": [each._asdict() for each in found.parity]}
            for dtype, found in self.files.items()
        }
        return {"schema_version": SCHEMA_VERSION, "export_format": name, **own, "files": files}

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Of a folder that an export has written.

        Raises:
            ValueError: if the folder has none, or another one.
        """
        stored = read_json(folder / RECORD)
        try:
            files = {
                dtype: FileRecord(**{**found, "parity": [Comparison(**each) for each in found["parity"]]})
                for dtype, found in stored["files"].items()
            }
            own = {field.name: stored[field.name] for field in dataclasses.fields(cls)}
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder} must be a folder that `conversion.export` has written: no {error}.") from error
        return cls(**{**own, "files": files})
