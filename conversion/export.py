"""Export a model to ONNX, OpenVINO, torch.export or ExecuTorch, and compare the file with the model.

python -m conversion.export out/classifier out/onnx
python -m conversion.export out/classifier out/onnx --dtype float32 float16 int8 --calibration_images path/to/images
python -m conversion.export out/classifier out/openvino --format openvino --dtype bfloat16
python -m conversion.export out/pretrain out/features --task features
"""

import sys

from conversion.command_line import Parser
from conversion.exporting.choices import LAYERS, TASKS
from conversion.exporting.formats import DTYPES, FORMATS, check_format


def create_parser() -> Parser:
    """The parser of the command line."""
    parser = Parser("python -m conversion.export", __doc__)
    parser.add_argument("model", help="a folder that holds a model, or a model on the Hub")
    parser.add_argument("output_dir", help="the folder to write, which must not exist (see --overwrite)")
    parser.add_argument("--format", choices=tuple(FORMATS), default="onnx", help="format of the file (default: onnx)")
    parser.add_argument(
        "--dtype", nargs="+", choices=DTYPES, default=["float32"], help="data types, a file for each (default: float32)"
    )
    parser.add_argument(
        "--task", choices=TASKS, help="what the file computes (default: what the model was trained for)"
    )
    parser.add_argument("--image", help="picture to compare file and model with (default: scikit-learn's photograph)")
    parser.add_argument("--calibration_images", metavar="FOLDER", help="images that int8 is calibrated with")
    parser.add_argument(
        "--num_calibration_images", type=int, default=100, help="how many of them are taken (default: 100)"
    )
    parser.add_argument(
        "--float_layers",
        nargs="*",
        choices=tuple(LAYERS),
        help="layers that int8 leaves in float32 (default: the stem for OpenVINO, else none)",
    )
    parser.add_argument(
        "--validation_dataset", metavar="FOLDER", help="labelled images, CLASS/1.jpg, to measure accuracy and speed on"
    )
    parser.add_argument("--max_validation_images", type=int, help="measure on so many of them (default: all)")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that an earlier export has written")
    return parser


if __name__ == "__main__":  # before the imports below, which take seconds: reports a wrong flag at once
    create_parser().parse_args(sys.argv[1:])

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conversion.exporting.checks import measure
from conversion.exporting.folder import check_output, new_folder, new_record, print_leftovers, write_companions
from conversion.exporting.images import MIN_CALIBRATION, calibration_files
from conversion.exporting.models import check_channels, load_subject
from conversion.exporting.precision import check_image_size, check_model, check_precision
from conversion.exporting.quantization import check_float_layers
from conversion.exporting.record import Measured
from conversion.exporting.writing import Pictures, Writer


def main(arguments: list[str] | None = None) -> None:
    """The command line: a bad input ends it with one line and code 2, and nothing is written."""
    parser = create_parser()
    options = vars(parser.parse_args(arguments))
    try:
        export(options.pop("model"), options.pop("output_dir"), **options)
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))


def export(
    model: str,
    output_dir: str | Path,
    *,
    format: str = "onnx",
    dtype: Sequence[str] = ("float32",),
    task: str | None = None,
    image: str | Path | None = None,
    calibration_images: str | Path | None = None,
    num_calibration_images: int = 100,
    float_layers: Sequence[str] | None = None,
    validation_dataset: str | Path | None = None,
    max_validation_images: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Export; the settings are those of the command line. The folder appears whole or not at all.

    Raises:
        ValueError: for a model that cannot be exported, settings that contradict each other, a folder that exists, and
            a file that does not give what the model gives.
        ImportError: if a package of the format is not installed.
    """
    model, output, dtypes = str(model), Path(output_dir), list(dict.fromkeys(dtype))
    inputs = {"the model": model, "`--image`": image, "`--calibration_images`": calibration_images}
    check_output(output, overwrite, {**inputs, "`--validation_dataset`": validation_dataset})
    check_format(format, dtypes)
    check_channels(model, dtypes, validation_dataset)
    _check_settings(dtypes, calibration_images, num_calibration_images, float_layers)
    _check_validation(dtypes, validation_dataset, max_validation_images)
    check_precision(format, dtypes)
    calibration = calibration_files(calibration_images, num_calibration_images) if calibration_images else []
    subject = load_subject(model, task)
    check_model(format, dtypes, subject.model.config.model_type, subject.task, subject.gives_values)
    check_image_size(format, subject)
    kept = list(FORMATS[format].float_layers if float_layers is None else float_layers)
    check_float_layers(subject.model, kept)
    pictures = Pictures.read(subject, image, calibration, validation_dataset, max_validation_images)
    print_leftovers(output)
    with new_folder(output) as folder, tempfile.TemporaryDirectory() as temporary:
        record = new_record(subject, format, pictures.name)
        print(f"{model}: {record.architecture} for {subject.task}, compared on {pictures.name}", flush=True)
        writer = Writer(subject, format, pictures, kept, record)
        # float32 is what int8 is made of, and what accuracy and speed are compared with.
        needed = {*dtypes, *(["float32"] if "int8" in dtypes or pictures.labelled else [])}
        runs = {each: writer.write(each, folder, temporary, each in dtypes) for each in DTYPES if each in needed}
        if pictures.labelled is not None:
            measured = measure(runs, subject, pictures.labelled, pictures.processor)
            record.note_measured(measured, len(pictures.labelled.files))
            _print_measured(measured, len(pictures.labelled.files))
        write_companions(folder, subject, pictures.processor, record)
    print(f"{output}: {', '.join(found.file for found in record.files.values())}")
    return output


def _check_settings(
    dtypes: list[str], calibration_images: Any, num_calibration_images: int, float_layers: Sequence[str] | None
) -> None:
    """Raise for settings of int8 without it, and the other way round."""
    if "int8" in dtypes and calibration_images is None:
        raise ValueError(
            "`--calibration_images` must be given with `--dtype int8`: the ranges of the numbers are taken from them."
        )
    given = {"--calibration_images": calibration_images, "--float_layers": float_layers}
    for flag, value in given.items():
        if value and "int8" not in dtypes:
            raise ValueError(f"`{flag}` must be left out without `--dtype int8`.")
    if num_calibration_images < MIN_CALIBRATION:
        raise ValueError(
            f"`--num_calibration_images` (={num_calibration_images}) must be at least {MIN_CALIBRATION}: one image "
            "does not show the ranges of others."
        )


def _check_validation(dtypes: list[str], validation_dataset: Any, max_validation_images: int | None) -> None:
    """Raise for a measurement of nothing."""
    if validation_dataset is not None and dtypes == ["float32"]:
        raise ValueError(
            "`--validation_dataset` must come with another `--dtype` than float32, whose answers are the model's."
        )
    if max_validation_images is not None and (validation_dataset is None or max_validation_images < 1):
        raise ValueError(
            f"`--max_validation_images` (={max_validation_images}) must be at least 1, with `--validation_dataset`."
        )


def _print_measured(measured: dict[str, Measured], count: int) -> None:
    """Print accuracy and speed of every file beside those of float32."""
    print(f"{count:,} labelled images, in batches, the files taking turns:")
    for dtype, found in measured.items():
        print(
            f"  {dtype}: accuracy {found.accuracy:.1%}, {found.agreement:.1%} of the classes as in float32, "
            f"{1000 * found.seconds:.1f} ms an image, {measured['float32'].seconds / found.seconds:.2f} x as fast"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
