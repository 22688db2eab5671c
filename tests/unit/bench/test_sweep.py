import math

import pytest

from folovllm.bench.arrivals import EngineTarget, Outcome
from folovllm.bench.results import BenchError
from folovllm.bench.sweep import (
    Goal,
    RateResult,
    SweepPlan,
    find_knee,
    measure_sweep,
    preferred,
)
from folovllm.bench.workloads import RandomSource, uniform
from folovllm.config.bench import Range

GOAL = Goal(first_token=1.0, output_token=0.2)


def served(first=0.5, each=0.1, tokens=11):
    return Outcome(
        0.0, first=first, last=first + each * (tokens - 1), num_outputs=tokens, finished=True
    )


@pytest.mark.parametrize(
    ("outcome", "is_met"),
    [
        (served(), True),
        (served(first=1.0, each=0.2 - 1e-9), True),
        (served(first=1.01), False),
        (served(each=0.21), False),
        (served(tokens=1), True),
        (Outcome(0.0, first=0.1, last=0.1, num_outputs=1), False),
        (Outcome(0.0, error="refused"), False),
    ],
)
def test_a_goal(outcome, is_met):
    assert GOAL.is_met(outcome) == is_met


def test_a_cut_off_request_counts_as_offered_and_not_as_done():
    outcomes = [served(), served(first=2.0), Outcome(0, first=0.1, last=0.2, num_outputs=2)]
    result = RateResult.of(4.0, outcomes, GOAL)
    assert len(result.finished) == 2
    assert result.num_good == 1
    assert result.share == pytest.approx(1 / 3)
    assert result.seconds == 3.0


def test_nothing_finished_is_no_result():
    outcomes = [Outcome(0.0), Outcome(0.0, error="refused: too long"), Outcome(0.0, error="x")]
    with pytest.raises(BenchError, match="none of 3 requests was finished: refused: too long"):
        RateResult.of(1.0, outcomes, GOAL)


def result(rate, share):
    good = round(share * 10)
    outcomes = [served()] * good + [served(first=9.0)] * (10 - good)
    return RateResult.of(rate, outcomes, GOAL)


@pytest.mark.parametrize(
    ("shares", "knee"),
    [
        ({1: 1.0, 2: 0.9, 3: 0.8}, 2),
        ({3: 0.8, 1: 1.0, 2: 0.9}, 2),
        ({1: 1.0, 2: 0.5, 3: 1.0}, 1),
        ({1: 0.8, 2: 1.0}, None),
        ({1: 1.0, 2: 1.0}, 2),
    ],
)
def test_the_knee_is_the_last_rate_before_the_first_that_is_too_much(shares, knee):
    assert find_knee([result(rate, share) for rate, share in shares.items()]) == knee


@pytest.mark.parametrize(
    ("rate", "near"), [(1.0, 1.0), (1.04, 1.0), (1.9, 2.0), (0.24, 0.251), (130, 126)]
)
def test_rates_are_rounded_to_those_that_others_have(rate, near):
    assert preferred(rate) == near
    assert preferred(preferred(rate)) == near


@pytest.mark.parametrize("rates", [(0.0,), (-1.0,), (1.0, math.inf), (math.nan,)])
def test_a_rate_of_nothing_is_refused(rates):
    with pytest.raises(BenchError, match="a rate must be above 0"):
        SweepPlan(GOAL, rates=rates)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf])
def test_no_time_is_refused(seconds):
    with pytest.raises(BenchError, match="seconds of a rate must be above 0"):
        SweepPlan(GOAL, seconds=seconds)


@pytest.fixture
def sweep(clock, engine_of):
    """Runs a sweep of an engine with steps of 0.1 s; returns measurements by key, and lines."""

    def swept(engine=None, tokens=5, **plan):
        target = EngineTarget(engine or engine_of(0.1), clock)
        source = RandomSource(uniform(Range(4, 4), Range(tokens, tokens)), 50, seed=0)
        recorded, lines = {}, []

        def record(measurement):
            recorded[measurement.case, measurement.metric] = measurement

        try:
            measure_sweep(target, source, SweepPlan(GOAL, **plan), record, lines.append)
        except BenchError as error:
            lines.append(error)
        return recorded, lines

    return swept


def test_a_sweep_of_given_rates(sweep):
    recorded, lines = sweep(rates=(4.0, 2.0), seconds=10.0, min_requests=3)
    cases = list(dict.fromkeys(case for case, _ in recorded))
    assert cases == ["2 requests/s", "4 requests/s", "knee"]
    first = recorded["4 requests/s", "time to first token"]
    assert len(first.samples) == 40
    assert all(0.0999 <= each <= 0.2001 for each in first.samples)
    assert recorded["4 requests/s", "time per output token"].samples == pytest.approx([0.1] * 40)
    assert first.parameters["rate"] == 4.0
    assert (first.parameters["requests"], first.parameters["failed"]) == (40, 0)
    seconds = first.parameters["seconds"]
    assert recorded["4 requests/s", "output tokens"].samples == [200 / seconds]
    assert recorded["4 requests/s", "requests"].samples == [40 / seconds]
    assert recorded["4 requests/s", "goodput"].samples == [40 / seconds]
    assert recorded["knee", "rate"].samples == [4.0]
    assert recorded["knee", "rate"].parameters["bound"] == "at least"
    assert lines[-1].startswith("sweep: the knee is at least 4 requests/s: ")
    assert "40 of 40 finished" in lines[-2]


def test_rates_come_from_a_closed_batch(sweep):
    recorded, _ = sweep(min_requests=5, seconds=0.1)
    assert recorded["all at once", "requests"].samples == pytest.approx([20.0])  # 10 in 0.5 s
    assert "rate" not in recorded["all at once", "requests"].parameters
    goodputs = [each for key, each in recorded.items() if key[1] == "goodput"]
    rates = [each.parameters["rate"] for each in goodputs[1:]]
    assert rates[:4] == [10.0, 15.8, 20.0, 25.1]


def test_rates_go_on_to_the_knee(sweep):
    recorded, _ = sweep(seconds=0.1)
    goodputs = [each for key, each in recorded.items() if key[1] == "goodput"]
    rates = [each.parameters["rate"] for each in goodputs[1:]]
    assert rates[4:] == [79.4, 126.0, 200.0]
    assert recorded["knee", "rate"].samples == [200.0]


def test_a_rate_has_the_same_arrivals_whichever_others_there_are(sweep):
    alone, _ = sweep(rates=(4.0,))
    after, _ = sweep(rates=(2.0, 4.0))
    key = "4 requests/s", "latency"
    assert alone[key].samples == pytest.approx(after[key].samples)


def test_a_target_that_is_too_slow_has_no_knee(sweep, engine_of):
    recorded, lines = sweep(engine_of(0.5), rates=(1.0,))
    assert ("knee", "rate") not in recorded
    assert recorded["1 requests/s", "goodput"].samples == [0.0]
    assert lines[-1].startswith("sweep: no knee: at 1 requests/s already")


def test_what_fails_at_all_rates_ends_the_sweep(sweep, engine_of):
    engine = engine_of()
    engine.refused = {str(place): "too long for the model" for place in range(99)}
    recorded, lines = sweep(engine, rates=(1.0,))
    assert not recorded
    assert "too long for the model" in str(lines[-1])


def test_requests_of_one_token_have_no_time_between_tokens(sweep):
    recorded, _ = sweep(tokens=1, rates=(1.0,))
    assert ("1 requests/s", "time per output token") not in recorded
    assert recorded["1 requests/s", "goodput"].samples[0] > 0
