"""The flags of an upload to the Hub, of models and of Spaces alike."""

from conversion.command_line import Parser


def add_upload_flags(parser: Parser, repository: str, held: str) -> None:
    """Add the settings of `Hub` and the commit's message.

    Args:
        repository: what is uploaded to, as texts call it.
        held: what such a repository may already hold.
    """
    parser.add_argument("--private", action="store_true", help=f"make a new {repository} a private one")
    parser.add_argument("--exist_ok", action="store_true", help=f"commit to a {repository} that already holds {held}")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--revision", help="branch to commit to, made if it is not there (default: main)")
    parser.add_argument("--commit_message", help="message of the commit")
