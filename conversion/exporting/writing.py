"""The files of an export, one after the other: each is written, opened in its runtime and compared with the model."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from PIL import Image
from torch import Tensor

from conversion.command_line import first_line
from conversion.exporting.checks import check_comparisons, compare
from conversion.exporting.choices import CLASSIFICATION
from conversion.exporting.formats import FORMATS
from conversion.exporting.images import (
    GOOD_CALIBRATION,
    Labelled,
    labelled_images,
    load_processor,
    photograph,
    prepare,
)
from conversion.exporting.models import Subject
from conversion.exporting.programs import (
    Program,
    export_program,
    parts_of,
    size_of,
    smallest_images,
    write_program,
)
from conversion.exporting.quantization import quantise
from conversion.exporting.record import Comparison, FileRecord, Record
from conversion.exporting.runtimes import Run, open_file
from conversion.files import sha256


@dataclass(frozen=True)
class Pictures:
    """The pictures of an export: the one that files are compared on, those of int8, and labelled ones."""

    name: str
    picture: Image.Image
    processor: Any
    calibration: list[Tensor]
    labelled: Labelled | None

    @classmethod
    def read(
        cls,
        subject: Subject,
        image: str | Path | None,
        calibration_images: list[Path],
        validation_dataset: str | Path | None,
        max_validation_images: int | None,
    ) -> Self:
        """Read what is asked for; raises a `ValueError` for what cannot be read or does not suffice."""
        picture, name = photograph(image)
        processor, labelled = load_processor(subject.name, subject.model), None
        if validation_dataset is not None:
            if subject.task != CLASSIFICATION or not subject.gives_one_class:
                raise ValueError(
                    f"`--validation_dataset` (={validation_dataset}) must be left out for {subject.task} with "
                    f"{subject.name}: only classifiers that give an image one class have an accuracy."
                )
            labelled = labelled_images(validation_dataset, subject.model.config.id2label, max_validation_images)
        if 0 < len(calibration_images) < GOOD_CALIBRATION:
            print(f"int8 is calibrated with {len(calibration_images)} images; {GOOD_CALIBRATION} or more are better.")
        calibration = [
            prepare(file, processor, subject.num_channels, "--calibration_images") for file in calibration_images
        ]
        return cls(name, picture, processor, calibration, labelled)


@dataclass
class Writer:
    """Writes files of a model in one format, and notes them."""

    subject: Subject
    format: str
    pictures: Pictures
    float_layers: list[str]
    record: Record
    float32: Program | None = None  # what int8 is made of

    def write(self, dtype: str, folder: Path, temporary: str, is_asked_for: bool) -> Run:
        """Write the file of a data type, to the folder if it is asked for, and return what runs it.

        Raises:
            ValueError: if it does not give what the model gives.
        """
        started = time.perf_counter()
        program = self.program(dtype)
        name = FORMATS[self.format].files[dtype]
        file = (folder if is_asked_for else Path(temporary)) / name
        write_program(self.format, program, file)
        seconds = time.perf_counter() - started
        run = open_file(self.format, dtype, file, self.record.outputs)
        if is_asked_for:
            comparisons = self.comparisons(run, name)
            size = size_of(file)
            print(f"{name}: {dtype}, {size:,} bytes, {seconds:.1f} s", *comparisons, sep="\n  ", flush=True)
            check_comparisons(comparisons, dtype, file)
            digests = {part.relative_to(folder).as_posix(): sha256(part) for part in parts_of(file)}
            calibration, smallest = self.calibration(dtype), smallest_images(self.format, self.subject)
            found = FileRecord(
                name,
                size,
                digests,
                round(seconds, 1),
                comparisons,
                calibration,
                measured=None,
                smallest_images=smallest,
            )
            self.record.add(dtype, found, dataclasses.asdict(program.metadata))
        return run

    def comparisons(self, run: Run, name: str) -> list[Comparison]:
        """The file beside the model; raises a `ValueError` if the runtime cannot run it."""
        try:
            return compare(self.subject, run, self.pictures.picture, self.pictures.processor, self.format)
        except RuntimeError as error:
            runtime = FORMATS[self.format].runtime
            raise ValueError(f"{name} was written, but {runtime} does not run it: {first_line(error)}") from error

    def program(self, dtype: str) -> Program:
        """The program of a data type."""
        if dtype == "int8":
            assert self.float32 is not None
            return quantise(self.format, self.subject, self.float32, self.pictures.calibration, self.float_layers)
        program = export_program(self.format, self.subject, dtype)
        if dtype == "float32":
            self.float32 = program
        return program

    def calibration(self, dtype: str) -> dict[str, Any] | None:
        """What is noted of int8."""
        if dtype != "int8":
            return None
        return {"images": len(self.pictures.calibration), "float_layers": self.float_layers}
