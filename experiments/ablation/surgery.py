"""GRN taken out of a pre-trained model, or put into one, before fine-tuning (paper, Table 2f)."""

import shutil
from pathlib import Path
from typing import Any

from conversion.files import atomic_path
from hf_convnextv2 import ConvNextV2ForPreTraining
from hf_convnextv2.grn import ConvNextV2GRN
from hf_convnextv2.layers import ConvNextV2Layer


def drop_grn(model: Any) -> None:
    """Take GRN out of every block; nothing takes its place."""
    model.config.use_grn = False
    for block in blocks_of(model):
        block.grn = None


def add_grn(model: Any) -> None:
    """Put a GRN that is still the identity into every block; LayerScale, which pre-training has learned, stays."""
    model.config.use_grn = True
    for block in blocks_of(model):
        block.grn = ConvNextV2GRN(block.pwconv1.out_features)


def blocks_of(model: Any) -> list[ConvNextV2Layer]:
    """All blocks, the decoder's too."""
    return [module for module in model.modules() if isinstance(module, ConvNextV2Layer)]


CHANGES = {"drop": drop_grn, "add": add_grn}


def write_changed(pretrained: Path, change: str, folder: Path) -> Path:
    """The model of a folder, changed, in another folder, unless that is there."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        model = ConvNextV2ForPreTraining.from_pretrained(pretrained)
        CHANGES[change](model)
        with atomic_path(folder) as partial:
            model.save_pretrained(partial)
            shutil.copy(pretrained / "preprocessor_config.json", partial)
    return folder
