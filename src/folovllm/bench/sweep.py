"""From a trickle to more than it can bear: what a target does at each rate of arrival."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from folovllm.bench.arrivals import Outcome, Target, at_once, poisson
from folovllm.bench.results import AT_LEAST, BenchError, Measurement, Record, Say
from folovllm.bench.tables import summarise
from folovllm.bench.wording import percent
from folovllm.bench.workloads import Source

KNEE_SHARE = 0.9
"""A rate is borne when this share of its requests is served within the goal, as in DistServe
(Zhong et al. 2024, arXiv:2401.09670)."""

FURTHER, MOST_FURTHER = 1.6, 3
"""Where the knee lies beyond all shares of the capacity: the step to the next rate, and how many
such rates there are at most."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What counts as served well: both within these times, in seconds."""

    first_token: float
    output_token: float

    def is_met(self, outcome: Outcome) -> bool:
        """Whether a request was; what is not finished never is."""
        first, each = outcome.time_to_first_token, outcome.time_per_output_token or 0.0
        return first is not None and first <= self.first_token and each <= self.output_token

    def __str__(self) -> str:
        """In words."""
        first, each = self.first_token * 1000, self.output_token * 1000
        return f"first token within {first:g} ms, {each:g} ms a token"


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """What is measured.

    Attributes:
        goal: what counts as served well.
        rates: of arrival, in requests a second; empty for `shares`.
        shares: rates as parts of what a closed batch reaches, which is measured first.
        seconds: how long requests arrive at each rate, on average.
        min_requests: of a rate, however long they take to arrive; the closed batch has twice as
            many.
        seed: of the arrivals.
    """

    goal: Goal
    rates: tuple[float, ...] = ()
    shares: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25)
    seconds: float = 12.0
    min_requests: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be measured.

        Raises:
            BenchError: a rate or the time is not above 0.
        """
        for rate in (*self.rates, *self.shares):
            if not 0 < rate < math.inf:
                raise BenchError(f"a rate must be above 0 requests a second, got {rate:g}")
        if not 0 < self.seconds < math.inf:
            raise BenchError(f"the seconds of a rate must be above 0, got {self.seconds:g}")

    def num_requests(self, rate: float) -> int:
        """How many arrive at a rate."""
        return max(self.min_requests, round(rate * self.seconds))


@dataclass(frozen=True, slots=True)
class RateResult:
    """What came of one rate.

    Attributes:
        rate: requests a second that were offered; infinite when all came at once.
        outcomes: of all its requests.
        seconds: from the start until the last of them was finished.
        num_good: requests that were served within the goal.
    """

    rate: float
    outcomes: list[Outcome]
    seconds: float
    num_good: int

    @classmethod
    def of(cls, rate: float, outcomes: list[Outcome], goal: Goal) -> "RateResult":
        """Count.

        Raises:
            BenchError: nothing was finished; the message has the first reason.
        """
        ends = [
            outcome.last for outcome in outcomes if outcome.finished and outcome.last is not None
        ]
        if not ends:
            errors = [outcome.error for outcome in outcomes if outcome.error]
            reason = errors[0] if errors else "no reason was given"
            raise BenchError(f"none of {len(outcomes)} requests was finished: {reason}")
        return cls(rate, outcomes, max(ends), sum(map(goal.is_met, outcomes)))

    @property
    def finished(self) -> list[Outcome]:
        """The requests that were answered to the end."""
        return [outcome for outcome in self.outcomes if outcome.finished]

    @property
    def share(self) -> float:
        """Of the requests that were offered, how many were served within the goal."""
        return self.num_good / len(self.outcomes)


def preferred(rate: float) -> float:
    """The nearest of ten rates a decade: 1, 1.26, 1.58, 2, 2.51, ... (ISO 3).

    So that runs on one machine measure the same rates, and can be compared, though the closed
    batches from which the rates come never take the same time.
    """
    return float(f"{10 ** (round(10 * math.log10(rate)) / 10):.3g}")


def find_knee(results: Sequence[RateResult]) -> float | None:
    """The highest rate that is borne, and every lower one too; None if the lowest is not."""
    knee = None
    for result in sorted(results, key=lambda each: each.rate):
        if result.share < KNEE_SHARE:
            break
        knee = result.rate
    return knee


def measure_sweep(
    target: Target,
    source: Source,
    plan: SweepPlan,
    record: Record,
    say: Say,
) -> None:
    """Let requests arrive at one rate after another, the lowest first.

    Args:
        target: what they arrive at.
        source: of the requests.
        plan: which rates, how long.
        record: takes measurements.
        say: takes lines that tell how it is going.

    Raises:
        BenchError: nothing is finished at a rate, or the target is gone; what was measured until
            then is recorded.
    """
    rates = plan.rates
    target.run(at_once(source.draw(1)))  # the first run takes memory and opens what is closed
    target.check_alive()
    if not rates:
        capacity = _measure_capacity(target, source, plan, record, say)
        rates = tuple(preferred(share * capacity) for share in plan.shares)
    results = [_measure_rate(target, source, rate, plan, record, say) for rate in sorted({*rates})]
    for _ in range(0 if plan.rates else MOST_FURTHER):
        rate = results[-1].rate
        if find_knee(results) != rate:
            break
        further = preferred(FURTHER * rate)
        results.append(_measure_rate(target, source, further, plan, record, say))
    _record_knee(target.name, results, plan, record, say)


def _measure_rate(
    target: Target,
    source: Source,
    rate: float,
    plan: SweepPlan,
    record: Record,
    say: Say,
) -> RateResult:
    workload = source.draw(plan.num_requests(rate))
    # The same gaps at the same rate, whichever other rates are measured: runs are compared by it.
    outcomes = target.run(poisson(workload, rate, f"{plan.seed}-{rate:g}"))
    result = RateResult.of(rate, outcomes, plan.goal)
    _record(target.name, result, plan, record)
    say(f"sweep, {_case(rate)}: {_summary(result)}")
    target.check_alive()
    return result


def _measure_capacity(
    target: Target,
    source: Source,
    plan: SweepPlan,
    record: Record,
    say: Say,
) -> float:
    """Requests a second when all are there at once."""
    outcomes = target.run(at_once(source.draw(2 * plan.min_requests)))
    result = RateResult.of(math.inf, outcomes, plan.goal)
    _record(target.name, result, plan, record)
    capacity = len(result.finished) / result.seconds
    say(f"sweep, {_case(math.inf)}: {capacity:.2f} requests/s")
    target.check_alive()
    return capacity


def _case(rate: float) -> str:
    return "all at once" if rate == math.inf else f"{rate:g} requests/s"


def _record(way: str, result: RateResult, plan: SweepPlan, record: Record) -> None:
    """The figures of one rate."""
    finished = result.finished
    parameters: dict[str, float | str] = {
        "requests": len(result.outcomes),
        "failed": len(result.outcomes) - len(finished),
        "seconds": result.seconds,
        "goal": str(plan.goal),
        "share within goal": result.share,
    }
    if result.rate < math.inf:
        parameters["rate"] = result.rate
    rates = {
        ("output tokens", "tok/s"): sum(each.num_outputs for each in finished),
        ("requests", "requests/s"): len(finished),
        ("goodput", "requests/s"): result.num_good,
    }
    for (metric, unit), count in rates.items():
        samples = [count / result.seconds]
        record(
            Measurement(
                "sweep", _case(result.rate), way, metric, unit, "higher", samples,
                parameters=parameters,
            )
        )  # fmt: skip
    for metric, times in _times(finished).items():
        if times:
            record(
                Measurement(
                    "sweep", _case(result.rate), way, metric, "s", "lower", times,
                    parameters=parameters,
                )
            )  # fmt: skip


def _times(finished: Sequence[Outcome]) -> dict[str, list[float]]:
    """What each request waited, by metric."""
    first = [each.time_to_first_token for each in finished]
    token = [each.time_per_output_token for each in finished]
    whole = [each.latency for each in finished]
    by_metric = {"time to first token": first, "time per output token": token, "latency": whole}
    return {
        metric: [time for time in times if time is not None] for metric, times in by_metric.items()
    }


def _summary(result: RateResult) -> str:
    tokens = sum(each.num_outputs for each in result.finished) / result.seconds
    parts = [
        f"{len(result.finished)} of {len(result.outcomes)} finished",
        f"{tokens:.1f} tok/s",
        f"{result.share:.0%} within the goal",
    ]
    for metric, times in _times(result.finished).items():
        if times:
            parts.append(f"{metric} {summarise(times)}")
    return "; ".join(parts)


def _record_knee(
    way: str,
    results: Sequence[RateResult],
    plan: SweepPlan,
    record: Record,
    say: Say,
) -> None:
    rule = (
        f"the highest rate up to which {percent(KNEE_SHARE)} of the requests get their {plan.goal}"
    )
    knee = find_knee(results)
    if knee is None:
        lowest = _case(results[0].rate)
        say(
            f"sweep: no knee: at {lowest} already, fewer than {KNEE_SHARE:.0%} of the requests "
            f"get their {plan.goal}"
        )
        return
    parameters: dict[str, float | str] = {"rule": rule}
    if knee == results[-1].rate:
        parameters["bound"] = AT_LEAST
    say(f"sweep: the knee is {parameters.get('bound', 'at')} {_case(knee)}: {rule}")
    record(
        Measurement(
            "sweep", "knee", way, "rate", "requests/s", "higher", [knee],
            parameters=parameters,
        )
    )  # fmt: skip
