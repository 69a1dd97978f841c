"""Transformers' tests that every model of theirs has to pass, for one set of classes.

`test_upstream_suites.py` runs this file in a pytest of its own. Its environment names the set in `UPSTREAM_SET` and has
the unpacked source distribution on the import path, as the package `tests`.
"""

import os
import sys
import types
import unittest
from typing import Any
from unittest import mock

import torch
import transformers
from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification

import hf_convnextv2

SET = os.environ["UPSTREAM_SET"]


def stand_in(name: str, **contents: Any) -> None:
    """A module that the common tests import and that the source distribution leaves out."""
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(contents)


stand_in("tests.exporters.test_export", ExportTesterMixin=object)
stand_in("tests.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
# Settings that every configuration takes, each with another value than its default.
stand_in(
    "tests.utils.test_configuration_utils",
    config_common_kwargs={
        "return_dict": False,
        "output_hidden_states": True,
        "dtype": "float16",
        "chunk_size_feed_forward": 5,
        "is_encoder_decoder": True,
        "architectures": ["Model"],
        "id2label": {0: "label"},
        "label2id": {"label": "0"},
        "problem_type": "regression",
    },
)

from tests.test_backbone_common import BackboneTesterMixin  # noqa: E402
from tests.test_configuration_common import ConfigTester  # noqa: E402
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor  # noqa: E402


def classes_of(name: str) -> tuple[type, type, tuple[type, ...]]:
    """The configuration that the tests create, the one under test, and the models: the backbone comes last."""
    if name == "stock":
        module = transformers
    elif name == "ours":
        module = hf_convnextv2
    elif name == "registered":
        hf_convnextv2.register()
        given = transformers.ConvNextV2Config
        autos: tuple[Any, ...] = (AutoModel, AutoModelForImageClassification, AutoBackbone)
        return given, type(AutoConfig.for_model("convnextv2")), tuple(auto._model_mapping[given] for auto in autos)
    else:
        given = hf_convnextv2.ConvNextV2FCMAEConfig
        return given, given, (hf_convnextv2.ConvNextV2FCMAEModel, hf_convnextv2.ConvNextV2ForPreTraining)
    names = ("ConvNextV2Model", "ConvNextV2ForImageClassification", "ConvNextV2Backbone")
    return module.ConvNextV2Config, module.ConvNextV2Config, tuple(getattr(module, name) for name in names)


GIVEN_CONFIG, CONFIG, MODELS = classes_of(SET)
SIDE = 64 if SET == "fcmae" else 32  # pixels: four cells to hide some of, or one


class Tester:
    """Configuration and inputs of the size that Transformers' tests of ConvNeXt V2 have."""

    batch_size, num_channels, image_size, num_labels, is_training = 13, 3, SIDE, 10, True
    hidden_sizes, depths = (10, 20, 30, 40), (2, 2, 3, 2)

    def __init__(self, parent: unittest.TestCase):
        self.parent = parent

    def get_config(self) -> Any:
        settings: dict[str, Any] = {"num_labels": self.num_labels, "out_features": ["stage2", "stage3", "stage4"]}
        if SET == "fcmae":
            settings = {"image_size": SIDE, "decoder_hidden_size": 16, "mask_ratio": 0.5}
        return GIVEN_CONFIG(hidden_sizes=list(self.hidden_sizes), depths=list(self.depths), **settings)

    def pixel_values(self) -> torch.Tensor:
        return floats_tensor([self.batch_size, self.num_channels, self.image_size, self.image_size])

    def labels(self) -> torch.Tensor:
        return ids_tensor([self.batch_size], self.num_labels)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        return self.get_config(), {"pixel_values": self.pixel_values()}


class ModelTest(ModelTesterMixin, unittest.TestCase):
    """The tests of all models; what depends on the architecture is told to them here, as upstream does."""

    all_model_classes = MODELS
    test_resize_embeddings = False
    has_attentions = False
    test_can_init_all_missing_weights_before_2023 = True  # ours have no year that upstream could read

    def setUp(self) -> None:
        self.model_tester = Tester(self)

    def _prepare_for_class(self, inputs_dict: Any, model_class: Any, return_labels: bool = False) -> Any:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if model_class.__name__ == "ConvNextV2ForPreTraining":  # else each call would hide other cells
            cells = (self.model_tester.image_size // 32) ** 2
            inputs["noise"] = torch.linspace(0, 1, cells).expand(len(inputs["pixel_values"]), -1)
        return inputs

    def test_config(self) -> None:
        properties = ["hidden_sizes", "num_channels"]
        tester = ConfigTester(
            self, config_class=CONFIG, has_text_modality=False, hidden_size=37, common_properties=properties
        )
        tester.run_common_tests()

    def test_model(self) -> None:
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        result = MODELS[0](config).eval()(**inputs)
        side = self.model_tester.image_size // 32
        assert result.last_hidden_state.shape == (self.model_tester.batch_size, 40, side, side)

    @unittest.skipIf(SET == "fcmae", "no classifier in this set")
    def test_for_image_classification(self) -> None:
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        result = MODELS[1](config).eval()(**inputs, labels=self.model_tester.labels())
        assert result.logits.shape == (self.model_tester.batch_size, self.model_tester.num_labels)
        assert result.loss.shape == ()

    def test_hidden_states_output(self) -> None:
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in MODELS:
            for by_config in (False, True):
                config.output_hidden_states = by_config
                arguments = self._prepare_for_class(inputs, model_class)
                if not by_config:
                    arguments["output_hidden_states"] = True
                maps = model_class(config).eval()(**arguments).hidden_states
                side = self.model_tester.image_size // 4
                assert len(maps) == 5
                assert maps[0].shape[-2:] == (side, side)

    def test_can_capture_specific_layers_hidden_states(self) -> None:
        # Upstream asks classes alone that collect maps by hooks; ours return them, and have to give the same.
        with mock.patch.object(hf_convnextv2.ConvNextV2PreTrainedModel, "_can_record_outputs", {"hidden_states": None}):
            super().test_can_capture_specific_layers_hidden_states()

    def test_training(self) -> None:
        with self.models_with_a_loss():
            super().test_training()

    def check_training_gradient_checkpointing(self, gradient_checkpointing_kwargs: Any = None) -> None:
        with self.models_with_a_loss():
            super().check_training_gradient_checkpointing(gradient_checkpointing_kwargs)

    def models_with_a_loss(self) -> Any:
        """Upstream knows the encoders that have none by their names; the one of FCMAE is not among them."""
        models = tuple(m for m in MODELS if m is not hf_convnextv2.ConvNextV2FCMAEModel)
        return mock.patch.object(self, "all_model_classes", models)

    @unittest.skip("ConvNeXt V2 has no inputs_embeds")
    def test_inputs_embeds(self) -> None: ...

    @unittest.skip("ConvNeXt V2 has no input and output embeddings")
    def test_model_get_set_embeddings(self) -> None: ...

    @unittest.skip("ConvNeXt V2 has no feed-forward chunking")
    def test_feed_forward_chunking(self) -> None: ...


if SET != "fcmae":

    class BackboneTest(BackboneTesterMixin, unittest.TestCase):
        all_model_classes = MODELS[-1:]
        config_class = CONFIG
        has_attentions = False

        def setUp(self) -> None:
            self.model_tester = Tester(self)


# The names imported for their tests are no tests of this file.
del BackboneTesterMixin, ModelTesterMixin
