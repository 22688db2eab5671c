import dataclasses
import re
import sys
from html.parser import HTMLParser
from statistics import median
from xml.etree import ElementTree as ET

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from folovllm.bench.charts import comparison_plots, suite_plots
from folovllm.bench.compare import compare_runs
from folovllm.bench.page import render_page
from folovllm.bench.report import require_plots, write_html, write_markdown
from folovllm.bench.results import BenchError, Measurement, Run
from folovllm.bench.rows import median_parts
from folovllm.bench.summary import comparison_text, render_markdown, render_text
from tests.unit.bench.example import example_run

NASTY = (
    "<script>alert(1)</script>",
    "$x$ & | `*_",
    "\x00\ud800\x1b[31m",
    "模型",
    "_",
    "a\nb",
    "x" * 300,
)


class Page(HTMLParser):
    """A page's elements, if they are closed in the order they were opened."""

    def __init__(self, page):
        super().__init__()
        self.open, self.seen, self.ids, self.data, self.texts = [], [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.ids += [value for name, value in attributes if name == "id"]
        self.data += [dict(attributes)["value"] for _ in "x" if tag == "data"]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


names = st.sampled_from(NASTY) | st.text(max_size=8)
numbers = st.floats(-1e12, 1e15) | st.sampled_from([0.0, 1.0, 1e-12])


@st.composite
def measurements(draw):
    count = draw(st.integers(1, 12))
    column = st.lists(numbers, min_size=count, max_size=count)
    axes = st.sampled_from(["prompt", "batch", "context", "rate", "workload"])
    return Measurement(
        suite=draw(st.sampled_from(["sweep", "load"]) | names),
        case=draw(names),
        way=draw(st.just("folovllm") | names),
        metric=draw(st.sampled_from(["requests", "goodput", "rate"]) | names),
        unit=draw(st.sampled_from(["s", "bytes", "tok/s"]) | names),
        better=draw(st.sampled_from(["lower", "higher"])),
        samples=draw(column),
        limits=draw(st.none() | column),
        parts=draw(st.dictionaries(names, column, max_size=2)),
        parameters=draw(st.dictionaries(axes | names, numbers | names, max_size=3)),
    )


@st.composite
def runs(draw):
    facts = st.dictionaries(
        st.sampled_from(["cpu", "memory", "os", "gpus", "torch", "packages", "commit"]) | names,
        names | st.none() | st.dictionaries(names, names, max_size=2),
        max_size=3,
    )
    limits = st.dictionaries(names, st.dictionaries(names, numbers, max_size=2), max_size=2)
    unique = st.lists(measurements(), max_size=5, unique_by=lambda each: each.key)
    return Run(
        draw(names), draw(facts), draw(facts), 1.0, draw(st.booleans()), draw(limits), draw(unique)
    )


@given(run=runs())
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_run_has_a_report(run):
    comparison = compare_runs(run, run)
    page = Page(render_page(run, comparison))
    assert "script" not in page.seen
    assert len(page.ids) == len(set(page.ids))
    for plots in suite_plots(run).values():
        for plot in plots:
            ET.fromstring(plot.svg)
    markdown, text = render_markdown(run, comparison), render_text(run, comparison)
    assert "<script" not in re.sub(r"\\<", "", markdown)
    assert "\x1b" not in text + markdown
    for content in (markdown, text):
        content.encode()


@pytest.fixture(scope="module")
def pair():
    return compare_runs(example_run(), example_run(slower=1.2, seed=3))


@pytest.fixture
def small():
    run = Run("now", {}, {"model": "<script>"}, partial=False)
    run.add(Measurement("new", "case", "way", "metric", "s", "lower", [1.0, 2.0, 2.5, 1.5]))
    return run


@pytest.fixture(scope="module")
def page_text(pair):
    return render_page(pair.later, pair)


def test_is_one_file_that_needs_nothing_else(page_text):
    page = Page(page_text)
    assert not {"script", "img", "iframe"} & set(page.seen)
    assert not re.search(r'(src|href)="(?!#|data:,")|url\((?!#)|@import', page_text)
    assert page.seen.count("svg") > page.seen.count("figure") == 13


def test_colours_are_those_of_the_page(page_text):
    body = page_text.partition("</style>")[2]
    assert "var(--series-0)" in body
    assert not re.search(r"#[0-9a-f]{6}\b", body)


def test_what_is_named_is_escaped(small):
    page = render_page(small)
    assert "&lt;script&gt;" in page
    assert "<script" not in page


def test_a_partial_run_says_so_everywhere(small):
    partial = dataclasses.replace(small, partial=True)
    for render in (render_page, render_markdown, render_text):
        assert "ended before all was measured" in render(partial)
        assert "ended before all was measured" not in render(small)


def test_a_machine_that_changed_is_said_everywhere(small):
    limits = {"start": {"bandwidth": 1e10}, "end": {"bandwidth": 0.8e10}}
    changed = dataclasses.replace(small, limits=limits)
    for render in (render_page, render_markdown, render_text):
        assert "The machine changed meanwhile: its bandwidth is " in render(changed)


@pytest.mark.parametrize("samples", [[1.0, 4.0, 2.0], [4.0, 1.0, 2.0, 2.5]])
def test_stacked_parts_add_up_to_the_median(samples):
    parts = {"a": [0.9 * s if s > 2 else 0.1 * s for s in samples]}
    parts["b"] = [s - a for s, a in zip(samples, parts["a"], strict=True)]
    each = Measurement("load", "x", "y", "ready", "s", "lower", samples, parts=parts)
    assert sum(median_parts(each).values()) == pytest.approx(median(samples))


def test_plots_of_each_suite(pair):
    titles = {suite: [p.title for p in plots] for suite, plots in suite_plots(pair.later).items()}
    assert titles == {
        "load": [
            "Ready, float32, cold page cache",
            "Ready, float32, warm page cache",
            "Ready, every sample",
            "Peak memory, every sample",
        ],
        "latency": [
            "Time to first token by prompt length",
            "Time per output token by batch size",
            "Time per output token by context",
        ],
        "throughput": ["Output tokens, every sample"],
        "sweep": [
            "Requests served by rate of arrival",
            "Output tokens by rate of arrival",
            "Time to first token by rate of arrival",
            "Time per output token by rate of arrival",
        ],
    }


def test_legends_name_what_is_drawn(pair):
    plots = {plot.title: plot for plots in suite_plots(pair.later).values() for plot in plots}
    legends = {title: [key.label for key in plot.legend] for title, plot in plots.items()}
    assert legends["Ready, float32, cold page cache"] == [
        *("config and tokenizer", "weights read", "weights placed", "first forward", "limit"),
    ]
    assert legends["Time per output token by batch size"] == ["50 %", "90 %", "99 %", "limit"]
    assert "knee, 1.47 requests/s" in legends["Requests served by rate of arrival"]


def test_every_sample_is_a_mark(small):
    (plot,) = suite_plots(small)["new"]
    assert plot.svg.count("<use") == 4 + len(re.findall(r'id="xtick_', plot.svg))


def test_changes_are_plotted_where_there_are_any(pair):
    assert [plot.title for plot in comparison_plots(pair)] == ["The largest changes beyond noise"]
    assert comparison_plots(compare_runs(pair.later, pair.later)) == []


def test_text_has_what_matters(pair):
    text = comparison_text(pair)
    assert "ready, float32, cold page cache (folovllm)" in text
    assert "exact one-sided rank-sum test" in text
    assert max(map(len, render_text(pair.later).splitlines()[3:])) < 140


def test_markdown_tables_have_as_many_cells_in_each_row(pair):
    text = render_markdown(dataclasses.replace(pair.later, settings={"model": "a|b"}), pair)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1


def test_files_are_written_where_asked(tmp_path, small):
    write_html(small, tmp_path / "new" / "report.html")
    write_markdown(small, tmp_path / "summary.md")
    assert (tmp_path / "new" / "report.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    assert (tmp_path / "summary.md").read_text("utf-8") == render_markdown(small)
    with pytest.raises(BenchError, match="cannot be written"):
        write_markdown(small, tmp_path)


def test_says_when_nothing_can_draw(monkeypatch):
    require_plots()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("folovllm.bench.report.find_spec", lambda name: None)
    with pytest.raises(BenchError, match=r"pip install 'folovllm\[bench\]'"):
        require_plots()
