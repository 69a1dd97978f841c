"""Run a training script with an AdamW that is not fused, as it is not where weights are sharded.

python tests/plain_adamw.py training/pretrain.py --dataset_name ...
"""

import runpy
import sys

from training.run import training_run

if __name__ == "__main__":
    training_run.can_fuse = lambda accelerator: None
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
