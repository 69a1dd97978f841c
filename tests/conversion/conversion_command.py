"""The command `conversion.convert` in a test, and the files that it writes."""

from conversion import convert

FILES = {"README.md", "config.json", "conversion.json", "model.safetensors", "preprocessor_config.json"}


def run(*arguments: object, capsys) -> tuple[int, str]:
    """Exit code and what was printed of the command line."""
    code = 0
    try:
        convert.main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = int(end.code or 0)
    printed = capsys.readouterr()
    return code, printed.out + printed.err
