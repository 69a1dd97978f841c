"""The results of a comparison: figures, intervals, the sentence, times, as JSON, Markdown and a plot."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

import numpy as np

from conversion.files import write_json, write_text
from training.comparison.drawing import draw
from training.comparison.images import few_held_out
from training.comparison.intervals import FEWEST, balanced_mean, difference, is_claimable, sentence
from training.comparison.runs import METHODS, PIXELS, Case, Comparison, by_seed
from training.comparison.starts import Start
from training.comparison.summary import FINETUNED, Scores, save_plot, summarise, table
from training.run.dry_run import duration
from training.settings.comparison import RANDOM

PLOT = "comparison.png"
OF_PIXELS, ALWAYS_ONE = "logistic regression on statistics of the pixels", "always the most frequent class"
BALANCED, PLAIN = "balanced accuracy", "accuracy"
MEASURED = "Measured on {held_out}. Up to {train:,} images of {classes} classes to train on."
SEED = "Each seed draws the labels, the weights and the order of the images anew, and has a pre-training of its own."
INTERVALS = (
    "The intervals are of the chance of {over}. Each of this table is for itself: of many, one in twenty misses. The "
    "sentence at the top chooses its starts by these figures: of three starts or more, its intervals are wider."
)
TIME = "Runs at a time: {jobs}. A run that was killed counts from where it went on."


def write_report(comparison: Comparison) -> str:
    """Write compare.json, README.md and the plot; return what is printed."""
    budget, names = comparison.settings.budget, comparison.images.names
    figures = {BALANCED: all_scores(comparison, BALANCED), PLAIN: all_scores(comparison, PLAIN)}
    summaries = {name: summarise(scores, budget.label_shares, budget.seeds) for name, scores in figures.items()}
    said, pairs, costs = conclusion(comparison), differences(comparison), times(comparison)
    found = {
        "sentence": said,
        "images": {"train": len(comparison.images.train), "test": len(comparison.images.test), "classes": names},
        "starts": [start.title for start in comparison.starts],
        "seeds": budget.seeds,
        "figures": figures,
        "differences": pairs,
        "seconds": costs,
        "settings": comparison.settings.values(),
    }
    save_plot(summaries[BALANCED], comparison.output / PLOT, len(set(comparison.images.test["label"])))
    text = page(comparison, said, summaries, pairs, costs)
    write_text(comparison.output / "README.md", text)
    write_json(comparison.output / "compare.json", found)
    return f"\n{table(summaries[BALANCED])}\n\n{said}"


def all_scores(comparison: Comparison, metric: str) -> Scores:
    """The figures of every row of the table, by share and seed."""
    labels, scores = np.array(comparison.images.test["label"][:]), Scores()
    for method in primary_first(comparison):
        for start in comparison.starts:
            of_row = scores.setdefault(row_name(method, start), {})
            for share in comparison.settings.budget.label_shares:
                rows = by_seed(comparison, start, method, share)
                seeds = comparison.settings.budget.seeds
                of_row |= {
                    str(Case(share, seed)): score(labels, row, metric) for seed, row in zip(seeds, rows, strict=True)
                }
    train = np.array(comparison.images.train["label"][:])
    for case in comparison.cases:
        pixels = comparison.answers_of(PIXELS, case)[PIXELS]
        scores.setdefault(OF_PIXELS, {})[str(case)] = score(labels, pixels, metric)
        most = np.full_like(labels, np.bincount(train[draw(train, *case)]).argmax())
        scores.setdefault(ALWAYS_ONE, {})[str(case)] = score(labels, most, metric)
    return scores


def score(labels: np.ndarray, predicted: np.ndarray, metric: str) -> float:
    """The accuracy, or the mean of the classes' accuracies."""
    right = (predicted == labels).astype(float)
    return balanced_mean(labels, right) if metric == BALANCED else float(right.mean())


def primary_first(comparison: Comparison) -> list[str]:
    """The methods' names in tables; the first one decides."""
    return [METHODS[method] for method in comparison.settings.starts.methods]


def row_name(method: str, start: Start) -> str:
    """The name of a row of the table."""
    return f"{method} from {start.title}" if method == FINETUNED else f"{method}, {start.title}"


def reference_of(starts: Sequence[Start]) -> Start:
    """What the others are compared with: random weights, else the first start."""
    return next((start for start in starts if start.key == RANDOM), starts[0])


def conclusion(comparison: Comparison) -> str:
    """The sentence: of the largest share of the labels, which is fixed before anything is measured."""
    share, method = comparison.settings.budget.label_shares[-1], primary_first(comparison)[0]
    answers = {start.title: by_seed(comparison, start, method, share) for start in comparison.starts}
    labels = np.array(comparison.images.test["label"][:])
    number = len(draw(comparison.images.train["label"][:], share, comparison.settings.budget.seeds[0]))
    how = "Fine-tuned with" if method == FINETUNED else f"By {method} fitted on"
    condition = f"{how} {100 * share:g} % of the labels ({number:,} images)"
    num_classes = len(comparison.images.names)
    return sentence(labels, answers, reference_of(comparison.starts).title, condition, num_classes)


def differences(comparison: Comparison) -> list[dict[str, Any]]:
    """Each start minus the reference, at each share, each with a 95 % interval of its own; None without enough images
    of each class.
    """
    labels, method = np.array(comparison.images.test["label"][:]), primary_first(comparison)[0]
    reference, found = reference_of(comparison.starts), []
    has_intervals = is_claimable(labels, len(comparison.images.names))
    for start in comparison.starts:
        for share in comparison.settings.budget.label_shares if start != reference else ():
            first, other = (by_seed(comparison, each, method, share) for each in (start, reference))
            names = {"start": start.title, "reference": reference.title, "share": share}
            figures = difference(labels, first, other)._asdict()
            found.append({**names, **figures, **({} if has_intervals else {"low": None, "high": None})})
    return found


def times(comparison: Comparison) -> dict[str, dict[str, float]]:
    """Of each start, the mean seconds of a pre-training and of a classifier, and the sum of all its runs."""
    found = {}
    for start in comparison.starts:
        folders = [comparison.folder_of(start, seed) for seed in comparison.settings.budget.seeds]
        pretraining = comparison.seconds_of(folders)
        classifiers = comparison.seconds_of(comparison.classifier_folder(start, case) for case in comparison.cases)
        parts = {"pretraining": pretraining, "classifier": classifiers}
        found[start.title] = {name: mean(values) if values else 0.0 for name, values in parts.items()}
        found[start.title]["all"] = sum(pretraining) + sum(classifiers)
    return found


def page(
    comparison: Comparison,
    said: str,
    summaries: dict[str, Any],
    pairs: list[dict[str, Any]],
    costs: dict[str, dict[str, float]],
) -> str:
    """README.md."""
    lines = ["# What to start from", "", said, "", f"![Balanced accuracy against the share of the labels]({PLOT})"]
    for name, summary in summaries.items():
        lines += ["", f"## {name.capitalize()} in %", "", table(summary)]
    images, seeds = comparison.images, comparison.settings.budget.seeds
    over = "the held-out images and of the seeds" if len(seeds) > 1 else "the held-out images, not of the one seed"
    jobs, labels = comparison.settings.run.jobs, np.array(images.test["label"][:])
    lines += ["", MEASURED.format(held_out=images.held_out, train=len(images.train), classes=len(images.names))]
    few = few_held_out(images.names, np.bincount(labels, minlength=len(images.names)).tolist())
    lines += ["", f"{few}."] if few is not None else []
    lines += ["", f"Mean and standard deviation of the seeds {', '.join(map(str, seeds))}. {SEED}"]
    lines += ["", f"## Differences, {primary_first(comparison)[0]}", "", *difference_table(pairs)]
    lines += ["", INTERVALS.format(over=over), "", "## Time", "", *time_table(costs), "", TIME.format(jobs=jobs)]
    return "\n".join(lines) + "\n"


def difference_table(pairs: list[dict[str, Any]]) -> list[str]:
    """A row for each difference, in points of balanced accuracy."""
    lines = ["| labels | | points | 95 % interval |", "|---:|---|---:|---:|"]
    for pair in pairs:
        names, gain = f"{pair['start']} minus {pair['reference']}", f"{100 * pair['gain']:+.1f}"
        interval = f"not known: of some class, fewer than {FEWEST} images"
        if pair["low"] is not None:
            interval = f"{100 * pair['low']:+.1f} to {100 * pair['high']:+.1f}"
        lines.append(f"| {100 * pair['share']:g}% | {names} | {gain} | {interval} |")
    return lines


def time_table(costs: dict[str, dict[str, float]]) -> list[str]:
    """A row for each start."""
    lines = ["| start | a pre-training | a classifier, mean of the shares | all runs |", "|---|---:|---:|---:|"]
    for title, seconds in costs.items():
        cells = [duration(seconds[name]) if seconds[name] else "-" for name in ("pretraining", "classifier", "all")]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines
