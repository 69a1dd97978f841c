"""Publish a trained or converted model: one commit with weights, configuration, image processor, pictures and card.

python -m conversion.publish out/classifier --repo_id me/name
python -m conversion.publish out/classifier --repo_id me/name --with_onnx out/onnx
python -m conversion.publish out/pretrain --repo_id me/name --with_code   # and its encoder as me/name-encoder
python -m conversion.publish out/classifier --repo_id me/name --dry_run   # only write the card and list the files
"""

import sys

from conversion.command_line import Parser
from conversion.publishing.upload_flags import add_upload_flags


def create_parser() -> Parser:
    """The parser of the command line."""
    parser = Parser("python -m conversion.publish", __doc__)
    parser.add_argument("folder", help="a folder of a model: a training run's output_dir or a conversion's")
    parser.add_argument("--repo_id", required=True, help="repository on the Hub, e.g. me/name")
    add_upload_flags(parser, "repository", "a model")
    parser.add_argument("--license", help="licence of the weights (default: as the folder's card says)")
    parser.add_argument(
        "--with_onnx", metavar="FOLDER", help="put the ONNX files beside it that `conversion.export` wrote to a folder"
    )
    parser.add_argument("--with_code", action="store_true", help="put the code of a pre-training model beside it")
    parser.add_argument(
        "--encoder_repo_id", help="repository of a pre-training model's encoder (default: NAME-encoder)"
    )
    parser.add_argument("--skip_encoder", action="store_true", help="do not publish a pre-training model's encoder")
    parser.add_argument("--dry_run", action="store_true", help="write the card, list the files, upload nothing")
    return parser


if __name__ == "__main__":  # before the imports below, which take seconds: reports a wrong flag at once
    create_parser().parse_args(sys.argv[1:])

import tempfile
from collections.abc import Callable
from pathlib import Path

from conversion.families import CONVNEXTV2, PRETRAINING
from conversion.files import write_text
from conversion.model_folder import CARD
from conversion.publishing.hub import Hub
from conversion.publishing.hub_ids import check_repo_id
from conversion.publishing.licenses import UNKNOWN, read_license
from conversion.publishing.onnx_files import check_onnx
from conversion.publishing.publication import Publication
from conversion.publishing.staging import check_folder, stage, stage_encoder


def main(arguments: list[str] | None = None) -> None:
    """The command line: what cannot be published ends it with one line and code 2."""
    parser = create_parser()
    options = vars(parser.parse_args(arguments))
    try:
        publish(options.pop("folder"), options.pop("repo_id"), **options)
    except (ValueError, OSError) as error:
        parser.error(str(error))


def publish(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    exist_ok: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
    license: str | None = None,
    with_code: bool = False,
    with_onnx: str | Path | None = None,
    encoder_repo_id: str | None = None,
    skip_encoder: bool = False,
    dry_run: bool = False,
) -> list[str]:
    """Upload a folder that `from_pretrained` loads, and a pre-training model's encoder to a repository of its own.

    Returns:
        The address of each commit or pull request; of a dry run, nothing.

    Raises:
        ValueError: for a folder that is not complete, a missing or wrong token, a repository that is taken or not
            yours, and a connection that breaks for good. Each upload is one commit: it happens whole or not at all.
    """
    folder = Path(folder)
    kind = check_folder(folder)
    check_repo_id(repo_id)
    _check_options(kind, with_code, encoder_repo_id, skip_encoder)
    onnx = None if with_onnx is None else Path(with_onnx)
    if onnx is not None:
        check_onnx(onnx, folder, kind)
    hub = None if dry_run else Hub(create_pr=create_pr, revision=revision, private=private, exist_ok=exist_ok)
    full_name = hub.full_name if hub is not None else str
    repo_id = full_name(repo_id)
    encoder_id = None
    if kind == CONVNEXTV2.pretraining and not skip_encoder:
        encoder_id = _encoder_id(repo_id, encoder_repo_id, create_pr, full_name)
    if encoder_id == repo_id:
        raise ValueError(f"`--encoder_repo_id` (={encoder_id}) must be another repository than `--repo_id`.")
    publication = Publication(repo_id, encoder_id, license, with_code, onnx)
    with tempfile.TemporaryDirectory(prefix="publish-") as temporary:
        staged = _stage(folder, Path(temporary), publication)
        card = staged[repo_id] / CARD
        _print_plan(staged, card)
        if hub is not None:
            return _upload(hub, staged, commit_message)
        _write_card(folder / CARD, card.read_text(encoding="utf-8"))
    return []


def _check_options(kind: str, with_code: bool, encoder_repo_id: str | None, skip_encoder: bool) -> None:
    """Raise for what is for pre-training models, but given for another kind of model."""
    is_fcmae = kind == CONVNEXTV2.pretraining
    if with_code and kind not in PRETRAINING:
        told = (
            "an R-CNN and a ConvMAE always take their code along, and stock Transformers has that of all other models"
        )
        raise ValueError(f"`--with_code` is for pre-training models, not for a {kind}: {told}.")
    if skip_encoder and not is_fcmae:
        raise ValueError(f"`--skip_encoder` must be left out for a {kind}: it is published alone.")
    if encoder_repo_id is not None and (not is_fcmae or skip_encoder):
        raise ValueError(f"`--encoder_repo_id` (={encoder_repo_id}) must be given for a pre-training model only.")


def _encoder_id(
    repo_id: str, encoder_repo_id: str | None, create_pr: bool, full_name: Callable[[str], str]
) -> str | None:
    """The repository of a pre-training model's encoder, if it is published."""
    # With a pull request there is no repository yet to which the encoder could be proposed, unless it is named.
    if encoder_repo_id is None and create_pr:
        return None
    return full_name(encoder_repo_id or f"{repo_id}-encoder")


def _stage(folder: Path, temporary: Path, publication: Publication) -> dict[str, Path]:
    """The folder of what each repository is to hold: the model's, and that of its encoder if it has one."""
    assert publication.repo_id is not None
    staged = {publication.repo_id: stage(folder, temporary / "model", publication)}
    encoder_id = publication.companion
    if encoder_id is not None:
        staged[encoder_id] = stage_encoder(folder, temporary / "encoder", encoder_id, publication)
    return staged


def _print_plan(staged: dict[str, Path], card: Path) -> None:
    """Print what each repository is to hold, with sizes in bytes, and whether the model has no licence."""
    for name, files in staged.items():
        print(f"{name}:")
        for file in sorted(path for path in files.rglob("*") if path.is_file()):
            print(f"  {file.stat().st_size:13,}  {file.relative_to(files).as_posix()}")
    if read_license(card) == UNKNOWN:
        print("  Nobody has stated a licence, and the card says so: `--license` states it.")


def _write_card(file: Path, text: str) -> None:
    write_text(file, text)
    print(f"Card: {file}")


def _upload(hub: Hub, staged: dict[str, Path], commit_message: str | None) -> list[str]:
    """Upload each folder to its repository, after every repository has been checked."""
    for name, files in staged.items():
        weights = files / "model.safetensors"
        hub.check(name, weights if weights.is_file() else None)
    addresses = [hub.upload(files, name, commit_message) for name, files in staged.items()]
    for address in addresses:
        print(f"Published: {address}")
    return addresses


if __name__ == "__main__":
    main(sys.argv[1:])
