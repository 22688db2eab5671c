import logging

import pytest

from folovllm.core.plan import ScheduledSequence, StepPlan
from folovllm.engine.stats import EngineStats, SchedulerState, Window
from folovllm.outputs import RequestMetrics


def plan(*num_tokens: int, prompt_tokens: int = 0) -> StepPlan:
    """A step of sequences, each with its number of tokens."""
    entries = (ScheduledSequence("r-0", 0, (1,) * count, 0, (), ("r-0",)) for count in num_tokens)
    return StepPlan(tuple(entries), num_prompt_tokens=prompt_tokens)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def stats(clock):
    return EngineStats(clock=clock, window=4)


def step(stats, clock, at, seconds=1.0, **state):
    """Ten prompt tokens, two generated ones."""
    clock.now = at
    stats.record_step(plan(10, prompt_tokens=10), 2, seconds, SchedulerState(**state))


class TestWindow:
    def test_of_nothing(self):
        window = Window(3)
        window.add(None)
        assert window.as_dict() == {}

    def test_percentiles(self):
        window = Window(100)
        for value in range(1, 101):
            window.add(value)
        assert window.as_dict() == {"mean": 50.5, "p50": 50, "p90": 90, "p99": 99}

    def test_of_one_value(self):
        window = Window(3)
        window.add(2.0)
        assert window.as_dict() == dict.fromkeys(["mean", "p50", "p90", "p99"], 2.0)

    def test_keeps_the_latest(self):
        window = Window(2)
        for value in (100.0, 1.0, 3.0):
            window.add(value)
        assert window.as_dict()["mean"] == 2.0


class TestTotals:
    def test_of_steps(self, stats, clock):
        step(stats, clock, 1000, seconds=1.0, running=3, cache_usage=0.5)
        step(stats, clock, 1003, seconds=3.0, waiting=1, prefix_queries=8, prefix_hits=2)
        numbers = stats.as_dict()
        assert numbers["steps"] == numbers["scheduled_sequences"] == 2
        assert numbers["prompt_tokens"] == 20
        assert numbers["generation_tokens"] == 4
        assert numbers["step_seconds"] == 4.0
        assert numbers["step_time"]["mean"] == 2.0
        # The state is the latest.
        assert (numbers["running"], numbers["waiting"], numbers["prefix_hit_rate"]) == (0, 1, 0.25)

    def test_of_requests(self, stats):
        for shift in (0.0, 1.0):
            stats.record_finished(
                RequestMetrics(
                    arrival_time=10.0,
                    first_scheduled_time=11.0,
                    first_token_time=12.0 + shift,
                    last_token_time=16.0 + shift,
                    finished_time=20.0,
                    num_generation_tokens=5,
                )
            )
        numbers = stats.as_dict()
        assert numbers["finished_requests"] == 2
        assert numbers["time_in_queue"]["p50"] == 1.0
        assert numbers["time_to_first_token"]["mean"] == 2.5
        assert numbers["time_per_output_token"]["p99"] == 1.0
        assert numbers["request_time"]["p90"] == 10.0

    def test_what_did_not_happen_is_not_counted(self, stats):
        stats.record_finished(RequestMetrics(arrival_time=1.0))
        stats.record_finished(None)
        stats.record_finished(RequestMetrics(1.0, 2.0, 3.0, 4.0, 5.0, 9), error="out of memory")
        numbers = stats.as_dict()
        assert (numbers["finished_requests"], numbers["failed_requests"]) == (3, 1)
        assert numbers["time_in_queue"] == numbers["request_time"] == {}

    def test_of_nothing(self, stats):
        numbers = stats.as_dict()
        assert numbers["steps"] == numbers["prefix_hit_rate"] == 0
        assert numbers["step_time"] == {}


class TestLog:
    @pytest.fixture
    def lines(self, monkeypatch):
        """The messages so far; other tests may have set up the logger for the command line."""
        logger, lines = logging.getLogger("folovllm.engine.stats"), []
        monkeypatch.setattr(logger, "filters", [lambda r: bool(lines.append(r.getMessage()))])
        monkeypatch.setattr(logger, "level", logging.INFO)
        logger.manager._clear_cache()
        return lines

    def test_every_five_seconds_while_busy(self, stats, clock, lines):
        for at in range(1001, 1012):
            step(stats, clock, at, running=2, waiting=1, cache_usage=0.256)
        assert len(lines) == 2
        assert lines[0] == lines[1]
        assert lines[0].startswith(
            "Avg prompt throughput: 10.0 tokens/s, Avg generation throughput: 2.0 tokens/s, "
            "Running: 2 reqs, "
        )
        assert "Waiting: 1 reqs" in lines[0]
        assert "KV cache usage: 25.6%" in lines[0]

    def test_idle_time_makes_no_rate(self, stats, clock, lines):
        for at in (1001, 1002, *range(5001, 5006)):
            step(stats, clock, at)
        assert len(lines) == 1
        assert lines[0].startswith("Avg prompt throughput: 10.0 tokens/s")

    def test_one_long_step(self, stats, clock, lines):
        step(stats, clock, 1010, seconds=10.0)
        assert lines[0].startswith("Avg prompt throughput: 1.0 tokens/s")
