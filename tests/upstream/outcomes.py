"""Running upstream's tests in a process of their own, and comparing what comes out with what is known."""

import fnmatch
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
MOST_SHOWN = 300  # characters of a message


@dataclass(frozen=True)
class Outcome:
    """What became of a test: passed, failed or skipped, and why."""

    kind: str
    message: str = ""


@dataclass(frozen=True)
class Run:
    """The outcomes of a set of classes by the name of the test."""

    outcomes: dict[str, Outcome]
    seconds: float

    def __str__(self) -> str:
        counts = Counter(outcome.kind for outcome in self.outcomes.values())
        return (
            ", ".join(f"{counts[kind]} {kind}" for kind in ("passed", "failed", "skipped")) + f", {self.seconds:.0f} s"
        )


def run_suite(library: str, classes: str, root: Path) -> Run:
    """Run the suite of a library for a set of classes; `root` holds the library's package `tests`.

    Raises:
        RuntimeError: if pytest itself fails, or finds no test.
    """
    report, settings = root / f"{classes}.xml", root / "pytest.ini"
    settings.write_text("[pytest]\n", encoding="utf-8")
    own = {"HF_HUB_OFFLINE": "1", "RUN_SLOW": "1", "OMP_NUM_THREADS": "1", "UPSTREAM_SET": classes}
    own["PYTHONPATH"] = os.pathsep.join([str(root), str(HERE.parents[1])])
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(settings), "--rootdir", str(root), "--noconftest"]
    command += ["-p", "no:cacheprovider", "-W", "ignore", "--tb=short", f"--junitxml={report}"]
    start = time.monotonic()
    done = subprocess.run(
        [*command, str(HERE / f"{library}_suite.py")],
        cwd=root,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    seconds = time.monotonic() - start
    if done.returncode not in (0, 1):
        raise RuntimeError(f"the tests of {library} could not be run:\n{done.stdout}{done.stderr}")
    return Run(read_report(report), seconds)


def read_report(file: Path) -> dict[str, Outcome]:
    """Outcomes of a JUnit report; a test counts by the worst of its subtests, and without its parameters."""
    outcomes: dict[str, Outcome] = {}
    for case in ElementTree.parse(file).getroot().iter("testcase"):
        group = (case.get("classname") or "").rpartition(".")[2]
        name = (f"{group}::" if group.endswith("Test") else "") + (case.get("name") or "").partition("[")[0]
        found = {element.tag: element.get("message") or "" for element in case}
        failed = found.get("failure", found.get("error"))
        if failed is not None:
            outcomes[name] = Outcome("failed", failed)
        elif name not in outcomes or outcomes[name].kind == "passed":
            skipped = found.get("skipped")
            outcomes[name] = Outcome("passed") if skipped is None else Outcome("skipped", skipped)
    return outcomes


def known_differences(library: str, classes: str) -> list[dict[str, Any]]:
    """The rows of `differences.yaml` for a set of classes."""
    rows = yaml.safe_load((HERE / "differences.yaml").read_text(encoding="utf-8"))[library]
    return [row for row in rows if classes in row["sets"]]


def surprises(
    outcomes: dict[str, Outcome], stock: dict[str, Outcome], differences: list[dict[str, Any]]
) -> dict[str, str]:
    """What is not as `differences` has it, by test: a failure, a test skipped or absent that stock's classes run, or a
    difference that is no more."""
    found = {}
    for test in sorted({*outcomes, *stock}):
        outcome = outcomes.get(test, Outcome("absent"))
        as_stock = outcome.kind == "skipped" and stock.get(test, outcome).kind == "skipped"
        differs = outcome.kind != "passed" and not as_stock
        row = next((row for row in differences if fnmatch.fnmatchcase(test, row["test"])), None)
        if row is None and differs:
            found[test] = f"{outcome.kind}, and not in the list: {outcome.message[:MOST_SHOWN]}"
        elif row is not None and (outcome.kind != row["outcome"] or row.get("says", "") not in outcome.message):
            found[test] = f"listed as {row['outcome']}, but {outcome.kind}: {outcome.message[:MOST_SHOWN]}"
    for row in differences:
        if not fnmatch.filter({*outcomes, *stock}, row["test"]):
            found[row["test"]] = "listed, but there is no such test"
    return found
