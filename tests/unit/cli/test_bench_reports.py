import copy

import pytest

from folovllm.bench.results import Measurement, Run, read_run
from folovllm.cli.main import main
from tests.unit.bench.example import MACHINE


def write(folder, samples, day, case="case", **machine):
    run = Run(f"2026-11-{day}T10:00:00+00:00", copy.deepcopy(MACHINE) | machine, {}, partial=False)
    run.add(Measurement("load", case, "folovllm", "ready", "s", "lower", samples))
    run.write(folder)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Runs, where `nox -s bench` keeps them; the second is a quarter slower than the first."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "benchmarks" / "results"
    write(folder / "first", [1.0, 1.01, 1.02], 19)
    write(folder / "second", [1.25, 1.26, 1.27], 20)
    write(folder / "third", [1.25, 1.26, 1.27], 21, cpu={"model": "another"})
    write(folder / "other", [1.0], 22, case="another", cpu={})
    return folder


def test_report_prints_and_writes_beside_the_run(results, capsys):
    assert main(["bench", "report", str(results / "first")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Ready to generate 1.01 s after the start (case).")
    assert "<!DOCTYPE html>" in (results / "first" / "report.html").read_text("utf-8")
    assert "| case | 1.01 s (1.00 – 1.02) |" in (results / "first" / "summary.md").read_text(
        "utf-8"
    )


def test_report_writes_where_it_is_told_and_compares(results, tmp_path, capsys):
    arguments = ["--html", "a.html", "--markdown", "a.md", "--against", "last"]
    assert main(["bench", "report", str(results / "second" / "results.json"), *arguments]) == 0
    assert "slower" in capsys.readouterr().out
    for name in ("a.html", "a.md"):
        assert "slower" in (tmp_path / name).read_text("utf-8")
    assert {path.name for path in (results / "second").iterdir()} == {"results.json"}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["first", "second"], 0),
        (["last", "second", "--fail-over", "10%"], 1),
        (["last", "second", "--fail-over", "24.5 %"], 1),
        (["last", "second", "--fail-over", "30%"], 0),
        (["second", "first", "--fail-over", "0%"], 0),
        (["second", "third"], 1),
        (["second", "third", "--other-machine"], 0),
        (["last", "last"], 1),  # of the newest run's machine, there is no other
        (["first", "nowhere"], 1),
        (["first", "other", "--other-machine"], 1),  # nothing in common
    ],
)
def test_compare_ends_with(results, arguments, code, monkeypatch, capsys):
    place = lambda name: str(results / name) if (results / name).exists() else name  # noqa: E731
    assert main(["bench", "compare", *map(place, arguments)]) == code
    captured = capsys.readouterr()
    assert ("past the limit" in captured.out or "folovllm: " in captured.err) == bool(code)


@pytest.mark.parametrize("limit", ["0.1", "10", "-5%", "nan%", ""])
def test_compare_takes_a_percentage_alone(results, limit, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "compare", "a", "b", f"--fail-over={limit}"])
    assert "a percentage such as 10%" in capsys.readouterr().err


def test_another_schema_is_refused(results, capsys):
    path = results / "first" / "results.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 9'))
    assert main(["bench", "compare", str(path), str(results / "second")]) == 1
    assert "has the schema 9" in capsys.readouterr().err
    assert read_run(results / "second").measurements
