"""The folder of an export: made whole or not at all, with the files that libraries look for beside the program."""

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from conversion.exporting.formats import FORMATS
from conversion.exporting.models import Subject
from conversion.exporting.programs import largest_images
from conversion.exporting.readme import write_readme
from conversion.exporting.record import RECORD, Record
from conversion.files import atomic_path, leftovers_of, partial_path, write_json
from conversion.model_folder import CARD, PROCESSOR, weight_digests

COMPANIONS = ("config.json", PROCESSOR, RECORD, CARD)  # what `write_companions` writes


def check_output(output: Path, overwrite: bool, inputs: Mapping[str, str | Path | None]) -> None:
    """Raise if the folder exists, unless it is to be replaced and holds an earlier export, no input and nothing else.

    `inputs`: the folders and files that the export reads, by the names of their arguments.
    """
    if output.is_symlink() and not output.exists():
        raise ValueError(f"`output_dir` (={output}) must be no link to a folder that is missing. Delete the link.")
    for name, place in inputs.items():
        if place is not None and Path(place).exists() and Path(place).resolve().is_relative_to(output.resolve()):
            raise ValueError(f"`output_dir` (={output}) must be a folder that does not hold {name} (={place}).")
    if output.exists() and not overwrite:
        raise ValueError(f"`output_dir` (={output}) must not exist yet, or give `--overwrite`.")
    if output.exists() and not (output / RECORD).is_file() and (output.is_file() or any(output.iterdir())):
        raise ValueError(
            f"`output_dir` (={output}) must be a folder that an export has written for `--overwrite`, with an {RECORD}."
        )
    if output.exists() and (foreign := _not_exported(output)):
        raise ValueError(
            f"`output_dir` (={output}) must hold nothing but an earlier export for `--overwrite`, which replaces the "
            f"whole folder, but it holds {foreign[0]}. Move it, or choose another folder."
        )


def print_leftovers(output: Path) -> None:
    """Print what killed exports have left beside the folder; another export that still runs looks the same."""
    for path in leftovers_of(output.resolve()):
        print(f"{path} may be left of an export that was killed: delete it if no other export to {output} is running.")


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name at the end; an error leaves nothing behind, and an older one as it was.

    Where `output` is a link to a folder, that folder is replaced.
    """
    output = output.resolve()
    missing = [parent for parent in output.parents if not parent.exists()]
    try:
        with partial_path(output) as old, atomic_path(output) as partial:
            partial.mkdir(parents=True)
            yield partial
            if output.exists():
                os.replace(output, old)
    finally:
        if not output.exists():
            for parent in filter(Path.exists, missing):
                parent.rmdir()


def new_record(subject: Subject, format: str, picture: str) -> Record:
    """What is known before the first file is written."""
    weights = weight_digests(Path(subject.name))
    packages = ("torch", "transformers", *FORMATS[format].packages, *FORMATS[format].for_int8)
    return Record(
        model=Path(subject.name).name if Path(subject.name).is_dir() else subject.name,
        architecture=type(subject.model).__name__,
        model_type=subject.model.config.model_type,
        task=subject.task,
        format=format,
        weights=weights,
        picture=picture,
        versions={package: _version(package) for package in packages if _version(package)},
        takes_any_size=subject.has_dynamic_sizes,
        image_size=subject.image_size,
        num_channels=subject.num_channels,
        largest_images=largest_images(format, subject),
        outputs=list(subject.outputs(subject.sample())),
    )


def write_companions(folder: Path, subject: Subject, processor: Any, record: Record) -> None:
    """Write what belongs beside the program: configuration, image processor, the record and a README."""
    config = copy.deepcopy(subject.model.config)
    config.architectures = [type(subject.model).__name__]
    data = [file.name for file in folder.glob("onnx/*.onnx_data")]
    if data:  # transformers.js looks for weights beside the graph only where it is told to
        external = {name.removesuffix("_data"): True for name in data}
        setattr(config, "transformers.js_config", {"use_external_data_format": external})
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_json(folder / RECORD, record.as_dict())
    write_readme(folder, record)


def _not_exported(output: Path) -> list[str]:
    """The files of a folder, by name, that no export writes; none of an empty folder."""
    files = [path for path in sorted(output.rglob("*")) if path.is_symlink() or not path.is_dir()]
    names = [path.relative_to(output).as_posix() for path in files]
    exported = Record.read(output).files.values() if names else []
    known = {*COMPANIONS, *(name for found in exported for name in found.sha256)}
    return [name for name in names if name not in known]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
