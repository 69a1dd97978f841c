"""The text about exported files: the README of their folder, and the section of a published model's card."""

from pathlib import Path

from conversion.exporting.choices import CLASSIFICATION
from conversion.exporting.formats import FORMATS, openvino_precision
from conversion.exporting.record import Record
from conversion.files import write_text
from conversion.templates import load_template

TEMPLATES = Path(__file__).parent / "templates"
# What transformers.js loads, by type and task, as its pipelines.
PIPELINES = {
    ("convnextv2", "classification"): "image-classification",
    ("convnextv2", "features"): "image-feature-extraction",
}
# Its names of data types.
JAVASCRIPT_DTYPES = {"float32": "fp32", "float16": "fp16", "int8": "q8"}


def write_readme(folder: Path, record: Record) -> None:
    """Write README.md of an export's folder."""
    write_text(folder / "README.md", render("readme.md", record, None))


def render(template: str, record: Record, repo_id: str | None) -> str:
    """A text about the files, in a repository of the Hub or in this folder."""
    dtype = next(iter(record.files))
    return load_template(TEMPLATES / template).render(
        record=record,
        runtime=FORMATS[record.format].runtime,
        repo_id=repo_id,
        first=record.files[dtype].file,
        dtype=dtype,
        pipeline=pipeline_of(record),
        precisions={each: openvino_precision(each) for each in record.files},
        javascript_dtypes={each: JAVASCRIPT_DTYPES[each] for each in record.files if each in JAVASCRIPT_DTYPES},
    )


def pipeline_of(record: Record) -> str | None:
    """The pipeline of transformers.js that runs the files, if it has one.

    They open pictures with three channels. That of classification takes the softmax of the scores, so it is none for
    several classes of an image, or numbers.
    """
    if (
        record.format != "onnx"
        or record.num_channels != 3
        or (record.task == CLASSIFICATION and not record.gives_one_class)
    ):
        return None
    return PIPELINES.get((record.model_type, record.task))
