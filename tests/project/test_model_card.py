"""The package's own card: valid front matter, and a size table equal to what the models are."""

import re
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import metadata_load
from torch.utils.flop_counter import FlopCounterMode

from hf_convnextv2 import (
    ConvMAEConfig,
    ConvMAEForImageClassification,
    ConvMAEForPreTraining,
    ConvNextV2Config,
    ConvNextV2FCMAEConfig,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
)
from hf_convnextv2.configuration_convmae import CONVMAE_SIZES
from hf_convnextv2.configuration_convnextv2 import SIZES

CARD = Path(__file__).parents[2] / "MODEL_CARD.md"


def rows() -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for line in CARD.read_text().splitlines()]


def table() -> dict[str, list[str]]:
    return {row[0]: row for row in rows() if row[0] in SIZES}


def test_every_size_is_listed():
    assert list(table()) == list(SIZES)


@pytest.mark.parametrize("size", SIZES)
def test_size_table_equals_the_models(size):
    _, depths, widths, classifier, fcmae, gmacs, *_ = table()[size]
    config = ConvNextV2Config.from_size(size, num_labels=1000)
    assert (depths, widths) == (str(config.depths)[1:-1], str(config.hidden_sizes)[1:-1])
    with torch.device("meta"):
        model = ConvNextV2ForImageClassification(config)
        pretraining = ConvNextV2ForPreTraining(ConvNextV2FCMAEConfig.from_size(size))
        # Stock's class: the operations of the architecture, not of our way to compute it.
        stock = transformers.ConvNextV2ForImageClassification(config).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            stock(torch.empty(1, 3, 224, 224))
    assert classifier == f"{model.num_parameters():,}" and fcmae == f"{pretraining.num_parameters():,}"
    assert gmacs == f"{counter.get_total_flops() / 2e9:.2f}"  # a multiply-accumulate is two operations


@pytest.mark.parametrize("size", CONVMAE_SIZES)
def test_the_table_of_convmae_equals_the_models(size):
    (row,) = (row for row in rows() if row[0] == f"ConvMAE {size}")
    config = ConvMAEConfig.from_size(size, num_labels=1000)
    with torch.device("meta"):
        model, pretraining = ConvMAEForImageClassification(config).eval(), ConvMAEForPreTraining(config)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, 3, 224, 224))
    stored = sum(tensor.numel() for tensor in pretraining.state_dict().values())
    numbers = [f"{model.num_parameters():,}", f"{stored:,}", f"{counter.get_total_flops() / 2e9:.2f}"]
    assert row[1:6] == [str(config.depths)[1:-1], str(config.hidden_sizes)[1:-1], *numbers]


def test_front_matter_is_valid():
    metadata = metadata_load(CARD)
    assert metadata is not None and metadata["license"] == "apache-2.0" and metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] in metadata["tags"]
    assert not re.search("TODO|More Information Needed", CARD.read_text())
