"""Transformers' and timm's own tests, run against our classes and against Transformers' side by side.

Their source distributions of the installed versions are downloaded once into `.cache/` and unpacked into a temporary
folder; nothing of them is in this repository. `upstream/transformers_suite.py` and `upstream/timm_suite.py` name the
classes and the tests, `upstream/differences.yaml` what comes out otherwise than for stock's classes or is not run, and
why. Counts and times: `python -m pytest -m slow -s tests/upstream/test_upstream_suites.py`.
"""

import fnmatch
import functools

import pytest
import yaml

from tests.upstream.distributions import unpack_tests
from tests.upstream.outcomes import HERE, Outcome, known_differences, read_report, run_suite, surprises

SETS = {"transformers": ("stock", "ours", "registered", "fcmae"), "timm": ("timm", "stock", "ours", "registered")}
NOT_RUN = yaml.safe_load((HERE / "differences.yaml").read_text(encoding="utf-8"))["not_run"]
PASSED, FAILED, SKIPPED = Outcome("passed"), Outcome("failed", "message"), Outcome("skipped")


@pytest.fixture(scope="session")
def root_of(tmp_path_factory):
    """The folder with the tests of a library, unpacked once."""
    return functools.cache(lambda library: unpack_tests(library, tmp_path_factory.mktemp(library)))


@pytest.fixture(scope="session")
def run_of(root_of):
    """What came out for a set of classes, run once."""
    return functools.cache(lambda library, classes: run_suite(library, classes, root_of(library)))


@pytest.mark.slow
@pytest.mark.parametrize(("library", "classes"), [(library, name) for library in SETS for name in SETS[library]])
def test_classes_pass_what_stock_passes_but_for_the_listed_differences(run_of, library, classes):
    run, stock = run_of(library, classes), run_of(library, "stock")
    print(f"\n{library}, {classes}: {run}")
    found = surprises(run.outcomes, stock.outcomes, known_differences(library, classes))
    assert not found, "".join(f"\n{test}: {what}" for test, what in found.items())
    assert (
        sum(outcome.kind == "passed" for outcome in run.outcomes.values()) >= {"transformers": 65, "timm": 7}[library]
    )


@pytest.mark.slow
def test_every_file_of_upstream_is_run_or_listed(root_of):
    run = {"test_modeling_common.py", "test_backbone_common.py", "test_configuration_common.py", "test_models.py"}
    for library in SETS:
        files = {file.name for file in (root_of(library) / "tests").glob("test_*.py")}
        listed = {file for pattern in NOT_RUN[library] for file in fnmatch.filter(files, pattern)}
        assert files - listed - run == set()
        assert listed & run == set()


@pytest.mark.slow
def test_every_test_of_timms_models_is_run_or_listed(root_of, run_of):
    lines = (root_of("timm") / "tests" / "test_models.py").read_text(encoding="utf-8").splitlines()
    names = {line.split("def ")[1].split("(")[0] for line in lines if line.lstrip().startswith("def test_")}
    listed = {name for pattern in NOT_RUN["timm_models"] for name in fnmatch.filter(names, pattern)}
    run = set(run_of("timm", "timm").outcomes)
    assert names - listed - run == set()
    assert listed & run == set()


@pytest.mark.parametrize(
    ("ours", "stock", "outcome", "found"),
    [
        (PASSED, PASSED, None, False),
        (SKIPPED, SKIPPED, None, False),
        (PASSED, SKIPPED, None, False),
        (FAILED, PASSED, None, True),
        (FAILED, FAILED, None, True),
        (SKIPPED, PASSED, None, True),
        (FAILED, PASSED, "failed", False),
        (SKIPPED, PASSED, "skipped", False),
        (PASSED, PASSED, "failed", True),
        (SKIPPED, PASSED, "failed", True),
        (FAILED, PASSED, "skipped", True),
    ],
)
def test_a_difference_is_found_unless_it_is_listed_as_it_is(ours, stock, outcome, found):
    differences = [] if outcome is None else [{"test": "a", "outcome": outcome}]
    assert bool(surprises({"a": ours}, {"a": stock}, differences)) is found


def test_a_listed_failure_for_another_reason_is_found():
    listed = {"test": "a*", "outcome": "failed", "says": "message"}
    assert not surprises({"ab": FAILED}, {"ab": PASSED}, [listed])
    assert surprises({"ab": FAILED}, {"ab": PASSED}, [listed | {"says": "another"}])


def test_absent_tests_are_found_on_either_side():
    assert surprises({}, {"a": PASSED}, [])
    assert not surprises({}, {"a": PASSED}, [{"test": "a", "outcome": "absent"}])
    assert surprises({"a": PASSED}, {"a": PASSED}, [{"test": "gone", "outcome": "failed"}])


def test_a_report_counts_a_test_by_its_worst_part(tmp_path):
    (tmp_path / "report.xml").write_text(
        """<testsuites><testsuite>
        <testcase classname="suite.ModelTest" name="test_a"><failure message="no"/></testcase>
        <testcase classname="suite.ModelTest" name="test_b"><skipped message="why"/></testcase>
        <testcase classname="" name="test_c[1-name]"/>
        <testcase classname="" name="test_c[2-name]"><error message="broken"/></testcase>
        <testcase classname="" name="test_c[3-name]"/>
        </testsuite></testsuites>"""
    )
    assert read_report(tmp_path / "report.xml") == {
        "ModelTest::test_a": Outcome("failed", "no"),
        "ModelTest::test_b": Outcome("skipped", "why"),
        "test_c": Outcome("failed", "broken"),
    }
