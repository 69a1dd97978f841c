"""Settings of the GPU's benchmarks; those of a small run on a processor differ in sizes alone."""

import argparse

# What is measured, most important first: what, size, batch, dtype and mode.
SPEED_CASES = (
    "step:base:128:bfloat16:captured",
    "training:tiny:128:bfloat16:captured",
    "inference:tiny:128:bfloat16:captured",
    "training:base:128:bfloat16:captured",
    "inference:base:128:bfloat16:captured",
    "step:tiny:128:bfloat16:captured",
    "step:large:128:bfloat16:captured",
    "step:atto:128:bfloat16:captured",
    "step:base:128:bfloat16:eager",
    "training:tiny:128:bfloat16:eager",
    "inference:tiny:128:bfloat16:eager",
    "training:tiny:128:bfloat16:compiled",
    "step:base:128:bfloat16:compiled",
    "inference:tiny:128:bfloat16:compiled",
    "views:base:128:bfloat16:captured",
    "encoder:base:128:bfloat16:captured",
    "step:base:128:float32:captured",
    "training:base:128:float32:captured",
    "step:base:32:bfloat16:captured",
    "step:base:256:bfloat16:captured",
    "training:atto:128:bfloat16:captured",
    "inference:atto:128:bfloat16:captured",
    "training:large:64:bfloat16:captured",
    "inference:large:128:bfloat16:captured",
    "step:tiny:128:bfloat16:compiled",
    "training:base:128:bfloat16:compiled",
    "inference:base:128:bfloat16:compiled",
)
# Each part's share of the time. What a part leaves goes to those after it.
SHARES = {"kernels": 0.12, "correct": 0.18, "speed": 0.35, "profile": 0.08, "training": 0.27}


def create_parser(description: str = "") -> argparse.ArgumentParser:
    """The flags of the command, which its parts get too."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=tuple(SHARES), default=list(SHARES), help="(default: all)")
    device = "`cpu` for a run that shows that the command works: reduce the sizes below for it (default: 'cuda')"
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=device)
    defaults = {
        "minutes": (8.0, "that all parts together may take"),
        "output": ("", "JSON file for what was found, written anew with each row"),
        "backend": ("inductor", "compiler of what is compiled"),
        "image_size": (224, "side of the images of the parts kernels, speed and profile"),
        "kernels_size": ("base", "model whose layers run by the kernels and in plain form"),
        "kernels_batch": (128, "images of these layers"),
        "correct_size": ("atto", "model of the comparisons"),
        "correct_batch": (2, "images of a comparison"),
        "correct_image_size": (96, "side of the images of a comparison: float64 is slow on a processor"),
        "larger_size": ("tiny", "model of one comparison more; an empty name leaves it out"),
        "compiled_at_once": (2, "compiled cases whose contenders compile, and lie in memory, at the same time"),
        "compiled_share": (0.7, "of the time of the part that is for compiled cases"),
        "rounds": (7, "in which the contenders take turns"),
        "calls": (2, "of a contender that are timed together"),
        "matrix_size": (8192, "side of the matrices whose product gives the bound's rate"),
        "copy_mib": (1024, "MiB whose copy gives the bound's bandwidth"),
        "profile_case": ("step:base:128:bfloat16", "what is profiled"),
        "training_size": ("atto", "model of the training runs"),
        "training_image_size": (128, "side of the images of the training runs"),
        "training_images": (512, "number of images of the training runs"),
        "training_batch": (64, "images of a training step"),
        "training_steps": (60, "steps of a training run"),
        "training_workers": (4, "data loader workers of a training run"),
    }
    for name, (value, text) in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"{text} (default: {value!r})")
    cases = "what:size:batch:dtype:mode, most important first (default: those of benchmarks/gpu/settings.py)"
    parser.add_argument("--speed_cases", nargs="+", default=list(SPEED_CASES), help=cases)
    checks = ["compiled", "resumed", "fp16", "fsdp2", "again"]
    of_training = "what the part training shows (default: all)"
    parser.add_argument("--training_checks", nargs="+", default=checks, choices=checks, help=of_training)
    modes = ["eager", "compiled"]
    parser.add_argument("--modes", nargs="+", default=modes, choices=modes, help="of the comparisons and the profile")
    dtypes = ["float32", "bfloat16", "float16"]
    parser.add_argument("--dtypes", nargs="+", default=dtypes, choices=dtypes, help="of the comparisons")
    return parser
