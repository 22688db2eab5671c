from itertools import pairwise

import pytest

from folovllm.bench.arrivals import Arrival, EngineTarget, Outcome, at_once, poisson
from folovllm.bench.results import BenchError
from folovllm.bench.workloads import Workload
from folovllm.sampling_params import RequestOutputKind


def arrivals(*dues, num_outputs=1):
    return [Arrival(due, [1, 2], num_outputs) for due in dues]


def test_arrivals_are_as_frequent_as_the_rate_says():
    workload = Workload([[1]] * 4000, [1] * 4000)
    drawn = poisson(workload, 8.0, seed=1)
    dues = [arrival.due for arrival in drawn]
    assert dues[0] == 0
    assert dues == sorted(dues)
    assert dues[-1] == pytest.approx(500, rel=0.1)
    gaps = [b - a for a, b in pairwise(dues)]
    assert sum(gap > 1 / 8 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.03)  # 1/e
    assert drawn == poisson(workload, 8.0, seed=1)
    assert drawn != poisson(workload, 8.0, seed=2)


@pytest.mark.parametrize("rate", [0, -1, float("inf"), float("nan")])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(BenchError, match="must be above 0 requests a second, got"):
        poisson(Workload([[1]], [1]), rate, seed=0)


def test_a_closed_batch_arrives_at_the_start():
    arrived = at_once(Workload([[1], [2, 3]], [5, 6]))
    assert arrived == [Arrival(0, [1], 5), Arrival(0, [2, 3], 6)]


def test_times_count_from_when_a_request_was_due(clock, engine_of):
    target = EngineTarget(engine_of(0.25), clock)
    first, second = target.run(arrivals(0.0, 10.0, num_outputs=3))
    assert first == Outcome(0.0, first=0.25, last=0.75, num_outputs=3, finished=True)
    assert second == Outcome(10.0, first=10.25, last=10.75, num_outputs=3, finished=True)
    assert second.time_to_first_token == 0.25
    assert second.time_per_output_token == 0.25
    assert second.latency == 0.75
    assert sum(clock.slept) == pytest.approx(9.25)


def test_a_stall_delays_all_that_should_have_arrived_in_it(clock, engine_of):
    """Whoever counted from sending would find 0.1 s for each but the first."""
    engine = engine_of([1.0] + [0.1] * 9)
    outcomes = EngineTarget(engine, clock).run(arrivals(0.0, 0.2, 0.5, 0.9, 3.0))
    waits = [outcome.time_to_first_token for outcome in outcomes]
    assert waits == pytest.approx([1.0, 0.9, 0.6, 0.2, 0.1])


def test_nothing_is_added_before_it_is_due(clock, engine_of):
    engine = engine_of(0.3)
    EngineTarget(engine, clock).run(arrivals(0.0, 0.5, 0.7, num_outputs=4))
    added = [when - 100 for when, _, _ in engine.added.values()]
    assert added == pytest.approx([0.0, 0.6, 0.9])  # at the end of the step that was on


def test_what_an_engine_is_asked_for(clock, engine_of):
    engine = engine_of()
    EngineTarget(engine, clock).run([Arrival(0.0, [4, 5, 6], 7)])
    [(_, prompt, params)] = engine.added.values()
    assert prompt == [4, 5, 6]
    assert (params.max_tokens, params.ignore_eos, params.temperature) == (7, True, 0)
    assert params.output_kind is RequestOutputKind.DELTA


def test_a_request_that_fails_is_not_finished(clock, engine_of):
    engine = engine_of(0.1)
    engine.errors["1"] = "a step failed"
    engine.refused["2"] = "too long"
    outcomes = EngineTarget(engine, clock).run(arrivals(0, 0, 0, num_outputs=2))
    assert [outcome.finished for outcome in outcomes] == [True, False, False]
    assert [outcome.error for outcome in outcomes] == [None, "a step failed", "too long"]
    assert outcomes[1].time_to_first_token is None
    assert outcomes[2].latency is None


def test_one_token_has_no_time_between_tokens(clock, engine_of):
    [outcome] = EngineTarget(engine_of(), clock).run(arrivals(0))
    assert outcome.time_per_output_token is None
    assert outcome.latency == outcome.time_to_first_token == pytest.approx(0.1)
