"""Two runs side by side: what became better, what worse, and what nobody can tell apart."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from folovllm.bench.facts import describe_value, identity, software
from folovllm.bench.results import BenchError, Measurement, Run, read_run
from folovllm.bench.statistics import (
    SMALLEST_CHANGE,
    Change,
    compare_samples,
    divide,
    inverse,
    spread,
)
from folovllm.bench.tables import Cell, Table, is_speed, sentence
from folovllm.bench.wording import DASH, change, percent, quantity

LAST = "last"
"""In place of a folder: the newest run before, on the same machine."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A measurement that both runs have.

    Attributes:
        earlier, later: it.
        change: from the one to the other.
    """

    earlier: Measurement
    later: Measurement
    change: Change

    @property
    def verdict(self) -> str:
        """In words: "faster" and "slower" of times and speeds, "better" and "worse" of others."""
        words = {"better": "faster", "worse": "slower"}
        return (
            words.get(self.change.verdict, self.change.verdict)
            if is_speed(self.later.unit)
            else self.change.verdict
        )

    @property
    def loss(self) -> float:
        """How much more the later run takes, or for how much longer: 0.1 is a tenth."""
        ratio = self.change.ratio
        return (ratio if self.later.better == "lower" else inverse(ratio)) - 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs.

    Attributes:
        earlier, later: them.
        rows: what both measured, in the later one's order.
        noise: what medians must differ by to be told apart: `SMALLEST_CHANGE`, or as much as the
            machine itself was faster or slower.
        only_earlier, only_later: what only one of them measured.
        notes: what a reader has to know of how they differ.
    """

    earlier: Run
    later: Run
    rows: list[Compared]
    noise: float
    only_earlier: list[Measurement]
    only_later: list[Measurement]
    notes: list[str]

    def past(self, limit: float) -> list[Compared]:
        """The rows that are worse, beyond noise, by more than a share."""
        return [row for row in self.rows if row.change.verdict == "worse" and row.loss > limit]


def compare_runs(earlier: Run, later: Run, *, other_machine: bool = False) -> Comparison:
    """Compare what both have measured.

    Args:
        earlier: the run to compare with.
        later: the run that is judged.
        other_machine: compare even if the machines, or the threads used, differ.

    Raises:
        BenchError: they differ.
    """
    machines = list(_differences(identity(earlier.machine), identity(later.machine)))
    if machines and not other_machine:
        raise BenchError(
            f"the runs are of different machines ({'; '.join(machines)}): what differs may be "
            "theirs; --other-machine compares them anyway"
        )
    # Of another machine the limits differ for a reason that is no noise.
    noise = SMALLEST_CHANGE if machines else max(SMALLEST_CHANGE, _drift(earlier, later))
    before = {each.key: each for each in earlier.measurements}
    after = {each.key: each for each in later.measurements}
    return Comparison(
        earlier,
        later,
        [_compare(before[key], each, noise) for key, each in after.items() if key in before],
        noise,
        [each for key, each in before.items() if key not in after],
        [each for key, each in after.items() if key not in before],
        list(_notes(earlier, later, machines, noise)),
    )


def _compare(earlier: Measurement, later: Measurement, noise: float) -> Compared:
    if (earlier.unit, earlier.better) != (later.unit, later.better):
        raise BenchError(
            f"{', '.join(later.key)} is in {earlier.unit or 'no unit'} ({earlier.better} is better)"
            f" in the one run and in {later.unit or 'no unit'} ({later.better}) in the other"
        )
    found = compare_samples(earlier.samples, later.samples, later.better, noise)
    return Compared(earlier, later, found)


def _drift(earlier: Run, later: Run) -> float:
    """By how much the machine's limits differ between the runs, 0.1 being a tenth."""
    ratios = []
    for name in {name for limits in later.limits.values() for name in limits}:
        sides = [
            [limits[name] for limits in run.limits.values() if name in limits]
            for run in (earlier, later)
        ]
        if all(sides):
            before, after = (sum(values) / len(values) for values in sides)
            ratios.append(divide(after, before))
    return max((max(ratio, inverse(ratio)) - 1 for ratio in ratios), default=0.0)


def _differences(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys([*earlier, *later]):
        before, after = earlier.get(name), later.get(name)
        if before != after:
            yield f"{name}: {describe_value(before)} before, {describe_value(after)} now"


def _notes(earlier: Run, later: Run, machines: list[str], noise: float) -> Iterator[str]:
    for name, run in (("earlier", earlier), ("later", later)):
        if run.partial:
            yield f"The {name} run is partial: it ended before all was measured."
    yield from (f"Another machine. {each[:1].upper()}{each[1:]}." for each in machines)
    settings = _differences(earlier.settings, later.settings)
    yield from (f"Other settings. {each[:1].upper()}{each[1:]}." for each in settings)
    yield from (
        f"Other software. {each[:1].upper()}{each[1:]}."
        for each in _differences(software(earlier.machine), software(later.machine))
    )
    if noise > SMALLEST_CHANGE:
        yield (
            f"The machine's own limits differ by {percent(noise)} between the runs, so that much "
            "counts as noise."
        )


def count_verdicts(comparison: Comparison) -> str:
    """How many rows got which verdict, in a sentence."""
    found = Counter(row.verdict for row in comparison.rows)
    named = {"too few samples": "with too few samples to tell"}
    counts = ", ".join(f"{number} {named.get(name, name)}" for name, number in found.most_common())
    return f"{len(comparison.rows)} measurements are in both runs: {counts or 'none'}."


def describe_rest(comparison: Comparison) -> list[str]:
    """What only one of the runs has measured, a line a run."""
    sides = {"earlier": comparison.only_earlier, "later": comparison.only_later}
    return [
        f"Only in the {side} run: {'; '.join(_by_case(measurements))}."
        for side, measurements in sides.items()
        if measurements
    ]


def _by_case(measurements: list[Measurement]) -> list[str]:
    cases: dict[str, list[str]] = {}
    for each in measurements:
        cases.setdefault(f"{each.suite}, {each.case}, {each.way}", []).append(each.metric)
    return [f"{case} ({', '.join(metrics)})" for case, metrics in cases.items()]


def explain(comparison: Comparison) -> str:
    """How verdicts come about, in a sentence."""
    return (
        "Faster or slower: the medians differ by more than "
        f"{percent(comparison.noise)}, and chance alone would order the samples so in at most 1 of "
        "20 rows, for each direction (exact one-sided rank-sum test; three samples a side are the "
        "fewest that can show it). Ratios are of medians, with their 95 % bootstrap interval."
    )


def comparison_table(comparison: Comparison) -> Table:
    """A row for each measurement of both runs, grouped by suite."""
    rows = [
        [
            Cell(f"{row.later.metric}, {row.later.case}", row.later.way),
            _median(row.earlier),
            _median(row.later),
            Cell(change(row.change.ratio), _interval(row.change), row.change.ratio),
            Cell(row.verdict, tone=_TONES.get(row.change.verdict, "")),
        ]
        for row in comparison.rows
    ]
    groups = [Cell(sentence(row.later.suite)) for row in comparison.rows]
    columns = ["Measurement", "Earlier", "Later", "Change", "Verdict"]
    return Table("Beside the earlier run", columns, rows, groups)


_TONES: dict[str, Literal["better", "worse"]] = {"better": "better", "worse": "worse"}


def _interval(found: Change) -> str:
    if found.verdict == "too few samples":
        return ""
    return f"{change(found.low)[:-2]} {DASH} {change(found.high)}"


def _median(each: Measurement) -> Cell:
    middle = spread(each.samples).median
    return Cell(quantity(middle, each.unit), value=middle)


def find_run(place: str, root: Path, *, before: Path | None = None) -> Path:
    """The run that a user means.

    Args:
        place: a folder or a file, or `LAST`.
        root: where runs are kept.
        before: for `LAST`, the run that it has to be older than, and on the same machine as;
            None for the newest of all.

    Raises:
        BenchError: there is no such run.
    """
    if place != LAST:
        return Path(place)
    judged = read_run(before) if before else None
    runs = [
        (run.started, path)
        for path in sorted(root.glob("*/results.json"))
        if (run := _readable(path)) and (judged is None or _precedes(run, judged))
    ]
    if not runs:
        what = "of this machine, before the one to compare," if before else "at all"
        raise BenchError(f"no run {what} in {root}: measure first, or name a folder")
    return max(runs)[1].parent


def _precedes(run: Run, judged: Run) -> bool:
    alike = identity(run.machine) == identity(judged.machine)
    return alike and run.started < judged.started  # both in UTC


def _readable(path: Path) -> Run | None:
    """A run that can be compared with; others in the folder are no concern of the user's."""
    try:
        return read_run(path)
    except BenchError:
        return None
