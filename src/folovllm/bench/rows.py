"""Plots of one thing below the other: samples, parts, and changes between runs."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from folovllm.bench.compare import Compared
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
from folovllm.bench.results import OURS, Measurement
from folovllm.bench.statistics import spread
from folovllm.bench.tables import sentence
from folovllm.bench.wording import change, percent, quantity

LABEL, BAND, GAP = 15.0, 15.0, 7.0
"""Points: of a row's label, of each thing below it, and to the next row."""

BELOW = 34.0
"""Points that the axis below takes."""

FARTHEST = 1.0
"""The change at which a plot of changes ends, whatever lies beyond."""

LOOKS = {"better": (SERIES[0], "^"), "worse": (SERIES[1], "v")}
"""Colour and marker of a verdict."""


def all_samples(metric: str, measurements: Sequence[Measurement]) -> Plot:
    """Every sample of a metric, a row for each case, in the order they were taken."""
    rows: dict[str, list[Measurement]] = {}
    for each in measurements:
        rows.setdefault(each.case, []).append(each)
    axes, bands = _new_rows([(case, [_median(each) for each in row]) for case, row in rows.items()])
    ways = sorted({each.way: None for each in measurements}, key=lambda way: way != OURS)
    for each, band in zip((each for row in rows.values() for each in row), bands, strict=True):
        _draw_samples(axes, band, each, ways.index(each.way) % len(SERIES))
    values = [v for each in measurements for v in (*each.samples, *(each.limits or []))]
    value_axis(axes, "x", values, measurements[0].unit)
    markers = [*MARKERS.values()]
    legend = [
        Key(markers[place % len(SERIES)], place % len(SERIES), way)
        for place, way in enumerate(ways)
    ]
    legend += [Key("--", None, "limit")] if any(each.limits for each in measurements) else []
    note = (
        "Each mark is a sample, from top to bottom in the order they were taken; upright lines "
        f"and figures are medians. {sentence(measurements[0].better)} is better."
    )
    return finish(axes, f"{sentence(metric)}, every sample", note, legend)


def stacked(metric: str, case: str, measurements: Sequence[Measurement]) -> Plot:
    """What a metric is made of, by way, beside the limit.

    Args:
        metric: which.
        case: under which conditions.
        measurements: one a way.
    """
    axes, bands = _new_rows([(each.way, [_median(each)]) for each in measurements])
    parts = list(dict.fromkeys(part for each in measurements for part in each.parts))
    for band, each in zip(bands, measurements, strict=True):
        _stack(axes, band, each, parts)
    totals = [spread(each.samples).median for each in measurements]
    limits = [spread(each.limits).median for each in measurements if each.limits]
    value_axis(axes, "x", [0, *totals, *limits], measurements[0].unit)
    legend = [Key("■", place % len(SERIES), part) for place, part in enumerate(parts)]
    legend += [Key("--", None, "limit")] if limits else []
    note = f"The median sample and its parts. {sentence(measurements[0].better)} is better."
    return finish(axes, f"{sentence(metric)}, {case}", note, legend)


def ratios(rows: Sequence[Compared], noise: float) -> Plot:
    """The changes between two runs, with their intervals.

    Args:
        rows: which.
        noise: how large a change is none, 0.1 being a tenth.
    """
    axes, bands = _new_rows([(_name(row.later), [change(row.change.ratio)]) for row in rows])
    axes.axvspan(-noise, noise, color=LINE, alpha=0.6)
    axes.axvline(0, color=MUTED, linewidth=1)
    ends = [abs(ratio - 1) for row in rows for ratio in row.change[:3]]
    reach = min(max(*ends, 2 * noise), FARTHEST) * 1.1
    for band, row in zip(bands, rows, strict=True):
        ratio, low, high = (min(reach, max(-reach, value - 1)) for value in row.change[:3])
        colour, marker = LOOKS[row.change.verdict]
        axes.plot([low, high], [band, band], color=colour)
        axes.plot(ratio, band, marker, color=colour, ms=7)
    axes.set_xlim(-reach, reach)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: change(value + 1)))
    legend = [Key("▲", 0, "better"), Key("▼", 1, "worse")]
    note = (
        "Of the median, with its 95 % bootstrap interval; the band is what counts as noise, "
        f"{percent(noise)} to both sides."
    )
    return finish(axes, "The largest changes beyond noise", note, legend)


def _new_rows(rows: Sequence[tuple[str, Sequence[str]]]) -> tuple[Axes, list[float]]:
    """Rows below each other, each with a label above and a figure to the right of each band.

    Args:
        rows: the label of each, and the figures of its bands.

    Returns:
        The axes, and the middle of each band; their vertical unit is a point.
    """
    height = sum(LABEL + BAND * len(figures) + GAP for _, figures in rows)
    axes = new_axes(height + BELOW)
    place, bands, top = axes.get_yaxis_transform(), [], 0.0
    for name, figures in rows:
        axes.text(0, top + LABEL / 2, label(name), va="center", transform=place)
        for number, figure in enumerate(figures):
            bands.append(top + LABEL + BAND * (number + 0.5))
            axes.text(1.02, bands[-1], figure, va="center", color=MUTED, transform=place)
        top += LABEL + BAND * len(figures) + GAP
    axes.set_ylim(height, 0)
    axes.set_yticks([])
    return axes, bands


def _name(each: Measurement) -> str:
    return ", ".join(each.key[1:][::-1]) if each.way != OURS else f"{each.metric}, {each.case}"


def _median(each: Measurement) -> str:
    return label(quantity(spread(each.samples).median, each.unit))


def _draw_samples(axes: Axes, band: float, each: Measurement, series: int) -> None:
    ends = [band - 0.4 * BAND, band + 0.4 * BAND]
    middle = spread(each.samples).median
    axes.plot([middle, middle], ends, color=INK, linewidth=1.5)
    if each.limits:
        limit = spread(each.limits).median
        axes.plot([limit, limit], ends, color=MUTED, linewidth=1.5, linestyle="--")
    heights = np.linspace(ends[0], ends[1], len(each.samples) + 2)[1:-1]
    marker = [*MARKERS][series]
    axes.plot(each.samples, heights, marker, color=SERIES[series], ms=4.5, alpha=0.75, mew=0)


def median_parts(each: Measurement) -> dict[str, float]:
    """The parts of the sample in the middle, or of the two that are: they add up to the median.

    Medians of the parts would not.
    """
    order = np.argsort(each.samples)
    middle = order[(len(order) - 1) // 2 : len(order) // 2 + 1]
    return {name: float(np.asarray(part)[middle].mean()) for name, part in each.parts.items()}


def _stack(axes: Axes, band: float, each: Measurement, parts: Sequence[str]) -> None:
    left = 0.0
    for part, width in median_parts(each).items():
        axes.barh(band, width, BAND * 0.9, left, color=SERIES[parts.index(part) % len(SERIES)])
        left += width
    if each.limits:
        limit = spread(each.limits).median
        axes.plot([limit, limit], [band - 0.6 * BAND, band + 0.6 * BAND], color=INK, linestyle="--")
