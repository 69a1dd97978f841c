"""The table of the official checkpoints, and downloading one of them."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
import yaml
from httpx2 import HTTPError
from huggingface_hub.file_download import http_get

from conversion.files import atomic_path, sha256

TABLE = Path(__file__).parent / "checkpoints.yaml"


@dataclass(frozen=True)
class Checkpoint:
    """One official file, its namesakes elsewhere and the accuracies that others have measured with it."""

    name: str
    url: str
    license: str
    size: str
    image_size: int
    training: str  # fcmae, fcmae-ft-in1k or fcmae-ft-in22k-in1k
    timm: str
    transformers: str | None = None
    accuracy: dict[str, list[float]] = field(default_factory=dict)  # by source: top-1 and perhaps top-5, in %


@cache
def checkpoint_table() -> dict[str, Checkpoint]:
    """All official checkpoints by their file's name without its ending."""
    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    checkpoints = {}
    for name, row in table["checkpoints"].items():
        url = table["base_url"] + row.pop("file")
        checkpoints[name] = Checkpoint(name=name, url=url, license=table["license"], **row)
    return checkpoints


def find_file(name: str) -> Checkpoint | None:
    """The checkpoint of that name, or whose file has it."""
    return checkpoint_table().get(Path(name).name.removesuffix(".pt"))


def find_repository(hub_id: str) -> Checkpoint | None:
    """The checkpoint that a repository of Transformers' or timm's weights holds."""
    rows = checkpoint_table().values()
    return next((row for row in rows if hub_id in (row.transformers, row.timm)), None)


def list_checkpoints() -> str:
    """The table as text, a line a checkpoint."""
    columns = f"{'name':32} {'pixels':>6}  {'training':20} {'top-1':>6} {'top-5':>6}  {'timm':45} transformers"
    lines = [columns]
    for c in checkpoint_table().values():
        accuracy = [f"{value:6.2f}" for value in c.accuracy.get("timm", [])] or ["     -"] * 2
        ids = f"{c.timm:45} {c.transformers or '-'}"
        lines.append(f"{c.name:32} {c.image_size:6}  {c.training:20} {' '.join(accuracy)}  {ids}")
    first = next(iter(checkpoint_table().values()))
    lines.append(
        f"\nAccuracy in % on ImageNet-1k validation as timm measured it. Licence: {first.license}, non-commercial."
    )
    lines.append("Files: " + first.url.rsplit("/", 2)[0] + "/{pt_only,im1k,im22k}/NAME.pt")
    return "\n".join(lines)


def download(checkpoint: Checkpoint, folder: Path | None = None) -> Path:
    """The official file in a folder (default: torch.hub's), downloaded once, with a progress bar.

    Its SHA-256 is remembered beside it: a file that has changed since is an error, a half-downloaded one never appears.
    """
    folder = folder or Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / checkpoint.url.rsplit("/", 1)[-1]
    remembered = file.with_name(file.name + ".sha256")
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_path(file) as partial:
                with partial.open("wb") as target:
                    http_get(checkpoint.url, target, displayed_filename=file.name)
                remembered.write_text(sha256(partial) + "\n", encoding="utf-8")
        except (HTTPError, OSError) as error:
            raise ValueError(f"{checkpoint.url} could not be downloaded: {error}") from error
    digest = sha256(file)
    if not remembered.exists():
        remembered.write_text(digest + "\n", encoding="utf-8")
    if remembered.read_text(encoding="utf-8").strip() != digest:
        raise ValueError(
            f"{file} has changed since it was downloaded: its SHA-256 is not the one in {remembered.name}. "
            "Delete both to download it again."
        )
    return file
