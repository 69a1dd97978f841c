"""`training/pretrain.py` or `training/finetune.py` on a model with something else in place of one of its modules.

    accelerate launch experiments/ablation/script.py --task pretrain --replacement batch_norm \\
        --config training/recipes/pretrain_demo.yaml --dataset_name path/to/images --output_dir out/batch_norm

All other flags are the script's own, and so are its checkpoints, log and output folder.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from experiments.ablation.replacements import REPLACEMENTS, replaced
from training.console.errors import told_in_a_line
from training.settings.command_line import parse_settings
from training.settings.scripts import FinetuneSettings, PretrainSettings

TASKS = {"pretrain": PretrainSettings, "finetune": FinetuneSettings}


def main(arguments: Sequence[str]) -> None:
    """Run the script that is named, with its own settings."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--task", choices=sorted(TASKS), required=True)
    parser.add_argument("--replacement", choices=sorted(REPLACEMENTS), required=True)
    own, rest = parser.parse_known_args(arguments)
    settings = parse_settings(TASKS[own.task], rest, __doc__)
    script = import_module(f"training.{own.task}")
    with replaced(own.replacement):
        script.main(settings)


if __name__ == "__main__":
    with told_in_a_line():
        main(sys.argv[1:])
