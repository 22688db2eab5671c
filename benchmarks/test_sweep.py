"""Requests that come at one rate after another: `folovllm.bench.sweep`."""

from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.sampling import CLOCK, Suite
from folovllm.bench import suites
from folovllm.bench.results import OURS
from folovllm.bench.session import Session
from folovllm.config import BenchConfig, EngineConfig
from folovllm.config.bench import RequestsConfig, SweepConfig


@pytest.fixture(scope="module")
def suite(
    session: Session, engine_config: EngineConfig, bench_config: BenchConfig, own: dict[type, Any]
) -> Suite:
    settings = own[RequestsConfig], own[SweepConfig]
    return Suite(
        "sweep", session, lambda: suites.sweep(engine_config, bench_config, session, *settings)
    )


@pytest.mark.parametrize("metric", ["time to first token", "time per output token", "latency"])
@pytest.mark.benchmark(timer=CLOCK)
def test_all_at_once(benchmark: BenchmarkFixture, suite: Suite, metric: str) -> None:
    """The one case that each sweep has; the rates depend on the machine."""
    suite.hand_over(benchmark, "all at once", OURS, metric)


def test_all_was_measured(suite: Suite) -> None:
    suite.check()
