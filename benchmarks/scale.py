"""What limits 8, 64 and 512 GPUs, as far as one machine can measure it: loader, readers, shuffling and checkpoints.

    python -m benchmarks.scale
    python -m benchmarks.scale --parts checkpoints --sizes tiny base --folder path/to/disk

With `--output`, the parts of an earlier file that are not measured now are kept. `python -m benchmarks.pages`
writes these figures, and those that are computed, into docs/scale.md.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.at_scale.agreeing import measure_messages
from benchmarks.at_scale.loading import measure
from benchmarks.at_scale.remote import count_requests
from benchmarks.at_scale.resuming import resume_many
from benchmarks.at_scale.saving import measure_files, measure_size
from benchmarks.at_scale.shuffling import compare
from benchmarks.shared.measure import Row, apart, describe_machine, parse_arguments, print_rows

Parts = dict[str, list[Row]]


def main() -> None:
    args = parse_arguments(
        str(__doc__),
        parts=["loader", "requests", "readers", "messages", "shuffling", "checkpoints"],
        sizes=["tiny", "base", "large", "huge"],
        readers=64,
        shards=[64, 100, 24],
        images=40,
        gpus=[8, 64, 512],
        processes=[8, 64, 512],
        seconds=10.0,
        folder="",
    )
    found: Parts = {}
    for part in args.parts:
        with tempfile.TemporaryDirectory(dir=args.folder or None) as folder:
            found |= PARTS[part](Path(folder), args)
    print("\n" + ", ".join(describe_machine().values()))
    for part, rows in found.items():
        print(f"\n{part}\n")
        print_rows(rows)
    if args.output:
        write(Path(args.output), found)


def loader(folder: Path, args: Any) -> Parts:
    return measure(folder, 8, 500, args.seconds)


def requests(folder: Path, args: Any) -> Parts:
    return {"requests": count_requests(folder, 500)}


def readers(folder: Path, args: Any) -> Parts:
    return {"readers": [resume_many(folder, args.readers, shards, args.images) for shards in args.shards]}


def messages(folder: Path, args: Any) -> Parts:
    return {"messages": measure_messages([2, 4, 8, 16, 32], 30)}


def shuffling(folder: Path, args: Any) -> Parts:
    cases = [(gpus, shards, 1000) for gpus in args.gpus for shards in (1024, 8192)] + [(args.gpus[0], 8192, 10_000)]
    return {"shuffling": compare(cases, 1_281_167, 16, 4096, 16)}


def checkpoints(folder: Path, args: Any) -> Parts:
    rows = []
    for size in args.sizes:
        rows.append(apart(measure_size, size, str(folder / size)))
        print(rows[-1], flush=True)
    small = [apart(measure_files, count, str(folder / str(count))) for count in args.processes]
    return {"checkpoints": rows, "files": small}


PARTS: dict[str, Callable[[Path, Any], Parts]] = {
    "loader": loader,
    "requests": requests,
    "readers": readers,
    "messages": messages,
    "shuffling": shuffling,
    "checkpoints": checkpoints,
}


def write(path: Path, found: Parts) -> None:
    """Write the rows of each part, with the machine that they were measured on."""
    parts = json.loads(path.read_text())["parts"] if path.is_file() else {}
    machine = describe_machine()
    parts |= {part: {"machine": machine, "rows": rows} for part, rows in found.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"parts": parts}, indent=2) + "\n")


if __name__ == "__main__":
    main()
