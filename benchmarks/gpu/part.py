"""One part of the GPU's benchmarks, in a process of its own: `python -m benchmarks.gpu.part NAME ROWS SECONDS ...`."""

import sys
from importlib import import_module
from pathlib import Path

from benchmarks.gpu.rows import Rows
from benchmarks.gpu.settings import create_parser


def main(arguments: list[str]) -> None:
    name, path, seconds, *flags = arguments
    settings = create_parser(str(__doc__)).parse_args(flags)
    rows = Rows(Path(path), float(seconds))  # before the imports below, which take seconds
    import_module(f"benchmarks.gpu.{name}").run(settings, rows)


if __name__ == "__main__":
    main(sys.argv[1:])
