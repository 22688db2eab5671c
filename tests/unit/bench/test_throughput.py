import pytest

from folovllm.bench.results import BenchError
from folovllm.bench.throughput import (
    DEFAULT_CASES,
    Case,
    check_lengths,
    measure_throughput,
    named_cases,
)
from folovllm.bench.workloads import RandomSource, uniform
from folovllm.config.bench import Range


class PlayedFloor:
    def __init__(self, *seconds):
        self.left = iter(seconds)
        self.taken = 0

    def take(self):
        self.taken += 1
        return None if self.taken % 2 else next(self.left)


def case(name="small", tokens=10, count=2, seed=0):
    source = RandomSource(uniform(Range(4, 4), Range(tokens, tokens)), 50, seed=seed)
    return Case(name, f"{count} requests", source, count)


@pytest.fixture
def play(clock):
    """Measures with ways that take so many seconds; returns measurements, calls and lines."""

    def played(cases, seconds, *, rounds=2, floor=None, tokens=lambda workload: 0):
        recorded, calls, lines = {}, [], []

        def way(name):
            def generate(workload):
                calls.append((name, workload))
                clock.time += next(times[name])
                return workload.num_outputs + tokens(workload)

            return generate

        times = {name: iter(each) for name, each in seconds.items()}
        ways = {name: way(name) for name in seconds}

        def record(measurement):
            recorded[measurement.key[1:]] = measurement

        try:
            measure_throughput(
                cases,
                ways,
                rounds=rounds,
                floor=floor,
                record=record,
                say=lines.append,
                clock=clock.now,
            )
        except (BenchError, KeyboardInterrupt, StopIteration) as error:
            lines.append(error)
        return recorded, calls, lines

    return played


def test_ways_get_the_same_requests_in_turn_and_new_ones_each_round(play):
    _, calls, lines = play([case()], {"folovllm": [1, 3], "other": [2, 6]})
    assert [name for name, _ in calls] == ["folovllm", "other", "other", "folovllm"]
    assert calls[0][1] == calls[1][1] != calls[2][1] == calls[3][1]
    assert lines[0] == "throughput, round 1 of 2, small: folovllm 1.00 s, other 2.00 s"


def test_what_is_recorded(play):
    floor = PlayedFloor(0.5, 0.75)
    recorded, _, _ = play([case()], {"folovllm": [1, 3], "other": [2, 6]}, floor=floor)
    ours = recorded["small", "folovllm", "time"]
    assert (ours.samples, ours.limits) == (pytest.approx([1, 3]), [0.5, 0.75])
    rate = recorded["small", "folovllm", "output tokens"]
    assert (rate.samples, rate.limits) == (pytest.approx([20, 20 / 3]), [40, 20 / 0.75])
    assert (rate.unit, rate.better) == ("tok/s", "higher")
    theirs = recorded["small", "other", "time"]
    assert (theirs.samples, theirs.limits) == (pytest.approx([2, 6]), None)
    assert ours.parameters == {
        "workload": "2 requests",
        "requests": 2,
        "input tokens": 8,
        "output tokens": 20,
    }


def test_without_a_floor_there_are_no_limits(play):
    recorded, _, _ = play([case()], {"folovllm": [1, 1]})
    assert recorded["small", "folovllm", "time"].limits is None


def test_what_generated_something_else_is_not_compared(play):
    recorded, _, lines = play([case()], {"other": [1, 1]}, tokens=lambda _: -1)
    assert "other generated 19 tokens, 20 were asked for" in str(lines[-1])
    assert not recorded


def test_finished_rounds_of_an_interrupted_run_are_kept(play):
    """The third call breaks off: one round of the first case is whole, none of the second."""
    seconds = {"folovllm": [1, 2, 3], "other": [4]}
    recorded, _, lines = play([case("a"), case("b", seed=1)], seconds)
    assert isinstance(lines[-1], StopIteration)
    assert recorded["a", "folovllm", "time"].samples == pytest.approx([1])
    assert recorded["a", "other", "time"].samples == pytest.approx([4])
    assert ("b", "folovllm", "time") not in recorded


def test_named_cases_have_prompts_of_their_own():
    cases = named_cases(10_000, seed=0)
    assert set(DEFAULT_CASES) < set(cases)
    beginnings = set()
    for each in cases.values():
        workload = each.source.draw(each.count)
        assert len(workload.prompts) == each.count
        beginnings.add(tuple(workload.prompts[0][:16]))
    assert len(beginnings) == len(cases)


def test_requests_that_the_model_does_not_take_are_refused():
    check_lengths([case(tokens=10)], 14)
    with pytest.raises(BenchError, match=r"small: sequences of up to 14 tokens, .* takes 13"):
        check_lengths([case("fits", tokens=1), case(tokens=10)], 13)
