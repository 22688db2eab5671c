"""How fast closed batches are generated, beside transformers' `generate`: `bench.throughput`."""

from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.sampling import CLOCK, Suite
from folovllm.bench import suites
from folovllm.bench.peer import PEER
from folovllm.bench.results import OURS
from folovllm.bench.session import Session
from folovllm.bench.throughput import DEFAULT_CASES
from folovllm.config import BenchConfig, EngineConfig
from folovllm.config.bench import RequestsConfig, ThroughputConfig


@pytest.fixture(scope="module")
def suite(
    session: Session, engine_config: EngineConfig, bench_config: BenchConfig, own: dict[type, Any]
) -> Suite:
    settings = own[RequestsConfig], own[ThroughputConfig]
    return Suite(
        "throughput",
        session,
        lambda: suites.throughput(engine_config, bench_config, session, *settings),
    )


@pytest.mark.parametrize("way", [OURS, PEER])
@pytest.mark.parametrize("name", DEFAULT_CASES)
@pytest.mark.benchmark(timer=CLOCK)
def test_generate(benchmark: BenchmarkFixture, suite: Suite, name: str, way: str) -> None:
    """Greedy, end-of-sequence ignored, random prompts."""
    suite.hand_over(benchmark, name, way, "time")


def test_all_was_measured(suite: Suite) -> None:
    suite.check()
