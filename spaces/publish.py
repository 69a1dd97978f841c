"""Publish the page as a Space of the Hub: one commit with page, settings, README and the models that lie in folders.

python -m spaces.publish --repo_id me/demo --classifier me/name --pretrained me/pretrained
python -m spaces.publish --repo_id me/demo --classifier out/classifier --pretrained out/pretrain  # it carries both
python -m spaces.publish --repo_id me/demo --classifier out/classifier --dry_run  # only lists files, shows README.md
"""

import sys

from conversion.command_line import Parser
from conversion.publishing.upload_flags import add_upload_flags
from spaces.settings import DEFAULT_TITLE


def create_parser() -> Parser:
    """The parser of the command line."""
    parser = Parser("python -m spaces.publish", __doc__)
    parser.add_argument("--repo_id", required=True, help="the Space on the Hub, e.g. me/demo")
    parser.add_argument("--classifier", help="classifier: a folder, whose files the Space gets, or a Hub id")
    parser.add_argument("--pretrained", help="pre-trained model with its decoder: a folder or a Hub id")
    parser.add_argument("--title", default=DEFAULT_TITLE, help=f"title of the page (default: {DEFAULT_TITLE})")
    parser.add_argument("--examples", metavar="FOLDER", help="pictures that a visitor can choose; the Space gets them")
    add_upload_flags(parser, "Space", "files")
    parser.add_argument("--license", help="licence of the Space (default: of the weights in it, else apache-2.0)")
    parser.add_argument("--dry_run", action="store_true", help="list the files and show README.md, upload nothing")
    return parser


if __name__ == "__main__":  # before the imports below, which take seconds: reports a wrong flag at once
    create_parser().parse_args(sys.argv[1:])

import tempfile
from pathlib import Path
from typing import Any

from conversion.model_folder import CARD
from conversion.publishing.hub import Hub
from conversion.publishing.hub_ids import check_repo_id
from conversion.publishing.licenses import UNKNOWN
from spaces.publishing.contents import SpaceContents, check_contents
from spaces.publishing.staging import CODE, is_ours, stage_space


def main(arguments: list[str] | None = None) -> None:
    """The command line: what cannot be published ends it with one line and code 2."""
    parser = create_parser()
    options = vars(parser.parse_args(arguments))
    contents = SpaceContents(**{name: options.pop(name) for name in SpaceContents.__dataclass_fields__})
    try:
        publish(options.pop("repo_id"), contents, **options)
    except (ValueError, OSError) as error:
        parser.error(str(error))


def publish(
    repo_id: str,
    contents: SpaceContents,
    *,
    commit_message: str | None = None,
    dry_run: bool = False,
    **settings: Any,
) -> str | None:
    """Upload the Space in one commit.

    Args:
        settings: `private`, `exist_ok`, `create_pr` and `revision`, as of `Hub`.

    Returns:
        The address of the commit or pull request; of a dry run, None.

    Raises:
        ValueError: for contents that are not complete, a missing or wrong token, a Space that is taken or not yours,
            a model that is not on the Hub, and a connection that breaks for good.
    """
    check_repo_id(repo_id)
    check_contents(contents)
    hub = None if dry_run else Hub(repo_type="space", is_ours=is_ours, **settings)
    repo_id = hub.full_name(repo_id) if hub is not None else repo_id
    with tempfile.TemporaryDirectory(prefix="publish-") as temporary:
        staged = stage_space(Path(temporary) / "space", contents)
        _print_plan(repo_id, staged, contents)
        if hub is None:
            print((staged / CARD).read_text(encoding="utf-8"))
            return None
        return _upload(hub, repo_id, staged, contents, commit_message)


def _print_plan(repo_id: str, staged: Path, contents: SpaceContents) -> None:
    """Print what the Space is to hold, with sizes in bytes; the code as two sums."""
    print(f"{repo_id}:")
    for folder in CODE.values():
        files = list((staged / folder).iterdir())
        print(f"  {sum(file.stat().st_size for file in files):13,}  {folder}/, {len(files)} files of code")
    for file in sorted(path for path in staged.rglob("*") if path.is_file()):
        name = file.relative_to(staged)
        if name.parts[0] not in CODE.values():
            print(f"  {file.stat().st_size:13,}  {name.as_posix()}")
    for name in contents.hub_ids:
        print(f"  Loaded from the Hub: {name}")
    if contents.settled_license == UNKNOWN:
        print("  Nobody has stated the licence of the weights, and README.md says so: `--license` states it.")


def _upload(hub: Hub, repo_id: str, staged: Path, contents: SpaceContents, message: str | None) -> str:
    """Upload the files after Space and models have been looked up."""
    hub.check(repo_id)
    private = [name for name in contents.hub_ids if hub.is_private_model(name)]
    address = hub.upload(staged, repo_id, message or "Upload page")
    print(f"Published: {address}")
    for name in private:
        print(f"{name} is private: give the Space a token that may read it, as the secret HF_TOKEN in its settings.")
    return address


if __name__ == "__main__":
    main(sys.argv[1:])
