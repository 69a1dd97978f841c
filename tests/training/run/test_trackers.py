"""What trackers are told: figures and pictures, at the step that they are of."""

from types import SimpleNamespace

import numpy as np
from PIL import Image

from training.run.trackers import show_picture, track


class Tracker:
    name = "a tracker"

    def __init__(self):
        self.told = []

    def log(self, values, step=None):
        self.told.append((values, step))

    def log_images(self, values, step=None):
        self.told.append(({name: pictures.shape for name, pictures in values.items()}, step))


class FiguresAlone:
    def __init__(self):
        self.told = []

    def log(self, values, step=None):
        self.told.append((values, step))


def test_each_tracker_gets_figures_with_their_step_and_pictures_where_it_takes_them(tmp_path):
    trackers = [Tracker(), FiguresAlone()]
    accelerator = SimpleNamespace(trackers=list(trackers))
    Image.fromarray(np.zeros((8, 12, 3), dtype=np.uint8)).save(tmp_path / "step-9.png")
    track(accelerator, {"loss": 0.5}, 7)  # type: ignore[arg-type]
    show_picture(accelerator, tmp_path / "step-9.png", 9)  # type: ignore[arg-type]
    assert [told for tracker in trackers for told in tracker.told if "loss" in told[0]] == [({"loss": 0.5}, 7)] * 2
    assert trackers[0].told[1:] == [({"reconstructions": (1, 8, 12, 3)}, 9)]
    assert len(trackers[1].told) == 1 and accelerator.trackers == trackers
