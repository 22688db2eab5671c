"""How long a model takes until it is ready for its first token: `folovllm.bench.load`."""

import sys
from itertools import product

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.sampling import CLOCK, Suite
from folovllm.bench.load import CACHES, DTYPES, MODELS, case_of, measure_load
from folovllm.bench.session import Session
from folovllm.config import BenchConfig, EngineConfig

if sys.platform != "linux":
    pytest.skip("only Linux lets one prove what is in the page cache", allow_module_level=True)


@pytest.fixture(scope="module")
def suite(engine_config: EngineConfig, bench_config: BenchConfig, session: Session) -> Suite:
    rounds = bench_config.bench_rounds
    return Suite(
        "load",
        session,
        lambda: measure_load(engine_config, rounds, session.record, session.say),
    )


@pytest.mark.parametrize("way", [*MODELS, "safetensors", "read"])
@pytest.mark.parametrize(("cache", "dtype"), list(product(CACHES, DTYPES)))
@pytest.mark.benchmark(timer=CLOCK)
def test_ready(benchmark: BenchmarkFixture, suite: Suite, cache: str, dtype: str, way: str) -> None:
    suite.hand_over(benchmark, case_of(dtype, cache), way, "ready")


def test_all_was_measured(suite: Suite) -> None:
    suite.check()
