"""Which plots a run has.

A measurement with parts is stacked bars, one that was taken under several values of a condition
is a curve over them, and any other is all its samples. So suites that nobody knew of when this
was written are plotted, too.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from folovllm.bench.compare import Comparison
from folovllm.bench.curves import AXES, curves, served
from folovllm.bench.drawing import Plot, style
from folovllm.bench.results import Measurement, Run
from folovllm.bench.rows import all_samples, ratios, stacked
from folovllm.bench.tables import by_metric

Metrics: TypeAlias = Mapping[str, Sequence[Measurement]]

SERVED = ("requests", "goodput")
"""Of a sweep: what was finished, and what of it within the goal; one plot has both."""

MOST_CHANGES = 16
"""That a plot shows; the table has all."""


def suite_plots(run: Run) -> dict[str, list[Plot]]:
    """The plots of each suite."""
    with style():
        return {suite: list(_plots(suite, each)) for suite, each in by_metric(run).items()}


def comparison_plots(comparison: Comparison) -> list[Plot]:
    """The largest changes that are more than noise, if there are any."""
    changed = [row for row in comparison.rows if row.change.verdict in ("better", "worse")]
    changed.sort(key=lambda row: -abs(row.loss))
    with style():
        return [ratios(changed[:MOST_CHANGES], comparison.noise)] if changed else []


def _plots(suite: str, metrics: Metrics) -> Iterator[Plot]:
    knees = [each for each in metrics.get("rate", []) if each.case == "knee"]
    if suite == "sweep" and all(_over_rates(metrics.get(name, [])) for name in SERVED):
        yield served([_over_rates(metrics[name]) for name in SERVED], knees)
        metrics = {name: each for name, each in metrics.items() if name not in SERVED}
    for metric, measured in metrics.items():
        for case in dict.fromkeys(each.case for each in measured if each.parts):
            yield stacked(metric, case, [each for each in measured if each.case == case])
        drawn = [plot for axis in AXES if (plot := curves(metric, axis, measured, knees))]
        yield from drawn
        single = sum(len(each.samples) for each in measured) == 1
        if not drawn and not single:
            yield all_samples(metric, measured)


def _over_rates(measurements: Sequence[Measurement]) -> list[Measurement]:
    return [each for each in measurements if isinstance(each.parameters.get("rate"), int | float)]
