"""`nox -s bench`, with commands that are played."""

from contextlib import nullcontext

import pytest

nox = pytest.importorskip("nox")

import noxfile  # noqa: E402

RUN = "benchmarks/results/2026-01-02-mine"


class Session:
    """Notes the commands that it is to run; pytest leaves results behind, and may fail."""

    def __init__(self, root, arguments, error):
        self.root, self.posargs, self.end = root, arguments, error
        self.commands = []

    def run(self, program, *arguments, **_):
        self.commands.append([program.rpartition("/")[2], *arguments])
        if "pytest" in arguments:
            (self.root / RUN).mkdir()
            (self.root / RUN / "results.json").touch()
            if self.end:
                raise self.end


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Runs the session in a checkout with one benchmark and a run; gives its commands."""
    for folder in ("benchmarks/results/2026-01-01-mine", "a", "b"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "benchmarks/results/2026-01-01-mine/results.json").touch()
    (tmp_path / "benchmarks" / "test_load.py").touch()
    monkeypatch.setattr(noxfile, "ROOT", tmp_path)
    monkeypatch.setattr(noxfile.environment, "run", lambda *_: None)

    def run(*arguments, error=None):
        session = Session(tmp_path, list(arguments), error)
        with pytest.raises(type(error)) if error else nullcontext():
            noxfile.bench.func(session)
        return session.commands

    return run


def test_measures_and_reports(bench):
    pytest_command, report = bench("load", "--rounds", "2")
    assert pytest_command[:4] == ["python", "-m", "pytest", "benchmarks/test_load.py"]
    assert pytest_command[-2:] == ["--rounds", "2"]
    assert report == ["folovllm", "bench", "report", RUN]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("pytest failed")])
def test_reports_what_there_is_of_a_run_that_ended_early(error, bench):
    commands = bench("load", "--compare", "last", error=error)
    assert commands[1:] == [["folovllm", "bench", "report", RUN]]  # and compares nothing


def test_measures_and_compares(bench):
    _, report, compared, compare = bench("--compare", "last", "--fail-over=5%", "--other-machine")
    assert report == ["folovllm", "bench", "report", RUN]  # whatever becomes of the comparison
    assert compared == [*report, "--against", "last", "--other-machine"]
    judge = ["--fail-over", "5%", "--other-machine"]
    assert compare == ["folovllm", "bench", "compare", "last", RUN, *judge]


def test_only_compares(bench):
    assert bench("--compare", "a", "b") == [["folovllm", "bench", "compare", "a", "b"]]
