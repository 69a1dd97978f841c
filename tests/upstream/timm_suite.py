"""timm's tests that every model of theirs has to pass, for one set of classes behind timm's interface.

`test_upstream_suites.py` runs this file in a pytest of its own. Its environment names the set in `UPSTREAM_SET` and has
the unpacked source distribution on the import path, as the package `tests`.
"""

import os
import sys
import types
from typing import Any

import pytest
import transformers
from timm.layers import get_device_dtype
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

import hf_convnextv2
from tests import test_models

SET = os.environ["UPSTREAM_SET"]
SETTINGS: dict[str, Any] = {"hidden_sizes": [40, 80, 160, 320], "depths": [2, 2, 6, 2]}  # atto
# timm's tests that take the name of a model and ask for nothing that a ConvNeXt V2 of Transformers does not have.
TESTS = (
    "test_model_forward",
    "test_model_backward",
    "test_model_default_cfgs",
    "test_model_forward_torchscript",
    "test_model_forward_features",
    "test_model_forward_intermediates",
    "test_model_forward_intermediates_features",
    "test_features_only_grad_checkpointing_backward",
    "test_model_forward_fx",
    "test_model_backward_fx",
    "test_model_forward_fx_torchscript",
)


def create_classifier(num_labels: int, num_channels: int) -> Any:
    """A classifier of the set; its configuration is stock's in all sets but `ours`."""
    if SET == "ours":
        module: Any = hf_convnextv2
        create: Any = hf_convnextv2.ConvNextV2ForImageClassification
    else:
        module, create = transformers, transformers.ConvNextV2ForImageClassification
    if SET == "registered":
        hf_convnextv2.register()
        create = transformers.AutoModelForImageClassification.from_config
    return create(module.ConvNextV2Config(num_labels=num_labels, num_channels=num_channels, **SETTINGS))


class TimmModel(nn.Module):
    """A classifier of Transformers with the methods and attributes that timm's models have."""

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, global_pool: str = "avg", **dd: Any):
        super().__init__()
        if set(dd) - {"device", "dtype"}:
            raise TypeError(f"no such arguments: {sorted(set(dd) - {'device', 'dtype'})}")
        self.model = create_classifier(num_classes, in_chans).to(**dd)
        self.num_classes, self.in_chans, self.global_pool = num_classes, in_chans, global_pool
        self.num_features = self.head_hidden_size = SETTINGS["hidden_sizes"][-1]
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**i, "module": f"model.convnextv2.encoder.stages.{i}"}
            for i, width in enumerate(SETTINGS["hidden_sizes"])
        ]

    def forward_features(self, x: Tensor) -> Tensor:
        return self.model.convnextv2(x).last_hidden_state

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if not self.global_pool:
            return x
        pooled = self.model.convnextv2.layernorm(x.mean([-2, -1]))
        return pooled if pre_logits else self.model.classifier(pooled)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self, x: Tensor, indices: Any = None, intermediates_only: bool = False, output_fmt: str = "NCHW", **_: Any
    ) -> Any:
        taken, _ = feature_take_indices(len(self.feature_info), indices)
        outputs = self.model.convnextv2(x, output_hidden_states=True)
        intermediates = [outputs.hidden_states[1 + i] for i in taken]
        return intermediates if intermediates_only else (outputs.last_hidden_state, intermediates)

    def prune_intermediate_layers(self, indices: Any = 1, prune_norm: bool = False, prune_head: bool = True) -> Any:
        self.reset_classifier(0, "")
        return feature_take_indices(len(self.feature_info), indices)[0]

    def get_classifier(self) -> nn.Module:
        return self.model.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        dd = get_device_dtype(self)
        head = nn.Linear(self.num_features, num_classes, **dd) if num_classes else nn.Identity()
        self.model.classifier = head.train(self.training)
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.model.activation_checkpointing_enable() if enable else self.model.activation_checkpointing_disable()

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return {"stem": r"^model\.convnextv2\.embeddings", "blocks": r"^model\.convnextv2\.encoder\.stages\.(\d+)"}


def hf_convnextv2_atto(pretrained: bool = False, **arguments: Any) -> Any:
    """The model under the name by which timm's tests create it."""
    features = {"out_indices": (0, 1, 2, 3), "feature_cls": "hook"}
    return build_model_with_cfg(TimmModel, "hf_convnextv2_atto", pretrained, feature_cfg=features, **arguments)


# timm looks for the settings of a model in the module that defines it.
default_cfgs = generate_default_cfgs(
    {
        "hf_convnextv2_atto": {
            **{"input_size": (3, 224, 224), "pool_size": (7, 7), "num_classes": 1000, "crop_pct": 0.875},
            **{"first_conv": "model.convnextv2.embeddings.patch_embeddings", "classifier": "model.classifier"},
        }
    }
)
register_model(hf_convnextv2_atto)


def pointed_at(name: str, test: Any) -> Any:
    """timm's test of this one model, with the other settings that it is run with."""
    pointed = types.FunctionType(test.__code__, test.__globals__, test.__name__)
    for mark in test.pytestmark:
        if mark.name == "parametrize":
            values = [name] if mark.args[0] == "model_name" else mark.args[1]
            pointed = pytest.mark.parametrize(mark.args[0], values)(pointed)
    return pointed


cfg_device = test_models.cfg_device
for name in TESTS:
    model_name = "convnextv2_atto" if SET == "timm" else "hf_convnextv2_atto"
    setattr(sys.modules[__name__], name, pointed_at(model_name, getattr(test_models, name)))
