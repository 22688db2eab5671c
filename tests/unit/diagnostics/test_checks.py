import io

import pytest

from folovllm.cli.checks import print_checks, write_report
from folovllm.diagnostics.checks import Check, CheckError, CheckStep, Finding, chain, run_steps
from folovllm.errors import ConfigError


def fails(error):
    def check():
        raise error

    return check


def run(*steps, **options):
    return list(run_steps(steps, **options))


def test_what_a_check_returns():
    figures = {"GB_per_s": 2.0}
    first, second = run(
        CheckStep("one", lambda: "all well"),
        CheckStep("two", lambda: Finding("slow", "degraded", "hurry", figures)),
    )
    assert (first.name, first.status, first.detail) == ("one", "ok", "all well")
    assert first.as_json() == {
        "name": "one",
        "status": "ok",
        "detail": "all well",
        "seconds": first.seconds,
    }
    assert (second.status, second.advice, second.figures) == ("degraded", "hurry", figures)
    assert list(second.as_json())[4:] == ["advice", "figures"]


def test_errors_are_failures():
    ours, theirs = run(
        CheckStep("ours", fails(CheckError("broken\n in two", "mend it"))),
        CheckStep("theirs", fails(ZeroDivisionError("by 0"))),
        advise=lambda error: f"know {type(error).__name__}",
    )
    assert (ours.status, ours.detail, ours.advice) == ("failed", "broken in two", "mend it")
    assert theirs.detail == "ZeroDivisionError: by 0"
    assert theirs.advice == "know ZeroDivisionError"


def test_what_needs_a_failed_check_is_skipped():
    done = run(
        CheckStep("a", fails(CheckError("no"))),
        CheckStep("b", lambda: "yes", ("a",)),
        CheckStep("c", lambda: "yes", ("b",)),
        CheckStep("d", lambda: "yes"),
        CheckStep("e", lambda: Finding("none", "absent")),
        CheckStep("f", lambda: "yes", ("e",)),
        CheckStep("g", lambda: Finding("has none", "skipped")),
        CheckStep("h", lambda: "yes", ("g",)),
    )
    statuses = [check.status for check in done]
    assert statuses == [
        *("failed", "skipped", "skipped", "ok"),
        *("absent", "skipped", "skipped", "ok"),
    ]
    assert done[1].detail == done[2].detail == "because a failed"
    assert done[5].detail == "there is nothing to check"


def test_needs_of_earlier_runs():
    before = run(CheckStep("a", fails(CheckError("no"))), CheckStep("b", lambda: "yes", ("a",)))
    done = run(CheckStep("c", lambda: "yes", ("b",)), CheckStep("d", lambda: "yes"), before=before)
    assert [check.status for check in done] == ["skipped", "ok"]
    assert done[0].detail == "because a failed"


def test_nothing_follows_what_spoils_the_device():
    asked = []
    steps = [
        CheckStep("a", lambda: "yes"),
        CheckStep("b", fails(RuntimeError("illegal"))),
        CheckStep("c", lambda: "yes"),
        CheckStep("d", lambda: "yes"),
    ]
    done = run(*steps, spoilt=lambda: asked.append(1) or True)
    assert [check.status for check in done] == ["ok", "failed", "skipped", "skipped"]
    assert done[3].detail == "because b failed"
    assert asked == [1]


def test_a_chain_stops():
    steps = chain([("a", lambda: "yes"), ("b", fails(CheckError("no"))), ("c", lambda: "yes")])
    assert [check.status for check in run(*steps)] == ["ok", "failed", "skipped"]


def test_checks_are_shown_as_they_are_done(monkeypatch):
    output = io.StringIO()
    monkeypatch.setattr("sys.stdout", output)

    def checks():
        yield Check("first", "ok", "fine", 0.5)
        assert "fine" in output.getvalue()
        yield Check("second", "failed", "not fine", 0.25, "mend it")

    assert [check.name for check in print_checks(checks(), (9, 8))] == ["first", "second"]
    assert output.getvalue().splitlines() == [
        "ok       first     0.50 s  fine",
        "failed   second    0.25 s  not fine",
        "                           to do: mend it",
    ]


def test_under_a_headline_skipped_neighbours_share_a_line(capsys):
    checks = [
        Check("a", "absent", "none", 0, "get one"),
        *(Check(name, "skipped", "no a", 0) for name in "bcd"),
        Check("e", "ok", "fine", 0),
        Check("f", "skipped", "no e", 0),
    ]
    assert print_checks(checks, (9, 8), "none: get one") == checks
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("s  ")[-1] for line in lines] == ["none", "no a: b, c, d", "fine", "no e"]
    assert lines[1].split()[:3] == ["skipped", "3", "checks"]


def test_a_report_that_cannot_be_written(tmp_path):
    with pytest.raises(ConfigError, match="--json"):
        write_report(tmp_path / "missing" / "file", {}, [])
    write_report(None, {}, [])
