"""The paper's ablations on photographs of solar cells; docs/ablations.md is the plan, made before any result.

    make ablations
    make ablations BLOCKS=G
    python -m experiments.ablations --blocks E1 E2 --dry_run

Every arm and seed is a run of training/pretrain.py, a run of training/finetune.py and an evaluation on 1,312 held-out
photographs. All blocks but G need the learning rates that G chooses: it comes first by itself. After a stop or a kill,
the same command goes on, on another machine too if the results file is there; what is done is not done again.
"""

import argparse
from pathlib import Path

import torch

from conversion.files import read_json
from experiments.ablation.arms import BLOCKS, FINETUNING_STEPS, PRETRAINING_STEPS
from experiments.ablation.cases import Length, cases_of
from experiments.ablation.estimate import estimate, folders_of, listed, runs_of
from experiments.ablation.results import results_of, table
from experiments.ablation.study import Ablations, rows_of
from experiments.ablation.tables import RESULTS
from experiments.label_efficiency import photographs_of
from experiments.solar_cells import write_solar_cells
from training.comparison.launching import is_finished
from training.comparison.records import Times, keep_apart
from training.comparison.runner import Runner
from training.comparison.stopping import stopping_runs
from training.console.errors import told_in_a_line
from training.machine.cores import usable_cores
from training.run.locks import only_one

TEST_SHARE = 0.5  # 1,312 photographs: of the demo's 656, the error would be larger by root 2
GATE = "G"


def main(arguments: list[str] | None = None) -> None:
    """Print the estimate, run what is left, and write each row as it comes and the tests after every block."""
    options = parse_options(arguments)
    output, length = Path(options.output_dir), Length(options.pretrain_steps, options.finetune_steps)
    blocks = list(dict.fromkeys([GATE, *options.blocks]))
    results, runs = Path(options.results), runs_of(blocks, length, options.seeds)
    rows = rows_of(read_json(results))
    needed = folders_of([case for case in cases_of(blocks, options.seeds) if case not in rows])
    done = {run.folder for run in runs if run.folder not in needed or is_finished(output / run.folder)}
    if options.dry_run:
        print(listed(runs, done))
    print(estimate(runs, done, options.jobs), flush=True)
    if options.dry_run:
        return
    with only_one(output) as lock:
        keep_apart(output, {"pretrain_steps": length.pretraining, "finetune_steps": length.finetuning})
        if not (output / "data/unlabelled/train.parquet").is_file():  # the last one
            write_solar_cells(output / "data", TEST_SHARE)
        torch.set_num_threads(max(torch.get_num_threads() // options.jobs, 1))
        photographs = {split: photographs_of(output, split) for split in ("train", "test")}
        runner = Runner(output, Times(output), options.jobs, lock)
        results.parent.mkdir(parents=True, exist_ok=True)
        study = Ablations(output, results, photographs, length, runner)
        with stopping_runs(runner.is_over):
            for block in blocks:
                study.run(block, options.seeds)
                study.write(**results_of(study))
    print(f"{table(study.done())}\n\nResults in {results}", flush=True)


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The study's flags. All other settings are in experiments/ablation/arms.py and the demo's recipes."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.ablations", description=(__doc__ or "").split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--blocks", nargs="+", choices=list(BLOCKS), default=list(BLOCKS), help="(default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", help="of the blocks but G, these alone (default: all)")
    parser.add_argument("--dry_run", action="store_true", help="list the runs and their time, and run nothing")
    parser.add_argument("--output_dir", default="out/ablations")
    parser.add_argument(
        "--results",
        default=RESULTS,
        help="JSON file of the results, that the study goes on from (default: docs/benchmarks/ablations.json)",
    )
    cores = usable_cores()
    parser.add_argument("--jobs", type=int, default=cores, help="runs at a time, which share the cores (default: all)")
    steps = "optimizer steps of {}, for a trial with --results of its own (default: {})"
    parser.add_argument(
        "--pretrain_steps",
        type=int,
        default=PRETRAINING_STEPS,
        help=steps.format("pre-training", PRETRAINING_STEPS),
    )
    parser.add_argument(
        "--finetune_steps", type=int, default=FINETUNING_STEPS, help=steps.format("fine-tuning", FINETUNING_STEPS)
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    with told_in_a_line():
        main()
