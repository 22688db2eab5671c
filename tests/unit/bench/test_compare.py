import copy
import dataclasses

import pytest

from folovllm.bench.compare import (
    LAST,
    compare_runs,
    comparison_table,
    count_verdicts,
    describe_rest,
    explain,
    find_run,
)
from folovllm.bench.results import BenchError, Measurement, Run
from tests.unit.bench.example import example_run


def run_of(*measurements, started="2026-11-21T10:00:00+00:00", **facts):
    run = Run(started, {"cpu": {"model": "x", "allowed_cores": 2}} | facts, {}, partial=False)
    for each in measurements:
        run.add(each)
    return run


def measured(samples, metric="time", unit="s", better="lower"):
    return Measurement("suite", "case", "folovllm", metric, unit, better, samples)


def compare(earlier, later, **how):
    comparison = compare_runs(run_of(measured(earlier, **how)), run_of(measured(later, **how)))
    return comparison.rows[0]


FAST, SLOW = [1.0, 1.01, 1.02], [1.2, 1.21, 1.22]


@pytest.mark.parametrize(
    ("how", "verdict"),
    [
        ({}, "slower"),
        ({"unit": "tok/s", "better": "higher"}, "faster"),
        ({"unit": "bytes"}, "worse"),
        ({"unit": "questions", "better": "higher"}, "better"),
    ],
)
def test_a_verdict_is_in_the_words_of_its_unit(how, verdict):
    assert compare(FAST, SLOW, **how).verdict == verdict


def test_a_loss_is_the_same_of_a_time_and_of_its_rate():
    times = compare([1.0] * 3, [1.25] * 3)
    rates = compare([100.0] * 3, [80.0] * 3, unit="tok/s", better="higher")
    assert times.loss == pytest.approx(0.25)
    assert rates.loss == pytest.approx(0.25)
    assert times.verdict == rates.verdict == "slower"


def test_is_past_a_limit_by_the_ratio_and_beyond_noise():
    slower = compare_runs(run_of(measured(FAST)), run_of(measured(SLOW)))
    assert [row.verdict for row in slower.past(0.1)] == ["slower"]
    assert slower.past(0.25) == []
    few = compare_runs(run_of(measured([1.0])), run_of(measured([9.0])))
    assert few.past(0.1) == []
    noisy = compare_runs(run_of(measured([1.0, 1.1, 2.0])), run_of(measured([1.3, 1.5, 1.9])))
    assert noisy.past(0.1) == []


def test_the_same_run_has_no_verdict():
    comparison = compare_runs(example_run(), example_run())
    assert {row.verdict for row in comparison.rows} <= {"within noise", "too few samples"}
    assert not comparison.notes


def test_a_slower_engine_is_found_and_its_peers_are_not():
    comparison = compare_runs(example_run(), example_run(slower=1.3, seed=5))
    slower = {row.later.way for row in comparison.past(0.1)}
    assert slower == {"folovllm"}
    loads = [row for row in comparison.past(0.1) if row.later.suite == "load"]
    assert len(loads) == 2


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"cpu": {"model": "y", "allowed_cores": 2}}, "processor: x before, y now"),
        ({"cpu": {"model": "x", "allowed_cores": 4}}, "allowed cores: 2 before, 4 now"),
        ({"torch": {"threads": 1}}, "threads: none before, 1 now"),
        ({"memory": {"total": 2**34}}, "memory: none before, 16 GiB now"),
        ({"gpus": [{"name": "H200", "memory": 2**37}]}, "GPUs: none before, H200, 128 GiB now"),
    ],
)
def test_refuses_another_machine_unless_told_to(facts, message):
    here, there = run_of(measured(FAST)), run_of(measured(SLOW), **facts)
    with pytest.raises(BenchError, match=message):
        compare_runs(here, there)
    comparison = compare_runs(here, there, other_machine=True)
    assert [row.verdict for row in comparison.rows] == ["slower"]
    assert message[1:] in comparison.notes[0]


def test_a_little_other_memory_is_the_same_machine():
    sizes = ({"memory": {"total": 2**34 + noise}} for noise in (0, 2**20))
    assert compare_runs(*(run_of(measured(FAST), **size) for size in sizes)).rows


def test_says_what_else_differs():
    earlier, later = run_of(measured(FAST), commit="a"), run_of(measured(FAST), commit="b")
    earlier.settings["dtype"], later.settings["dtype"] = "float32", "bfloat16"
    later.partial = True
    assert compare_runs(earlier, later).notes == [
        "The later run is partial: it ended before all was measured.",
        "Other settings. Dtype: float32 before, bfloat16 now.",
        "Other software. Commit: a before, b now.",
    ]


def test_a_slower_machine_counts_as_noise():
    earlier, later = run_of(measured(FAST)), run_of(measured(SLOW))
    earlier.limits = {"start": {"rate": 120.0}, "end": {"rate": 120.0}}
    later.limits = {"start": {"rate": 90.0}}
    comparison = compare_runs(earlier, later)
    assert comparison.noise == pytest.approx(1 / 3)
    assert comparison.rows[0].verdict == "within noise"
    assert "limits differ by 33 %" in comparison.notes[-1]
    assert "33 %" in explain(comparison)
    later.machine["cpu"]["model"] = "y"
    assert compare_runs(earlier, later, other_machine=True).rows[0].verdict == "slower"


def test_lists_what_only_one_run_has():
    earlier, later = run_of(measured(FAST)), run_of(measured(FAST, "a"), measured(FAST, "b"))
    comparison = compare_runs(earlier, later)
    assert comparison.rows == []
    assert describe_rest(comparison) == [
        "Only in the earlier run: suite, case, folovllm (time).",
        "Only in the later run: suite, case, folovllm (a, b).",
    ]
    assert count_verdicts(comparison) == "0 measurements are in both runs: none."


def test_refuses_what_changed_its_meaning():
    with pytest.raises(BenchError, match=r"is in s .*and in ms"):
        compare_runs(run_of(measured(FAST)), run_of(measured(FAST, unit="ms")))


def test_a_table_has_the_exact_figures():
    row = compare_runs(run_of(measured(FAST)), run_of(measured(SLOW)))
    table = comparison_table(row)
    assert [cell.value for cell in table.rows[0]] == [None, 1.01, 1.21, 1.21 / 1.01, None]
    assert [cell.text for cell in table.rows[0]] == [
        "time, case",
        "1.01 s",
        "1.21 s",
        "+20 %",
        "slower",
    ]
    assert table.rows[0][-1].tone == "worse"


class TestLast:
    @pytest.fixture
    def root(self, tmp_path):
        days = {"old": "19", "new": "20", "judged": "21", "later": "22"}
        for name, day in days.items():
            started = f"2026-11-{day}T10:00:00+00:00"
            run_of(measured(FAST), started=started).write(tmp_path / name)
        other = dataclasses.replace(copy.deepcopy(run_of(measured(FAST))), machine={"cpu": {}})
        other.started = "2026-11-20T22:00:00+00:00"
        other.write(tmp_path / "other")
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "results.json").write_text("{")
        return tmp_path

    def test_is_the_newest_before_on_the_same_machine(self, root):
        assert find_run(LAST, root, before=root / "judged") == root / "new"

    def test_is_the_newest_of_all(self, root):
        assert find_run(LAST, root) == root / "later"

    def test_may_not_be_there(self, root, tmp_path):
        with pytest.raises(BenchError, match="no run of this machine, before"):
            find_run(LAST, root, before=root / "old")
        with pytest.raises(BenchError, match="no run at all"):
            find_run(LAST, root / "nowhere")

    def test_a_folder_is_a_folder(self, root):
        assert str(find_run("some/where", root)) == "some/where"
