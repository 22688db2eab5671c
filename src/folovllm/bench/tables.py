"""The tables of a run, as HTML, Markdown and the terminal show them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeAlias

from folovllm.bench.results import OURS, Measurement, Run
from folovllm.bench.statistics import (
    Spread,
    inverse,
    percentile,
    shares_of_limit,
    spread,
    times_as_good,
)
from folovllm.bench.wording import DASH, percent, quantity, span, times

NOTES = ("workload", "bound", "rule")
"""Parameters that say what a case is."""

MANY = 10
"""From so many samples on, percentiles say more than the lowest and the highest."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What stands in one place of a table.

    Attributes:
        text: as it is read.
        small: what goes with it and matters less.
        value: the exact figure of the text, if it is one.
        tone: whether it is good or bad news.
    """

    text: str
    small: str = ""
    value: float | None = None
    tone: Literal["", "better", "worse"] = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Attributes:
        caption: what it is about.
        columns: their titles; the first is of what names a row.
        rows: a cell for each column.
        groups: for each row, the group that it belongs to; empty without groups.
    """

    caption: str
    columns: list[str]
    rows: list[list[Cell]]
    groups: list[Cell] = field(default_factory=list)


def suite_tables(run: Run) -> dict[str, list[Table]]:
    """The tables of each suite, in the order of the measurements.

    One a metric; metrics that were sampled once each, in the same cases, share one.
    """
    return {suite: _tables(each) for suite, each in by_metric(run).items()}


def by_metric(run: Run) -> dict[str, dict[str, list[Measurement]]]:
    """What is shown of a run, by suite and metric, the measurements of a case side by side."""
    suites: dict[str, dict[str, list[Measurement]]] = {}
    for each in run.measurements:
        suites.setdefault(each.suite, {}).setdefault(each.metric, []).append(each)
    return {
        suite: {metric: by_case(measured) for metric, measured in _not_told_twice(metrics).items()}
        for suite, metrics in suites.items()
    }


def _not_told_twice(metrics: dict[str, list[Measurement]]) -> dict[str, list[Measurement]]:
    """Without the times of what has a rate: the same figures upside down."""
    rates = {each.key[:3] for each in metrics.get("output tokens", [])}
    left = {
        metric: [each for each in measured if metric != "time" or each.key[:3] not in rates]
        for metric, measured in metrics.items()
    }
    return {metric: measured for metric, measured in left.items() if measured}


def _tables(metrics: Mapping[str, list[Measurement]]) -> list[Table]:
    tables, once = [], dict[tuple[tuple[str, str], ...], list[list[Measurement]]]()
    for metric, measured in metrics.items():
        if any(len(each.samples) > 1 or each.limits for each in measured):
            tables.append(metric_table(metric, measured))
        else:
            places = tuple((each.case, each.way) for each in measured)
            once.setdefault(places, []).append(measured)
    return [single_table(columns) for columns in once.values()] + tables


def single_table(metrics: Sequence[Sequence[Measurement]]) -> Table:
    """A row for each case and way, a column for each metric, of which there is one sample.

    Args:
        metrics: the measurements of each metric, all of the same cases and ways.
    """
    first = metrics[0]
    several = len({each.way for each in first}) > 1
    rows = [
        [Cell(each.way) if several else _case(each), *map(_value, row)]
        for each, row in zip(first, zip(*metrics, strict=True), strict=True)
    ]
    names = ", ".join(column[0].metric for column in metrics)
    caption = sentence(names) + ("" if several else f" ({first[0].way})")
    columns = ["Way" if several else "Case", *[sentence(column[0].metric) for column in metrics]]
    return Table(caption, columns, rows, [_case(each) for each in first] if several else [])


def by_case(measurements: Iterable[Measurement]) -> list[Measurement]:
    """The measurements of one case next to each other; else in their order."""
    cases: dict[str, list[Measurement]] = {}
    for each in measurements:
        cases.setdefault(each.case, []).append(each)
    return [each for case in cases.values() for each in case]


def metric_table(metric: str, measurements: Sequence[Measurement]) -> Table:
    """A row for each case and way.

    Args:
        metric: which.
        measurements: of that metric, those of one case next to each other.
    """
    columns = _columns(measurements)
    cells = [[make(each) for make in columns.values()] for each in measurements]
    ways = {each.way for each in measurements}
    cases = [_case(each) for each in measurements]
    better = measurements[0].better
    if len(ways) == 1:
        caption = f"{sentence(metric)} ({', '.join(ways)}; {better} is better)"
        rows = [[case, *row] for case, row in zip(cases, cells, strict=True)]
        return Table(caption, ["Case", *columns], rows)
    rows = [[Cell(each.way), *row] for each, row in zip(measurements, cells, strict=True)]
    return Table(f"{sentence(metric)} ({better} is better)", ["Way", *columns], rows, cases)


def _case(each: Measurement) -> Cell:
    notes = [str(each.parameters[name]) for name in NOTES if name in each.parameters]
    return Cell(each.case, ": ".join(notes))


def _value(each: Measurement) -> Cell:
    return Cell(quantity(each.samples[0], each.unit), value=each.samples[0])


def sentence(text: str) -> str:
    """The text with a capital at its beginning."""
    return text[:1].upper() + text[1:]


def is_speed(unit: str) -> bool:
    """Whether what is measured in it is how fast something is, and not how large."""
    return unit == "s" or unit.endswith("/s")


def relative(ours: Measurement, theirs: Measurement) -> Spread:
    """How we stand beside another way: how many times as fast, or how many times as much."""
    ratio = times_as_good(ours.samples, theirs.samples, ours.better)
    if is_speed(ours.unit) or ours.better == "higher":
        return ratio
    return Spread(*map(inverse, (ratio.median, ratio.highest, ratio.lowest)))


_Column: TypeAlias = Callable[[Measurement], Cell]


def _columns(measurements: Sequence[Measurement]) -> dict[str, _Column]:
    """What makes the cells of a row, by column."""
    columns: dict[str, _Column] = {"Median": median_cell}
    if min(len(each.samples) for each in measurements) >= MANY:
        columns = {"Median": partial(_percentile, 50)}
        columns |= {"90 %": partial(_percentile, 90), "99 %": partial(_percentile, 99)}
    columns["Samples"] = lambda each: Cell(str(len(each.samples)), value=len(each.samples))
    if any(each.limits for each in measurements):
        columns["Of the limit"] = _share
    ours = {each.case: each for each in measurements if each.way == OURS}
    if any(each.way != OURS and each.case in ours for each in measurements):
        word = "fast" if is_speed(measurements[0].unit) else "much"
        columns[f"{OURS}: times as {word}"] = partial(_beside, ours)
    return columns


def summarise(samples: Sequence[float]) -> str:
    """Times in a few words, for a line that tells how it is going; in seconds."""
    if len(samples) < MANY:
        middle, low, high = spread(samples)
        return f"median {quantity(middle, 's')} ({span(low, middle, high, 's')})"
    figures = (f"p{p} {quantity(percentile(samples, p), 's')}" for p in (50, 90, 99))
    return ", ".join(figures)


def median_cell(each: Measurement) -> Cell:
    """The median, and the range of all samples."""
    middle, low, high = spread(each.samples)
    ends = span(low, middle, high, each.unit) if len(each.samples) > 1 else ""
    return Cell(quantity(middle, each.unit), ends, middle)


def _percentile(percent_: float, each: Measurement) -> Cell:
    value = percentile(each.samples, percent_)
    return Cell(quantity(value, each.unit), value=value)


def _share(each: Measurement) -> Cell:
    if each.limits is None:
        return Cell("")
    middle, low, high = shares_of_limit(each.samples, each.limits, each.better)
    return Cell(percent(middle), f"{percent(low)[:-2]} {DASH} {percent(high)}", middle)


def _beside(ours: Mapping[str, Measurement], each: Measurement) -> Cell:
    if each.way == OURS or each.case not in ours:
        return Cell("")
    middle, low, high = relative(ours[each.case], each)
    return Cell(f"{times(middle)} ×", f"{times(low)} {DASH} {times(high)}", middle)
