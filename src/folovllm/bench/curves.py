"""Plots of what depends on a condition: latency on length and batch, a sweep on its rate."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from folovllm.bench.drawing import (
    INK,
    MUTED,
    SERIES,
    Key,
    Plot,
    condition_axis,
    finish,
    new_axes,
    value_axis,
)
from folovllm.bench.results import OURS, Measurement
from folovllm.bench.statistics import percentile, spread
from folovllm.bench.tables import MANY, sentence
from folovllm.bench.wording import count, quantity

AXES = {
    "prompt": ("prompt length", "tokens"),
    "batch": ("batch size", "sequences"),
    "context": ("context", "tokens"),
    "rate": ("rate of arrival", "requests/s"),
}
"""Conditions to draw curves over, by parameter: their names and units."""

HEIGHT, WIDTH = 220.0, 1.8
"""Points: of a plot, and of its lines."""

MOST_DOTS = 200
"""Samples of one point of a curve; beyond, the percentiles tell more than a heap."""

PERCENTILES = {50: "-", 90: "--", 99: ":"}
"""The lines, and their styles."""


def curves(
    metric: str, axis: str, measurements: Sequence[Measurement], knees: Sequence[Measurement]
) -> Plot | None:
    """A metric over a condition, all others being the same along a curve.

    Args:
        metric: which.
        axis: the condition, of `AXES`.
        measurements: of the metric.
        knees: to mark on an axis of rates.

    Returns:
        None where nothing was measured under several values of the condition.
    """
    lines = _lines(axis, measurements)
    if not lines:
        return None
    axes = new_axes(HEIGHT)
    drawn = [each for points in lines.values() for each in points]
    percentiles = [50, 90, 99] if min(len(each.samples) for each in drawn) >= MANY else [50]
    for series, points in enumerate(lines.values()):
        _draw(axes, axis, points, series % len(SERIES), percentiles)
    _axes(axes, axis, drawn)
    legend = [Key("●", place % len(SERIES), name) for place, name in enumerate(lines)]
    legend = legend if len(lines) > 1 else []
    if len(percentiles) > 1:
        legend += [Key(PERCENTILES[p], None, f"{p} %") for p in percentiles]
    legend += [Key("-", None, "limit")] if any(each.limits for each in drawn) else []
    legend += _mark(axes, knees) if axis == "rate" else []
    note = _note(drawn[0], next(iter(lines)) if len(lines) == 1 else "", len(percentiles) > 1)
    return finish(axes, f"{sentence(metric)} by {AXES[axis][0]}", note, legend)


def served(measurements: Sequence[Sequence[Measurement]], knees: Sequence[Measurement]) -> Plot:
    """Requests finished, and those of them within the goal, by the rate of arrival.

    Args:
        measurements: of the one and of the other, each with a parameter "rate".
        knees: to mark.
    """
    axes = new_axes(HEIGHT)
    finished, good = measurements
    rates = [_place(each, "rate") for each in finished]
    axes.plot([0, max(rates)], [0, max(rates)], color=MUTED, linewidth=1.2, linestyle="--")
    # The first is broad, to be seen below the other one where they are the same.
    for series, (points, width) in enumerate(((finished, 5.0), (good, WIDTH))):
        ordered = sorted(points, key=lambda each: _place(each, "rate"))
        _draw(axes, "rate", ordered, series, [50], width)
    values = [value for each in finished for value in each.samples]
    value_axis(axes, "y", [*values, *rates], finished[0].unit)
    condition_axis(axes, rates, _title("rate"))
    goal = good[0].parameters.get("goal")
    legend = [Key("●", 0, "finished"), Key("●", 1, "within the goal"), Key("--", None, "arriving")]
    note = (f"The goal: {goal}. " if goal else "") + "Higher is better."
    return finish(axes, "Requests served by rate of arrival", note, legend + _mark(axes, knees))


def _title(axis: str) -> str:
    name, unit = AXES[axis]
    return f"{sentence(name)}, {unit}"


def _place(each: Measurement, axis: str) -> float:
    return float(each.parameters[axis])


def _lines(axis: str, measurements: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    """The points of each curve, in the order of the axis; a single point is no curve."""
    lines: dict[str, list[Measurement]] = {}
    for each in sorted(measurements, key=lambda each: each.way != OURS):
        if isinstance(each.parameters.get(axis), int | float):
            lines.setdefault(_line(axis, each), []).append(each)
    return {
        name: sorted(points, key=lambda each: _place(each, axis))
        for name, points in lines.items()
        if len({_place(each, axis) for each in points}) > 1
    }


def _line(axis: str, each: Measurement) -> str:
    """What a curve is of: its way, and the other conditions."""
    values = {name: each.parameters.get(name) for name in AXES if name != axis}
    conditions = [f"{n} {count(v)}" for n, v in values.items() if isinstance(v, int | float)]
    return ", ".join([each.way, *conditions])


def _draw(
    axes: Axes,
    axis: str,
    points: Sequence[Measurement],
    series: int,
    percentiles: Sequence[int],
    width: float = WIDTH,
) -> None:
    places = [_place(each, axis) for each in points]
    colour = SERIES[series]
    for percent in percentiles:
        values = [percentile(each.samples, percent) for each in points]
        axes.plot(places, values, PERCENTILES[percent], color=colour, linewidth=width)
    axes.plot(places, [spread(each.samples).median for each in points], "o", color=colour, ms=5)
    dots = [
        (place, sample)
        for place, each in zip(places, points, strict=True)
        for sample in each.samples
        if 1 < len(each.samples) <= MOST_DOTS
    ]
    axes.plot(
        *zip(*dots, strict=True) if dots else ([], []), "o", color=colour, ms=3, alpha=0.3, mew=0
    )
    if all(each.limits for each in points):
        floors = [spread(each.limits or []).median for each in points]
        axes.plot(places, floors, color=MUTED, linewidth=1)


def _axes(axes: Axes, axis: str, drawn: Sequence[Measurement]) -> None:
    values = [v for each in drawn for v in (*each.samples, *(each.limits or []))]
    value_axis(axes, "y", values, drawn[0].unit)
    condition_axis(axes, [_place(each, axis) for each in drawn], _title(axis))


def _mark(axes: Axes, knees: Sequence[Measurement]) -> list[Key]:
    """The highest rates that are borne."""
    keys = []
    for knee in knees:
        [rate] = knee.samples
        axes.axvline(rate, color=INK, linewidth=1.2, linestyle="-.")
        words = ("knee,", str(knee.parameters.get("bound", "")), quantity(rate, knee.unit))
        keys.append(Key("-.", None, " ".join(filter(None, words))))
    return keys


def _note(each: Measurement, line: str, several: bool) -> str:
    how = "50, 90 and 99 % of the samples stay below the lines. " if several else ""
    return f"{line}{'. ' if line else ''}{how}{sentence(each.better)} is better."
