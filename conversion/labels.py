"""The names of a classifier's classes: from a file, as stored beside the checkpoint, or ImageNet's."""

import json
from pathlib import Path

from conversion.checkpoint_reader import StoredCheckpoint

IMAGENET_CLASSES = 1000


def read_id2label(source: StoredCheckpoint, num_labels: int, labels: Path | None) -> tuple[dict[int, str] | None, str]:
    """Names of the classes by number, and where they are from; None: as the configuration has them.

    Raises:
        ValueError: if a file of labels does not name as many classes as the head has.
    """
    if labels is not None:
        names = _read_labels(labels)
        if sorted(names) != list(range(num_labels)):
            raise ValueError(f"`--labels` (={labels}, {len(names)} names) must name the head's {num_labels} classes.")
        return names, f"from {labels.name}"
    stored: dict[str, str] = source.config.get("id2label") or {}
    if stored and not all(name == f"LABEL_{number}" for number, name in stored.items()):
        return None, "as stored"
    settings = source.timm_settings
    listed = settings.get("label_names")
    if listed and len(listed) == num_labels:
        descriptions = settings.get("label_descriptions") or {}
        return {i: descriptions.get(name, name) for i, name in enumerate(listed)}, "as stored"
    if num_labels == IMAGENET_CLASSES:
        from timm.data.imagenet_info import ImageNetInfo

        info = ImageNetInfo("imagenet-1k")
        return {i: info.index_to_description(i) for i in range(num_labels)}, "ImageNet-1k's, as there are 1,000"
    return None, "numbered: the source does not name them (see --labels)"


def _read_labels(file: Path) -> dict[int, str]:
    """JSON (a list, or numbers to names) or one name a line."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"`--labels` (={file}) must be a text file: {error}") from error
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        found = json.loads(text) if file.suffix == ".json" else lines
        pairs = found.items() if isinstance(found, dict) else enumerate(found)
        return {int(number): str(name).strip() for number, name in pairs if str(name).strip()}
    except (ValueError, TypeError) as error:
        raise ValueError(f"`--labels` (={file}) must be a list of names or map numbers to names: {error}") from error
