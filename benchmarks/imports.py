"""Seconds to import the package against those to import the Transformers classes it needs, each in a fresh process.

The times are processor times, which other work on the machine changes least. A first forward pass is compared with a
second one, to show that nothing is compiled.

    python -m benchmarks.imports
"""

import resource
import subprocess
import sys
from statistics import median

from benchmarks.shared.classifiers import prepare
from benchmarks.shared.measure import Row, alternate, parse_arguments, report, seconds_of, times_as_fast

NEEDED = (
    "import torch, transformers",
    "from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification",
    "from transformers import AutoModelForPreTraining, ConvNextImageProcessor, PreTrainedModel",
    "from transformers import ConvNextV2Backbone, ConvNextV2Config, ConvNextV2ForImageClassification, ConvNextV2Model",
)


def main() -> None:
    args = parse_arguments(str(__doc__), rounds=11, size="atto")
    scripts = {"transformers": "; ".join(NEEDED), "ours": "; ".join([*NEEDED, "import hf_convnextv2"])}
    spent: dict[str, list[float]] = {name: [] for name in scripts}
    wall = alternate({name: lambda name=name: spent[name].append(_run(scripts[name])) for name in scripts}, args.rounds)
    ratio = times_as_fast(spent["ours"][-args.rounds :], spent["transformers"][-args.rounds :])
    call = prepare("ours", args.size, "inference", 1)
    first = seconds_of(call)
    row: Row = {"Transformers' classes, s": median(wall["transformers"]), "and ours, s": median(wall["ours"])}
    row["ratio, processor time"] = ratio
    row["ratio, wall time"] = times_as_fast(wall["ours"], wall["transformers"])
    row[f"first forward ({args.size}), ms"] = first * 1000
    row["later ones, ms"] = median(alternate({"later": call}, args.rounds)["later"]) * 1000
    report([row], args.output)


def _run(script: str) -> float:
    """Processor seconds of a process that runs `script`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", script], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
