"""Writing what a run leaves behind, to a disk that may be full."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say which file or folder could not be written, as an `OSError`, and how to go on."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error) and "Writer" not in str(error):
            raise  # not of torch.save: a worker that dies is said whatever its process is doing
        raise OSError(
            f"{path} cannot be written: {error}. Checkpoints that are there are whole: make room for it, then resume "
            "with `--resume_from_checkpoint latest`."
        ) from error
