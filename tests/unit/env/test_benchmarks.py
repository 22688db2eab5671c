"""What can be asked of `nox -s bench`, and what becomes of its results."""

from pathlib import Path

import pytest

from env.benchmarks import OWN_RESULTS, Request, collect, parse, runs
from env.errors import SetupError

JSON = "--benchmark-json=benchmarks/results/pytest-benchmark.json"


@pytest.fixture
def root(tmp_path):
    """A checkout with three benchmarks and one run."""
    folder = tmp_path / "benchmarks"
    (folder / "results").mkdir(parents=True)
    for name in ("load", "generate", "step"):
        (folder / f"test_{name}.py").touch()
    add_run(tmp_path, "2026-01-01-mine")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    return tmp_path


def add_run(root, name):
    (root / "benchmarks/results" / name).mkdir()
    (root / "benchmarks/results" / name / "results.json").touch()


@pytest.mark.parametrize(
    ("arguments", "measure"),
    [
        ([], ["benchmarks/test_load.py", "benchmarks/test_generate.py", JSON]),
        (["step"], ["benchmarks/test_step.py", JSON]),
        (
            ["generate", "load", "--model", "load", "-k", "warm"],
            [
                *("benchmarks/test_generate.py", "benchmarks/test_load.py", JSON),
                *("--model", "load", "-k", "warm"),
            ],
        ),
    ],
)
def test_what_is_measured(arguments, measure, root):
    assert parse(root, arguments) == Request(measure, [], [])


def test_compare_with_a_run_before(root):
    asked = parse(root, ["load", "--compare", "last", "--fail-over", "5%", "--rounds", "2"])
    assert asked.measure == ["benchmarks/test_load.py", JSON, "--rounds", "2"]
    assert asked.comparison(Path("new")) == ["compare", "last", "new", "--fail-over", "5%"]
    assert asked.comparison(None) == []  # nothing was measured


def test_compare_two_runs_and_measure_nothing(root):
    asked = parse(root, ["--compare", "a", "b", "--other-machine"])
    assert asked.measure is None
    assert asked.comparison(None) == ["compare", "a", "b", "--other-machine"]


def test_nothing_to_compare(root):
    assert parse(root, ["load"]).comparison(Path("new")) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loud"], "no benchmark loud; there are generate, load, step"),
        (["--compare"], "--compare: expected at least one argument"),
        (["--compare", "a", "b", "c"], "one run or two"),
        (["--compare", "last", "load"], "benchmarks are named before the options"),
        (["load", "--compare", "a", "b"], "measures nothing: leave out load"),
        (["--compare", "a", "nowhere"], "--compare: there is no run at nowhere"),
        (["--fail-over", "5%"], "--fail-over says how to compare"),
    ],
)
def test_what_cannot_be_asked(arguments, message, root):
    with pytest.raises(SetupError, match="usage: nox -s bench --") as caught:
        parse(root, arguments)
    assert message in str(caught.value)


def test_the_first_run_has_no_last_one(root):
    (root / "benchmarks/results/2026-01-01-mine/results.json").unlink()
    with pytest.raises(SetupError, match="there is no run yet in benchmarks/results"):
        parse(root, ["load", "--compare", "last"])


def test_results_of_both_come_together(root):
    before = runs(root)
    assert before == {Path("benchmarks/results/2026-01-01-mine")}
    (root / OWN_RESULTS).write_text("{}")
    add_run(root, "2026-01-02-mine")
    new = collect(root, before)
    assert new == Path("benchmarks/results/2026-01-02-mine")
    assert (root / new / "pytest-benchmark.json").read_text() == "{}"
    assert not (root / OWN_RESULTS).exists()


def test_an_interrupted_run_leaves_no_empty_file(root):
    before = runs(root)
    (root / OWN_RESULTS).touch()
    add_run(root, "2026-01-02-mine")
    new = collect(root, before)
    assert [path.name for path in (root / new).iterdir()] == ["results.json"]
    assert not (root / OWN_RESULTS).exists()


def test_nothing_was_measured(root):
    (root / OWN_RESULTS).touch()
    assert collect(root, runs(root)) is None
    assert not (root / OWN_RESULTS).exists()
