"""Configurations and weights small enough for a test, and the comparisons that tests share."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_convnextv2 import ConvMAEConfig, ConvNextV2Config, ConvNextV2FCMAEConfig

SMALL: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "image_size": 64}
SMALL_CONVMAE: dict[str, Any] = {
    "hidden_sizes": [8, 12, 16],
    "depths": [1, 2, 2],
    "image_size": 64,
    "num_attention_heads": 2,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 4,
}

# The first lines of a program that cannot import this package, though it runs in the same environment.
WITHOUT_THE_PACKAGE = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_convnextv2":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
try:
    import hf_convnextv2
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the package can be imported")
"""


def small_config(**overrides: Any) -> ConvNextV2Config:
    return ConvNextV2Config(**{**SMALL, "num_labels": 5, **overrides})


def small_fcmae_config(**overrides: Any) -> ConvNextV2FCMAEConfig:
    return ConvNextV2FCMAEConfig(**{**SMALL, "decoder_hidden_size": 16, **overrides})


def small_convmae_config(**overrides: Any) -> ConvMAEConfig:
    return ConvMAEConfig(**{**SMALL_CONVMAE, "num_labels": 5, **overrides})


def awake(model: Any, std: float = 0.1) -> Any:
    """The model with noise on every parameter: fresh GRN, biases and norms are 0 or 1 and would hide mistakes."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Half of the size of the signal in GRN's affine, whatever the rest.
            parameter += torch.randn_like(parameter) * (0.5 if ".grn." in name else std)
    return model.eval()


def difference(actual: Tensor, expected: Tensor) -> float:
    """Largest difference as a share of the largest expected value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal shapes and a `difference` of at most 1e-5: float32 has 6e-8, and sums of thousands of terms lose some."""
    assert actual.shape == expected.shape, f"shape is {tuple(actual.shape)}, not {tuple(expected.shape)}"
    error = difference(actual, expected)
    assert error <= tolerance, f"differs by {error:.1e} of the largest value, more than {tolerance:.0e}"


def run_python(code: str, *arguments: object, cwd: Path, timeout: int = 300) -> str:
    """What a fresh Python prints that runs `code` with these arguments; warnings are errors there too."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
