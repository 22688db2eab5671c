"""How long a model takes until it is ready for its first token: `folovllm.bench.load`."""

import sys
from itertools import product

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.sampling import CLOCK, hand_over
from folovllm.bench.load import CACHES, DTYPES, MODELS, case_of, dtypes, measure_load
from folovllm.bench.results import BenchError, Measurement
from folovllm.bench.session import Session
from folovllm.config import BenchConfig, EngineConfig

if sys.platform != "linux":
    pytest.skip("only Linux lets one prove what is in the page cache", allow_module_level=True)


class Load:
    """What was measured, by case and way, and why something is missing."""

    def __init__(self, engine_config: EngineConfig, rounds: int | None, session: Session) -> None:
        """Measure everything."""
        self.ready: dict[tuple[str, str], Measurement] = {}
        self.asked = dtypes(engine_config)
        self.missing = ""

        def record(measurement: Measurement) -> None:
            session.record(measurement)
            if measurement.metric == "ready":
                self.ready[measurement.case, measurement.way] = measurement

        try:
            measure_load(engine_config, rounds, record, session.say)
        except BenchError as error:
            self.missing = str(error)


@pytest.fixture(scope="module")
def load(engine_config: EngineConfig, bench_config: BenchConfig, session: Session) -> Load:
    return Load(engine_config, bench_config.bench_rounds, session)


@pytest.mark.parametrize("way", [*MODELS, "safetensors", "read"])
@pytest.mark.parametrize(("cache", "dtype"), list(product(CACHES, DTYPES)))
@pytest.mark.benchmark(timer=CLOCK)
def test_ready(benchmark: BenchmarkFixture, load: Load, cache: str, dtype: str, way: str) -> None:
    if dtype not in load.asked:
        pytest.skip("another data type was asked for")
    case = case_of(dtype, cache)
    if (case, way) not in load.ready:
        pytest.fail(load.missing, pytrace=False)
    benchmark.group = case
    hand_over(benchmark, load.ready[case, way].samples)


def test_all_was_measured(load: Load) -> None:
    if load.missing:
        pytest.fail(load.missing, pytrace=False)
