"""Statistics of the engine: of its steps and of the requests that it finished."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from folovllm.core.kv_cache_manager import KVCacheManager
from folovllm.core.plan import StepPlan
from folovllm.core.scheduler import Scheduler
from folovllm.outputs import RequestMetrics

logger = logging.getLogger(__name__)

LOG_INTERVAL = 5.0
"""Seconds between two log lines, at least."""


@dataclass(slots=True)
class SchedulerState:
    """What the scheduler and its cache look like at the end of a step.

    Attributes:
        running: sequences that are generated.
        waiting: sequences that wait for their first step, or for another after a preemption.
        swapped: sequences whose cache is in host memory.
        cache_usage: share of the cache's blocks that are in use, 0 to 1.
        prefix_queries: prompt tokens looked up in the prefix cache, since the beginning.
        prefix_hits: how many of those were found.
        preemptions: how often a sequence lost its place, since the beginning.
    """

    running: int = 0
    waiting: int = 0
    swapped: int = 0
    cache_usage: float = 0.0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0

    @property
    def prefix_hit_rate(self) -> float:
        """Share of the prompt tokens that were found in the prefix cache, 0 to 1."""
        return self.prefix_hits / self.prefix_queries if self.prefix_queries else 0.0


@dataclass(slots=True)
class Totals:
    """What was done, since the beginning or since the last log line."""

    steps: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    step_seconds: float = 0.0
    scheduled_sequences: int = 0
    finished_requests: int = 0
    failed_requests: int = 0


def observe(scheduler: Scheduler, cache: KVCacheManager) -> SchedulerState:
    """Return the state of a scheduler and of its cache."""
    return SchedulerState(
        running=scheduler.num_running,
        waiting=scheduler.num_waiting,
        swapped=scheduler.num_swapped,
        cache_usage=cache.usage,
        prefix_queries=cache.prefix_cache_queries,
        prefix_hits=cache.prefix_cache_hits,
        preemptions=scheduler.num_preemptions,
    )


class Window:
    """The latest values of one quantity, and what is usual among them."""

    def __init__(self, size: int) -> None:
        """Keep `size` values."""
        self._values: deque[float] = deque(maxlen=size)

    def add(self, value: float | None) -> None:
        """Add a value, if there is one."""
        if value is not None:
            self._values.append(value)

    def as_dict(self) -> dict[str, float]:
        """Return mean, p50, p90 and p99 (nearest rank); nothing when there are no values."""
        values = sorted(self._values)
        if not values:
            return {}
        ranks = {f"p{p}": values[-(-p * len(values) // 100) - 1] for p in (50, 90, 99)}
        return {"mean": sum(values) / len(values), **ranks}


class EngineStats:
    """Counts steps and requests, and logs a line every few seconds while there is work.

    Attributes:
        totals: everything since the beginning.
        state: the scheduler's state after the last step.
    """

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter, window: int = 1000):
        """Begin at nothing.

        Args:
            clock: the time in seconds, for the rates in the log.
            window: how many of the latest steps and requests the percentiles are of.
        """
        self.totals = Totals()
        self.state = SchedulerState()
        self._clock = clock
        self._logged = Totals()
        self._log_start = 0.0
        self._last_step = -math.inf
        names = ("step_time", "time_in_queue", "time_to_first_token", "time_per_output_token")
        self._windows = {name: Window(window) for name in (*names, "request_time")}

    def record_step(
        self, plan: StepPlan, num_generated: int, seconds: float, state: SchedulerState
    ) -> None:
        """Count a step that is over.

        Args:
            plan: what it computed.
            num_generated: tokens that it gave.
            seconds: how long it took.
            state: the scheduler after it.
        """
        now = self._clock()
        self._begin_interval(now - seconds)
        totals = self.totals
        totals.steps += 1
        totals.step_seconds += seconds
        totals.scheduled_sequences += len(plan.scheduled)
        totals.prompt_tokens += plan.num_prompt_tokens
        totals.generation_tokens += num_generated
        self.state = state
        self._windows["step_time"].add(seconds)
        self._log(now)

    def record_finished(self, metrics: RequestMetrics | None, error: str | None = None) -> None:
        """Count a request that is over.

        Args:
            metrics: its times.
            error: what it failed by, which says nothing of how long requests take.
        """
        self.totals.finished_requests += 1
        if error is not None:
            self.totals.failed_requests += 1
        elif metrics is not None:
            for name in ("time_in_queue", "time_to_first_token", "time_per_output_token"):
                self._windows[name].add(getattr(metrics, name))
            if metrics.finished_time is not None:
                self._windows["request_time"].add(metrics.finished_time - metrics.arrival_time)

    def as_dict(self) -> dict[str, Any]:
        """Return all of it in plain types: counts, the scheduler's state, and seconds.

        What has mean, p50, p90 and p99 is of the latest steps or finished requests.
        """
        state = {**asdict(self.state), "prefix_hit_rate": self.state.prefix_hit_rate}
        windows = {name: window.as_dict() for name, window in self._windows.items()}
        return {**asdict(self.totals), **state, **windows}

    def _begin_interval(self, started: float) -> None:
        # Time in which there was nothing to do makes no rate.
        if started - self._last_step > LOG_INTERVAL:
            self._log_start = started
            self._logged = replace(self.totals)

    def _log(self, now: float) -> None:
        self._last_step = now
        elapsed = now - self._log_start
        if elapsed < LOG_INTERVAL:
            return
        totals, logged, state = self.totals, self._logged, self.state
        logger.info(
            "Avg prompt throughput: %.1f tokens/s, Avg generation throughput: %.1f tokens/s, "
            "Running: %d reqs, Swapped: %d reqs, Waiting: %d reqs, Preemptions: %d, "
            "KV cache usage: %.1f%%, Prefix cache hit rate: %.1f%%",
            (totals.prompt_tokens - logged.prompt_tokens) / elapsed,
            (totals.generation_tokens - logged.generation_tokens) / elapsed,
            state.running,
            state.swapped,
            state.waiting,
            state.preemptions,
            100 * state.cache_usage,
            100 * state.prefix_hit_rate,
        )
        self._log_start = now
        self._logged = replace(totals)
