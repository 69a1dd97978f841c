"""The code blocks of the README and of docs/, and stand-ins for the names in them that a test has no network for."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from hf_convnextv2 import (
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    ConvNextV2ForPreTraining,
    create_image_processor,
)
from tests.small_models import small_fcmae_config
from training.models.detection import create_detection_processor, create_detector
from training.models.segmentation import create_segmentation_processor, create_segmenter
from training.settings.model import DetectorSettings, SegmenterSettings

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *(ROOT / name for name in ("MODEL_CARD.md", "CONTRIBUTING.md")), *sorted(ROOT.glob("docs/*.md"))]
OFFICIAL = ("facebook/convnextv2-atto-1k-224", "facebook/convnextv2-tiny-1k-224")


class Block(NamedTuple):
    """A fenced block, and the heading it stands under."""

    heading: str
    language: str
    text: str


def blocks(file: Path) -> list[Block]:
    """All fenced blocks of a page, in its order."""
    found, heading = [], ""
    for title, language, text in re.findall(r"^#+ ([^\n]+)$|^```(\w*)\n(.*?)^```$", file.read_text(), re.M | re.S):
        heading = title or heading
        if not title:
            found.append(Block(heading, language, text))
    return found


def commands(file: Path) -> list[str]:
    """The commands of a page's shell blocks, without comments, on one line each, with the page's variables put in."""
    texts = [block.text.replace("\\\n", " ") for block in blocks(file) if block.language == "bash"]
    found, variables = [], dict[str, list[str]]()
    for words in (shlex.split(line, comments=True) for text in texts for line in text.splitlines()):
        if len(words) == 1 and (assigned := re.fullmatch(r"(\w+)=(.*)", words[0])):
            variables[f"${assigned[1]}"] = shlex.split(assigned[2])
        elif words:
            found.append(shlex.join(each for word in words for each in variables.get(word, [word])))
    return found


def save_classifier(folder: Path, num_labels: int, problem_type: str | None = None) -> None:
    """A small classifier with its image processor, as a folder that `from_pretrained` loads."""
    names = dict(enumerate(("astronaut", "chelsea", "coffee", *map(str, range(3, num_labels)))[:num_labels]))
    labels = {"id2label": names, "label2id": {name: label for label, name in names.items()}}
    config = ConvNextV2Config(depths=[1, 1], hidden_sizes=[8, 16], image_size=32, problem_type=problem_type, **labels)
    ConvNextV2ForImageClassification(config).save_pretrained(folder)
    create_image_processor(config).save_pretrained(folder)


def make_stand_ins(folder: Path) -> None:
    """Small models where the README names models of the Hub, or what its commands have written."""
    for name in OFFICIAL:
        save_classifier(folder / name, 1000)
    save_classifier(folder / "out/classifier", 2)
    save_classifier(folder / "out/tagger", 3, "multi_label_classification")
    config = small_fcmae_config()
    ConvNextV2ForPreTraining(config).save_pretrained(folder / "out/pretrain")
    create_image_processor(config).save_pretrained(folder / "out/pretrain")
    small = {"image_size": 32, "num_stages": 3, "decoder_hidden_size": 32, "auxiliary_loss_weight": 0, "num_queries": 5}
    for name, architecture in (("segmenter", "upernet"), ("mask2former", "mask2former")):
        settings = SegmenterSettings(architecture=architecture, **small)
        segmenter = create_segmenter(settings, ["sky", "tree", "sea"])
        segmenter.save_pretrained(folder / "out" / name)
        processor = create_segmentation_processor(settings, None, segmenter.config.backbone_config, architecture)
        processor.save_pretrained(folder / "out" / name)
    detection = DetectorSettings(image_size=64, num_stages=2, decoder_hidden_size=8, anchor_sizes=[8, 16, 32])
    detector = create_detector(detection, ["disc", "rectangle"])
    detector.save_pretrained(folder / "out/detector")
    processor = create_detection_processor(detection, None, detector.config.backbone_config, "mask_rcnn")
    processor.save_pretrained(folder / "out/detector")
