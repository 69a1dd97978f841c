"""Run a training script as `accelerate launch` does with FSDP2, on a CPU, where Accelerate itself does not shard.

python tests/sharded_on_cpu.py training/pretrain.py --dataset_name ...
"""

import os
import runpy
import sys
from typing import Any

from accelerate import DistributedType
from accelerate.state import AcceleratorState

FLAGS = {
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


def shard_on_cpus() -> None:
    """Give the state of Accelerate, on a CPU too, what it has where GPUs shard."""
    os.environ.update(FLAGS, ACCELERATE_USE_FSDP="true")
    initialize, plugins = AcceleratorState.__init__, []

    def initialize_sharded(self: AcceleratorState, *arguments: Any, **keywords: Any) -> None:
        initialize(self, *arguments, **keywords)
        if keywords.get("fsdp_plugin") is not None:
            plugins.append(keywords["fsdp_plugin"])
            if self._mixed_precision != "no":
                plugins[-1].set_mixed_precision(self._mixed_precision)
        if plugins:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugins[-1]

    AcceleratorState.__init__ = initialize_sharded


if __name__ == "__main__":
    shard_on_cpus()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
