"""Plots of one thing below the other: samples, parts, and changes between runs."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from folovllm.bench.compare import Comparison
from folovllm.bench.drawing import (
    INK,
    LINE,
    MARKERS,
    MUTED,
    SERIES,
    Key,
    Plot,
    finish,
    label,
    new_axes,
    value_axis,
)
from folovllm.bench.results import Measurement
from folovllm.bench.statistics import spread
from folovllm.bench.tables import OURS, sentence
from folovllm.bench.wording import change, percent, quantity

ROW = 36.0
"""Points of a row: a label, and what it is of."""

FARTHEST = 1.0
"""The change at which a plot of changes ends, whatever lies beyond."""

LOOKS = {"better": (SERIES[0], "^"), "worse": (SERIES[1], "v")}
"""Colour and marker of a verdict; others are muted dots."""


def all_samples(metric: str, measurements: Sequence[Measurement]) -> Plot:
    """Every sample of a metric, in the order they were taken."""
    axes = _new_rows(_names(measurements), [_median(each) for each in measurements])
    ways = sorted({each.way: None for each in measurements}, key=lambda way: way != OURS)
    for row, each in enumerate(measurements):
        middle, series = spread(each.samples).median, ways.index(each.way) % len(SERIES)
        heights = np.linspace(-0.12, 0.32, len(each.samples) + 2)[1:-1] + row
        axes.plot([middle, middle], [row - 0.16, row + 0.36], color=INK, linewidth=1.5)
        axes.plot(each.samples, heights, [*MARKERS][series], color=SERIES[series], ms=5, alpha=0.75)
    values = [value for each in measurements for value in each.samples]
    value_axis(axes, "x", values, measurements[0].unit)
    note = (
        "Each mark is a sample, from top to bottom in the order they were taken; the upright line "
        f"is the median. {sentence(measurements[0].better)} is better."
    )
    return finish(axes, f"{sentence(metric)}, every sample", note)


def stacked(metric: str, case: str, measurements: Sequence[Measurement]) -> Plot:
    """What a metric is made of, by way, beside the limit.

    Args:
        metric: which.
        case: under which conditions.
        measurements: one a way.
    """
    axes = _new_rows([each.way for each in measurements], [_median(each) for each in measurements])
    parts = list(dict.fromkeys(part for each in measurements for part in each.parts))
    for row, each in enumerate(measurements):
        _stack(axes, row + 0.1, each, parts)
    totals = [spread(each.samples).median for each in measurements]
    limits = [spread(each.limits).median for each in measurements if each.limits]
    value_axis(axes, "x", [0, *totals, *limits], measurements[0].unit)
    legend = [Key("■", place % len(SERIES), part) for place, part in enumerate(parts)]
    if any(_rest(each) > 0.01 * spread(each.samples).median for each in measurements):
        legend.append(Key("■", None, "not divided"))
    legend += [Key("╍", None, "limit")] if limits else []
    note = f"Medians. {sentence(measurements[0].better)} is better."
    return finish(axes, f"{sentence(metric)}, {case}", note, legend)


def ratios(comparison: Comparison) -> Plot:
    """The change of each row, with its interval, beside the noise."""
    rows = comparison.rows
    axes = _new_rows(
        [f"{row.later.metric}, {row.later.case}, {row.later.way}" for row in rows],
        [change(row.change.ratio) for row in rows],
    )
    axes.axvspan(-comparison.noise, comparison.noise, color=LINE, alpha=0.6)
    axes.axvline(0, color=MUTED, linewidth=1)
    ends = [abs(ratio - 1) for row in rows for ratio in row.change[:3]]
    reach = min(max([*ends, 2 * comparison.noise]), FARTHEST) * 1.1
    for place, row in enumerate(rows):
        low, middle, high = (
            min(reach, max(-reach, ratio - 1))
            for ratio in (row.change.low, row.change.ratio, row.change.high)
        )
        colour, marker = LOOKS.get(row.change.verdict, (MUTED, "o"))
        axes.plot([low, high], [place + 0.1, place + 0.1], color=colour)
        axes.plot(middle, place + 0.1, marker, color=colour, ms=7)
    axes.set_xlim(-reach, reach)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: change(value + 1)))
    legend = [Key("▲", 0, "better"), Key("▼", 1, "worse"), Key("●", None, "neither")]
    note = (
        "The change of the median with its 95 % bootstrap interval; the band is what counts as "
        f"noise, {percent(comparison.noise)} to both sides."
    )
    return finish(axes, "Changes since the earlier run", note, legend)


def _new_rows(names: Sequence[str], figures: Sequence[str]) -> Axes:
    """Rows with a label above each: left what it is, right its figure; the first on top."""
    axes = new_axes(ROW * len(names) + 34)
    place = axes.get_yaxis_transform()
    for row, (name, figure) in enumerate(zip(names, figures, strict=True)):
        axes.text(0, row - 0.2, label(name), va="bottom", transform=place)
        axes.text(1, row - 0.2, figure, va="bottom", ha="right", color=MUTED, transform=place)
    axes.set_ylim(len(names) - 0.45, -0.75)
    axes.set_yticks([])
    return axes


def _names(measurements: Sequence[Measurement]) -> list[str]:
    """What tells the measurements of one metric apart."""
    if len({each.case for each in measurements}) == 1:
        return [each.way for each in measurements]
    several = len({each.way for each in measurements}) > 1
    return [each.case + (f", {each.way}" if several else "") for each in measurements]


def _median(each: Measurement) -> str:
    return label(quantity(spread(each.samples).median, each.unit))


def _rest(each: Measurement) -> float:
    """What the parts do not add up to."""
    return spread(each.samples).median - sum(spread(part).median for part in each.parts.values())


def _stack(axes: Axes, height: float, each: Measurement, parts: Sequence[str]) -> None:
    left = 0.0
    for part, samples in each.parts.items():
        width = spread(samples).median
        axes.barh(height, width, 0.44, left, color=SERIES[parts.index(part) % len(SERIES)])
        left += width
    axes.barh(height, max(_rest(each), 0.0), 0.44, left, color=MUTED, alpha=0.5)
    if each.limits:
        limit = spread(each.limits).median
        axes.plot([limit, limit], [height - 0.3, height + 0.3], color=INK, linestyle="--")
