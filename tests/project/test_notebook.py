"""The notebook: it agrees with its source, its commands are there, and it runs from the first cell to the last."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest
from huggingface_hub import metadata_load
from PIL import Image

ROOT = Path(__file__).parents[2]
SOURCE, NOTEBOOK = ROOT / "docs/notebook.py", ROOT / "docs/notebook.ipynb"
# What a test has no time for: (as it stands in the notebook, here).
SHORT = (
    (
        "PRETRAIN_STEPS, FINETUNE_STEPS, BATCH_SIZE = 200, 60, 32",
        "PRETRAIN_STEPS, FINETUNE_STEPS, BATCH_SIZE = 2, 2, 4",
    ),
    ('"train", 0, border, 40)', '"train", 0, border, 4)'),
    ("photograph.width, 10)", "photograph.width, 2)"),
)


def cells_of(notebook: dict) -> list[tuple[str, str]]:
    """Type and text of each cell."""
    return [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]


def test_the_notebook_is_its_source():
    """Else: jupytext --to ipynb docs/notebook.py"""
    expected = jupytext.reads(SOURCE.read_text(), fmt="py:percent")
    assert cells_of(json.loads(NOTEBOOK.read_text())) == cells_of(expected)


def test_another_source_is_noticed():
    changed = jupytext.reads(SOURCE.read_text().replace("200, 60", "201, 60"), fmt="py:percent")
    assert cells_of(json.loads(NOTEBOOK.read_text())) != cells_of(changed)


def test_the_notebook_has_ten_cells_of_code_holds_no_output_and_installs_from_the_repositorys_address():
    notebook = json.loads(NOTEBOOK.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(code) == 10 and all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    first = "".join(code[0]["source"])
    assert "git" in first and 'os.environ.get("REPOSITORY"' in first and "://" not in SOURCE.read_text()
    assert "--depth" in first and not re.search(r"hf_[A-Za-z0-9]{20}", SOURCE.read_text())  # no token


def test_the_notebook_says_where_to_start_it(tmp_path):
    first = cells_of(json.loads(NOTEBOOK.read_text()))[1][1]
    environment = {name: value for name, value in os.environ.items() if name != "REPOSITORY"}
    command = [sys.executable, "-c", first]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "Start this notebook in a clone of the repository, or set REPOSITORY" in done.stderr


@pytest.mark.slow
def test_the_notebook_runs_and_ends_with_a_card(tmp_path):
    text = SOURCE.read_text()
    for written, short in SHORT:
        assert written in text, written
        text = text.replace(written, short)
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "notebook.py").write_text(text)
    for name in ("training", "conversion"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {name: value for name, value in os.environ.items() if name != "REPOSITORY"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "notebook.py"], cwd=docs, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    card = metadata_load(tmp_path / "out/classifier/README.md") or {}
    assert card["license"] == "apache-2.0" and card["pipeline_tag"] == "image-classification"
    assert "me/name:" in done.stdout and "model.safetensors" in done.stdout
    rows = (tmp_path / "out/answers.csv").read_text().splitlines()
    assert rows[0].startswith("image,label,score") and len(rows) == 1 + 4 * 2
    for name in ("reconstructions", "loss_curves"):
        with Image.open(tmp_path / f"out/pretrain/{name}.png") as picture:
            assert min(picture.size) > 100
