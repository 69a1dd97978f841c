"""Look into a trained model: its feature diversity, activation maps, what a reconstruction depends on, and each layer.

    python training/analyze.py --model_name_or_path out/pretrain --dataset_name path/to/images \\
        --output_dir out/pretrain/analysis
    python training/analyze.py --model_name_or_path out/pretrain --dataset_name path/to/images \\
        --analyses diversity --with_checkpoints true --compared_with out/classifier --output_dir out/diversity
    python training/analyze.py --model_name_or_path out/pretrain --dataset_name path/to/labelled \\
        --analyses layers --blocks all --pooling mean max gem --output_dir out/layers
"""

import sys

from training.console.errors import told_in_a_line
from training.settings.analysis import AnalyzeSettings
from training.settings.command_line import parse_settings

if __name__ == "__main__":  # before the imports below, which take seconds: reports a wrong setting at once
    settings = parse_settings(AnalyzeSettings, sys.argv[1:], __doc__)

import shutil
from pathlib import Path
from typing import Any

from conversion.analyses import CAPTIONS, RECORD
from conversion.files import atomic_path, write_json
from conversion.model_folder import weight_digests
from training.analysis.activations import Activations
from training.analysis.context import Context, can_reconstruct
from training.analysis.diversity import Diversity
from training.analysis.layers import Layers
from training.analysis.subject import Subject, newest_model
from training.models.creation import with_background
from training.prediction.models import config_of_model
from training.run.accelerator import create_plain_accelerator
from training.settings.analysis import ACTIVATIONS, CONTEXT, DIVERSITY
from training.settings.checks import check
from training.settings.model import ModelSettings
from training.settings.run import ProcessSettings


def main(settings: AnalyzeSettings) -> str:
    """Check everything, analyse, write the folder and return the report."""
    accelerator = create_plain_accelerator(ProcessSettings(mixed_precision="no"))
    count = accelerator.num_processes
    check("num_processes", count, count == 1, "be 1: start analyze.py with python, not with several processes")
    run, model = settings.model.model_name_or_path or "", newest_model(settings.model)
    data = with_background(settings.data, model)
    analyses = settings.analysis.analyses or default_analyses(model)
    settings = settings.replace(**vars(model), background=data.background, analyses=analyses)
    subject = Subject(settings, accelerator)
    chosen = [create(name, subject, run) for name in analyses]
    found = {analysis.name: analysis.measure() for analysis in chosen}
    text = "\n\n".join(analysis.sentence(found[analysis.name]) for analysis in chosen)
    output = Path(settings.output.output_dir)
    with atomic_path(output) as folder:
        folder.mkdir(parents=True)
        for analysis in chosen:
            write_json(folder / f"{analysis.name}.json", found[analysis.name])
            analysis.save_picture(found[analysis.name], folder / f"{analysis.name}.png")
        (folder / "README.md").write_text(page(run, chosen, text), encoding="utf-8")
        write_json(folder / RECORD, settings.values() | {"weights": weights_of(settings.model)})
        if output.is_dir() and settings.output.overwrite:
            shutil.rmtree(output)
    print(f"{text}\n\nMade in {output}: {', '.join(sorted(path.name for path in output.iterdir()))}", flush=True)
    return text


def default_analyses(model: ModelSettings) -> list[str]:
    """All that need no labels and make sense for the model."""
    with_context = [CONTEXT] if can_reconstruct(config_of_model(model)) else []
    return [DIVERSITY, ACTIVATIONS, *with_context]


def create(name: str, subject: Subject, run: str) -> Any:
    """The analysis of this name; raises a `ValueError` where it makes no sense for the model or the images."""
    if name == DIVERSITY:
        return Diversity(subject, run)
    return {ACTIVATIONS: Activations, CONTEXT: Context}.get(name, Layers)(subject)


def weights_of(model: ModelSettings) -> dict[str, str]:
    """The SHA-256 of the files with the weights, by name; none of a model on the Hub."""
    return weight_digests(Path(model.model_name_or_path or "").expanduser())


def page(run: str, analyses: list[Any], text: str) -> str:
    """README.md."""
    pictures = [f"![{CAPTIONS[analysis.name]}]({analysis.name}.png)" for analysis in analyses]
    return "\n\n".join([f"# What is in {run}", text, *pictures]) + "\n"


if __name__ == "__main__":
    with told_in_a_line():
        main(settings)
