"""Writing what a run leaves behind, to a disk that may be full."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

PROBE = bytes(1 << 20)


@contextmanager
def writing(path: Path, partial: Path | None = None) -> Iterator[None]:
    """Say which file or folder could not be written, as an `OSError`, and how to go on.

    `partial` is the folder that it is written into first. `torch.save` gives every failure as a `RuntimeError`, without
    the system's reason; so does a data loader worker that dies meanwhile. The disk itself is asked which it was.
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
    """Why the system writes no more to the last file of `partial`, or no new one beside `path`; None if it does."""
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
