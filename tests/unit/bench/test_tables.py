import pytest

from folovllm.bench.headline import headline
from folovllm.bench.results import Measurement, Run
from folovllm.bench.tables import by_metric, metric_table, relative, suite_tables
from tests.unit.bench.example import example_run


def measured(samples, way="folovllm", case="case", unit="s", better="lower", **more):
    return Measurement("suite", case, way, "time", unit, better, samples, **more)


def texts(table):
    return [[cell.text for cell in row] for row in table.rows]


def test_a_way_stands_beside_ours():
    ours = measured([1.0, 1.1, 1.2], limits=[0.5, 0.5, 0.6])
    table = metric_table("time", [ours, measured([2.0, 2.2, 3.6], "peer")])
    assert table.columns == ["Way", "Median", "Samples", "Of the limit", "folovllm: times as fast"]
    assert texts(table) == [
        ["folovllm", "1.10 s", "3", "50 %", ""],
        ["peer", "2.20 s", "3", "", "2.00 ×"],
    ]
    assert [cell.small for cell in table.rows[1]] == ["", "2.00 – 3.60", "", "", "2.00 – 3.00"]
    assert [group.text for group in table.groups] == ["case", "case"]


def test_one_way_alone_has_no_column():
    table = metric_table("time", [measured([1.0]), measured([2.0], case="other")])
    assert (table.columns, table.groups) == (["Case", "Median", "Samples"], [])
    assert table.caption == "Time (folovllm; lower is better)"
    assert texts(table) == [["case", "1.00 s", "1"], ["other", "2.00 s", "1"]]
    assert table.rows[0][1].small == ""  # a range of one


def test_many_samples_have_percentiles():
    samples = [float(i) for i in range(101)]
    table = metric_table("time", [measured(samples)])
    assert table.columns == ["Case", "Median", "90 %", "99 %", "Samples"]
    assert [cell.value for cell in table.rows[0]] == [None, 50.0, 90.0, 99.0, 101]


@pytest.mark.parametrize(
    ("unit", "better", "ratio"),
    [("s", "lower", 2.0), ("tok/s", "higher", 0.5), ("bytes", "lower", 0.5)],
)
def test_relative_to_another_way(unit, better, ratio):
    ours, theirs = (measured([v], unit=unit, better=better) for v in (1.0, 2.0))
    assert relative(ours, theirs).median == ratio


def test_metrics_of_one_sample_share_a_table():
    tables = suite_tables(example_run())["sweep"]
    assert tables[0].columns == ["Case", "Output tokens", "Requests", "Goodput"]
    assert len(tables[0].rows) == 6
    assert [table.caption.split(" (")[0] for table in tables[1:]] == [
        "Rate",
        "Time to first token",
        "Time per output token",
    ]


def test_every_measurement_is_in_a_table():
    run = example_run()
    shown = {
        cell.value
        for tables in suite_tables(run).values()
        for table in tables
        for row in table.rows
        for cell in row
    }
    for each in run.measurements:
        if each.metric == "time":  # of what has a rate in tokens
            continue
        assert sorted(each.samples)[len(each.samples) // 2] in shown or len(each.samples) % 2 == 0


def test_times_are_shown_where_there_is_no_rate():
    run = Run("now", {}, {})
    for case, metric in (("batch", "time"), ("batch", "output tokens"), ("prefill", "time")):
        run.add(Measurement("throughput", case, "folovllm", metric, "s", "lower", [1.0, 2.0]))
    shown = by_metric(run)["throughput"]
    assert [each.key[1::2] for row in shown.values() for each in row] == [
        ("prefill", "time"),
        ("batch", "output tokens"),
    ]


def test_a_headline_tells_speed_and_load():
    first, second = headline(example_run())
    assert first == (
        "Generates 136 tokens a second for 32 requests: 2.75 times as fast as transformers, 71 % "
        "of what this machine allows."
    )
    assert second.startswith("Ready to generate 1.45 s after the start (float32, cold page cache)")


@pytest.mark.parametrize(
    ("measurements", "text"),
    [
        ([], "Nothing was measured."),
        ([measured([2.0], "peer")], "Time of peer, case: 2.00 s."),
        ([measured([2.0], "peer"), measured([1.0])], "Time of folovllm, case: 1.00 s."),
        (
            [measured([50.0], unit="tok/s", better="higher")],
            "Generates 50.0 tokens a second (case).",
        ),
        (
            [measured([50.0], unit="tok/s", better="higher", parameters={"requests": 1})],
            "Generates 50.0 tokens a second for 1 request.",
        ),
    ],
)
def test_a_headline_makes_do_with_what_there_is(measurements, text):
    run = Run("now", {}, {})
    for each in measurements:
        run.add(each)
    assert headline(run) == [text]
