"""Attention of one layer by each backend that serves here, as a share of what the device can do.

The shape is Qwen3-0.6B's. Decoding is held against reading its keys and values once, prompts
against the products of queries with the keys that they see. Several calls are timed together, as
the layers of a step follow one another; on a GPU they are captured where the backend allows it,
as the engine does, so that no launch is waited for, and what decoding reads is more than a GPU's
own cache holds.
"""

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.sampling import CLOCK, hand_over
from folovllm.attention.backend import (
    AttentionBackend,
    AttentionNeeds,
    AttentionOptions,
    LayerAttention,
    LayerCache,
    LayerSpec,
)
from folovllm.attention.batch import lay_out
from folovllm.attention.choice import BACKENDS
from folovllm.diagnostics.limits import DeviceLimits, measure_limits

HEADS, KV_HEADS, SIZE = 16, 8, 128
OPTIONS = AttentionOptions(SIZE**-0.5)
CALLS = 20

CPU_CASES = {"decode 8 x 1024": (8, 1023, 1), "prompt 1 x 1024": (1, 0, 1024)}
CUDA_CASES = {
    "decode 1 x 32768": (1, 32767, 1),
    "decode 64 x 1024": (64, 1023, 1),
    "decode 256 x 1024": (256, 1023, 1),
    "prompt 1 x 8192": (1, 0, 8192),
    "prompts 16 x 512": (16, 0, 512),
    "prompt 1 x 2048 after 8192": (1, 8192, 2048),
}
"""Sequences, tokens before this step's, and tokens of this step, of each sequence."""


def _device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


DEVICE = _device()
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
LAYER = LayerAttention(LayerSpec(KV_HEADS, SIZE, SIZE), HEADS, OPTIONS)
CASES = CUDA_CASES if DEVICE.type == "cuda" else CPU_CASES


@pytest.fixture(scope="module")
def limits() -> DeviceLimits:
    """What the device can do at most."""
    return measure_limits(DEVICE, DTYPE)


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@torch.inference_mode()
def test_attention(
    benchmark: BenchmarkFixture,
    rounds: int,
    summary: list[str],
    limits: DeviceLimits,
    backend: AttentionBackend,
    case: str,
) -> None:
    """Write a step's keys and values, and attend."""
    if why := backend.refusal(AttentionNeeds(DEVICE, DTYPE, (LAYER,), None)):
        pytest.skip(f"{backend.name} {why}")
    seqs, context, new = CASES[case]
    seconds = _measure(backend, seqs, context, new, rounds)
    hand_over(benchmark, seconds)
    middle = median(seconds)
    share = _limit(limits, seqs, context, new) / middle
    benchmark.extra_info |= {"case": case, "backend": backend.name, "share_of_limit": share}
    summary.append(f"{case:28} {backend.name:8} {middle * 1e6:10.1f} us {share:7.1%} of the limit")


def _measure(
    backend: AttentionBackend, seqs: int, context: int, new: int, rounds: int
) -> list[float]:
    """Seconds of one call, of each round."""
    size = backend.block_size
    width = -(-(context + new) // size)
    tables = torch.randperm(seqs * width).add(1).view(seqs, width).int().numpy()
    token_ids = np.zeros(seqs * new, np.int64)
    contexts, counts = (np.full(seqs, number) for number in (context, new))
    metadata = backend.build(lay_out(token_ids, contexts, counts, tables, size), DEVICE)
    pages = (seqs * width + 1, size, KV_HEADS, SIZE)
    cache = LayerCache(*(torch.randn(pages, device=DEVICE, dtype=DTYPE) for _ in range(2)))
    tokens = torch.randn(seqs * new, HEADS + 2 * KV_HEADS, SIZE, device=DEVICE, dtype=DTYPE)
    parts = tokens.transpose(0, 1)[None].split([HEADS, KV_HEADS, KV_HEADS], 1)

    def calls() -> None:
        for _ in range(CALLS):
            backend.attend(metadata, cache, *parts, OPTIONS)

    calls()  # compiles, and takes memory
    if DEVICE.type != "cuda":
        return [_seconds(calls) / CALLS for _ in range(rounds)]
    torch.cuda.synchronize()
    run: Callable[[], object] = calls
    if backend.captures:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            calls()
        run = graph.replay
    return [_device_seconds(run) / CALLS for _ in range(rounds)]


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _device_seconds(run: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def _limit(limits: DeviceLimits, seqs: int, context: int, new: int) -> float:
    """The shortest time that the device could take, in seconds."""
    length = context + new
    read = seqs * length * 2 * KV_HEADS * SIZE * DTYPE.itemsize
    seen = seqs * sum(range(context + 1, length + 1))  # keys, by all tokens together
    return max(read / limits.bandwidth, 4 * seen * HEADS * SIZE / limits.rate)
