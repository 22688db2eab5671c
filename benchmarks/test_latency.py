"""How long one waits for the first and for the next token: `folovllm.bench.latency`."""

from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.sampling import CLOCK, Suite
from folovllm.bench import suites
from folovllm.bench.latency import LatencyPlan
from folovllm.bench.results import OURS
from folovllm.bench.session import Session
from folovllm.config import BenchConfig, EngineConfig
from folovllm.config.bench import LatencyConfig

PLAN = LatencyPlan()


@pytest.fixture(scope="module")
def suite(
    session: Session, engine_config: EngineConfig, bench_config: BenchConfig, own: dict[type, Any]
) -> Suite:
    settings = own[LatencyConfig]
    return Suite(
        "latency", session, lambda: suites.latency(engine_config, bench_config, session, settings)
    )


@pytest.mark.parametrize("length", PLAN.prompts)
@pytest.mark.benchmark(timer=CLOCK)
def test_first_token(benchmark: BenchmarkFixture, suite: Suite, length: int) -> None:
    suite.hand_over(benchmark, f"prompt of {length} tokens", OURS, "time to first token")


@pytest.mark.parametrize(("batch", "context"), PLAN.points)
@pytest.mark.benchmark(timer=CLOCK)
def test_next_token(benchmark: BenchmarkFixture, suite: Suite, batch: int, context: int) -> None:
    case = f"batch of {batch}, context of {context}"
    suite.hand_over(benchmark, case, OURS, "time per output token")


def test_all_was_measured(suite: Suite) -> None:
    suite.check()
