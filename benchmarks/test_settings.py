"""What the engine's ideas are worth, one setting at a time: the figures of the milestones' logs.

All cases run in turn in one process, each on an engine of its own over the same model.
"""

import gc
import os
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import folovllm
from benchmarks.sampling import CLOCK, hand_over
from folovllm import LLM, RequestOutput, SamplingParams
from folovllm.bench.results import Say

# 16 prompts that begin alike, and one long one that comes last: 5,376 tokens in, 272 out.
COMMON, OWN, LONG, OUTPUT = 192, 64, 1280, 16

CASES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "one at a time": {"max_num_seqs": 1},
    "four at a time": {"max_num_seqs": 4},
    "128 tokens a step": {"max_num_batched_tokens": 128},
    "2048 tokens a step": {"max_num_batched_tokens": 2048},
    "no prefix caching": {"enable_prefix_caching": False},
    "120 blocks": {"num_gpu_blocks_override": 120},
    "120 blocks, no prefix caching": {
        "num_gpu_blocks_override": 120,
        "enable_prefix_caching": False,
    },
}


@dataclass
class Figures:
    """What was measured in a case, a value a round."""

    seconds: list[float] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    longest_step: list[float] = field(default_factory=list)
    preemptions: int = 0
    cached_tokens: int = 0
    peak_usage: float = 0.0


@pytest.fixture(scope="module")
def figures(rounds: int, threads: int, summary: list[str], say: Say) -> dict[str, Figures]:
    """All cases, one run of each in turn."""
    torch.set_num_threads(threads)
    model = os.environ.get("FOLOVLLM_MODEL") or str(folovllm.ensure_demo_model())
    taken = {name: Figures() for name in CASES}
    for number in range(1, rounds + 1):
        say(f"round {number} of {rounds}, load average {os.getloadavg()[0]:.2f}")
        for name, options in CASES.items():
            llm = LLM(model, dtype="float32", device="cpu", max_model_len=2048, **options)
            run(llm, taken[name])
            del llm
            gc.collect()
    summary += list(summarize(taken))
    return taken


def run(llm: LLM, figures: Figures) -> None:
    """Generate, and watch each step."""
    rng = random.Random(1)
    common = [rng.randrange(100, 48_000) for _ in range(COMMON)]
    prompts = [common + [rng.randrange(100, 48_000) for _ in range(OWN)] for _ in range(16)]
    prompts.append([rng.randrange(100, 48_000) for _ in range(LONG)])
    params = SamplingParams(temperature=0, max_tokens=OUTPUT, ignore_eos=True, detokenize=False)
    llm.generate([5, 6, 7], params, use_tqdm=False)  # the first run takes memory
    engine = llm.llm_engine
    step, longest = engine.step, 0.0

    def watch() -> list[RequestOutput]:
        nonlocal longest
        start = time.perf_counter()
        outputs = step()
        longest = max(longest, time.perf_counter() - start)
        figures.peak_usage = max(figures.peak_usage, engine.cache_manager.usage)
        return outputs

    engine.step = watch  # type: ignore[method-assign]
    start = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    figures.seconds.append(time.perf_counter() - start)
    waits = [o.metrics.time_to_first_token for o in outputs if o.metrics]
    figures.first_token.append(median(wait for wait in waits if wait is not None))
    figures.longest_step.append(longest)
    figures.preemptions = engine.scheduler.num_preemptions
    figures.cached_tokens = sum(output.num_cached_tokens or 0 for output in outputs)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.benchmark(timer=CLOCK)
def test_setting(benchmark: BenchmarkFixture, figures: dict[str, Figures], name: str) -> None:
    """16 prompts of 256 tokens, 192 of them the same, and one of 1280; 16 tokens out each."""
    taken = figures[name]
    benchmark.extra_info |= {"figures": asdict(taken), "options": CASES[name]}
    hand_over(benchmark, taken.seconds)


def summarize(taken: dict[str, Figures]) -> Iterator[str]:
    """A line a setting."""
    columns = "{:<31}{:>9}{:>14}{:>14}{:>13}{:>9}{:>8}".format
    yield ""
    yield columns("medians", "all", "first token", "longest step", "preemptions", "cached", "cache")
    for name, figures in taken.items():
        yield columns(
            name,
            f"{median(figures.seconds):.2f} s",
            f"{median(figures.first_token):.2f} s",
            f"{median(figures.longest_step):.2f} s",
            figures.preemptions,
            figures.cached_tokens,
            f"{figures.peak_usage:.0%}",
        )
