"""Throughput on a GPU: nano-vllm's benchmark beside transformers. README.md says how to read it."""

from dataclasses import asdict

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.gpu import WAYS, Case, Measured, measure, summarize
from benchmarks.sampling import CLOCK, hand_over
from folovllm.bench.results import Say

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def measured(summary: list[str], say: Say) -> Measured:
    """All ways, once: the requests are many."""
    case = Case()
    result = measure(case, say)
    summary += summarize(case, result)
    return result


@pytest.mark.parametrize("name", ["many", "single"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.benchmark(timer=CLOCK)
def test_throughput(benchmark: BenchmarkFixture, measured: Measured, way: str, name: str) -> None:
    """Qwen3-0.6B's shape with random weights in bfloat16, at temperature 0.6."""
    result = measured.results[way]
    timing = getattr(result, name)
    assert timing is not None, result.note
    benchmark.group = name
    benchmark.extra_info |= {
        **asdict(timing),
        "tokens_a_second": timing.rate,
        "share": timing.share,
        "note": result.note,
        "limits": asdict(measured.limits),
    }
    hand_over(benchmark, [timing.seconds])
