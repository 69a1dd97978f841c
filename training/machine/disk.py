"""Writes the files of a run, with clear errors when the disk is full."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

PROBE = bytes(1 << 20)


@contextmanager
def writing(path: Path, partial: Path | None = None) -> Iterator[None]:
    """Turn a failure to write `path` into an `OSError` that names the path, gives the reason and says how to go on.

    `partial` is the folder that the files are written to first. `torch.save` raises a `RuntimeError` without the
    system's reason for every failure, and a data loader worker that dies meanwhile raises one too. A test write to the
    disk tells the two apart.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise cannot_write(path, error) from error
    except RuntimeError as error:
        refusal = refusal_of(path, partial)
        if refusal is None:
            raise
        raise cannot_write(path, refusal) from error


def cannot_write(path: Path, error: Exception) -> OSError:
    return OSError(
        f"{path} cannot be written: {error}. Checkpoints that are there are whole: make room for it, then resume "
        "with `--resume_from_checkpoint latest`."
    )


def refusal_of(path: Path, partial: Path | None) -> OSError | None:
    """The error of a test write to the newest file in `partial` and to a new file next to `path`; None if both work."""
    files = [file for file in partial.rglob("*") if file.is_file()] if partial is not None else []
    last = sorted(files, key=lambda file: file.stat().st_mtime_ns)[-1:]
    probe = path.parent / ".probe"
    try:
        for file in (*last, probe):
            with file.open("ab") as stream:
                size = stream.tell()
                try:
                    stream.write(PROBE)
                    stream.flush()
                    os.fsync(stream.fileno())
                finally:
                    os.ftruncate(stream.fileno(), size)
    except OSError as error:
        return error
    finally:
        probe.unlink(missing_ok=True)
    return None
