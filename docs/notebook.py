# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From a folder of images to a model card
#
# Pre-train ConvNeXt V2 on images without labels, look at what it paints, fine-tune it on labelled ones, evaluate it,
# predict, and write the card of a model that can be published. The images are crops of four photographs that come with
# scikit-image.
#
# The runs are short. They show the steps, not what FCMAE can do: for that, train for as long as the recipes say.

# %%
# Installs the package. In Colab, or wherever you have no clone, set REPOSITORY to the https address of its repository.
# In a clone, goes to its folder: Jupyter starts in that of the notebook.
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = os.environ.get("REPOSITORY", "")
if REPOSITORY:
    subprocess.run(["git", "clone", "--depth", "1", REPOSITORY, "hf_convnextv2"], check=True)
    os.chdir("hf_convnextv2")
    install = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, "-e", ".[training,conversion]", "scikit-image"], check=True)
while not Path("training/pretrain.py").is_file():
    if Path.cwd() == Path.cwd().parent:
        raise RuntimeError("Start this notebook in a clone of the repository, or set REPOSITORY to its address.")
    os.chdir("..")

# %%
import csv
import shlex

import numpy as np
import skimage.data
import torch
from PIL import Image

PRETRAIN_STEPS, FINETUNE_STEPS, BATCH_SIZE = 200, 60, 32


def run(command: str) -> None:
    """Run a script of the repository as `python ...` does in a terminal, and print what it prints."""
    words = [sys.executable, *shlex.split(command)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            print(line, end="")
    if process.returncode:
        raise RuntimeError(f"The command ended with code {process.returncode}.")


# %% [markdown]
# ## Images
#
# A folder with a subfolder for each class in `train` and in `test`. Pre-training does not look at the classes. Here,
# crops for training come from the left two thirds of a photograph, those of the test from the rest. For images of your
# own, write their folder instead of `out/photographs` in the cells below.

# %%
images = Path("out/photographs")
random = np.random.default_rng(0)
for name in ("astronaut", "chelsea", "coffee", "rocket"):
    photograph = Image.fromarray(getattr(skimage.data, name)())
    border, side = 2 * photograph.width // 3, 112
    for split, first, last, count in (("train", 0, border, 40), ("test", border, photograph.width, 10)):
        (images / split / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            left = int(random.integers(first, last - side))
            top = int(random.integers(0, photograph.height - side))
            crop = photograph.crop((left, top, left + side, top + side))
            crop.save(images / split / name / f"{number}.jpg")

# %% [markdown]
# ## Pre-train
#
# A recipe is a file of settings; every flag overrides it. Add `--dry_run true` to see data, time and memory first.

# %%
run(
    "training/pretrain.py --config training/recipes/pretrain_small_images.yaml --dataset_name out/photographs "
    f"--output_dir out/pretrain --overwrite_output_dir true --max_train_steps {PRETRAIN_STEPS} "
    f"--warmup_steps {PRETRAIN_STEPS // 10} --per_device_train_batch_size {BATCH_SIZE}"
)

# %% [markdown]
# What the encoder sees of eight images, what the model makes of the rest, and the originals:

# %%
Image.open("out/pretrain/reconstructions.png")

# %%
Image.open("out/pretrain/loss_curves.png")

# %% [markdown]
# The same in Python, for one image and one mask:

# %%
from transformers import AutoImageProcessor

from hf_convnextv2 import ConvNextV2ForPreTraining, open_image, to_image

model = ConvNextV2ForPreTraining.from_pretrained("out/pretrain").eval()
processor = AutoImageProcessor.from_pretrained("out/pretrain")
pixel_values = processor(open_image("out/photographs/test/coffee/0.jpg"), return_tensors="pt")["pixel_values"]
with torch.no_grad():
    output = model(pixel_values)
    painted = model.reconstruct(pixel_values, output.logits, output.mask)
to_image(painted, processor)[0].resize((288, 288))

# %% [markdown]
# ## Fine-tune and evaluate

# %%
run(
    "training/finetune.py --config training/recipes/finetune_small_images.yaml --model_name_or_path out/pretrain "
    f"--dataset_name out/photographs --output_dir out/classifier --overwrite_output_dir true "
    f"--max_train_steps {FINETUNE_STEPS} --warmup_steps {FINETUNE_STEPS // 10} "
    f"--per_device_train_batch_size {BATCH_SIZE}"
)
run("training/validate.py --model_name_or_path out/classifier --dataset_name out/photographs")

# %% [markdown]
# ## Predict

# %%
run(
    "training/predict.py --model_name_or_path out/classifier --dataset_name out/photographs --split test "
    "--output_file out/answers.csv --overwrite true"
)
with open("out/answers.csv", encoding="utf-8", newline="") as table:
    answers = list(csv.DictReader(table))
answers[:5]

# %% [markdown]
# ## Publish
#
# A dry run writes the card and lists the files. Without `--dry_run`, and after `hf auth login`, the same command
# uploads them. Give your own repository, and the licence of your weights.

# %%
run("-m conversion.publish out/classifier --repo_id me/name --license apache-2.0 --dry_run")
print(Path("out/classifier/README.md").read_text(encoding="utf-8"))
