"""Pictures of runs: the file that comes out holds what went in."""

import json

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image

from experiments.comparison import save_classifier_comparison, save_run_comparison
from hf_convnextv2 import ConvNextV2FCMAEConfig, ConvNextV2ForPreTraining
from training.evaluation import pictures


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, so that a test can read the data back from their axes."""
    figures = []
    save = pictures.save_figure
    for module in ("training.evaluation.pictures", "experiments.comparison"):
        monkeypatch.setattr(
            f"{module}.save_figure", lambda figure, output: (figures.append(figure), save(figure, output))
        )
    return figures


@pytest.fixture
def metrics_jsonl(tmp_path):
    lines = [{"step": step, "loss": 1 / step, "learning_rate": 1e-3 * step} for step in (1, 2, 4)]
    lines.insert(2, {"step": 2, "eval_accuracy": 0.5, "eval_accuracy_top5": 0.9, "eval_loss": 0.7})
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def curves(figure):
    return {line.get_label(): line.get_xydata().tolist() for axes in figure.axes for line in axes.get_lines()}


def test_loss_curves_show_every_logged_value(metrics_jsonl, tmp_path, drawn):
    pictures.save_loss_curves(metrics_jsonl, tmp_path / "new" / "loss.png")
    found = curves(drawn[0])
    assert found["training loss"] == [[1, 1], [2, 0.5], [4, 0.25]]
    assert found["learning rate"] == [[1, 1e-3], [2, 2e-3], [4, 4e-3]]
    assert found["top-1"] == [[2, 0.5]] and found["top-5"] == [[2, 0.9]] and found["evaluation loss"] == [[2, 0.7]]
    with Image.open(tmp_path / "new" / "loss.png") as picture:
        assert picture.width > 1000


def test_a_run_without_evaluation_has_one_plot(tmp_path, drawn):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0, "learning_rate": 0.1}\n')
    pictures.save_loss_curves(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    assert set(curves(drawn[0])) == {"training loss", "learning rate"}


@pytest.mark.parametrize("num_channels", [1, 2, 3, 4])
def test_reconstructions_hide_what_the_mask_hides_and_keep_the_rest(tmp_path, drawn, num_channels):
    torch.manual_seed(0)
    config = ConvNextV2FCMAEConfig(
        depths=[1, 1], hidden_sizes=[8, 16], decoder_hidden_size=8, num_channels=num_channels, image_size=32
    )
    model = ConvNextV2ForPreTraining(config).train()
    mean, std = [0.4] * num_channels, [0.2] * num_channels
    photo = torch.rand(2, num_channels, 16, 32)  # a grid of 2 x 4 cells of 8 pixels
    noise = torch.arange(8.0).repeat(2, 1)  # the smallest are kept: int(8 * 0.4) = 3 cells of the first row
    pixel_values = (photo - 0.4) / 0.2
    outputs = model(pixel_values, noise=noise)
    pictures.save_reconstructions(model, outputs, pixel_values, mean, std, tmp_path / "r.png")
    columns = [axes.get_images()[0].get_array() for axes in drawn[0].axes]
    assert all(column.shape == (16 + 1 + 16, 32, 3) and (column[16] == 1).all() for column in columns)
    masked, painted, original = (column[17:] for column in columns)
    shown = [0, 1, 2] if num_channels >= 3 else [0, 0, 0]
    expected = photo[1, shown].permute(1, 2, 0).numpy()
    assert np.allclose(original, expected, atol=1e-6)
    for picture in (masked, painted):
        assert np.allclose(picture[:8, :24], expected[:8, :24], atol=1e-6)  # visible cells
    assert (masked[8:] == pictures.HIDDEN_GRAY).all() and (masked[:8, 24:] == pictures.HIDDEN_GRAY).all()
    assert not np.allclose(painted[8:], expected[8:], atol=1e-2) and not (painted[8:] == pictures.HIDDEN_GRAY).all()


def test_confusion_and_roc_of_a_perfect_and_a_wrong_classifier(tmp_path, drawn):
    labels = np.array([0, 0, 0, 1, 1])
    scores = {"right": labels * 0.8 + 0.1, "wrong": 0.9 - labels * 0.8}
    save_classifier_comparison(labels, scores, ("sound", "broken"), tmp_path / "c.png")
    roc, right, wrong = drawn[0].axes
    assert [text.get_text() for text in roc.get_legend().get_texts()] == ["right: AUC 1.000", "wrong: AUC 0.000"]
    counts = [[int(text.get_text().split()[0]) for text in axes.texts] for axes in (right, wrong)]
    assert counts == [[3, 0, 0, 2], [0, 3, 2, 0]]  # rows are the true classes


@pytest.mark.parametrize("count", [2, 4, 5, 12])
def test_run_comparison_draws_one_curve_a_run_each_of_its_own_color(metrics_jsonl, tmp_path, drawn, count):
    runs = {f"run {index}": metrics_jsonl for index in range(count)}
    save_run_comparison(runs, "loss", "training loss", tmp_path / "runs.png")
    assert curves(drawn[0]) == {name: [[1, 1], [2, 0.5], [4, 0.25]] for name in runs}
    assert len({to_hex(line.get_color()) for line in drawn[0].axes[0].get_lines()}) == count


def test_a_run_that_has_nothing_to_draw_is_named(metrics_jsonl, tmp_path):
    with pytest.raises(ValueError, match="`runs` must have logged `eval_f1`, but a "):
        save_run_comparison({"a": metrics_jsonl}, "eval_f1", "F1", tmp_path / "runs.png")


def test_a_fifth_classifier_is_drawn(tmp_path, drawn):
    scores = {f"classifier {index}": np.array([0.1, 0.9]) for index in range(5)}
    save_classifier_comparison(np.array([0, 1]), scores, ("sound", "broken"), tmp_path / "c.png")
    assert [axes.get_title() for axes in drawn[0].axes][1:] == list(scores)
    assert len(drawn[0].axes[0].get_legend().get_texts()) == 5


def test_the_mask_is_upsampled_by_cells_not_by_a_square_root():
    mask = torch.tensor([[1, 0, 0, 0, 0, 1]])
    hidden = pictures._upsample_mask(mask, (4, 6), 2)
    assert hidden.nonzero()[:, 1:].tolist() == [
        [y, x] for y, xs in ((0, (0, 1)), (1, (0, 1)), (2, (4, 5)), (3, (4, 5))) for x in xs
    ]
    assert hidden.shape == (1, 4, 6)
