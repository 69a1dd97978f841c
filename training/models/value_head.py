"""The head of a model that predicts values: trained on standardised values, stored so that it answers in their units.

Adam's steps have the size of the learning rate, whatever the size of the loss: a head that had to answer 350,000 would
never get there, and one that had to answer 0.001 would jump over it. In training, the head therefore answers on the
scale that the configuration notes as `label_mean` and `label_std`. A stored model answers in units: its head has the
scale in its weight and bias, so that any library that loads it needs to know nothing of it. The checkpoint of an
unfinished run keeps the scale of training, which Transformers does not know; this package does.
"""

from typing import Any

import torch

from training.console.errors import is_first_process
from training.data.value_scale import Scale
from training.settings.labels import REGRESSION

MOST_NAMED = 8  # classes


def settle_head(model: Any, stored: dict[str, Any]) -> None:
    """Keep the head of stored weights if it answers what the model is to answer, else draw a new one.

    Only for values it matters whose they are: the head of other values, or of classes, is drawn anew.

    Args:
        stored: the config.json of the weights.
    """
    config = model.config
    was, will = stored.get("problem_type") == REGRESSION, config.problem_type == REGRESSION
    names = {int(number): name for number, name in (stored.get("id2label") or {}).items()}
    if was and will and names == config.id2label:
        note_scale(config, Scale.of(config) or Scale.units(len(names)))
        return
    note_scale(config, None)
    if (was or will) and len(names) == config.num_labels:
        torch.nn.init.normal_(model.classifier.weight, std=config.initializer_range * config.head_init_scale)
        torch.nn.init.zeros_(model.classifier.bias)
        if is_first_process():
            print("The stored head answers something else: a new one is trained.", flush=True)
    elif names != config.id2label and len(names) == config.num_labels and is_first_process():
        few = ", ".join(str(names[number]) for number in sorted(names)[:MOST_NAMED])
        print(f"Training goes on from a head of other classes, or of another order of them: {few}.", flush=True)


def set_scale(model: Any, scale: Scale) -> None:
    """Let the head answer on a scale, and note it in the configuration. A new head is on any scale."""
    current = Scale.of(model.config)
    if current is not None:
        convert(model.classifier, current, scale)
    note_scale(model.config, scale)


def answer_in_units(model: Any) -> None:
    """Let the head of a model that was under training answer in units; any other model stays as it is."""
    current = Scale.of(model.config)
    if current is not None:
        convert(model.classifier, current, Scale.units(len(current.mean)))
        note_scale(model.config, None)


@torch.no_grad()
def convert(head: torch.nn.Linear, old: Scale, new: Scale) -> None:
    """Change weight and bias of a head so that what it answers on one scale becomes the same on another."""
    mean, std, new_mean, new_std = (torch.tensor(values, dtype=torch.float64) for values in (*old, *new))
    weight, bias = head.weight.cpu().double(), head.bias.cpu().double()
    head.weight.copy_(weight * (std / new_std)[:, None])
    head.bias.copy_((bias * std + mean - new_mean) / new_std)


def note_scale(config: Any, scale: Scale | None) -> None:
    """Note the scale in a configuration, or remove what is noted there."""
    for name in ("label_mean", "label_std"):
        if hasattr(config, name):
            delattr(config, name)
    if scale is not None:
        config.label_mean, config.label_std = scale
